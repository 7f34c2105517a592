"""Pieces of a tensor, which are compared at once. Integers only, no values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dcptools.tensors import row_major, run_elements, runs

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some elements of a tensor, as a view of them in row-major order: by shape, strides and offset, in elements.

    A range of elements has one dimension and the stride 1; a box of the tensor has the tensor's strides.
    """

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def range(cls, start: int, stop: int) -> Piece:
        return cls(start, (stop - start,), (1,))

    @classmethod
    def box(cls, shape: Sequence[int], region: Sequence[tuple[int, int]], base: int = 0) -> Piece:
        """A region of something that has that shape and begins at element ``base`` of the tensor."""
        strides = row_major(shape)
        corner = sum(start * stride for (start, _), stride in zip(region, strides, strict=True))
        return cls(base + corner, tuple(stop - start for start, stop in region), strides)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_range(self) -> bool:
        return self.strides == (1,)

    def stretches(self, least: int) -> Iterator[tuple[int, int]]:
        """Elements that follow each other in the tensor: a start and a count; nothing if fewer than ``least`` do."""
        if self.numel and run_elements(self.shape, self.strides) >= min(least, self.numel):
            yield from ((self.offset + start, count) for start, _, count in runs(self.shape, self.strides))

    def elements(self, numbers: Ints) -> Ints:
        """Which elements of the tensor have these numbers in the piece."""
        indices = np.unravel_index(numbers, self.shape) if self.shape else ()
        at = np.full(len(numbers), self.offset, np.int64)
        for index, stride in zip(indices, self.strides, strict=True):
            at += index * stride
        return at
