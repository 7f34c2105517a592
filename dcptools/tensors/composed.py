"""Tensors that are put together from views: reshaped, permuted, cut and joined, by arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dcptools.errors import UsageError
from dcptools.tensors.geometry import row_major
from dcptools.tensors.view import View

MAX_VIEWS = 1 << 16  # of one tensor; joining along an inner dimension makes some per row


class NotViews(UsageError):
    """What was requested cannot be expressed as views of stored tensors."""


@dataclass(frozen=True, slots=True)
class Composed:
    """A tensor whose values, in row-major order, are those of its views, one after another.

    Each method answers for the shape and for the values at once, and copies nothing. ``NotViews`` is raised if a
    result is not made of a few views; ``ValueError`` if shapes do not fit.

    >>> stack = Composed.whole("experts", (2, 4, 3))
    >>> stack.select(0, 1).permute(1, 0).views
    (View(key='experts', shape=(3, 4), strides=(1, 3), offset=12),)
    """

    shape: tuple[int, ...]
    views: tuple[View, ...]

    @classmethod
    def whole(cls, key: str, shape: Sequence[int]) -> Composed:
        """The stored tensor ``key`` itself."""
        return cls(tuple(shape), (View(key, tuple(shape), row_major(shape), 0),))

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def reshape(self, *shape: int) -> Composed:
        """The same values in the same order; one size may be -1."""
        if -1 in shape:
            rest = -math.prod(shape)
            shape = tuple(self.numel // rest if size == -1 and rest else size for size in shape)
        if math.prod(shape) != self.numel:
            raise ValueError(f"{self.shape} cannot be reshaped to {shape}")
        return Composed(shape, self.views)

    def permute(self, *dims: int) -> Composed:
        """The dimensions in another order."""
        if sorted(dims) != list(range(len(self.shape))):
            raise ValueError(f"{dims} is not an order of the dimensions of {self.shape}")
        shape = tuple(self.shape[dim] for dim in dims)
        if list(dims) == sorted(dims) or not self.numel:
            return Composed(shape, self.views)
        key, offset, factors = self._factors()
        return Composed(shape, (_joined(key, offset, [factor for dim in dims for factor in factors[dim]]),))

    def narrow(self, dim: int, start: int, length: int) -> Composed:
        """The elements ``start`` to ``start + length`` of a dimension."""
        size = self.shape[dim]
        if not 0 <= start <= start + length <= size:
            raise ValueError(f"{start} to {start + length} is not within dimension {dim} of {self.shape}")
        if length == size:
            return self
        shape = (*self.shape[:dim], length, *self.shape[dim + 1 :])
        if math.prod(self.shape[:dim]) == 1:  # a range of the values
            row = math.prod(self.shape[dim + 1 :])
            return Composed(shape, tuple(_cut(self.views, start * row, (start + length) * row)))
        key, offset, factors = self._factors()
        if len(factors[dim]) != 1:
            raise NotViews(f"A part of dimension {dim} of {self.shape} is not a view of {key!r}.")
        stride = factors[dim][0][1]
        factors[dim] = [(length, stride)]
        return Composed(shape, (_joined(key, offset + start * stride, [f for dim in factors for f in dim]),))

    def select(self, dim: int, index: int) -> Composed:
        """One element of a dimension, which is then gone."""
        return self.narrow(dim, index, 1).reshape(*self.shape[:dim], *self.shape[dim + 1 :])

    @staticmethod
    def cat(tensors: Sequence[Composed], dim: int = 0) -> Composed:
        """Tensors one after another along a dimension."""
        first = tensors[0].shape
        if any((t.shape[:dim], t.shape[dim + 1 :]) != (first[:dim], first[dim + 1 :]) for t in tensors):
            raise ValueError(f"shapes {[t.shape for t in tensors]} cannot be joined along dimension {dim}")
        outer = math.prod(first[:dim])
        if outer * sum(len(t.views) for t in tensors) > MAX_VIEWS:
            raise NotViews(
                f"{len(tensors)} tensors of the shape {first} joined along dimension {dim} are too many views."
            )
        shape = (*first[:dim], sum(t.shape[dim] for t in tensors), *first[dim + 1 :])
        rows = [t.reshape(outer, t.numel // outer) for t in tensors if t.numel]
        views = tuple(view for at in range(outer) for row in rows for view in row.select(0, at).views)
        return Composed(shape, views or tensors[0].views)

    def _factors(self) -> tuple[str, int, list[list[tuple[int, int]]]]:
        """Key and offset of the only view, and (size, stride) of the factors that each dimension is made of."""
        if len(self.views) != 1:
            raise NotViews(f"A tensor of {len(self.views)} views of {self.views[0].key!r} cannot be rearranged.")
        view = _joined(
            self.views[0].key, self.views[0].offset, zip(self.views[0].shape, self.views[0].strides, strict=True)
        )
        have = [(size, stride) for size, stride in zip(view.shape, view.strides, strict=True) if size != 1]
        dims: list[list[tuple[int, int]]] = []
        for wanted in reversed(self.shape):
            factors: list[tuple[int, int]] = []
            while wanted != 1:
                size, stride = have.pop()
                taken = math.gcd(size, wanted)
                if taken not in (size, wanted):
                    raise NotViews(f"{view} as {self.shape} is not a view.")
                if taken != size:
                    have.append((size // taken, stride * taken))
                factors.insert(0, (taken, stride))
                wanted //= taken
            dims.insert(0, factors or [(1, 0)])
        return view.key, view.offset, dims


def _joined(key: str, offset: int, factors: Iterable[tuple[int, int]]) -> View:
    """A view with as few dimensions as these factors allow."""
    dims: list[tuple[int, int]] = []
    for size, stride in factors:
        if size == 1:
            continue
        if dims and dims[-1][1] == size * stride:
            size *= dims.pop()[0]
        dims.append((size, stride))
    return View(key, tuple(size for size, _ in dims), tuple(stride for _, stride in dims), offset)


def _cut(views: Sequence[View], start: int, stop: int) -> Iterator[View]:
    """The values ``start`` to ``stop`` of views that follow each other."""
    at = 0
    for view in views:
        first, last = max(start - at, 0), min(stop - at, view.numel)
        at += view.numel
        if first < last:
            yield view if last - first == view.numel else _range(view, first, last)


def _range(view: View, first: int, last: int) -> View:
    """A range of a view's values, which must be whole rows of some depth."""
    shape, strides = list(view.shape), list(view.strides)
    offset = view.offset
    while shape:
        row = math.prod(shape[1:])
        if first % row == 0 and last % row == 0:
            shape[0] = (last - first) // row
            return View(view.key, tuple(shape), tuple(strides), offset + first // row * strides[0])
        if first // row != (last - 1) // row:
            break
        offset += first // row * strides[0]
        first, last = first % row, last - first // row * row
        shape, strides = shape[1:], strides[1:]
    raise NotViews(f"The values {first} to {last} of {view} are not a view.")
