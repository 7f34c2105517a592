"""What heat maps share: layers down, modules across."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from dcptools._text import counted
from dcptools.plots import _figure as page

MOST_COLUMNS = 48  # modules; more are grouped by the first parts of their names
MOST_ROWS = 40  # layers with their numbers beside the rows
MOST_TEXTS = 200  # cells that have their value in them
MOST_TEXT_COLUMNS = 16
MOST_EDGES = 60  # rows or columns that are kept apart
ANGLE, LETTER = 45, 0.62  # degrees of the names of modules; the width of a letter, of the height of its font
OUTSIDE = -1  # the row of what is in no layer
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")

Place: TypeAlias = tuple[int, str]  # number of the layer, module


class Cell(NamedTuple):
    colour: str | tuple[float, float, float, float]
    ink: str  # of the text
    text: str
    tip: str


class Grid(NamedTuple):
    rows: list[int]  # numbers of layers, OUTSIDE last
    columns: list[str]  # modules
    at: dict[Place, list[int]]  # which of the names are in each cell


def grid(names: Sequence[str]) -> Grid:
    """Names of tensors by layer and module."""
    placed = [_place(name) for name in names]
    depth = _depth(module for _, module in placed)
    at: dict[Place, list[int]] = {}
    for number, (layer, module) in enumerate(placed):
        at.setdefault((layer, _shortened(module, depth)), []).append(number)
    rows = sorted({layer for layer, _ in at}, key=lambda layer: (layer == OUTSIDE, layer))
    ordered = sorted(at, key=lambda place: (place[0], page.natural(place[1])))
    inside = dict.fromkeys(module for layer, module in ordered if layer != OUTSIDE)
    outside = dict.fromkeys(module for layer, module in ordered if layer == OUTSIDE and module not in inside)
    return Grid(rows, [*inside, *outside], at)


def _place(name: str) -> Place:
    """Number of the layer, and the module: the name with the layer's number and all others as ``*``."""
    first = _NUMBER.search(name)
    layer = int(first.group(1)) if first and len(first.group(1)) < 10 else OUTSIDE
    return layer, ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _depth(modules: Iterable[str]) -> int:
    """How many parts of the modules' names are distinguished, so that there are not too many."""
    names = set(modules)
    depth = max((name.count(".") + 1 for name in names), default=1)
    while depth > 1 and len({_shortened(name, depth) for name in names}) > MOST_COLUMNS:
        depth -= 1
    return depth


def _shortened(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def draw(
    figure: page.DescribedFigure,
    axes: Axes,
    shown: Grid,
    cells: Mapping[Place, Cell],
    name: str,
    *,
    edge: str = "white",
) -> None:
    """The cells as one artist of that name, with their texts if there are few, and the labels beside them."""
    row_of, column_of = ({what: at for at, what in enumerate(names)} for names in (shown.rows, shown.columns))
    corners = []
    for (layer, module), cell in cells.items():
        x, y = column_of[module], row_of[layer]
        corners.append([(x, y), (x, y + 1), (x + 1, y + 1), (x + 1, y)])
        if cell.text and len(cells) <= MOST_TEXTS and len(shown.columns) <= MOST_TEXT_COLUMNS:
            axes.text(
                x + 0.5, y + 0.5, cell.text, ha="center", va="center", fontsize=page.SMALL, color=cell.ink,
                clip_on=True,
            )  # fmt: skip
    width = 0.8 if max(len(shown.rows), len(shown.columns)) <= MOST_EDGES else 0.0
    faces = [cell.colour for cell in cells.values()]
    drawn = PolyCollection(corners, facecolors=faces, edgecolors=edge, linewidths=width, label="cells")
    axes.add_collection(drawn, autolim=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlim=(0, max(1, len(shown.columns))), ylim=(max(1, len(shown.rows)), 0))
    page.explain(figure, drawn, name, [cell.tip for cell in cells.values()])
    _label(axes, shown)


def labels_height(shown: Grid) -> float:
    """Inches that the names of the modules take below a map; they stand aslant."""
    longest = max(map(len, _module_labels(shown)), default=0)
    return longest * LETTER * page.SMALL / 72 * math.sin(math.radians(ANGLE))


def _module_labels(shown: Grid) -> list[str]:
    return [page.name_label(name, 40) for name in column_names(shown)]


def _label(axes: Axes, shown: Grid) -> None:
    step = -(-len(shown.rows) // MOST_ROWS)
    labelled = [at for at, layer in enumerate(shown.rows) if at % step == 0 or layer == OUTSIDE]
    names = ["no layer" if shown.rows[at] == OUTSIDE else str(shown.rows[at]) for at in labelled]
    axes.set_yticks([at + 0.5 for at in labelled], names, fontsize=page.SMALL)
    modules = _module_labels(shown)
    places = [at + 0.5 for at in range(len(modules))]
    axes.set_xticks(places, modules, fontsize=page.SMALL, rotation=ANGLE, ha="right", rotation_mode="anchor")
    axes.set_ylabel("layer", fontsize=9, color=page.INK)
    axes.tick_params(length=0)


def column_names(shown: Grid) -> list[str]:
    """The modules without what all begin with, and those in layers also without what comes before the number."""
    parts = [module.split(".") for module in shown.columns]
    while parts and all(len(names) > 1 and names[0] == parts[0][0] != "*" for names in parts):
        parts = [names[1:] for names in parts]
    names = [".".join(names) for names in parts]
    heads = {name[: name.index("*") + 2] for name in names if "*." in name}
    return [name.removeprefix(next(iter(heads))) or name for name in names] if len(heads) == 1 else names


def short(value: float) -> str:
    """Two digits of a value, in few characters: 0.02, 0.023, 4.1, 30, 314, 3e-5, 3.1e-5."""
    if 10 <= value < 1000:
        return f"{value:.0f}"
    text = f"{value:.2g}" if 0.001 <= value < 10 or not value < math.inf else f"{value:.1e}".replace(".0e", "e")
    return text.replace("e-0", "e-").replace("e+0", "e")


def where(place: Place) -> str:
    """A cell in words."""
    layer, module = place
    return page.name_label(module) + ("" if layer == OUTSIDE else f" of layer {layer}")


def extent(shown: Grid) -> str:
    """How large a map is, in words."""
    layers = counted(len([row for row in shown.rows if row != OUTSIDE]), "layer")
    return f"{layers}, {counted(len(shown.columns), 'module')}"
