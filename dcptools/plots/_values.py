"""A statistic of the values, by layer and module: the picture in which a broken layer stands out."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dcptools._text import counted
from dcptools.checkpoint import Checkpoint
from dcptools.errors import UsageError
from dcptools.layouts import MOMENT, TRAINING_STATE
from dcptools.plots import _figure as page
from dcptools.plots import _heat as heat
from dcptools.values import stats

MOST_MAPS = 6  # weights and moments
WEIGHTS = "weights"
SIZES: Final = {"norm": "norm", "std": "standard deviation", "max_abs": "largest magnitude"}
SHARES: Final = {"zeros": "share of zeros", "nan": "share of NaN", "inf": "share of Inf"}
MORE, LESS, BROKEN = page.RED, page.BLUE, page.PURPLE
STRONGEST: Final = 0.8  # how opaque a colour becomes: text on it can still be read
_FULL = 3.0  # powers of two between a value and its module's median that make the strongest colour
_SMALLEST = 1e-6  # the share that makes the weakest one
_NEEDED = {"key", "numel", "min", "max", "norm", "std", "zeros", "nan", "inf"}


class _Row(NamedTuple):
    """A tensor of the table, with the statistic that is drawn."""

    key: str
    numel: int
    value: float
    nan: int
    inf: int

    @property
    def broken(self) -> bool:
        return bool(self.nan or self.inf)


class _Cell(NamedTuple):
    """The tensor of a layer and module that stands out most."""

    row: _Row
    strength: float  # -1 to 1: how far the value is from the others, or how large a share is
    median: float  # of the module; NaN for a share
    tensors: int  # in this layer and module


def values(
    table: pd.DataFrame | Checkpoint | str | os.PathLike[str],
    statistic: Literal["norm", "std", "max_abs", "zeros", "nan", "inf"] = "norm",
) -> Figure:
    """Draw a statistic of the values as a heat map: layers down, modules across, a map for weights and each moment.

    A ``norm``, ``std`` or ``max_abs`` is compared with the median of its module over all layers: orange is larger, blue
    is smaller, and a module that is alike in all layers has no colour. For ``zeros``, ``nan`` and ``inf`` the share is
    drawn. Tensors with NaN or Inf are purple, whatever is drawn. If a module has several tensors in a layer, such as
    experts, the one that stands out most counts.

    Parameters
    ----------
    table
        What :func:`dcptools.stats` returned. For a checkpoint, or the path of one, all values are read first.
    statistic
        What is drawn: ``norm``, ``std`` or ``max_abs`` (the largest magnitude) of the finite values; ``zeros``, ``nan``
        or ``inf`` as a share of all values, from 0 to 1.

    Raises
    ------
    UsageError
        The statistic is another one, or the table is not one of :func:`dcptools.stats`.
    DcptoolsError
        What :func:`dcptools.stats` raises.

    Examples
    --------
    >>> import dcptools
    >>> from dcptools import plots
    >>> figure = plots.values(dcptools.stats(demo.checkpoint, "model.*"), "nan")
    >>> print(plots.describe(figure))
    Heat map of the share of NaN by layer and module: weights: 4 layers, 14 modules; all are 0.
    """
    titles = SIZES | SHARES
    if statistic not in titles:
        raise UsageError(f"Cannot draw {statistic!r}.\nExpected one of {', '.join(titles)}.")
    rows, left_out = _rows(table if isinstance(table, pd.DataFrame) else stats(table), statistic)
    kinds = sorted(rows, key=lambda kind: (kind != WEIGHTS, page.natural(kind)))
    maps = {kind: _cells(rows[kind], kind, statistic) for kind in kinds[:MOST_MAPS]}
    figure, parts = _figure([grid for grid, _ in maps.values()])
    for axes, (kind, (grid, cells)) in zip(parts, maps.items(), strict=False):
        drawn = {at: _drawn(cell, statistic) for at, cell in cells.items()}
        heat.draw(figure, axes, grid, drawn, f"cells of {kind}", edge=page.GRID)
        _head(axes, kind, alone=len(maps) == 1)
    _named_once(parts, [grid for grid, _ in maps.values()])
    title = titles[statistic]
    about = "relative to the median of the module over all layers" if statistic in SIZES else "of all values"
    notes = [about, _left_out(left_out, kinds[MOST_MAPS:])]
    page.titled(figure, f"{title[0].upper()}{title[1:]} by layer and module", notes)
    _legend(figure, statistic, any(cell.row.broken for _, cells in maps.values() for cell in cells.values()))
    return page.finished(figure, _description(maps, title, statistic))


def _rows(table: pd.DataFrame, statistic: str) -> tuple[dict[str, list[_Row]], int]:
    """The tensors by kind: weights, or a moment of an optimizer; and how many are neither, such as step counters."""
    if missing := sorted(_NEEDED - set(table.columns)):
        raise UsageError(f"The table has no column {missing[0]!r}.\nExpected what dcptools.stats() returns.")
    rows: dict[str, list[_Row]] = {}
    left_out = 0
    value = _value_of(statistic)
    records: list[dict[str, Any]] = table[sorted(_NEEDED)].to_dict("records")  # type: ignore[assignment]
    for record in records:
        *containers, last = str(record["key"]).split(".")
        kind = last if MOMENT.fullmatch(last) else WEIGHTS
        if not record["numel"] or (kind == WEIGHTS and any(TRAINING_STATE.fullmatch(part) for part in containers)):
            left_out += 1
            continue
        row = _Row(str(record["key"]), int(record["numel"]), value(record), int(record["nan"]), int(record["inf"]))
        rows.setdefault(kind, []).append(row)
    return rows, left_out


def _value_of(statistic: str) -> Callable[[Mapping[str, Any]], float]:
    if statistic in SHARES:
        return lambda record: float(record[statistic] / record["numel"])
    if statistic == "max_abs":
        return lambda record: float(max(abs(record["min"]), abs(record["max"])))
    return lambda record: float(record[statistic])


def _cells(rows: Sequence[_Row], kind: str, statistic: str) -> tuple[heat.Grid, dict[heat.Place, _Cell]]:
    """The tensors of one kind by layer and module; a moment is at its weight's place."""
    grid = heat.grid([row.key if kind == WEIGHTS else row.key.removesuffix(f".{kind}") for row in rows])
    of_module: dict[str, list[float]] = {}
    for (_, module), numbers in grid.at.items():
        of_module.setdefault(module, []).extend(rows[number].value for number in numbers)
    medians = {module: _median(found) if statistic in SIZES else math.nan for module, found in of_module.items()}
    cells = {}
    for (layer, module), numbers in grid.at.items():
        found = [
            _Cell(rows[n], _strength(rows[n].value, medians[module]), medians[module], len(numbers)) for n in numbers
        ]
        cells[layer, module] = max(found, key=lambda cell: (cell.row.broken, abs(cell.strength)))
    return grid, cells


def _median(numbers: Sequence[float]) -> float:
    """Of those that are finite; 0 if none is."""
    return statistics.median([number for number in numbers if math.isfinite(number)] or [0.0])


def _strength(value: float, median: float) -> float:
    """How strong the colour is: for a share, by its powers of ten; otherwise by the powers of two to the median."""
    if math.isnan(median):
        return 0.0 if value <= 0 else max(0.1, min(1.0, 1 - math.log10(value) / math.log10(_SMALLEST)))
    if math.isnan(value) or value == median:
        return 0.0
    if value <= 0 or median <= 0:
        return -1.0 if value < median else 1.0
    return max(-1.0, min(1.0, math.log2(value / median) / _FULL))


def _drawn(cell: _Cell, statistic: str) -> heat.Cell:
    value = cell.row.value
    text = "NaN" if cell.row.nan else "Inf" if cell.row.inf else heat.short(value)
    share = statistic in SHARES
    if share and not value and not cell.row.broken:
        text = ""
    ink = page.ink_on(BROKEN) if cell.row.broken else page.INK
    return heat.Cell(_colour(cell.strength, broken=cell.row.broken), ink, text, _tip(cell, statistic))


def _colour(strength: float, *, broken: bool = False) -> tuple[float, float, float, float]:
    """The weaker, the more the page shows through it, so that it works on a light and on a dark one."""
    if broken:
        return (*to_rgb(BROKEN), STRONGEST)
    return (*to_rgb(MORE if strength >= 0 else LESS), STRONGEST * abs(strength))


def _tip(cell: _Cell, statistic: str) -> str:
    row = cell.row
    lines = [page.tip_name(row.key), f"{(SIZES | SHARES)[statistic]}: {row.value:.4g}"]
    if cell.median > 0 and row.value != cell.median:
        lines.append(f"{row.value / cell.median:.3g} times the median of the module, {cell.median:.4g}")
    if cell.row.broken:
        lines.append(f"{row.nan:,} NaN and {row.inf:,} Inf of {counted(row.numel, 'value')}")
    if cell.tensors > 1:
        lines.append(f"the one that stands out most of {cell.tensors:,} tensors")
    return "\n".join(lines)


def _figure(grids: Sequence[heat.Grid]) -> tuple[page.DescribedFigure, list[Axes]]:
    """Axes for maps below each other: a line for each layer, and room for the names of modules."""
    lines = [max(3, len(grid.rows)) for grid in grids] or [3]
    labels = [heat.labels_height(grid) for grid in grids]
    names = max(labels, default=0) if _alike(grids) else sum(labels)
    return page.stacked_figure(max(2.4, 0.9 + names) + 0.24 * sum(lines) + 0.35 * len(lines), lines)


def _alike(grids: Sequence[heat.Grid]) -> bool:
    """Whether the modules are the same in all maps."""
    return len({tuple(heat.column_names(grid)) for grid in grids}) == 1


def _named_once(parts: Sequence[Axes], grids: Sequence[heat.Grid]) -> None:
    """Modules that are the same in all maps are named below the last one."""
    if _alike(grids):
        for axes in parts[:-1]:
            axes.tick_params(labelbottom=False)


def _head(axes: Axes, kind: str, *, alone: bool) -> None:
    if not alone or kind != WEIGHTS:
        axes.set_title(page.name_label(kind), loc="left", fontsize=9, color=page.INK)


def _left_out(tensors: int, kinds: Sequence[str]) -> str:
    notes = [f"{counted(tensors, 'other tensor')} not drawn: counters and the like, or empty"] if tensors else []
    notes += [f"not drawn: {', '.join(page.name_label(kind, 30) for kind in kinds[:3])}"] if kinds else []
    return "; ".join(notes)


def _legend(figure: Figure, statistic: str, broken: bool) -> None:
    steps: list[tuple[str, float]] = [("1/8 or less", -1), ("half", -1 / 3), ("double", 1 / 3), ("8 times or more", 1)]
    if statistic in SHARES:
        steps = [(text, _strength(share, math.nan)) for text, share in (("0.01%", 1e-4), ("1%", 1e-2), ("100%", 1.0))]
    handles = [Patch(facecolor=_colour(strength), edgecolor=page.GRID, label=text) for text, strength in steps]
    if broken:
        handles.append(Patch(facecolor=_colour(1, broken=True), edgecolor=page.GRID, label="holds NaN or Inf"))
    figure.legend(
        handles=handles, loc="outside lower right", ncols=len(handles), frameon=False, fontsize=9, labelcolor=page.INK
    )


def _description(maps: Mapping[str, tuple[heat.Grid, dict[heat.Place, _Cell]]], title: str, statistic: str) -> str:
    """What stands out in each map, in words."""
    parts = [
        f"{page.name_label(kind)}: {heat.extent(grid)}; {_found(cells, statistic)}"
        for kind, (grid, cells) in maps.items()
    ]
    return f"Heat map of the {title} by layer and module: {'; '.join(parts) or 'nothing to draw'}."


def _found(cells: Mapping[heat.Place, _Cell], statistic: str) -> str:
    broken = [at for at, cell in cells.items() if cell.row.broken]
    notes = [f"{counted(len(broken), 'cell')} with NaN or Inf, the first {heat.where(broken[0])}"] if broken else []
    at, most = max(cells.items(), key=lambda item: abs(item[1].strength))
    if most.strength:
        times = f", {most.row.value / most.median:.2g} times the median" if most.median > 0 else ""
        notes.append(f"what stands out most is {heat.where(at)}: {most.row.value:.3g}{times}")
    elif not broken:
        notes.append("all are 0" if statistic in SHARES else "no layer differs from the others")
    return "; ".join(notes)
