"""How far two models are apart, by layer and module."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from dcptools._text import counted
from dcptools.comparing import STATISTICS, ComparedTensor, Comparison
from dcptools.errors import UsageError
from dcptools.plots import _figure as page

MOST_COLUMNS = 48  # modules; more are put together by the last part of their names
MOST_ROWS = 40  # layers with their numbers beside the rows
MOST_TEXTS = 200  # cells with their value in them
EQUAL, APART = "#e8e8e8", page.ORANGE
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
OUTSIDE = -1  # the row of what is in no layer


class _Cell(NamedTuple):
    """Tensors of one layer and module."""

    value: float  # the largest; NaN if none was compared
    apart: bool  # whether one is only in A or B, or has another shape


class _Grid(NamedTuple):
    rows: list[int]  # numbers of layers, OUTSIDE last
    columns: list[str]  # modules
    cells: dict[tuple[int, str], _Cell]


def diff(
    comparison: Comparison,
    statistic: Literal["relative", "max_abs", "max_rel", "norm", "unequal"] = "relative",
) -> Figure:
    """Draw a comparison as a heat map: layers down, modules across, the darker the further apart.

    Tensors that are equal are light grey; what is only in A or B, or has another shape, is orange. Where a module has
    several tensors in a layer, as experts, the largest value counts. What is in no layer has a row of its own.

    Parameters
    ----------
    comparison
        What :func:`dcptools.diff` returned.
    statistic
        What is drawn: ``relative``, ``max_abs``, ``max_rel`` or ``norm`` of the comparison, or ``unequal``, the share
        of values that differ.

    Raises
    ------
    UsageError
        The statistic is another one.

    Examples
    --------
    >>> import dcptools
    >>> from dcptools import plots
    >>> comparison = dcptools.diff(demo.checkpoint, demo.checkpoint, keys="model.*")
    >>> print(plots.describe(plots.diff(comparison)))
    Heat map of A and B by layer and module: 4 layers, 14 modules; all tensors are equal.
    """
    if statistic not in STATISTICS:
        raise UsageError(f"Cannot draw {statistic!r}.\nExpected one of {', '.join(STATISTICS)}.")
    grid = _grid(comparison.tensors, statistic)
    values = [cell.value for cell in grid.cells.values() if 0 < cell.value < math.inf]
    scale = LogNorm(*_limits(values))
    figure, axes = page.new_figure(2.4 + 0.24 * max(3, len(grid.rows)))
    _draw(axes, grid, scale)
    _label(axes, grid)
    if values:
        bar = figure.colorbar(ScalarMappable(scale, _colours()), ax=axes, fraction=0.03, pad=0.02)
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        bar.ax.yaxis.set_minor_locator(LogLocator(subs=(1,)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.tick_params(labelsize=page.SMALL, colors=page.INK)
    _legend(figure, grid)
    sides = [f"{side}: {page.name_label(path, 100)}" for side, path in (("A", comparison.a), ("B", comparison.b))]
    title = STATISTICS[statistic]
    page.titled(figure, title[0].upper() + title[1:], sides)
    return page.finished(figure, _description(grid))


def _grid(tensors: Sequence[ComparedTensor], statistic: str) -> _Grid:
    placed = [(*_place(tensor.name), tensor) for tensor in tensors]
    depth = _depth([module for _, module, _ in placed])
    cells: dict[tuple[int, str], _Cell] = {}
    for layer, module, tensor in placed:
        value = 1 - tensor.equal if statistic == "unequal" else getattr(tensor, statistic)
        at = (layer, _shortened(module, depth))
        before = cells.get(at, _Cell(math.nan, False))
        known = [number for number in (before.value, value) if not math.isnan(number)]
        apart = before.apart or math.isnan(tensor.equal)
        cells[at] = _Cell(max(known, default=math.nan), apart)
    rows = sorted({layer for layer, _ in cells}, key=lambda layer: (layer == OUTSIDE, layer))
    inside = dict.fromkeys(module for layer, module in sorted(cells) if layer != OUTSIDE)
    outside = dict.fromkeys(module for layer, module in sorted(cells) if layer == OUTSIDE and module not in inside)
    return _Grid(rows, [*inside, *outside], cells)


def _place(name: str) -> tuple[int, str]:
    """Number of the layer, and the module: the name with the layer's number and all others as ``*``."""
    first = _NUMBER.search(name)
    layer = int(first.group(1)) if first and len(first.group(1)) < 10 else OUTSIDE
    return layer, ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _depth(modules: Iterable[str]) -> int:
    """How many parts of the modules' names are told apart, so that there are not too many."""
    names = set(modules)
    depth = max((name.count(".") + 1 for name in names), default=1)
    while depth > 1 and len({_shortened(name, depth) for name in names}) > MOST_COLUMNS:
        depth -= 1
    return depth


def _shortened(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the colours: at least a decade, at most twelve."""
    high = max(values, default=1.0)
    low = max(min(values, default=0.1), high * 1e-12)
    return min(low, high / 10), high


def _colours() -> matplotlib.colors.Colormap:
    return matplotlib.colormaps["viridis_r"]


def _colour(cell: _Cell, scale: LogNorm) -> str:
    if cell.apart or math.isnan(cell.value):
        return APART
    if cell.value == 0:
        return EQUAL
    share = 1.0 if math.isinf(cell.value) else max(0.0, float(scale(cell.value)))
    return to_hex(_colours()(min(1.0, share)))


def _draw(axes: Axes, grid: _Grid, scale: LogNorm) -> None:
    row_of, column_of = ({what: at for at, what in enumerate(names)} for names in (grid.rows, grid.columns))
    corners, faces = [], []
    for (layer, module), cell in grid.cells.items():
        x, y = column_of[module], row_of[layer]
        corners.append([(x, y), (x, y + 1), (x + 1, y + 1), (x + 1, y)])
        faces.append(_colour(cell, scale))
        if len(grid.cells) <= MOST_TEXTS and len(grid.columns) <= 16 and cell.value > 0:
            ink = page.ink_on(faces[-1])
            axes.text(
                x + 0.5,
                y + 0.5,
                _short(cell.value),
                ha="center",
                va="center",
                fontsize=page.SMALL,
                color=ink,
                clip_on=True,
            )
    edge = 0.8 if max(len(grid.rows), len(grid.columns)) <= 60 else 0.0
    axes.add_collection(
        PolyCollection(corners, facecolors=faces, edgecolors="white", linewidths=edge, label="cells"), autolim=False
    )
    axes.set(xlim=(0, max(1, len(grid.columns))), ylim=(max(1, len(grid.rows)), 0))


def _short(value: float) -> str:
    """One digit of a value, in few letters: 0.02, 4, 3e-5."""
    text = f"{value:.1g}" if 0.001 <= value < 10 or math.isinf(value) else f"{value:.0e}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def _label(axes: Axes, grid: _Grid) -> None:
    step = -(-len(grid.rows) // MOST_ROWS)
    shown = [at for at, layer in enumerate(grid.rows) if at % step == 0 or layer == OUTSIDE]
    names = ["no layer" if grid.rows[at] == OUTSIDE else str(grid.rows[at]) for at in shown]
    axes.set_yticks([at + 0.5 for at in shown], names, fontsize=page.SMALL)
    modules = [page.name_label(_without(module, _common(grid.columns)), 40) for module in grid.columns]
    places = [at + 0.5 for at in range(len(modules))]
    axes.set_xticks(places, modules, fontsize=page.SMALL, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_ylabel("layer", fontsize=9, color=page.INK)
    axes.tick_params(length=0)


def _common(modules: Sequence[str]) -> str:
    """What the names of modules in layers begin with, up to the layer's number."""
    heads = {module[: module.index("*") + 2] for module in modules if "*." in module}
    return heads.pop() if len(heads) == 1 else ""


def _without(module: str, head: str) -> str:
    return module.removeprefix(head) if head else module


def _legend(figure: Figure, grid: _Grid) -> None:
    """What the two colours mean that are no values, below the map, which needs the width."""
    cells = grid.cells.values()
    handles = [Patch(facecolor=EQUAL, label="equal")] if any(cell.value == 0 for cell in cells) else []
    if any(cell.apart for cell in cells):
        handles.append(Patch(facecolor=APART, label="only in A or B, or of another shape"))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower right", ncols=2, frameon=False, fontsize=9, labelcolor=page.INK
        )


def _description(grid: _Grid) -> str:
    layers = counted(len([row for row in grid.rows if row != OUTSIDE]), "layer")
    head = f"Heat map of A and B by layer and module: {layers}, {counted(len(grid.columns), 'module')}"
    apart = sum(cell.apart for cell in grid.cells.values())
    note = f"; {apart:,} with tensors that only one has, or of another shape" if apart else ""
    different = {at: cell.value for at, cell in grid.cells.items() if cell.value > 0}
    if not different:
        return f"{head}; {'all others' if apart else 'all tensors'} are equal{note}."
    (layer, module), value = max(different.items(), key=lambda item: item[1])
    where = page.name_label(module) + ("" if layer == OUTSIDE else f" of layer {layer}")
    verb = "differs" if len(different) == 1 else "differ"
    return f"{head}; {len(different):,} {verb}, most of all {where}: {value:.2g}{note}."
