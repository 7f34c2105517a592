"""The work of filling a file, cut to size: which values are read, cast and written together. No threads, no I/O.

A *block* is some consecutive bytes of an output file, which are written at once. It is made of *slabs*: consecutive
values of the same dtypes, which are read and cast at once. What cannot be read well in the order of the output, such as
a transpose, is cut into *tiles* instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from dcptools.dtypes import DType
from dcptools.shards import PlannedTensor
from dcptools.storage import MOST_FETCHED_BYTES, Source
from dcptools.tensors import (
    SMALL_BYTES,
    WHOLE_BYTES,
    Bits,
    Region,
    TensorReader,
    View,
    read_elements,
    row_elements,
    run_elements,
    tiles,
)

SHORT_RUN_BYTES = 4096  # a large view whose runs are shorter is cut into tiles


@dataclass(frozen=True, slots=True)
class Sizes:
    """How the work is cut; the result does not depend on it."""

    # Of the wider of the stored and the written values. Smaller slabs cost more in threads that wait for each other
    # than they save in the cache (measured: 1, 2, 4 MiB).
    slab_bytes: int = 2 << 20
    block_slabs: int = 2
    # More of them, from small tensors or from those of many ranks, only take memory until they are written.
    block_parts: int = 256
    block_items: int = 256  # more only if a single tensor has more
    # Cut and opened together: few, so that copying begins soon where each read takes long, and that they take little
    # memory; but not fewer than tensors of many ranks have chunks, for items take longer to open when each is opened as
    # its bytes are needed.
    blocks_together: int = 16
    items_together: int = 256
    bytes_together: int = WHOLE_BYTES
    blocks_read_ahead: int = 4  # of a file that is being filled

    def for_source(self, source: Source, workers: int) -> Sizes:
        """If each read takes long, as much is read ahead as may wait in memory: values, and items of three groups."""
        if not source.ahead:
            return self
        share = MOST_FETCHED_BYTES // 2 // workers  # of each stream
        blocks = max(1, share // (2 * self.block_bytes) // 2)  # of values twice as wide as written
        items = min(self.items_together, max(16, share // (3 * SMALL_BYTES)))
        return replace(self, blocks_read_ahead=blocks, blocks_together=blocks, items_together=items)

    @property
    def block_bytes(self) -> int:
        return self.slab_bytes * self.block_slabs


@dataclass(slots=True, eq=False)  # there are very many, and a frozen one takes three times as long to make
class Part:
    """The values of one view, at their place in an output file; it does not change."""

    tensor: PlannedTensor
    view: View
    reader: TensorReader
    start: int  # bytes from the start of the file
    count: int  # values
    contiguous: bool  # whether they follow each other in the stored tensor too
    slab_elements: int  # the most that are read and cast at once
    row: int  # elements that are kept together; those in front of the view's first one count
    order: tuple[int, ...] | None  # strides by which it is cut into tiles; None: it is read in its own order

    @classmethod
    def of(cls, tensor: PlannedTensor, view: View, reader: TensorReader, start: int, sizes: Sizes) -> Part:
        stored, itemsize = reader.tensor.shape, tensor.output.dtype.itemsize
        count, contiguous = view.numel, view.contiguous
        elements = sizes.slab_bytes // max(itemsize, tensor.dtype.itemsize)
        order = None
        if count > elements and view.is_whole(stored):
            order = reader.strided
        elif count > elements and run_elements(view.shape, view.strides) * itemsize < SHORT_RUN_BYTES:
            order = None if contiguous else view.strides
        row = 1 if contiguous and reader.straight else row_elements(stored if contiguous else view.shape, elements)
        return cls(tensor, view, reader, start, count, contiguous, elements, row, order)

    @property
    def end(self) -> int:
        """Bytes from the start of the file."""
        return self.start + self.count * self.tensor.dtype.itemsize

    @property
    def is_scalar(self) -> bool:
        return not self.tensor.output.shape

    def whole_rows(self, first: int, room: int) -> int:
        """How many values from number ``first`` on to take into that much room: all, or up to the end of a row."""
        stop = min(first + room, self.count)
        if stop < self.count:
            stop -= (stop + (self.view.offset if self.contiguous else 0)) % self.row
        return max(0, stop - first)

    def goes_on(self, stop: int, other: Part, first: int) -> bool:
        """Whether the other's values from number ``first`` on are stored right after those up to ``stop``."""
        same = self.reader is other.reader and self.contiguous and other.contiguous
        return same and self.view.offset + stop == other.view.offset + first

    def read(self, first: int, stop: int, out: Bits) -> None:
        """Fill ``out`` with values from number ``first`` on; also with those that are stored after the last one."""
        if self.contiguous:
            self.reader.read_range(self.view.offset + first, self.view.offset + stop, out)
        else:
            read_elements(self.reader, self.view, first, stop, out)

    def places(self, first: int, stop: int) -> Iterable[tuple[str, int, int]]:
        """Where values from number ``first`` on are stored, if they follow each other there; not if that is known."""
        if self.reader.announced_whole or not self.contiguous:
            return ()
        return self.reader.places(self.view.offset + first, self.view.offset + stop)


@dataclass(slots=True)
class Slab:
    """Consecutive values of a block, of parts of the same dtypes, that are read and cast at once."""

    source: DType
    target: DType
    at: int  # elements from the start of the block
    is_scalar: bool  # the only value of a tensor without dimensions, which torch casts in a way of its own
    count: int = 0
    values: list[tuple[Part, int, int]] = field(default_factory=list)  # of each part: first and last element

    @property
    def casts(self) -> bool:
        return self.source != self.target

    def reads(self) -> Iterator[tuple[Part, int, int]]:
        """The values; those that also follow each other in a stored tensor, as in outputs cut from it, in one step."""
        waiting: tuple[Part, int, int] | None = None
        for part, first, stop in self.values:
            if waiting is not None:
                before, start, end = waiting
                if before.goes_on(end, part, first):
                    waiting = before, start, end + stop - first
                    continue
                yield waiting
            waiting = part, first, stop
        if waiting is not None:
            yield waiting

    def room(self, part: Part) -> int:
        """How many values of that part it can still take."""
        same = (part.tensor.output.dtype, part.tensor.dtype) == (self.source, self.target)
        return part.slab_elements - self.count if same and not self.is_scalar and not part.is_scalar else 0


class Block:
    """Consecutive bytes of an output file.

    It ends at a multiple of its size, if rows allow it: the kernel has less work with whole pages.
    """

    def __init__(self, start: int, sizes: Sizes) -> None:
        self.start = self.end = start  # bytes from the start of the file
        self.slabs: list[Slab] = []
        self.items = 0  # the stored ones of its tensors
        self._reader: TensorReader | None = None  # of the last values
        self._size, self._parts_left, self._most_items = sizes.block_bytes, sizes.block_parts, sizes.block_items
        self._limit = (start // self._size + 1) * self._size

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def name(self) -> str:
        """The output whose values come last."""
        return self.slabs[-1].values[-1][0].tensor.output.name

    def add(self, part: Part, first: int) -> int:
        """Take values of a part from number ``first`` on, at most a slab; returns how many, 0 if the block is full."""
        if self.slabs:
            slab = self.slabs[-1]
            count = part.whole_rows(first, min(self._room(part), slab.room(part)))
            if count:
                return self._put(slab, part, first, count)
        elif not part.whole_rows(first, self._room(part)):
            self._limit = self.start + self._size  # it would cut the first row
        count = part.whole_rows(first, min(self._room(part), part.slab_elements))
        if not count:
            return 0
        source, target = part.tensor.output.dtype, part.tensor.dtype
        self.slabs.append(Slab(source, target, self.nbytes // target.itemsize, part.is_scalar))
        return self._put(self.slabs[-1], part, first, count)

    def _room(self, part: Part) -> int:
        """Values that fit; none if they would not lie at a multiple of their size, or if it has many parts or items."""
        itemsize = part.tensor.dtype.itemsize
        many = not self._parts_left or (self.items >= self._most_items and part.reader is not self._reader)
        return 0 if many or self.nbytes % itemsize else (self._limit - self.end) // itemsize

    def _put(self, slab: Slab, part: Part, first: int, count: int) -> int:
        """Append values of a part to the last slab."""
        slab.values.append((part, first, first + count))
        slab.count += count
        self._parts_left -= 1
        if part.reader is not self._reader:
            self._reader, self.items = part.reader, self.items + len(part.reader.tensor.offsets)
        self.end += count * part.tensor.dtype.itemsize
        return count

    def will_read(self) -> None:
        """Tell the source, as long as that helps."""
        source = self.slabs[0].values[0][0].reader.tensor.source
        values = (value for slab in self.slabs for value in slab.values)
        source.will_read(place for part, first, stop in values for place in part.places(first, stop))


@dataclass(frozen=True, slots=True)
class Tile:
    """A region of a part that is read in one order and written in another."""

    part: Part
    region: Region

    @property
    def nbytes(self) -> int:
        return math.prod(stop - start for start, stop in self.region) * self.part.tensor.dtype.itemsize

    @property
    def name(self) -> str:
        return self.part.tensor.output.name

    @property
    def items(self) -> int:
        """They are opened for all tiles of a tensor at once."""
        return 0

    def will_read(self) -> None:
        """Nothing: what is read for it is scattered."""


def cut(start: int, parts: Iterable[Part], sizes: Sizes) -> Iterator[Block | Tile]:
    """All values of a file from byte ``start`` on, whose parts follow each other."""
    block = Block(start, sizes)
    for part in parts:
        if part.order is not None:
            if block.slabs:
                yield block
            for region in tiles(part.view.shape, part.order, part.slab_elements):
                yield Tile(part, region)
            block = Block(part.end, sizes)
            continue
        first = 0
        while first < part.count:
            taken = block.add(part, first)
            if not taken:
                yield block
                block = Block(block.end, sizes)
            first += taken
    if block.slabs:
        yield block
