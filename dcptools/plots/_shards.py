"""The output files of a plan: one bar each, with tensors as its segments."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dcptools._text import format_bytes
from dcptools.errors import UsageError
from dcptools.plots import _figure as page
from dcptools.shards import ShardFile, ShardPlan

MOST_SEGMENTS = 1000  # rectangles; more would be thinner than a pixel
MOST_IN_LEGEND = 12  # layers
MOST_SEPARATED = 300  # files that are distinguished
MOST_NAMES = 40  # files with their names beside the bars
FAR_LIMIT = 2.5  # a limit this many times the longest bar would only make the bars short

OUTSIDE = "outside the layers"
_LAYER = re.compile(r"\.(\d+)\.")
_KINDS = (  # the first that matches; the order matters: q_norm is in self_attn, experts are in mlp
    ("norm", re.compile(r"norm|(^|\.)ln_\w+\."), page.RED),
    ("experts", re.compile(r"expert"), page.PURPLE),
    ("attention", re.compile(r"attn|attention"), page.BLUE),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|(^|\.)(fc\d|moe|block_sparse_moe)\."), page.ORANGE),
    ("embedding", re.compile(r"embed|(^|\.)(wte|wpe|lm_head|score)\."), page.GREEN),
    ("other", re.compile(""), page.GREY),
)


class Segment(NamedTuple):
    """A rectangle of a bar: a tensor, or neighbours that are drawn as one."""

    start: int  # bytes of the file's values
    nbytes: int
    group: str
    first: str  # names
    last: str
    tensors: int


class _Groups(NamedTuple):
    of: Callable[[str], str]  # name of a tensor -> its group
    colours: dict[str, str]  # group -> colour, in the order of the legend


def shards(plan: ShardPlan, *, color_by: Literal["layer", "module"] = "layer", limit: bool = True) -> Figure:
    """Draw the output files: one horizontal bar per file, with its tensors as segments, in the order of their places.

    Bytes are those of the values, which is what the shard size limits; a file's header is not drawn. For a plan with
    more than 1,000 tensors, neighbours of one colour are drawn as one segment, and if that is not enough, so are
    neighbours that would be too thin to see, in the colour of most of their bytes.

    Parameters
    ----------
    plan
        What :func:`dcptools.plan` returned.
    color_by
        ``layer`` (by number, and one colour for what is outside the layers) or ``module`` (attention, mlp, norm,
        embedding with the output head, experts, other).
    limit
        Draw the shard size as a line; if it is far beyond the longest bar, it is only mentioned.

    Raises
    ------
    UsageError
        ``color_by`` is something else.

    Examples
    --------
    >>> from dcptools import plan, plots
    >>> figure = plots.shards(plan(demo.checkpoint, shard_size="200kB"), color_by="module")
    >>> print(plots.describe(figure))  # doctest: +ELLIPSIS
    Bar chart of the output files of a plan, coloured by module: 9 files, 1.45 MB of values (bfloat16), ...
    """
    groups = _groups(plan, color_by)
    bars, merged = _bars(plan, groups.of)
    longest = max((file.data_nbytes for file in plan.files), default=0)
    shown_limit = limit and plan.options.shard_size <= FAR_LIMIT * longest

    height = 0.27 * len(bars) if len(bars) <= MOST_NAMES else max(5.0, 0.06 * len(bars))
    figure, axes = page.new_figure(max(2.0, 1.5 + height))
    right = 1.02 * max(longest, plan.options.shard_size if shown_limit else 1)
    drawn = _draw(axes, bars, groups.colours, separated=math.inf if merged else right / 300)
    page.explain(figure, drawn, "segments", [_tip(segment, color_by) for bar in bars for segment in bar])
    axes.set(xlim=(0, right), ylim=(len(bars) - 0.4, -0.6))
    axes.set_xlabel("bytes of values in the file", color=page.INK, fontsize=9)
    page.byte_axis(axes, right)
    axes.grid(axis="x", color=page.GRID, linewidth=0.8)
    _label_files(axes, plan.files)
    notes = [f"coloured by {color_by}" + (f"; {merged}" if merged else "")]
    if limit and not shown_limit:
        notes.append(f"the limit of {format_bytes(plan.options.shard_size)} per file is far to the right")
    if shown_limit:
        _draw_limit(axes, plan.options.shard_size)
    page.titled(figure, _headline(plan), notes)
    _legend(figure, groups, color_by)
    return page.finished(figure, _description(plan, color_by))


def _groups(plan: ShardPlan, color_by: str) -> _Groups:
    if color_by not in ("layer", "module"):
        raise UsageError(f"Cannot colour by {color_by!r}.\nExpected 'layer' or 'module'.")
    group = _layer if color_by == "layer" else _kind
    present = {group(t.output.name) for file in plan.files for t in file.tensors}
    if color_by == "module":
        return _Groups(group, {kind: colour for kind, _, colour in _KINDS if kind in present})
    layers = sorted(present - {OUTSIDE}, key=int)
    colours = dict(zip(layers, page.sequential(len(layers)), strict=True))
    return _Groups(group, colours | ({OUTSIDE: page.RED} if OUTSIDE in present else {}))


def _layer(name: str) -> str:
    match = _LAYER.search(name)
    return str(int(match.group(1)[:9])) if match else OUTSIDE


def _kind(name: str) -> str:
    return next(kind for kind, pattern, _ in _KINDS if pattern.search(name))


def _bars(plan: ShardPlan, group_of: Callable[[str], str]) -> tuple[list[list[Segment]], str]:
    """The segments of each file, and how they differ from its tensors if there are too many of those."""
    bars = [
        [
            Segment(t.start - len(file.header), t.nbytes, group_of(name := t.output.name), name, name, 1)
            for t in file.tensors
            if t.nbytes
        ]
        for file in plan.files
    ]
    if sum(map(len, bars)) <= MOST_SEGMENTS:
        return bars, ""
    bars = [list(_runs(bar)) for bar in bars]
    if sum(map(len, bars)) <= MOST_SEGMENTS:
        return bars, "neighbours of one colour are drawn as one"
    tiny = 2 * plan.total_bytes // MOST_SEGMENTS
    bars = [list(_coarse(bar, tiny)) for bar in bars]
    return bars, f"neighbours of less than {format_bytes(tiny)} are drawn as one"


def _runs(bar: Iterable[Segment]) -> Iterator[Segment]:
    """Neighbours of one group as one; nothing visible is lost."""
    for _, run in groupby(bar, key=lambda segment: segment.group):
        yield _as_one(list(run))


def _coarse(bar: Iterable[Segment], tiny: int) -> Iterator[Segment]:
    """Neighbours of less than ``tiny`` bytes as one, until they are no longer tiny."""
    gathered: list[Segment] = []
    nbytes = 0
    for segment in bar:
        if gathered and segment.nbytes >= tiny:
            yield _as_one(gathered)
            gathered, nbytes = [], 0
        gathered.append(segment)
        nbytes += segment.nbytes
        if nbytes >= tiny:
            yield _as_one(gathered)
            gathered, nbytes = [], 0
    if gathered:
        yield _as_one(gathered)


def _as_one(parts: Sequence[Segment]) -> Segment:
    """Neighbours as one, in the group that has most of their bytes."""
    groups: Counter[str] = Counter()
    for part in parts:
        groups[part.group] += part.nbytes
    tensors = sum(part.tensors for part in parts)
    return Segment(parts[0].start, groups.total(), groups.most_common(1)[0][0], parts[0].first, parts[-1].last, tensors)


def _tip(segment: Segment, color_by: str) -> str:
    names = page.tip_name(segment.first)
    if segment.tensors > 1:
        names = f"{segment.tensors:,} tensors:\n{names}\nto {page.tip_name(segment.last)}"
    group = segment.group if segment.group == OUTSIDE else f"{color_by} {segment.group}"
    return f"{names}\n{format_bytes(segment.nbytes)}, {group}"


def _draw(axes: Axes, bars: Sequence[Iterable[Segment]], colours: dict[str, str], separated: float) -> PolyCollection:
    """All segments as one artist; an edge goes around those wider than ``separated``, and would hide others."""
    rows = [(row, segment) for row, bar in enumerate(bars) for segment in bar]
    numbers = [(row, segment.start, segment.nbytes) for row, segment in rows]
    y, x, width = np.array(numbers, dtype=float).reshape(-1, 3).T
    half = 0.4 if len(bars) <= MOST_NAMES else 0.5
    corners = np.stack([x, y - half, x, y + half, x + width, y + half, x + width, y - half], axis=1).reshape(-1, 4, 2)
    faces = [colours[segment.group] for _, segment in rows]
    edges = [page.EDGE if wide else face for wide, face in zip(width > separated, faces, strict=True)]
    drawn = PolyCollection(list(corners), facecolors=faces, edgecolors=edges, linewidths=0.4, label="segments")
    axes.add_collection(drawn, autolim=False)
    if len(bars) <= MOST_NAMES:  # around the narrow ones, too
        lengths = np.bincount(y.astype(int), width, len(bars))
        around = [
            [(0, row - half), (0, row + half), (end, row + half), (end, row - half)] for row, end in enumerate(lengths)
        ]
        frames = PolyCollection(around, facecolors="none", edgecolors=page.EDGE, linewidths=0.4, label="bars")
        axes.add_collection(frames, autolim=False)
    if MOST_NAMES < len(bars) <= MOST_SEPARATED:  # thin gaps would come out at one or two pixels; lines are all equal
        axes.hlines(np.arange(1, len(bars)) - 0.5, 0, 1, "white", linewidth=0.5, transform=axes.get_yaxis_transform())
    return drawn


def _label_files(axes: Axes, files: Sequence[ShardFile]) -> None:
    """Names and sizes beside the bars; for many files only numbers, and not all of them."""
    if len(files) <= MOST_NAMES:
        axes.set_yticks(range(len(files)), [page.name_label(file.filename) for file in files])
        beside = axes.get_yaxis_transform()
        for row, file in enumerate(files):
            size = format_bytes(file.data_nbytes)
            axes.text(1.01, row, size, transform=beside, va="center", fontsize=page.SMALL, color=page.FAINT)
    else:
        step = next(s for s in (5, 10, 20, 50, *range(100, len(files) + 100, 100)) if len(files) / s <= MOST_NAMES)
        numbers = [1, *range(step, len(files) + 1, step)]
        axes.set_yticks([number - 1 for number in numbers], [f"{number:,}" for number in numbers])
        axes.set_ylabel("number of the file", color=page.INK, fontsize=9)
    axes.tick_params(axis="y", length=0, labelsize=page.SMALL)


def _draw_limit(axes: Axes, nbytes: int) -> None:
    text = f"limit {format_bytes(nbytes)}"
    axes.axvline(nbytes, color=page.INK, linestyle=(0, (4, 2)), linewidth=1.4, label=text)
    axes.annotate(
        text, (nbytes, 1), (0, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha="center",
        fontsize=page.SMALL, color=page.INK,
    )  # fmt: skip


def _legend(figure: Figure, groups: _Groups, color_by: str) -> None:
    """The groups and their colours; for many layers, an evenly spaced selection."""
    entries = [entry for entry in groups.colours.items() if entry[0] != OUTSIDE]
    title = color_by
    if len(entries) > MOST_IN_LEGEND:
        title += f" (8 of {len(entries):,})"
        entries = [entries[i] for i in np.linspace(0, len(entries) - 1, 8).round().astype(int)]
    entries += [entry for entry in groups.colours.items() if entry[0] == OUTSIDE]
    page.legend(figure, [Patch(facecolor=colour, edgecolor=page.EDGE, label=group) for group, colour in entries], title)


def _headline(plan: ShardPlan) -> str:
    return f"{page.plural(len(plan.files), 'file')}, {format_bytes(plan.total_bytes)} of values ({plan.options.dtype})"


def _description(plan: ShardPlan, color_by: str) -> str:
    sizes = [file.data_nbytes for file in plan.files] or [0]
    return (
        f"Bar chart of the output files of a plan, coloured by {color_by}: {_headline(plan)}, from "
        f"{format_bytes(min(sizes))} to {format_bytes(max(sizes))} each, with a limit of "
        f"{format_bytes(plan.options.shard_size)} per file."
    )
