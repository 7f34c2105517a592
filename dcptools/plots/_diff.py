"""How far apart two models are, by layer and module."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from dcptools.comparing import STATISTICS, ComparedTensor, Comparison
from dcptools.errors import UsageError
from dcptools.plots import _figure as page
from dcptools.plots import _heat as heat

EQUAL, APART = page.PLAIN, page.ORANGE


class _Value(NamedTuple):
    """What the tensors of one layer and module add up to."""

    value: float  # the largest; NaN if none was compared
    apart: bool  # whether one is only in A or B, or has another shape
    worst: int  # the number of the tensor that it belongs to


def diff(
    comparison: Comparison,
    statistic: Literal["relative", "max_abs", "max_rel", "norm", "unequal"] = "relative",
) -> Figure:
    """Draw a comparison as a heat map: layers down, modules across; the darker, the further apart.

    Tensors that are equal are light grey; what is only in A or B, or has another shape, is orange. Where a module has
    several tensors in a layer, such as experts, the largest value counts. What is in no layer has a row of its own.

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
    grid = heat.grid([tensor.name for tensor in comparison.tensors])
    found = {at: _value(comparison.tensors, numbers, statistic) for at, numbers in grid.at.items()}
    values = [cell.value for cell in found.values() if 0 < cell.value < math.inf]
    low, high = _limits(values)
    scale = LogNorm(low, high)
    figure, axes = page.new_figure(max(2.4, 0.9 + heat.labels_height(grid)) + 0.24 * max(3, len(grid.rows)))
    cells = {}
    for at, cell in found.items():
        colour = _colour(cell, scale)
        text = "=" if colour == EQUAL else heat.short(cell.value) if cell.value > 0 else ""
        ink = page.INK if colour == EQUAL else page.ink_on(colour)  # equal is as faint as the page itself
        cells[at] = heat.Cell(colour, ink, text, _tip(comparison, grid.at[at], cell, statistic))
    heat.draw(figure, axes, grid, cells, "cells")
    if values:
        _bar(figure, axes, scale, math.log10(high / low), len(grid.rows))
    _legend(figure, found.values())
    sides = [f"{side}: {page.name_label(path, 100)}" for side, path in (("A", comparison.a), ("B", comparison.b))]
    title = STATISTICS[statistic]
    page.titled(figure, title[0].upper() + title[1:], sides)
    return page.finished(figure, _description(grid, found))


def _value(tensors: Sequence[ComparedTensor], numbers: Sequence[int], statistic: str) -> _Value:
    """What the tensors of these numbers come to: the largest of their values."""
    known: dict[int, float] = {}
    for number in numbers:
        tensor = tensors[number]
        value = 1 - tensor.equal if statistic == "unequal" else getattr(tensor, statistic)
        if not math.isnan(value):
            known[number] = value
    worst = max(known, key=lambda number: known[number], default=numbers[0])
    apart = any(math.isnan(tensors[number].equal) for number in numbers)
    return _Value(known.get(worst, math.nan), apart, worst)


def _tip(comparison: Comparison, numbers: Sequence[int], cell: _Value, statistic: str) -> str:
    """The tensor whose value is drawn, and how many others there are."""
    tensor = comparison.tensors[cell.worst]
    lines = [page.tip_name(tensor.name), tensor.state]
    if not math.isnan(cell.value):
        lines.append(f"{STATISTICS[statistic]}: {cell.value:.4g}")
    if len(numbers) > 1:
        lines.append(f"the furthest apart of {len(numbers):,} tensors")
    if cell.apart and not math.isnan(tensor.equal):
        lines.append("others are only in A or B, or of another shape")
    return "\n".join(lines)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the colours: at least a decade, at most twelve."""
    high = max(values, default=1.0)
    low = max(min(values, default=0.1), high * 1e-12)
    return min(low, high / 10), high


def _colours() -> ListedColormap:
    """From light to dark, in steps that each are one part of the bar beside the map."""
    return ListedColormap([page.graded(1 - step / 31) for step in range(32)])


def _bar(figure: Figure, axes: Axes, scale: LogNorm, decades: float, rows: int) -> None:
    """The values of the colours, beside a map of that many rows: as many as there is room for."""
    bar = figure.colorbar(ScalarMappable(scale, _colours()), ax=axes, fraction=0.03, pad=0.02)
    most = max(5, min(20, rows))
    subs = (1, 2, 5) if 3 * decades < most else (1,)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=most))
    bar.ax.yaxis.set_minor_locator(LogLocator(subs=(1,)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: heat.short(value)))
    bar.ax.tick_params(labelsize=page.SMALL, colors=page.INK)


def _colour(cell: _Value, scale: LogNorm) -> str:
    if cell.apart or math.isnan(cell.value):
        return APART
    if cell.value == 0:
        return EQUAL
    share = 1.0 if math.isinf(cell.value) else max(0.0, float(scale(cell.value)))
    return to_hex(page.graded(1 - min(1.0, share)))


def _legend(figure: Figure, cells: Collection[_Value]) -> None:
    """What the two colours that are not values mean, below the map, which needs the width."""
    handles = (
        [Patch(facecolor=EQUAL, edgecolor=page.FAINT, label="equal")] if any(cell.value == 0 for cell in cells) else []
    )
    if any(cell.apart for cell in cells):
        handles.append(Patch(facecolor=APART, edgecolor=page.EDGE, label="only in A or B, or of another shape"))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower right", ncols=2, frameon=False, fontsize=9, labelcolor=page.INK
        )


def _description(grid: heat.Grid, found: Mapping[heat.Place, _Value]) -> str:
    head = f"Heat map of A and B by layer and module: {heat.extent(grid)}"
    apart = sum(cell.apart for cell in found.values())
    note = f"; {apart:,} with tensors that only one has, or of another shape" if apart else ""
    different = {at: cell.value for at, cell in found.items() if cell.value > 0}
    if not different:
        return f"{head}; {'all others' if apart else 'all tensors'} are equal{note}."
    at, value = max(different.items(), key=lambda item: item[1])
    verb = "differs" if len(different) == 1 else "differ"
    return f"{head}; {len(different):,} {verb}, most of all {heat.where(at)}: {value:.2g}{note}."
