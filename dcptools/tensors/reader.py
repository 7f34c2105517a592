"""Reads any region of one stored tensor, whatever its chunks, strides and encoding."""

from __future__ import annotations

import functools
import math
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter, mul
from typing import Any

import numpy as np

from dcptools.checkpoint import Chunk, StoredTensor
from dcptools.errors import BrokenCheckpoint
from dcptools.tensors.bits import BITS, SCRATCH_BYTES, Bits, fill, gather, resolve
from dcptools.tensors.checksums import Checksums
from dcptools.tensors.chunks import Chunks, ElementRange
from dcptools.tensors.frames import MOST_FRAMES, WINDOW, Windows, announced_whole
from dcptools.tensors.geometry import Region, boxes, ranges, span, tiles
from dcptools.tensors.item import Item, open_item
from dcptools.tensors.unpacked import Unpacked


class TensorReader:
    """Reads regions of one stored tensor; several threads may share it.

    Parameters
    ----------
    tensor
        Of a checkpoint that ``read`` returned.
    checksums
        Gets every byte that is read, and checks each item that was read whole. None: nothing is checked.
    scratch_bytes
        The most that is read at once to be rearranged.
    window
        The most items that are announced at once, where what was announced takes memory until it is read.

    Raises
    ------
    BrokenCheckpoint
        The chunks do not cover the tensor exactly: a hole would be filled with whatever was in memory.
    """

    def __init__(
        self,
        tensor: StoredTensor,
        checksums: Checksums | None = None,
        *,
        scratch_bytes: int = SCRATCH_BYTES,
        window: int = WINDOW,
    ) -> None:
        if not tensor.covered:
            raise BrokenCheckpoint(f"{tensor.key!r}: {tensor.problem}.\nUse another checkpoint, or save again.")
        self.tensor, self.chunks = tensor, Chunks(tensor)
        self.announced_whole = announced_whole(tensor)
        self._checksums, self._scratch_bytes, self._window = checksums, scratch_bytes, window
        self._items: dict[int, Item] = {}
        self._opening: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def bits(self) -> np.dtype[Any]:
        return BITS[self.tensor.dtype.itemsize]

    @property
    def straight(self) -> bool:
        """Whether each chunk is one range of the tensor's elements: all that are cut along dimension 0."""
        return self.chunks.ranges is not None

    @property
    def strided(self) -> tuple[int, ...] | None:
        """The strides of the first chunk, in elements, if its values are in an order other than row-major."""
        if not self.tensor.numel:
            return None
        arrangement = self._item(self.chunks.boxes[0].number).arrangement
        return None if arrangement.row_major else arrangement.strides

    def regions(self, most: int) -> Iterator[Region]:
        """The tensor in regions of at most about ``most`` elements, cut as they are read best.

        They follow each other in row-major order; or, if the first chunk lies in another order, they are boxes that
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
        """Open all items now, not when they are first read; raises what ``read_region`` raises."""
        if len(self._items) == len(self.chunks.boxes):
            return  # as for one of many experts in one tensor
        chunks = self.tensor.chunks
        with self._lock:
            for index, _, _ in self.chunks.boxes:
                if index not in self._items and index not in self._opening:
                    self._items[index] = self._open(index, chunks[index])
        for index, _, _ in self.chunks.boxes:
            self._item(index)  # waits for those that another thread has begun to open

    def checksums(self) -> dict[tuple[tuple[int, int], ...], int] | None:
        """The CRC-32 of each chunk's values, by its box; None if one was saved without it, or lies in another order."""
        items = {tuple(zip(low, high, strict=True)): self._item(number) for number, low, high in self.chunks.boxes}
        if not all(item.crc and item.dense for item in items.values()):
            return None
        return {box: item.crc for box, item in items.items()}

    def places(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Where the elements ``start`` to ``stop`` are stored: file, first byte, count; not those that lie apart."""
        for item, first, nbytes in self._spans(start, stop):
            if item.source is self.tensor.source:  # and not unpacked
                yield item.file, item.start + first, nbytes

    def _spans(self, start: int, stop: int) -> Iterator[tuple[Item, int, int]]:
        """The bytes under a range of elements: item, first byte in its storage, count; not if they lie apart."""
        if self.chunks.ranges is not None:
            for item, first, count in self._range_parts(self.chunks.ranges, start, stop):
                if item.arrangement.plain:
                    itemsize = item.arrangement.dtype.itemsize
                    yield item, (item.arrangement.offset + first) * itemsize, count * itemsize
            return
        for region in boxes(self.tensor.shape, start, stop):
            for item, low, high, _ in self._parts(region):
                shape, strides = tuple(b - a for a, b in zip(low, high, strict=True)), item.arrangement.strides
                elements, itemsize = span(shape, strides), item.arrangement.dtype.itemsize
                if elements <= 2 * math.prod(shape):
                    yield item, (item.arrangement.offset + sum(map(mul, low, strides))) * itemsize, elements * itemsize

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
        if not 0 <= start <= stop <= self.tensor.numel:
            raise BrokenCheckpoint(
                f"{self.tensor.key!r} has {self.tensor.numel:,} elements, and none at {start}:{stop}."
            )
        if self.chunks.ranges is None:
            fill(list(boxes(self.tensor.shape, start, stop)), out, self.read_region)
            return
        done = 0
        for item, first, count in self._range_parts(self.chunks.ranges, start, stop):
            arrangement, part = item.arrangement, out[done : done + count]
            if arrangement.plain:
                self._read_bytes(item, (arrangement.offset + first) * arrangement.dtype.itemsize, part.data.cast("B"))
            else:
                read = functools.partial(self._read_item, item)
                fill(list(boxes(arrangement.shape, first, first + count)), part, read)
            done += count

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
            An item is damaged or is not what the metadata announces, or the region reaches outside the tensor.
        ChecksumError
            The bytes of an item are not those that were saved.
        UnsupportedCheckpoint
            An item is stored in an encoding that dcptools does not read.
        """
        wanted = math.prod(stop - start for start, stop in region)
        for item, low, high, window in self._parts(region):
            target: Bits = out[(*window, ...)]  # the ellipsis makes it a view where there are no dimensions too
            self._read_item(item, list(zip(low, high, strict=True)), target)
            wanted -= target.size
        if wanted:
            raise BrokenCheckpoint(f"{self.tensor.key!r}: its chunks do not cover {[list(pair) for pair in region]}.")

    def region(self, region: Region, out: Bits | None = None) -> Bits:
        """The values of a region, in memory of their own unless it is given; as :meth:`read_region`."""
        values = np.empty([stop - start for start, stop in region], self.bits) if out is None else out
        self.read_region(region, values)
        return values

    def _range_parts(
        self, chunk_ranges: Sequence[ElementRange], start: int, stop: int
    ) -> Iterator[tuple[Item, int, int]]:
        """The elements ``start`` to ``stop`` as items, the first element of each item, and how many."""
        number = bisect_right(chunk_ranges, start, key=itemgetter(0)) - 1
        while start < stop:
            first, last, index = chunk_ranges[number]
            end = min(last, stop)
            yield self._item(index), start - first, end - start
            start, number = end, number + 1

    def _parts(self, region: Region) -> Iterator[tuple[Item, list[int], list[int], list[Any]]]:
        """The items under a region: first and last element of each item, and where that is in the region."""
        for index, low, high in self.chunks.overlapping(region):
            first = [max(start, edge) for (start, _), edge in zip(region, low, strict=True)]
            last = [min(stop, edge) for (_, stop), edge in zip(region, high, strict=True)]
            if all(a < b for a, b in zip(first, last, strict=True)):
                window = [slice(a - start, b - start) for a, b, (start, _) in zip(first, last, region, strict=True)]
                item_low = [a - edge for a, edge in zip(first, low, strict=True)]
                item_high = [b - edge for b, edge in zip(last, low, strict=True)]
                yield self._item(index), item_low, item_high, window

    def _item(self, index: int) -> Item:
        """The item of the chunk with that number, opened when it is first needed."""
        item = self._items.get(index)
        if item is not None:
            return item
        with self._lock:
            opening = self._opening.setdefault(index, threading.Lock())
        with opening:  # one thread opens it, the others wait; other items can be opened at the same time
            if index not in self._items:
                self._items[index] = self._open(index, self.tensor.chunk(index))
        return self._items[index]

    @functools.cached_property
    def _unpacked(self) -> Unpacked:
        """Where items are unpacked to, if one has to be."""
        return Unpacked()

    @property
    def first_numbers(self) -> list[int]:
        """The numbers of the chunks that are announced before the first one is opened: all, unless there are many."""
        boxes = self.chunks.boxes
        if self.tensor.source.ahead:
            boxes = boxes[: self._window]
        return [box.number for box in boxes] if len(boxes) <= MOST_FRAMES else []

    @functools.cached_property
    def _windows(self) -> Windows | None:
        """What announces the items, if there are very many, and announcing them takes memory."""
        boxes = self.chunks.boxes
        many = self.tensor.source.ahead and len(boxes) > self._window
        return Windows(self.tensor, [box.number for box in boxes], self._window) if many else None

    def _open(self, number: int, chunk: Chunk) -> Item:
        if self._windows is not None:
            self._windows.opening(number)
        item = open_item(self.tensor.source, self.tensor, chunk, lambda: self._unpacked)
        if self._checksums is not None:
            self._checksums.open(item)
        return item

    def _read_item(self, item: Item, region: Region, out: Bits) -> None:
        """Read a region of one item, as the values that its bits and flags stand for."""
        arrangement = item.arrangement

        def read(first: int, target: Bits) -> None:
            self._read_bytes(item, first * arrangement.dtype.itemsize, target.data.cast("B"))

        offset = arrangement.offset + sum(
            start * stride for (start, _), stride in zip(region, arrangement.strides, strict=True)
        )
        gather(read, [stop - start for start, stop in region], arrangement.strides, offset, out, self._scratch_bytes)
        if arrangement.conjugate or arrangement.negative:
            resolve(out, arrangement.dtype, conjugate=arrangement.conjugate, negative=arrangement.negative)

    def _read_bytes(self, item: Item, start: int, out: memoryview) -> None:
        """Read bytes of an item, and let the checksums see them."""
        item.source.read_into(item.file, item.start + start, out)
        if self._checksums is not None:
            self._checksums.add(item, start, out)


def read_region(tensor: StoredTensor, region: Region, out: Bits | None = None) -> Bits:
    """The values of a region of a stored tensor, as bits; see :meth:`TensorReader.read_region`.

    >>> weight = read(demo.checkpoint)["model.lm_head.weight"]
    >>> read_region(weight, [(0, 2), (0, 3)]).view("float32").shape
    (2, 3)
    """
    return TensorReader(tensor).region(region, out)
