"""Which rank and file holds which region of one tensor."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dcptools.checkpoint import Checkpoint, StoredTensor, as_checkpoint
from dcptools.plots import _figure as page

MOST_BOXES = 10_000  # chunks that are drawn
MOST_LABELLED = 300
MOST_IN_LEGEND = 16
_DISTCP = re.compile(r"(?:.*/)?__(\d{1,9})_\d+\.distcp")
_INNER = (6.2, 3.6)  # inches of the axes, roughly: is there room for a label?
_LETTER = (0.068, 0.15)  # inches of a letter, and from line to line


class _Owner(NamedTuple):
    """Who wrote a file. In the order of ranks, then files whose names give none."""

    unranked: bool
    rank: int
    name: str  # "rank 3", or the file's name

    def order(self) -> tuple[bool, int, list[tuple[int, int, str]]]:
        return self.unranked, self.rank, page.natural(self.name)


@dataclass(slots=True)
class _Box:
    """A rectangle of the picture, and the chunks that are shown there."""

    x: tuple[int, int]  # start and stop in elements
    y: tuple[int, int]
    files: dict[str, None]


class _Picture(NamedTuple):
    """How a tensor is laid out on the page."""

    x: int | None  # dimension along the x axis; None: there is none
    y: int | None
    note: str


def chunks(checkpoint: Checkpoint | str | os.PathLike[str], key: str) -> Figure:
    """Draw how one tensor is cut: which rank and file holds which region, and what no chunk holds (hatched).

    Rows go down and columns to the right, in elements. A tensor of one dimension is a strip; for a tensor of more than
    two, the two dimensions that are cut are drawn, and the title says which. The rank is read from the file's name,
    ``__<rank>_<n>.distcp``.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or a path.
    key
        A tensor's key.

    Raises
    ------
    UnknownKey
        There is no such tensor.
    DcptoolsError
        What :func:`dcptools.read` raises for a path.

    Examples
    --------
    >>> from dcptools import plots
    >>> figure = plots.chunks(demo.checkpoint, "model.lm_head.weight")
    >>> print(plots.describe(figure))
    Map of the chunks of model.lm_head.weight: [515, 128] float32: 4 chunks, from 4 ranks in 4 files.
    """
    checkpoint = as_checkpoint(checkpoint)
    tensor = checkpoint[key]
    picture = _picture(tensor)
    boxes = _boxes(tensor, picture)
    colours = _colours(boxes)
    problems = [f for f in checkpoint.findings if f.key == key and f.severity == "error"]
    holes = any(problem.code in ("hole", "overlap", "no-storage") for problem in problems)
    size = tuple(1 if dim is None else tensor.shape[dim] for dim in (picture.x, picture.y))

    figure, axes = page.new_figure(2.4 if picture.y is None else 5.2)
    if holes:
        axes.add_patch(_hatched(*size))
    drawn = _draw(axes, boxes, colours, *size)
    page.explain(figure, drawn, "chunks", [_tip(box, picture) for box in boxes])
    if not tensor.numel:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color=page.INK)
    _label_axes(axes, tensor, picture)
    legend = [Patch(facecolor=colours[owner], edgecolor=page.EDGE, label=owner.name) for owner in _few(list(colours))]
    page.legend(figure, [*legend, *([_hatched(1, 1)] if holes else [])], _legend_title(len(colours)))
    notes = [_counts(tensor, boxes), picture.note, *(page.name_label(found.message, 110) for found in problems[:2])]
    if len(tensor.offsets) > MOST_BOXES:
        notes.append(f"only the first {MOST_BOXES:,} chunks are drawn")
    page.titled(figure, page.name_label(key), notes)
    described = "; ".join(note for note in notes if note)
    return page.finished(figure, f"Map of the chunks of {page.name_label(key)}: {described}.")


def _picture(tensor: StoredTensor) -> _Picture:
    """The two dimensions to draw: of two, both; of more, those that are cut, or the last ones if none is."""
    dims = len(tensor.shape)
    if not tensor.numel:
        return _Picture(None, None, "")
    if dims <= 2:
        return _Picture(dims - 1 if dims else None, 0 if dims == 2 else None, "")
    pieces = [len(np.unique(tensor.offsets[:, dim])) for dim in range(dims)]
    cut = [dim for dim in range(dims) if (tensor.sizes[:, dim] != tensor.shape[dim]).any()]
    ranked = sorted(range(dims), key=lambda dim: (dim in cut, pieces[dim], dim), reverse=True)
    y, x = sorted(ranked[:2])
    note = f"drawn: dimensions {y} and {x} of {dims}; "
    if len(cut) > 2:
        return _Picture(x, y, note + f"it is also cut along {', '.join(str(d) for d in cut if d not in (x, y))}")
    return _Picture(x, y, note + "no chunk is cut along the others")


def _boxes(tensor: StoredTensor, picture: _Picture) -> list[_Box]:
    found: dict[tuple[tuple[int, int], tuple[int, int]], _Box] = {}
    for index in range(min(len(tensor.offsets), MOST_BOXES)):
        chunk = tensor.chunk(index)
        if 0 in chunk.shape or not chunk.file:
            continue
        x, y = (
            (0, 1) if dim is None else (chunk.offsets[dim], chunk.offsets[dim] + chunk.shape[dim])
            for dim in (picture.x, picture.y)
        )
        found.setdefault((x, y), _Box(x, y, {})).files[chunk.file] = None
    return list(found.values())


def _owner(file: str) -> _Owner:
    match = _DISTCP.fullmatch(file)
    if match:
        return _Owner(False, int(match.group(1)), f"rank {int(match.group(1))}")
    return _Owner(True, 0, page.name_label(file, 30))


def _first_owner(box: _Box) -> _Owner:
    return _owner(next(iter(box.files)))


def _colours(boxes: list[_Box]) -> dict[_Owner, str]:
    """Every writer of a box with its colour: up to eight that differ, otherwise from dark to light by rank."""
    owners = sorted({_owner(file) for box in boxes for file in box.files}, key=_Owner.order)
    few = len(owners) <= len(page.QUALITATIVE)
    return dict(zip(owners, page.QUALITATIVE if few else page.sequential(len(owners)), strict=False))


def _hatched(width: int, height: int) -> Rectangle:
    """A ground under all boxes, which shows where there are none."""
    return Rectangle(
        (0, 0), width, height, facecolor="white", edgecolor=page.INK, hatch="///", linewidth=0.5, label="not stored"
    )


def _draw(axes: Axes, boxes: list[_Box], colours: dict[_Owner, str], width: int, height: int) -> PolyCollection:
    """The boxes, in the colour of their first writer, with the longest label that fits."""
    axes.set(xlim=(0, width), ylim=(height, 0))
    inches = [((b.x[1] - b.x[0]) / width * _INNER[0], (b.y[1] - b.y[0]) / height * _INNER[1]) for b in boxes]
    thinnest = min((min(pair) for pair in inches), default=1.0)
    corners = [[(b.x[0], b.y[0]), (b.x[0], b.y[1]), (b.x[1], b.y[1]), (b.x[1], b.y[0])] for b in boxes]
    faces = [colours[_first_owner(box)] for box in boxes]
    edge = min(0.8, 8 * thinnest)  # points
    drawn = PolyCollection(corners, facecolors=faces, edgecolors=page.EDGE, linewidths=edge, label="chunks")
    axes.add_collection(drawn, autolim=False)
    axes.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor=page.INK, linewidth=1, clip_on=False))
    for box, room, face in list(zip(boxes, inches, faces, strict=True))[:MOST_LABELLED]:
        text = _label(box, *room)
        if not text:
            continue
        x, y = sum(box.x) / 2, sum(box.y) / 2
        axes.text(x, y, text, ha="center", va="center", fontsize=page.SMALL, color=page.ink_on(face), clip_on=True)
    return drawn


def _tip(box: _Box, picture: _Picture) -> str:
    """Who wrote a box, and where it lies."""
    files = [page.tip_name(file) for file in box.files]
    owner = _first_owner(box)
    named = files if owner.unranked else [f"{owner.name}: {files[0]}", *files[1:]]
    more = [f"and {len(named) - 8:,} more files"] if len(named) > 8 else []
    spans = ((picture.y, box.y), (picture.x, box.x))
    where = [f"dimension {dim}: {start:,} to {stop - 1:,}" for dim, (start, stop) in spans if dim is not None]
    return "\n".join([*named[:8], *more, *where])


def _label(box: _Box, width: float, height: float) -> str:
    """The longest label that fits in the box; sizes in inches."""
    owner, file = _first_owner(box), page.name_label(next(iter(box.files)), 40)
    more = f" +{len(box.files) - 1}" if len(box.files) > 1 else ""
    name = owner.name + more
    choices = [f"{name}\n{file}", f"{name}, {file}", name, f"{owner.rank}{more}"]
    for text in choices[2:3] if owner.unranked else choices:
        lines = text.split("\n")
        if max(map(len, lines)) * _LETTER[0] < width and len(lines) * _LETTER[1] < height:
            return text
    return ""


def _few(owners: list[_Owner]) -> list[_Owner]:
    if len(owners) <= MOST_IN_LEGEND:
        return owners
    return [owners[i] for i in np.linspace(0, len(owners) - 1, 9).round().astype(int)]


def _legend_title(owners: int) -> str:
    return "written by" if owners <= MOST_IN_LEGEND else f"written by (9 of {owners:,})"


def _label_axes(axes: Axes, tensor: StoredTensor, picture: _Picture) -> None:
    for dim, axis, name in ((picture.x, axes.xaxis, "columns"), (picture.y, axes.yaxis, "rows")):
        if dim is None:
            axis.set_visible(False)
            continue
        what = f" ({name})" if len(tensor.shape) == 2 else ""
        axis.set_label_text(f"dimension {dim}{what}", color=page.INK, fontsize=9)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=True))
    for spine in axes.spines.values():
        spine.set_visible(False)


def _counts(tensor: StoredTensor, boxes: list[_Box]) -> str:
    what = f"[{', '.join(f'{n:,}' for n in tensor.shape)}] {tensor.dtype.name}"
    if not tensor.numel:
        return f"{what}: no values"
    empty = int(np.any(tensor.sizes == 0, axis=1).sum())
    chunks = page.plural(len(tensor.offsets) - empty, "chunk") + (f" and {empty:,} without values" if empty else "")
    files = {file for box in boxes for file in box.files if file}
    ranks = {owner.rank for owner in map(_owner, files) if not owner.unranked}
    return f"{what}: {chunks}, from {page.plural(len(ranks), 'rank')} in {page.plural(len(files), 'file')}"
