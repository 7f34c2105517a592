"""The files of a plan as SVG: one bar each, with a segment for consecutive tensors of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from dcptools._text import counted, format_bytes
from dcptools.reviewing.tables import escape, scrolled
from dcptools.shards import PlannedTensor, ShardFile, ShardPlan

MOST_BARS = 100
WIDTH, LABEL, BAR, STEP = 1000, 280, 16, 22  # of the picture, of the names, of a bar, from bar to bar
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a00", "#777777")
_LAYER = re.compile(r"\.(\d+)\.")


def shards_svg(planned: ShardPlan) -> str:
    """The picture, with a text that describes it and one for each segment."""
    shown = planned.files[:MOST_BARS]
    scale = (WIDTH - LABEL) / max(file.data_nbytes for file in shown) if any(f.data_nbytes for f in shown) else 0.0
    bars = "".join(bar for row, file in enumerate(shown) for bar in _bar(row, file, scale))
    about = f"{counted(len(planned.files), 'file')}, {format_bytes(planned.total_bytes)} of values, coloured by layer"
    note = f"<p>The first {MOST_BARS} files.</p>" if len(planned.files) > MOST_BARS else ""
    svg = f'<svg role="img" aria-label="{escape(about)}" viewBox="0 0 {WIDTH} {STEP * len(shown)}">{bars}</svg>'
    return scrolled(svg, "picture") + note


def _bar(row: int, file: ShardFile, scale: float) -> Iterator[str]:
    top = row * STEP
    yield f'<text x="0" y="{top + BAR - 3}">{escape(file.filename)}</text>'
    for layer, group in groupby(file.tensors, _layer):
        tensors = list(group)
        start, nbytes = tensors[0].start - len(file.header), sum(tensor.nbytes for tensor in tensors)
        colour = _COLOURS[int(layer[-6:]) % (len(_COLOURS) - 1)] if layer else _COLOURS[-1]
        where = f"layer {layer}" if layer else tensors[0].output.name
        title = f"{where}: {counted(len(tensors), 'tensor')}, {format_bytes(nbytes)}"
        width = max(nbytes * scale - 0.5, 0.3)
        line = ' stroke="#171717" stroke-width="0.5"' if width > 2 else ""  # makes light colours visible
        yield (
            f'<rect x="{LABEL + start * scale:.2f}" y="{top + 0.5}" width="{width:.2f}" '
            f'height="{BAR}" fill="{colour}"{line}><title>{escape(title)}</title></rect>'
        )


def _layer(tensor: PlannedTensor) -> str:
    """The digits of its layer; empty outside the layers."""
    found = _LAYER.search(tensor.output.name)
    return found[1] if found and found[1].isascii() else ""
