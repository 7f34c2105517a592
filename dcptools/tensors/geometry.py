"""Shapes, strides and boxes: integers only, no values. All strides and offsets count elements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

Region = Sequence[tuple[int, int]]  # a box: (start, stop) per dimension, in elements


@lru_cache(maxsize=1024)  # a model has many tensors of few shapes
def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor.

    >>> row_major((2, 3, 4))
    (12, 4, 1)
    """
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return tuple(strides)


def is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements with these strides lie one after another in row-major order."""
    return _is_row_major(tuple(shape), tuple(strides))


@lru_cache(maxsize=1024)
def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return math.prod(shape) == 0
        expected *= size
    return True


@lru_cache(maxsize=1024)
def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last one of a view, including those in between; 0 if it has none.

    >>> span((2, 3), (10, 2))
    15
    """
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


@lru_cache(maxsize=1024)
def can_be_view(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether there are as many strides as sizes, and none is negative."""
    return len(shape) == len(strides) and min((*shape, *strides), default=0) >= 0


def run_elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements that lie next to each other wherever a row-major walk through the view is: its runs.

    >>> run_elements((4, 2, 8), (32, 8, 1)), run_elements((4, 8), (1, 4))
    (16, 1)
    """
    length = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != length:
            break
        length *= size
    return length


def ranges(shape: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """The elements of a tensor in row-major order in ranges of at most ``most``, of whole rows where rows are short.

    >>> list(ranges((5, 10), 25))
    [(0, 20), (20, 40), (40, 50)]
    """
    numel, row = math.prod(shape), row_elements(shape, most)
    step = most // row * row
    return ((start, min(start + step, numel)) for start in range(0, numel, step))


def row_elements(shape: Sequence[int], most: int) -> int:
    """Elements of the longest row (all of the last dimensions) of which at least two fit into ``most`` elements.

    >>> row_elements((4, 2, 100), 500)
    200
    """
    row = 1
    for size in reversed(shape[1:]):
        if not size or row * size * 2 > most:
            break
        row *= size
    return row


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[list[tuple[int, int]]]:
    """The elements ``start`` to ``stop`` in row-major order as regions, one after another; at most two per dimension.

    >>> list(boxes((4, 10), 5, 30))
    [[(0, 1), (5, 10)], [(1, 3), (0, 10)]]
    """
    if start >= stop:
        return
    if not shape:
        yield []
        return
    row = math.prod(shape[1:])
    first, last = start // row, stop // row
    if start % row:
        for rest in boxes(shape[1:], start % row, min(stop - first * row, row)):
            yield [(first, first + 1), *rest]
        first += 1
    if first < last:
        yield [(first, last), *((0, size) for size in shape[1:])]
    if stop % row and first <= last:
        for rest in boxes(shape[1:], 0, stop % row):
            yield [(last, last + 1), *rest]


def tiles(shape: Sequence[int], strides: Sequence[int], most: int) -> Iterator[list[tuple[int, int]]]:
    """Cut a tensor whose elements are stored in another order into boxes of about ``most`` elements.

    Each box is long both in the order of the storage (``strides``) and in row-major order, so that neither reading nor
    writing it falls apart into single elements.
    """
    edges = [1] * len(shape)
    for order, goal in (
        (sorted(range(len(shape)), key=lambda dim: strides[dim]), math.isqrt(most)),
        (range(len(shape) - 1, -1, -1), most),
    ):
        for dim in order:
            edges[dim] = min(shape[dim], max(edges[dim], edges[dim] * goal // math.prod(edges)))
    steps = (range(0, size, edge) for size, edge in zip(shape, edges, strict=True))
    for corner in product(*steps):
        yield [(at, min(at + edge, size)) for at, edge, size in zip(corner, edges, shape, strict=True)]


def runs(shape: Sequence[int], strides: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """The runs of a box of a larger tensor, which has these strides.

    Yields (start in the tensor, start in the box, length), in elements, in the order of the box.

    >>> list(runs((2, 3), (10, 1)))
    [(0, 0, 3), (10, 3, 3)]
    """
    length = run_elements(shape, strides)
    outer = len(shape)
    while outer and math.prod(shape[outer - 1 :]) <= length:
        outer -= 1
    starts = (range(0, size * stride, stride) for size, stride in zip(shape[:outer], strides[:outer], strict=True))
    for number, corner in enumerate(product(*starts)):
        yield sum(corner), number * length, length
