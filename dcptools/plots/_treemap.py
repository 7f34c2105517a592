"""The modules of a checkpoint as nested rectangles, whose areas are their bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb

from dcptools._text import counted, format_bytes
from dcptools.plots import _figure as page
from dcptools.tree import Node, Tree

HEIGHT = 3.4  # inches
_HEAD = 0.17  # inches above the modules in a module, for its name
_GAP = 0.025  # inches around them
_SMALLEST = 0.02  # square inches of a rectangle that is drawn by itself
_LETTER = 0.069  # inches
_FEWEST = 8  # letters of a name that is cut
_GROUP = re.compile(r"\{[^{}]*\}")
_HUES = (page.BLUE, page.ORANGE, page.GREEN, page.PURPLE, page.SKY, page.RED)


class Box(NamedTuple):
    """A rectangle in inches, from the top left."""

    x: float
    y: float
    width: float
    height: float


class Tile(NamedTuple):
    box: Box
    label: str
    tip: str
    colour: str


def treemap(figure: page.DescribedFigure, axes: Axes, shown: Tree, depth: int | None) -> None:
    """Draw the modules down to that many segments of the keys: each within the one that holds it; deeper is lighter."""
    total = sum(node.nbytes for node in shown.nodes)
    whole = Box(0, 0, page.WIDTH - 0.1, HEIGHT)
    tiles = [
        tile
        for number, (node, box) in enumerate(_placed(shown.nodes, whole))
        for tile in _tiles(node, box, _HUES[number % len(_HUES)], total, depth)
    ]
    corners = [_corners(tile.box) for tile in tiles]
    drawn = PolyCollection(
        corners, facecolors=[tile.colour for tile in tiles], edgecolors=page.EDGE, linewidths=0.5, label="modules"
    )
    axes.add_collection(drawn, autolim=False)
    page.explain(figure, drawn, "modules", [tile.tip for tile in tiles])
    for tile in tiles:
        if tile.label:
            axes.text(
                tile.box.x + 0.05, tile.box.y + 0.03, tile.label, va="top", fontsize=page.SMALL,
                color=page.ink_on(tile.colour), clip_on=True,
            )  # fmt: skip
    axes.set(xlim=(0, whole.width), ylim=(whole.height, 0))
    axes.set_axis_off()


def _tiles(node: Node, box: Box, hue: str, total: int, depth: int | None, level: int = 0) -> Iterator[Tile]:
    """A module, and on it the modules in it that are large enough to be seen."""
    colour = _shade(hue, level)
    yield Tile(box, _label(node, box), _tip(node, total), colour)
    inner = Box(box.x + _GAP, box.y + _HEAD, box.width - 2 * _GAP, box.height - _HEAD - _GAP)
    segments = _GROUP.sub("*", node.path).count(".") + 1
    if (depth is not None and segments >= depth) or min(inner.width, inner.height) < 2 * _HEAD:
        return
    for child, place in _placed(node.children, inner, node.path):
        if place.width * place.height >= _SMALLEST:
            yield from _tiles(child, place, hue, total, depth, level + 1)


def _placed(nodes: Sequence[Node], box: Box, path: str = "") -> list[tuple[Node, Box]]:
    """Nodes that have bytes with their rectangles, the largest first; all that would be too small as one."""
    ranked = sorted((node for node in nodes if node.nbytes), key=lambda n: (-n.nbytes, page.natural(n.label)))
    smallest = _SMALLEST / (box.width * box.height) * sum(node.nbytes for node in ranked)
    large = [node for node in ranked if node.nbytes >= smallest]
    if small := ranked[len(large) :]:
        large.append(_together(small, path))
    return list(zip(large, squarified([node.nbytes for node in large], box), strict=True))


def _together(nodes: Sequence[Node], path: str) -> Node:
    """Several nodes as one, without what is in them."""
    if len(nodes) == 1:
        return nodes[0]
    label = f"other ({len(nodes):,} more)"
    tensors, numel, nbytes = (
        sum(numbers) for numbers in zip(*((n.tensors, n.numel, n.nbytes) for n in nodes), strict=True)
    )
    return Node(label, f"{path}.{label}" if path else label, nodes[0].depth, 1, (), "", tensors, numel, nbytes, ())


def squarified(areas: Sequence[float], box: Box) -> list[Box]:
    """Cut a rectangle into some of these areas in proportion, as square as it goes (Bruls, Huizing, van Wijk 2000).

    >>> [(b.width, b.height) for b in squarified([2, 1, 1], Box(0, 0, 2, 2))]
    [(1.0, 2.0), (1.0, 1.0), (1.0, 1.0)]
    """
    left = sum(areas)
    placed: list[Box] = []
    while len(placed) < len(areas):
        scale = box.width * box.height / left if left else 0.0
        side = min(box.width, box.height)
        count = _line([area * scale for area in areas[len(placed) :]], side)
        line = areas[len(placed) : len(placed) + count]
        thick = sum(line) * scale / side if side else 0.0
        at = 0.0
        for area in line:
            long = area * scale / thick if thick else 0.0
            down = box.width >= box.height
            placed.append(Box(box.x, box.y + at, thick, long) if down else Box(box.x + at, box.y, long, thick))
            at += long
        left -= sum(line)
        box = (
            Box(box.x + thick, box.y, max(0.0, box.width - thick), box.height)
            if box.width >= box.height
            else Box(box.x, box.y + thick, box.width, max(0.0, box.height - thick))
        )
    return placed


def _line(areas: Sequence[float], side: float) -> int:
    """How many of the areas make a line along that side in which the worst is as square as can be."""
    total, best = 0.0, float("inf")
    for count, area in enumerate(areas, start=1):
        total += area
        thick = total / side if side else 0.0
        if not thick or not area:
            continue
        worst = max(areas[0] / thick / thick, thick * thick / area)
        if worst > best:
            return count - 1
        best = worst
    return len(areas)


def _corners(box: Box) -> list[tuple[float, float]]:
    right, bottom = box.x + box.width, box.y + box.height
    return [(box.x, box.y), (box.x, bottom), (right, bottom), (right, box.y)]


def _shade(hue: str, level: int) -> str:
    """The hue, lighter at each level down."""
    light = 1 - 0.78**level
    red, green, blue = (part + (1 - part) * light for part in to_rgb(hue))
    return to_hex((red, green, blue))


def _label(node: Node, box: Box) -> str:
    """The name and the bytes, as far as there is room."""
    letters = int((box.width - 0.1) / _LETTER)
    whole, size = page.name_label(node.label), format_bytes(node.nbytes)
    if box.height < _HEAD or (letters < len(whole) and letters < _FEWEST):
        return ""
    return f"{whole}  {size}" if len(whole) + len(size) + 2 <= letters else page.name_label(node.label, letters)


def _tip(node: Node, total: int) -> str:
    what = node.describe() if node.dtype else counted(node.tensors, "key")
    return f"{page.tip_name(node.path)}\n{format_bytes(node.nbytes)}, {node.nbytes / total:.1%}\n{what}"
