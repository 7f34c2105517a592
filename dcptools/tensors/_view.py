"""A view of a stored tensor: what an output is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dcptools.checkpoint import StoredTensor


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor, in elements.

    >>> row_major((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements with these strides lie one after the other in row-major order."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return math.prod(shape) == 0
        expected *= size
    return True


@dataclass(frozen=True, slots=True)
class View:
    """Some elements of the stored tensor ``key``, by shape, strides and offset.

    Strides and offset count elements of the tensor as it would lie in row-major order, whatever its chunks are.
    A view takes a box of the tensor, with its dimensions in any order: a whole tensor, one expert of a stack
    (shape and strides without the first dimension), a transpose.
    """

    key: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements
    offset: int  # elements

    @classmethod
    def whole(cls, tensor: StoredTensor) -> View:
        return cls(tensor.key, tensor.shape, row_major(tensor.shape), 0)

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Whether it is the tensor itself."""
        return self.shape == tuple(shape) and self.offset == 0 and self.strides == row_major(shape)

    @property
    def contiguous(self) -> bool:
        """Whether it is a range of the tensor's elements in row-major order, from ``offset`` on."""
        return is_row_major(self.shape, self.strides)

    def locate(
        self, shape: Sequence[int], region: Sequence[tuple[int, int]]
    ) -> tuple[list[tuple[int, int]], list[int | None]]:
        """The box of the stored tensor under a region of the view.

        Returns (start, stop) for each stored dimension, and for each dimension of the view the stored dimension that it
        runs along; None for one of size 1 that runs along none.
        """
        box, rest = [], self.offset
        strides = row_major(shape)
        for size, stride in zip(shape, strides, strict=True):
            index = min(rest // stride, size - 1) if stride and size else 0
            rest -= index * stride
            box.append((index, index + 1))
        axes: list[int | None] = []
        for size, stride, (start, stop) in zip(self.shape, self.strides, region, strict=True):
            axis = next((d for d, s in enumerate(strides) if s == stride and shape[d] != 1 and d not in axes), None)
            if axis is None and size != 1:
                raise ValueError(f"{self} is not a box of a tensor of shape {tuple(shape)}")
            axes.append(axis if size != 1 else None)
            if size != 1 and axis is not None:
                box[axis] = (box[axis][0] + start, box[axis][0] + stop)
        return box, axes
