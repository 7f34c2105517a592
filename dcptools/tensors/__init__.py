"""Values: the bytes of any region of a stored tensor, whatever its chunks, strides and encoding.

Everything that looks at values stands on :meth:`TensorReader.read_region`, or on :meth:`TensorReader.read_range`, which
is the fast way where bytes lie in a row. Values are moved as bits (unsigned integers of the dtype's width), so nothing
is rounded and NaN payloads survive. Memory is one scratch buffer a reader thread, whatever the size of the tensor.
"""

from __future__ import annotations

import functools
import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from operator import add, itemgetter, mul, sub
from typing import Any

import numpy as np
import numpy.typing as npt

from dcptools.checkpoint import Chunk, StoredTensor
from dcptools.checkpoint._cover import FEW_CHUNKS, Ints, check_cover
from dcptools.errors import BrokenCheckpoint
from dcptools.tensors._checksums import Checksums
from dcptools.tensors._item import Item, Unpacked, open_item
from dcptools.tensors._view import View, is_row_major, row_major

__all__ = [
    "BITS",
    "SCRATCH_BYTES",
    "Bits",
    "ByteRange",
    "Checksums",
    "Region",
    "TensorReader",
    "View",
    "boxes",
    "ranges",
    "read_region",
    "read_view",
    "row_elements",
    "tiles",
]

Bits = npt.NDArray[Any]  # values as bits: unsigned integers of the dtype's width
ByteRange = tuple[Item, int, int]  # an item, the first byte in its storage, and the number of bytes
Region = Sequence[tuple[int, int]]  # (start, stop) a dimension, in elements

BITS: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("u2"),
    4: np.dtype("u4"),
    8: np.dtype("u8"),
    16: np.dtype("c16"),
}
SCRATCH_BYTES = 1 << 20  # a thread; the longest piece that is read to be rearranged
SMALL_GAP = 4096  # bytes; reading across such a gap is cheaper than a second read


class TensorReader:
    """Reads regions of one stored tensor; several threads may share it.

    Parameters
    ----------
    tensor
        Of a checkpoint that ``read`` returned.
    checksums
        Gets every byte that is read, and checks each item that was read whole. None: nothing is checked.

    Raises
    ------
    BrokenCheckpoint
        The chunks do not cover the tensor exactly: what lies in a hole would be whatever was in memory.
    """

    def __init__(self, tensor: StoredTensor, checksums: Checksums | None = None) -> None:
        if not tensor.covered:
            problem = check_cover(tensor.shape, tensor.offsets, tensor.sizes)
            what = problem[1] if problem else "its chunks do not cover it"
            raise BrokenCheckpoint(f"{tensor.key!r}: {what}.\nUse another checkpoint, or save again.")
        self.tensor = tensor
        self._checksums = checksums
        few = len(tensor.offsets) <= FEW_CHUNKS  # small numbers are handled faster without numpy
        self._boxes = None if few else _distinct(tensor)
        self._items: dict[int, Item] = {}
        self._unpacked = functools.cache(Unpacked)
        self._opening: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    @property
    def bits(self) -> np.dtype[Any]:
        return BITS[self.tensor.dtype.itemsize]

    @cached_property
    def _corners(self) -> list[tuple[int, list[int], list[int]]]:
        """The distinct chunks as index, first and last element a dimension; takes long where there are many."""
        return _few_corners(self.tensor) if self._boxes is None else _corners(self.tensor, self._boxes)

    @cached_property
    def _stretches(self) -> list[tuple[int, int, int]] | None:
        return _stretches(self.tensor.shape, self._corners)

    @property
    def straight(self) -> bool:
        """Whether each chunk is one stretch of the tensor in row-major order: all that are cut along dimension 0."""
        return self._stretches is not None

    @property
    def strided(self) -> tuple[int, ...] | None:
        """The strides of the first chunk, in elements, if its values lie in another order than row-major."""
        if not self.tensor.numel:
            return None
        layout = self._item(self._corners[0][0]).layout
        return None if layout.row_major else layout.strides

    def regions(self, most: int) -> Iterator[Region]:
        """The tensor in regions of at most about ``most`` elements, as it is read best.

        They follow each other in row-major order; or, where the first chunk lies in another order, they are boxes that
        are long in both orders.
        """
        shape = self.tensor.shape
        strides = self.strided if self.tensor.numel > most else None
        if strides is not None:
            yield from tiles(shape, strides, most)
        else:
            for start, stop in ranges(shape, most):
                yield from boxes(shape, start, stop)

    def open(self) -> None:
        """Open all items now and not when they are first read; raises what ``read_region`` raises."""
        chunks = self.tensor.chunks
        with self._lock:
            for index, _, _ in self._corners:
                if index not in self._items and index not in self._opening:
                    self._items[index] = self._open(chunks[index])
        for index, _, _ in self._corners:
            self._item(index)  # waits for those that another thread had begun to open

    def read_range(self, start: int, stop: int, out: Bits) -> None:
        """Fill ``out`` with the elements ``start`` to ``stop`` of the tensor in row-major order.

        Parameters
        ----------
        start, stop
            Numbers of elements of the logical tensor.
        out
            An array of :attr:`bits` with one dimension, contiguous.

        Raises
        ------
        BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint
            As :meth:`read_region`.
        """
        if self._stretches is None:
            _fill(boxes(self.tensor.shape, start, stop), out, self.read_region)
            return
        data, done = out.data.cast("B"), 0
        for item, first, count in self._parts(self._stretches, start, stop):
            layout = item.layout
            if layout.plain:
                itemsize = layout.dtype.itemsize
                part = data[done * itemsize : (done + count) * itemsize]
                self._read_bytes(item, (layout.offset + first) * itemsize, part)
            else:

                def read(region: Region, target: Bits, item: Item = item) -> None:
                    self._read_item(item, [a for a, _ in region], [b - a for a, b in region], target)

                _fill(boxes(layout.shape, first, first + count), out[done : done + count], read)
            done += count

    def byte_ranges(self, start: int, stop: int) -> list[ByteRange] | None:
        """Where the elements ``start`` to ``stop`` in row-major order are stored.

        Returns
        -------
        Items, the first byte in the storage of each, and the number of bytes. None if the elements are not just the
        bytes there, one behind the other.

        Raises
        ------
        BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint
            As :meth:`read_region`.
        """
        if self._stretches is None:
            return None
        found = []
        for item, first, count in self._parts(self._stretches, start, stop):
            layout = item.layout
            if not layout.plain:
                return None
            itemsize = layout.dtype.itemsize
            found.append((item, (layout.offset + first) * itemsize, count * itemsize))
        return found

    def _parts(
        self, stretches: Sequence[tuple[int, int, int]], start: int, stop: int
    ) -> Iterator[tuple[Item, int, int]]:
        """The elements ``start`` to ``stop`` as items, the first element of each item, and how many."""
        number = bisect_right(stretches, start, key=itemgetter(0)) - 1
        while start < stop:
            first, last, index = stretches[number]
            end = min(last, stop)
            yield self._item(index), start - first, end - start
            start, number = end, number + 1

    def read_region(self, region: Region, out: Bits) -> None:
        """Fill ``out`` with the values of ``region``.

        Parameters
        ----------
        region
            (start, stop) for each dimension, in elements of the logical tensor.
        out
            An array of :attr:`bits` with the region's shape; any strides.

        Raises
        ------
        BrokenCheckpoint
            An item is damaged or is not what the metadata announces, or the region reaches out of the tensor.
        ChecksumError
            The bytes of an item are not those that were saved.
        UnsupportedCheckpoint
            An item is stored in an encoding that dcptools does not read.
        """
        wanted = math.prod(stop - start for start, stop in region)
        for index, first, last in self._overlapping(region):
            low = [max(start, edge) for (start, _), edge in zip(region, first, strict=True)]
            high = [min(stop, edge) for (_, stop), edge in zip(region, last, strict=True)]
            shape = [b - a for a, b in zip(low, high, strict=True)]
            if shape and min(shape) <= 0:
                continue
            window: Any = [slice(a - start, b - start) for a, b, (start, _) in zip(low, high, region, strict=True)]
            target = out[(*window, ...)]  # the ellipsis makes it a view where there are no dimensions too
            self._read_item(self._item(index), [a - edge for a, edge in zip(low, first, strict=True)], shape, target)
            wanted -= math.prod(shape)
        if wanted:
            raise BrokenCheckpoint(f"{self.tensor.key!r}: its chunks do not cover {[list(pair) for pair in region]}.")

    def _overlapping(self, region: Region) -> Iterable[tuple[int, list[int], list[int]]]:
        """The chunks that may overlap a region: index, first and last element a dimension."""
        if self._boxes is None:
            return self._corners
        starts = np.array([start for start, _ in region], dtype=np.int64)
        stops = np.array([stop for _, stop in region], dtype=np.int64)
        offsets, sizes = self.tensor.offsets[self._boxes], self.tensor.sizes[self._boxes]
        hit = self._boxes[np.all((offsets < stops) & (offsets + sizes > starts), axis=1)]
        return _corners(self.tensor, hit)

    def _item(self, index: int) -> Item:
        item = self._items.get(index)
        if item is not None:
            return item
        with self._lock:
            opening = self._opening.setdefault(index, threading.Lock())
        with opening:  # one thread opens it, the others wait; other items can be opened at the same time
            if index not in self._items:
                self._items[index] = self._open(self.tensor.chunk(index))
        return self._items[index]

    def _open(self, chunk: Chunk) -> Item:
        item = open_item(self.tensor.source, self.tensor, chunk, self._unpacked)
        if self._checksums is not None:
            self._checksums.open(item)
        return item

    def _read_item(self, item: Item, start: list[int], shape: list[int], target: Bits) -> None:
        """Read a box of one item, as the values that its bits and flags stand for."""
        self._read_box(item, start, shape, target)
        if item.layout.conjugate or item.layout.negative:
            _resolve_flags(item, target)

    def _read_box(self, item: Item, start: list[int], shape: list[int], target: Bits) -> None:
        """Read a box of one item: in one piece if its bytes lie close together, else in two halves."""
        if 0 in shape:
            return
        strides, itemsize = item.layout.strides, item.layout.dtype.itemsize
        first = item.layout.offset + sum(map(mul, start, strides))
        if target.flags.c_contiguous and is_row_major(shape, strides):
            self._read_bytes(item, first * itemsize, target.reshape(-1).data.cast("B"))
            return
        span = (1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))) * itemsize
        needed = math.prod(shape) * itemsize
        if span <= SCRATCH_BYTES and span <= max(needed + SMALL_GAP, 2 * needed):
            piece = self._scratch()[:span]
            self._read_bytes(item, first * itemsize, piece.data)
            byte_strides = [s * itemsize for s in strides]
            target[...] = np.ndarray(tuple(shape), self.bits, piece.data, 0, tuple(byte_strides))
        else:
            dim = max((d for d, n in enumerate(shape) if n > 1), key=lambda d: strides[d])
            half = shape[dim] // 2
            for low, high in ((0, half), (half, shape[dim])):
                part_start, part_shape = list(start), list(shape)
                part_start[dim], part_shape[dim] = start[dim] + low, high - low
                self._read_box(item, part_start, part_shape, target[(slice(None),) * dim + (slice(low, high),)])

    def _read_bytes(self, item: Item, start: int, out: memoryview) -> None:
        item.source.read_into(item.file, item.start + start, out)
        if self._checksums is not None:
            self._checksums.add(item, start, out)

    def _scratch(self) -> Bits:
        if not hasattr(self._local, "scratch"):
            self._local.scratch = np.empty(SCRATCH_BYTES, np.uint8)
        return self._local.scratch  # type: ignore[no-any-return]


def read_region(tensor: StoredTensor, region: Region, out: Bits | None = None) -> Bits:
    """The values of a region of a stored tensor, as bits; see :meth:`TensorReader.read_region`.

    >>> weight = read(demo.checkpoint)["model.lm_head.weight"]
    >>> read_region(weight, [(0, 2), (0, 3)]).view("float32").shape
    (2, 3)
    """
    reader = TensorReader(tensor)
    if out is None:
        out = np.empty([stop - start for start, stop in region], reader.bits)
    reader.read_region(region, out)
    return out


def read_view(reader: TensorReader, view: View, region: Region, out: Bits) -> None:
    """Fill ``out`` with a region of a view of the reader's tensor; raises what ``read_region`` raises."""
    if not out.size:
        return
    if view.is_whole(reader.tensor.shape):
        reader.read_region(region, out)
        return
    stored, axes = view.locate(reader.tensor.shape, region)
    # the ellipses keep these views of the same memory where there are no dimensions left
    kept = out[(*(slice(None) if axis is not None else 0 for axis in axes), ...)]
    used = [axis for axis in axes if axis is not None]
    target = kept.transpose(sorted(range(len(used)), key=lambda position: used[position]))
    reader.read_region(stored, target[(*(slice(None) if d in used else None for d in range(len(stored))), ...)])


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
    """The elements ``start`` to ``stop`` in row-major order as regions, one after the other; at most two a dimension.

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
        yield [(first, last), *((0, n) for n in shape[1:])]
    if stop % row and first <= last:
        for rest in boxes(shape[1:], 0, stop % row):
            yield [(last, last + 1), *rest]


def tiles(shape: Sequence[int], strides: Sequence[int], most: int) -> Iterator[list[tuple[int, int]]]:
    """Cut a tensor that is stored in another order into boxes of about ``most`` elements.

    Each box is long both in the order of the storage (``strides``, in elements) and in row-major order, so that
    neither reading nor writing it falls apart into single elements.
    """
    edges = [1] * len(shape)
    for order, goal in (
        (sorted(range(len(shape)), key=lambda d: strides[d]), math.isqrt(most)),
        (range(len(shape) - 1, -1, -1), most),
    ):
        for dim in order:
            edges[dim] = min(shape[dim], max(edges[dim], edges[dim] * goal // math.prod(edges)))
    for corner in np.ndindex(*(-(-n // e) for n, e in zip(shape, edges, strict=True))):
        yield [(i * e, min((i + 1) * e, n)) for i, e, n in zip(corner, edges, shape, strict=True)]


def _fill(regions: Iterable[Region], out: Bits, read: Callable[[Region, Bits], None]) -> None:
    """Read regions that follow each other in row-major order into a contiguous array."""
    at = 0
    for region in regions:
        shape = [stop - start for start, stop in region]
        count = math.prod(shape)
        read(region, out[at : at + count].reshape(shape))
        at += count


def _few_corners(tensor: StoredTensor) -> list[tuple[int, list[int], list[int]]]:
    """What ``_corners`` says of what ``_distinct`` says."""
    found: dict[tuple[int, ...], tuple[int, list[int], list[int]]] = {}
    for index, (low, size) in enumerate(zip(tensor.offsets.tolist(), tensor.sizes.tolist(), strict=True)):
        if 0 not in size:
            found.setdefault((*low, *size), (index, low, list(map(add, low, size))))
    return list(found.values())


def _distinct(tensor: StoredTensor) -> Ints:
    """Indices of the chunks that are neither empty nor a replica of an earlier one."""
    if not tensor.shape:
        return np.zeros(1, np.int64)
    if int(np.prod(tensor.sizes, axis=1).sum()) == tensor.numel:  # they cover it, so none stands twice
        return np.flatnonzero(np.all(tensor.sizes > 0, axis=1))
    boxes = np.concatenate([tensor.offsets, tensor.sizes], axis=1)
    _, first = np.unique(boxes, axis=0, return_index=True)
    first = np.sort(first)
    return first[np.all(tensor.sizes[first] > 0, axis=1)]


def _corners(tensor: StoredTensor, indices: Ints) -> list[tuple[int, list[int], list[int]]]:
    """Chunks as index, first and last element a dimension."""
    offsets, sizes = tensor.offsets[indices], tensor.sizes[indices]
    return list(zip(indices.tolist(), offsets.tolist(), (offsets + sizes).tolist(), strict=True))


def _stretches(
    shape: Sequence[int], corners: Iterable[tuple[int, list[int], list[int]]]
) -> list[tuple[int, int, int]] | None:
    """Chunks as (first, last, index), in elements of the tensor in row-major order; None if one is no such stretch."""
    strides, found = row_major(shape), []
    rest, origin = list(shape[1:]), [0] * (len(shape) - 1)
    for index, low, high in corners:
        if strides and high[1:] == rest and low[1:] == origin:  # as FSDP cuts; quicker to see
            found.append((low[0] * strides[0], high[0] * strides[0], index))
            continue
        size = list(map(sub, high, low))
        if not is_row_major(size, strides):
            return None
        first = sum(map(mul, low, strides))
        found.append((first, first + math.prod(size), index))
    return sorted(found)


def _resolve_flags(item: Item, values: Bits) -> None:
    """Apply the conjugate and negative bits, as torch's ``resolve_conj`` and ``resolve_neg`` do."""
    layout = item.layout
    if layout.dtype.kind == "complex":
        if layout.negative:
            _flip_sign(_part(values, imaginary=False))
        if layout.negative != layout.conjugate:
            _flip_sign(_part(values, imaginary=True))
    elif layout.negative and layout.dtype.kind == "int":
        np.negative(values, out=values)
    elif layout.negative:
        _flip_sign(values)


def _flip_sign(words: Bits) -> None:
    words ^= words.dtype.type(1 << (8 * words.itemsize - 1))


def _part(values: Bits, *, imaginary: bool) -> Bits:
    """The real or the imaginary parts of complex values as bits, in the same memory, whatever its strides."""
    nbytes = values.itemsize // 2
    pair = np.dtype(
        {"names": ["part"], "formats": [f"u{nbytes}"], "offsets": [nbytes * imaginary], "itemsize": values.itemsize}
    )
    return values.view(pair)["part"]
