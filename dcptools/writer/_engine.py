"""The slab engine: fills the planned files, a few MiB at a time, with several threads.

A worker takes a block of an output file, reads just the stored bytes under it, slab by slab, casts them into a reused
buffer, and writes the block. So memory is workers x buffers, whatever the size of a shard or of a single tensor.

What is done once a slab or an item is the hot path: calls that release the interpreter's lock (read, checksum, cast,
write) with as little Python between them as can be, because threads that wait for the lock and Python that runs with
empty caches cost more than the copying. For what nearly all slabs are there is one call that does all four
(``_native.c``), where it could be compiled; whatever it finds unusual is done here again.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

from dcptools._parallel import Progress, one_thread_each, run
from dcptools.checkpoint import Checkpoint
from dcptools.dtypes import DType
from dcptools.errors import Cancelled
from dcptools.shards import BLOCK_SLABS, SLAB_BYTES, PlannedTensor, ShardFile, ShardPlan
from dcptools.storage import MAX_OPEN_FILES, Sink
from dcptools.tensors import ByteRange, Checksums, Region, TensorReader, boxes, ranges, read_view, row_elements
from dcptools.tensors._view import row_major
from dcptools.writer._cast import Buffer, Cast

try:
    from dcptools.writer import _native
except ImportError:  # it could not be compiled
    LEVEL, NATIVE_BYTES = "", 0
else:
    LEVEL = next(iter(_native.LEVELS), "") if _native.INTERFACE == 1 else ""
    NATIVE_BYTES = _native.MEMORY_BYTES

FLUSH_SECONDS = 0.01  # between two flushes of a durable run
# What is opened and laid out at once: little, so that copying begins soon where each read takes long; but not less than
# tensors of many ranks have chunks, for items take longer to open when each is opened as its bytes are needed.
BLOCKS_AHEAD = 16
ITEMS_AHEAD = 256
MAX_PIECES = 512  # of a slab that is copied by native calls: more would be written in small parts, and remembered


@dataclass
class Tally:
    """What the workers counted."""

    done: int = 0  # bytes written
    current: str = ""
    overflows: dict[str, int] = field(default_factory=dict)  # output name -> values that became Inf


class _Job:
    """One output tensor, shared by the workers that fill it."""

    def __init__(self, planned: PlannedTensor, reader: TensorReader) -> None:
        self.planned, self.reader = planned, reader
        (self.view,) = planned.output.sources
        self.numel = planned.output.numel
        self.elements = SLAB_BYTES // max(planned.output.dtype.itemsize, planned.dtype.itemsize)  # of a slab
        self._row = 1 if reader.straight else row_elements(reader.tensor.shape, self.elements)

    @property
    def scattered(self) -> bool:
        """Whether its values lie in another order in the checkpoint than in the output."""
        return not self.view.contiguous or (self.numel > self.elements and self.reader.strided is not None)

    def regions(self) -> Iterator[Region]:
        """The output in regions of a slab."""
        if self.view.is_whole(self.reader.tensor.shape):
            return self.reader.regions(self.elements)
        shape = self.planned.output.shape
        return (box for start, stop in ranges(shape, self.elements) for box in boxes(shape, start, stop))

    def fitting(self, first: int, room: int) -> int:
        """How many values from number ``first`` on to take into so much room: not half a row, if rows are cut."""
        count = min(room, self.numel - first)
        if first + count < self.numel:
            count -= (self.view.offset + first + count) % self._row
        return max(0, count)


@dataclass(frozen=True, slots=True)
class _Region:
    """Work: a part of a scattered tensor, read in one order and written in another."""

    job: _Job
    region: Region


@dataclass(slots=True)
class _Slab:
    """Consecutive values of a block, of tensors of the same dtypes, that are read and cast at once."""

    source: DType
    target: DType
    at: int  # elements from the start of the block
    scalar: bool  # the only value of a tensor without dimensions
    count: int = 0
    parts: list[tuple[_Job, int, int]] = field(default_factory=list)  # elements of the stored tensor, row-major

    def room(self, job: _Job) -> int:
        """How many values of that tensor it can still take."""
        dtypes = job.planned.output.dtype, job.planned.dtype
        if dtypes != (self.source, self.target) or self.scalar or not job.planned.output.shape:
            return 0
        return job.elements - self.count

    @property
    def casts(self) -> bool:
        return self.source != self.target

    @property
    def is_common(self) -> bool:
        """Whether there is native code for it: it is moved as it is, or cast as nearly all are."""
        return not self.casts or (self.source.name, self.target.name) == ("float32", "bfloat16")

    def byte_ranges(self) -> list[ByteRange] | None:
        """Where its values are stored, as :meth:`TensorReader.byte_ranges` says it."""
        found: list[ByteRange] = []
        for job, start, stop in self.parts:
            stored = job.reader.byte_ranges(start, stop)
            if stored is None:
                return None
            found += stored
        return found


class _Block:
    """Work: consecutive bytes of an output file, which are filled in memory and written at once.

    Blocks end at multiples of their size, where rows allow it: the kernel has less work with whole pages.
    """

    def __init__(self, start: int) -> None:
        self.start = self.end = start  # bytes from the start of the file
        self.slabs: list[_Slab] = []
        self._size = BLOCK_SLABS * SLAB_BYTES
        self._limit = (start // self._size + 1) * self._size

    def take(self, job: _Job, first: int) -> int:
        """Take values of a tensor from number ``first`` on, at most a slab; returns how many. 0: it is full."""
        source, target = job.planned.output.dtype, job.planned.dtype
        room = (self._limit - self.end) // target.itemsize
        count = job.fitting(first, min(room, self.slabs[-1].room(job))) if self.slabs else 0
        if not count:
            count = job.fitting(first, min(room, job.elements))
            if not count and not self.slabs:  # the limit cuts the first row
                self._limit = self.start + self._size
                count = job.fitting(first, min(self._size // target.itemsize, job.elements))
            if not count:
                return 0
            at, rest = divmod(self.end - self.start, target.itemsize)
            if rest:
                return 0
            self.slabs.append(_Slab(source, target, at, scalar=not job.planned.output.shape))
        slab, start = self.slabs[-1], job.view.offset + first
        slab.parts.append((job, start, start + count))
        slab.count += count
        self.end += count * target.itemsize
        return count


class Engine:
    """Fills the files of one plan. ``run`` is called once."""

    def __init__(self, plan: ShardPlan, sink: Sink, *, workers: int, sync: bool) -> None:
        self.plan, self.sink, self.workers, self.sync = plan, sink, workers, sync
        self._stop = threading.Event()
        self.checksums = Checksums(self._stop)
        self.tally = Tally()
        self._lock = threading.Lock()  # guards the tally and the counts of open work
        self._open: dict[str, int] = {}  # filename -> work laid out and not done, plus one while more comes
        self._uses = Counter(view.key for file in plan.files for t in file.tensors for view in t.output.sources)
        self._readers: dict[str, TensorReader] = {}  # by key, where more outputs need it

    def run(self, progress: Progress | None, cancel: threading.Event | None) -> None:
        """Write everything; progress is called in this thread.

        Raises
        ------
        Cancelled
            The event was set.
        """

        def report() -> None:
            if progress is not None:
                progress(self.tally.done, self.plan.total_bytes, self.tally.current)

        casts = any(tensor.cast for file in self.plan.files for tensor in file.tensors)
        with one_thread_each() if casts else nullcontext(), self._flushing():
            # a stream for each file: two threads that write to one file wait for each other in the kernel
            streams = map(self._work, self.plan.files)
            run(streams, self._worker, workers=self.workers, report=report, cancel=cancel, stop=self._stop)

    @contextmanager
    def _flushing(self) -> Iterator[None]:
        """Keep the disk at work while the workers still copy, so that the last sync has little left to wait for."""
        if not self.sync:
            yield
            return
        copied = threading.Event()

        def flush() -> None:
            while not copied.wait(FLUSH_SECONDS):
                self.sink.flush()

        with ThreadPoolExecutor(1, thread_name_prefix="dcptools-flush") as pool:
            flushing = pool.submit(flush)
            try:
                yield
            finally:
                copied.set()
            flushing.result()  # an error of the disk shows here once, and not again in the last sync

    def _work(self, file: ShardFile) -> Iterator[tuple[ShardFile, _Block | _Region]]:
        """The work of one file, in the order of its bytes; whoever closes the last piece finishes the file."""
        self.sink.create(file.filename, file.nbytes)
        self.sink.write(file.filename, 0, memoryview(file.header))
        with self._lock:
            self._open[file.filename] = 1
        cut = _cut(file, self._jobs(file))
        while ahead := list(islice(cut, BLOCKS_AHEAD)):
            with self._lock:
                self._open[file.filename] += len(ahead)
            for work in ahead:
                yield file, work
        self._close(file)

    def _jobs(self, file: ShardFile) -> Iterator[_Job]:
        """The tensors of a file, with their items opened some at a time."""
        checkpoint: Checkpoint = self.plan.mapping.checkpoint
        for group in _groups(file.tensors, lambda t: len(checkpoint[t.output.sources[0].key].offsets)):
            jobs = [_Job(planned, self._reader(planned.output.sources[0].key)) for planned in group]
            for job in jobs if len(jobs) > 1 else ():  # a single one may have a million
                if self._stop.is_set():
                    raise Cancelled("Cancelled.")
                job.reader.open()
            yield from jobs

    def _reader(self, key: str) -> TensorReader:
        """One reader a key, so that a tensor that is cut into many outputs has its items opened and checked once."""
        checkpoint: Checkpoint = self.plan.mapping.checkpoint
        with self._lock:
            reader = self._readers.pop(key, None) or TensorReader(checkpoint[key], self.checksums)
            self._uses[key] -= 1
            if self._uses[key]:
                self._readers[key] = reader
        return reader

    def _worker(self) -> Callable[[tuple[ShardFile, _Block | _Region]], None]:
        memory = _Memory()

        def do(piece: tuple[ShardFile, _Block | _Region]) -> None:
            file, work = piece
            if isinstance(work, _Block):
                nbytes, job = work.end - work.start, work.slabs[-1].parts[-1][0]
                if not self._copy(file, work, memory):
                    self._fill(work, memory)
                    self.sink.write(file.filename, work.start, memory.block.bytes.data[:nbytes])
            else:
                job, nbytes = work.job, self._rearrange(file, work, memory)
            with self._lock:
                self.tally.done += nbytes
                self.tally.current = job.planned.output.name
            self._close(file)

        return do

    def _close(self, file: ShardFile) -> None:
        """Count one piece of open work less; whoever closes the last one finishes the file."""
        with self._lock:
            self._open[file.filename] -= 1
            if self._open[file.filename]:
                return
        self.sink.finish(file.filename, sync=self.sync)

    def _copy(self, file: ShardFile, work: _Block, memory: _Memory) -> bool:
        """Fill and write a block by native calls; False if it is not for them, or something is unusual.

        The pieces of a call may be in as many files, which are open meanwhile.
        """
        target = self.sink.descriptor(file.filename) if LEVEL else None
        if target is None or not all(slab.is_common for slab in work.slabs):
            return False
        at, at_once = work.start, max(1, MAX_OPEN_FILES // self.workers)
        copied: list[tuple[ByteRange, int]] = []
        for slab in work.slabs:
            stored = slab.byte_ranges()
            if stored is None or len(stored) > MAX_PIECES:
                return False
            for first in range(0, len(stored), at_once):
                if self._stop.is_set():
                    raise Cancelled("Cancelled.")
                part = stored[first : first + at_once]
                crcs = _copy_stored(part, target, at, memory, casts=slab.casts)
                if crcs is None:
                    return False
                copied += zip(part, crcs, strict=True)
                at += sum(nbytes for _, _, nbytes in part) * slab.target.itemsize // slab.source.itemsize
        for (item, start, nbytes), crc in copied:  # not before: what is done again must not be counted twice
            self.checksums.add_crc(item, start, nbytes, crc)
        return True

    def _fill(self, work: _Block, memory: _Memory) -> None:
        """Read and cast a block, a slab at a time."""
        for slab in work.slabs:
            if self._stop.is_set():
                raise Cancelled("Cancelled.")
            end = 0 if slab.casts else slab.at
            values = (memory.stored if slab.casts else memory.block).bits(slab.source.itemsize)
            for job, first, stop in slab.parts:
                start, end = end, end + stop - first
                job.reader.read_range(first, stop, values[start:end])
            if slab.casts:
                self._cast(slab, memory)

    def _rearrange(self, file: ShardFile, work: _Region, memory: _Memory) -> int:
        """Read a region, cast it, and write it row by row; returns its bytes."""
        job, region = work.job, work.region
        planned, strides = job.planned, row_major(job.planned.output.shape)
        shape = [stop - start for start, stop in region]
        count, itemsize = math.prod(shape), planned.dtype.itemsize
        values = (memory.stored if planned.cast else memory.block).bits(planned.output.dtype.itemsize)[:count]
        read_view(job.reader, job.view, region, values.reshape(shape))
        if planned.cast:
            self._cast(_Slab(planned.output.dtype, planned.dtype, 0, False, count, [(job, 0, count)]), memory)
        corner = sum(start * stride for (start, _), stride in zip(region, strides, strict=True)) * itemsize
        data = memory.block.bytes.data
        for offset, start, nbytes in _runs(shape, strides, itemsize):
            self.sink.write(file.filename, planned.start + corner + offset, data[start : start + nbytes])
        return count * itemsize

    def _cast(self, slab: _Slab, memory: _Memory) -> None:
        cast, first = memory.cast(slab.source, slab.target), 0
        if not cast(slab.count, slab.at, scalar=slab.scalar):
            return
        for job, start, stop in slab.parts:
            overflow = cast.became_inf(first, stop - start, slab.at + first)
            first += stop - start
            if overflow:
                name = job.planned.output.name
                with self._lock:
                    self.tally.overflows[name] = self.tally.overflows.get(name, 0) + overflow


class _Memory:
    """What one worker uses again and again: room for stored values and for a block of the output."""

    def __init__(self) -> None:
        self.stored, self.block = Buffer(SLAB_BYTES), Buffer(max(BLOCK_SLABS * SLAB_BYTES, NATIVE_BYTES))
        self._casts: dict[tuple[str, str], Cast] = {}

    def cast(self, source: DType, target: DType) -> Cast:
        """From the stored values into the block."""
        key = source.name, target.name
        if key not in self._casts:
            self._casts[key] = Cast(self.stored, source, self.block, target)
        return self._casts[key]


def _copy_stored(stored: list[ByteRange], target: int, at: int, memory: _Memory, *, casts: bool) -> list[int] | None:
    """Copy stored bytes to a file by one native call; their CRC-32, or None as ``_native.copy`` gives it."""
    files, pieces = [], []
    for item, start, nbytes in stored:
        file = item.source.open_file(item.file)
        if file is None:
            return None
        files.append(file)  # held until the call returns
        pieces.append((file.descriptor, item.start + start, nbytes))
    return _native.copy(LEVEL, casts, tuple(pieces), target, at, memory.block.bytes.data)


def _groups(tensors: Iterable[PlannedTensor], chunks: Callable[[PlannedTensor], int]) -> Iterator[list[PlannedTensor]]:
    """Tensors that have at most ``ITEMS_AHEAD`` chunks together, or a single one."""
    group: list[PlannedTensor] = []
    total = 0
    for planned in tensors:
        count = chunks(planned)
        if group and total + count > ITEMS_AHEAD:
            yield group
            group, total = [], 0
        group.append(planned)
        total += count
    if group:
        yield group


def _cut(file: ShardFile, jobs: Iterable[_Job]) -> Iterator[_Block | _Region]:
    """All values of a file, in blocks of consecutive bytes, and regions of those tensors that cannot be read so."""
    block = _Block(len(file.header))
    for job in jobs:
        if job.scattered:
            if block.slabs:
                yield block
            for region in job.regions():
                yield _Region(job, region)
            block = _Block(job.planned.start + job.planned.nbytes)
            continue
        done = 0
        while done < job.numel:
            taken = block.take(job, done)
            if not taken:
                yield block
                block = _Block(block.end)
            done += taken
    if block.slabs:
        yield block


def _runs(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> Iterator[tuple[int, int, int]]:
    """The pieces of a box that lie in one piece in the output: bytes there, bytes in the box, length in bytes."""
    dense = 1  # elements of the longest piece
    split = len(shape)
    while split and (shape[split - 1] == 1 or strides[split - 1] == dense):
        dense *= shape[split - 1]
        split -= 1
    if not split:
        yield 0, 0, dense * itemsize
        return
    count = math.prod(shape[:split])
    for number in range(count):
        rest, offset = number, 0
        for dim in range(split - 1, -1, -1):
            rest, index = divmod(rest, shape[dim])
            offset += index * strides[dim]
        yield offset * itemsize, number * dense * itemsize, dense * itemsize
