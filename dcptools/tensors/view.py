"""A view of a stored tensor: what an output is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from dcptools._frozen import set_class, unfrozen
from dcptools.checkpoint import StoredTensor
from dcptools.errors import UsageError
from dcptools.tensors.bits import Bits, fill, gather
from dcptools.tensors.geometry import Region, boxes, can_be_view, is_row_major, row_major, run_elements, runs, span
from dcptools.tensors.reader import TensorReader


@final
@dataclass(frozen=True, slots=True, init=False)
class View:
    """Some elements of the stored tensor ``key``, by shape, strides and offset.

    Strides and offset count elements of the tensor as it would be in row-major order, whatever its chunks are. So a
    view can be a whole tensor, one expert of a stack (shape and strides without the first dimension), a transpose, or
    rows in another order.
    """

    key: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements
    offset: int  # elements

    def __init__(self, key: str, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> None:
        set_class(self, _Unfrozen)
        made: Any = self
        made.key, made.shape, made.strides, made.offset = key, shape, strides, offset
        made.__class__ = View
        if offset < 0 or not can_be_view(shape, strides):
            raise UsageError(f"{self} is not a view.\nExpected as many strides as sizes, and no negative number.")

    @classmethod
    def whole(cls, tensor: StoredTensor) -> View:
        return _unchecked(tensor.key, tensor.shape, row_major(tensor.shape), 0)

    def inside(self, other: View) -> View:
        """The same elements of another view instead of a tensor; those of ``other`` have to follow each other."""
        return _unchecked(other.key, self.shape, self.strides, other.offset + self.offset)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The place after its last element: elements from the start of the stored tensor."""
        return self.offset + span(self.shape, self.strides)

    @property
    def contiguous(self) -> bool:
        """Whether it is a range of the tensor's elements in row-major order, from ``offset`` on."""
        return is_row_major(self.shape, self.strides)

    def stretches(self, start: int, stop: int, least: int) -> Iterator[tuple[int, int]]:
        """Where the elements ``start`` to ``stop`` follow each other in the tensor: a start and a count, in elements.

        Elements that lie close together count with what is between them; nothing if fewer than ``least`` do.
        """
        if self.contiguous:
            yield self.offset + start, stop - start
            return
        for region in boxes(self.shape, start, stop):
            shape = tuple(last - first for first, last in region)
            corner = self.offset + sum(first * by for (first, _), by in zip(region, self.strides, strict=True))
            together = span(shape, self.strides)
            if together <= 2 * math.prod(shape):
                yield corner, together
            elif run_elements(shape, self.strides) >= least:
                yield from ((corner + at, count) for at, _, count in runs(shape, self.strides))

    def is_whole(self, shape: tuple[int, ...]) -> bool:
        """Whether it is the tensor itself."""
        return self.shape == shape and self.offset == 0 and self.strides == row_major(shape)


_Unfrozen = unfrozen(View)


def _unchecked(key: str, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> View:
    """A view that is made of valid ones or of a stored tensor, and so needs no check."""
    view = _Unfrozen()
    view.key, view.shape, view.strides, view.offset = key, shape, strides, offset
    view.__class__ = View
    return view  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Box:
    """A view that takes a box of its tensor, with the dimensions in any order: the kind that is read fastest."""

    origin: tuple[int, ...]  # the box's first element: an index per dimension of the tensor
    axes: tuple[int | None, ...]  # the tensor's dimension that each dimension of the view runs along; None for size 1

    def region(self, region: Region) -> list[tuple[int, int]]:
        """The region of the stored tensor that lies under one of the view."""
        stored = [(at, at + 1) for at in self.origin]
        for axis, (start, stop) in zip(self.axes, region, strict=True):
            if axis is not None:
                stored[axis] = (self.origin[axis] + start, self.origin[axis] + stop)
        return stored


def as_box(view: View, shape: Sequence[int]) -> Box | None:
    """The box that the view takes of a tensor of that shape; None if it is not a box, such as rows in another order."""
    strides = row_major(shape)
    by_stride = {stride: dim for dim, stride in enumerate(strides) if shape[dim] != 1}
    axes = tuple(
        by_stride.get(stride) if size != 1 else None for size, stride in zip(view.shape, view.strides, strict=True)
    )
    used = [axis for axis in axes if axis is not None]
    if len(used) != sum(size != 1 for size in view.shape) or len(set(used)) != len(used):
        return None
    origin = tuple(view.offset // stride % size for size, stride in zip(shape, strides, strict=True))
    fits = all(axis is None or origin[axis] + size <= shape[axis] for axis, size in zip(axes, view.shape, strict=True))
    return Box(origin, axes) if fits else None


def read_view(reader: TensorReader, view: View, region: Region, out: Bits) -> None:
    """Fill ``out``, which may have any strides, with a region of a view of the reader's tensor.

    A box of the tensor is read as a region of it; any other view by the runs of its elements, which is slow if these
    are short. Raises what :meth:`TensorReader.read_region` raises.
    """
    if not out.size:
        return
    shape = reader.tensor.shape
    if view.is_whole(shape):
        reader.read_region(region, out)
        return
    box = as_box(view, shape)
    if box is not None:
        reader.read_region(box.region(region), _turned(out, box.axes, len(shape)))
        return

    def read(start: int, target: Bits) -> None:
        reader.read_range(start, start + len(target), target)

    offset = view.offset + sum(start * stride for (start, _), stride in zip(region, view.strides, strict=True))
    gather(read, [stop - start for start, stop in region], view.strides, offset, out)


def read_elements(reader: TensorReader, view: View, start: int, stop: int, out: Bits) -> None:
    """Fill a contiguous ``out`` with the elements ``start`` to ``stop`` of a view in row-major order."""
    if view.contiguous:
        reader.read_range(view.offset + start, view.offset + stop, out)
    else:
        fill(list(boxes(view.shape, start, stop)), out, lambda region, part: read_view(reader, view, region, part))


def _turned(out: Bits, axes: Sequence[int | None], dims: int) -> Bits:
    """The same memory with the dimensions of the stored tensor, of which the view has only some, in another order."""
    # the ellipses keep it a view of the same memory where no dimensions are left
    kept = out[(*(0 if axis is None else slice(None) for axis in axes), ...)]
    used = [axis for axis in axes if axis is not None]
    ordered = kept.transpose(sorted(range(len(used)), key=lambda position: used[position]))
    return ordered[(*(slice(None) if dim in used else None for dim in range(dims)), ...)]
