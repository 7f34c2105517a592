"""The chunks of one tensor as boxes in it: which of them hold a region, and which ranges of elements they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from operator import add, mul, sub
from typing import NamedTuple

import numpy as np

from dcptools.checkpoint import Ints, StoredTensor
from dcptools.tensors.geometry import Region, is_row_major, row_major

FEW_CHUNKS = 16  # small numbers are handled faster without numpy


class ChunkBox(NamedTuple):
    """The place of a chunk in its tensor."""

    number: int  # of the chunk
    low: list[int]  # its first element: an index per dimension
    high: list[int]  # after its last element


class ElementRange(NamedTuple):
    """A chunk that is a range of its tensor's elements in row-major order."""

    start: int
    stop: int
    number: int  # of the chunk


class Chunks:
    """The distinct chunks of a tensor that its chunks cover; empty ones and replicas do not count."""

    def __init__(self, tensor: StoredTensor) -> None:
        self.tensor = tensor
        self._few = len(tensor.offsets) <= FEW_CHUNKS
        self._distinct = None if self._few else _distinct(tensor)

    @cached_property
    def boxes(self) -> list[ChunkBox]:
        """All of them; takes long if there are many."""
        return _few_boxes(self.tensor) if self._distinct is None else _boxes(self.tensor, self._distinct)

    @cached_property
    def ranges(self) -> list[ElementRange] | None:
        """All of them as ranges of elements, sorted, if they are cut along dimension 0. None if one is not a range."""
        return _ranges(self.tensor.shape, self.boxes)

    def overlapping(self, region: Region) -> Iterable[ChunkBox]:
        """Those that may overlap a region."""
        if self._distinct is None:
            return self.boxes
        starts = np.array([start for start, _ in region], dtype=np.int64)
        stops = np.array([stop for _, stop in region], dtype=np.int64)
        offsets, sizes = self.tensor.offsets[self._distinct], self.tensor.sizes[self._distinct]
        hit = np.all((offsets < stops) & (offsets + sizes > starts), axis=1)
        return _boxes(self.tensor, self._distinct[hit])


def _few_boxes(tensor: StoredTensor) -> list[ChunkBox]:
    """What ``_boxes`` gives for what ``_distinct`` gives."""
    found: dict[tuple[int, ...], ChunkBox] = {}
    for index, (low, size) in enumerate(zip(tensor.offsets.tolist(), tensor.sizes.tolist(), strict=True)):
        if 0 not in size:
            found.setdefault((*low, *size), ChunkBox(index, low, list(map(add, low, size))))
    return list(found.values())


def _distinct(tensor: StoredTensor) -> Ints:
    """Numbers of the chunks that are neither empty nor a replica of an earlier one."""
    if not tensor.shape:
        return np.zeros(1, np.int64)
    if int(np.prod(tensor.sizes, axis=1).sum()) == tensor.numel:  # they cover it, so none occurs twice
        return np.flatnonzero(np.all(tensor.sizes > 0, axis=1))
    both = np.concatenate([tensor.offsets, tensor.sizes], axis=1)
    _, first = np.unique(both, axis=0, return_index=True)
    first = np.sort(first)
    return first[np.all(tensor.sizes[first] > 0, axis=1)]


def _boxes(tensor: StoredTensor, indices: Ints) -> list[ChunkBox]:
    """The boxes of the chunks of these numbers."""
    offsets, sizes = tensor.offsets[indices], tensor.sizes[indices]
    corners = zip(indices.tolist(), offsets.tolist(), (offsets + sizes).tolist(), strict=True)
    return list(map(ChunkBox._make, corners))


def _ranges(shape: Sequence[int], boxes: Iterable[ChunkBox]) -> list[ElementRange] | None:
    """The boxes as ranges; None if one of them is not a range."""
    strides = row_major(shape)
    found = []
    rest, origin = list(shape[1:]), [0] * (len(shape) - 1)
    for index, low, high in boxes:
        if strides and high[1:] == rest and low[1:] == origin:  # as FSDP cuts; quicker to check
            found.append(ElementRange(low[0] * strides[0], high[0] * strides[0], index))
            continue
        size = list(map(sub, high, low))
        if not is_row_major(size, strides):
            return None
        start = sum(map(mul, low, strides))
        found.append(ElementRange(start, start + math.prod(size), index))
    return sorted(found)
