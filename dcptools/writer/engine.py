"""Fills the planned files, a block at a time, with several threads.

A worker takes a block of an output file, reads only the stored bytes under it, slab by slab, casts them into a reused
buffer, and writes the block. So memory is workers x buffers, whatever the size of a shard or of a single tensor.

What is done once per slab or item is the hot path: calls that release the interpreter's lock (read, checksum, cast,
write) with as little Python between them as possible, because threads that wait for the lock and Python that runs with
empty caches cost more than the copying.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

from dcptools._parallel import Progress, check_stopped, one_thread_each, run, starting_threads
from dcptools.checkpoint import Checkpoint
from dcptools.dtypes import DType
from dcptools.shards import PlannedTensor, ShardFile, ShardPlan
from dcptools.storage import OutputSink, Sink, commit_all
from dcptools.tensors import Checksums, TensorReader, frames, read_view, row_major, runs
from dcptools.writer.ahead import groups, one_ahead, read_ahead
from dcptools.writer.cast import Buffer, Cast
from dcptools.writer.cut import Block, Part, Sizes, Slab, Tile, cut
from dcptools.writer.sums import FileSums
from dcptools.writer.tally import Noticed, Tally

FLUSH_SECONDS = 0.01  # between two flushes of a durable run
Work = tuple[ShardFile, Block | Tile]
Finish = Callable[[ShardFile, int, dict[str, Noticed]], None]


class Engine:
    """Fills files of one plan. ``run`` is called once."""

    def __init__(
        self,
        plan: ShardPlan,
        sink: Sink,
        files: Sequence[ShardFile] | None = None,
        *,
        workers: int,
        sync: bool,
        sizes: Sizes | None = None,
        finished: Finish | None = None,
    ) -> None:
        """``finished`` hears about each complete file, in whatever thread, with its CRC-32 and what was noticed."""
        self.plan, self.files = plan, plan.files if files is None else tuple(files)
        self.sink, self.workers, self.sync = sink, workers, sync
        self.sizes = sizes or Sizes().for_source(plan.checkpoint.source, workers)
        self.checksums, self.tally = Checksums(), Tally()
        self._finished, self._sums = finished, FileSums()
        self._readers = _Readers(plan.checkpoint, self.files, self.checksums, self.sizes.items_together)
        self._unwritten: dict[str, int] = {}  # by filename: bytes of values
        self._lock = threading.Lock()  # guards the tally and what is unwritten

    def run(self, progress: Progress | None, cancel: threading.Event | None) -> None:
        """Write everything; progress is called in this thread.

        Raises
        ------
        Cancelled
            The event was set.
        """
        total = sum(file.data_nbytes for file in self.files)

        def report() -> None:
            if progress is not None:
                progress(self.tally.done, total, self.tally.current)

        casts = any(tensor.cast for file in self.files for tensor in file.tensors)
        with one_thread_each() if casts else nullcontext(), self._flushing():
            # a stream for each file: two threads that write to one file wait for each other in the kernel
            streams = map(self._work, self.files)
            run(streams, self._worker, workers=self.workers, report=report, cancel=cancel)

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
            with starting_threads():
                flushing = pool.submit(flush)
            try:
                yield
            finally:
                copied.set()
            flushing.result()  # a disk error is reported here once, and not again in the last sync

    def _work(self, file: ShardFile) -> Iterator[Work]:
        """The work of one file, in the order of its bytes."""
        self.sink.create(file.filename, file.nbytes)
        self.sink.write(file.filename, 0, memoryview(file.header))
        self._sum(file, 0, memoryview(file.header))
        with self._lock:
            self._unwritten[file.filename] = file.data_nbytes
        self._wrote(file, 0)  # a file without values is finished now
        for work in read_ahead(cut(len(file.header), self._parts(file), self.sizes), self.sizes):
            yield file, work
            del work  # its readers go before more are made

    def _parts(self, file: ShardFile) -> Iterator[Part]:
        """The views that a file is made of, with their items opened a few at a time, while the next are being read."""
        for group in one_ahead(groups(file.tensors, self._readers.chunks, self.sizes), self._announce):
            yield from self._opened(group)

    def _opened(self, group: Sequence[PlannedTensor]) -> Iterator[Part]:
        """The views of some tensors; their readers go when the last one is used, before more are announced."""
        parts = [part for tensor in group for part in self._parts_of(tensor)]
        for part in parts if len(group) > 1 else ():  # the chunks of a single tensor may be a million
            check_stopped()
            part.reader.open()
        yield from parts

    def _announce(self, group: Iterable[PlannedTensor]) -> None:
        """Tell the source which items of these tensors will be opened, and read if they are small."""
        self.plan.checkpoint.source.will_read(frames(self._readers.new(group)))

    def _parts_of(self, tensor: PlannedTensor) -> Iterator[Part]:
        """The views of one tensor, at their places in its file."""
        start = tensor.start
        for view in tensor.output.sources:
            part = Part.of(tensor, view, self._readers.get(view.key), start, self.sizes)
            yield part
            start = part.end

    def _worker(self) -> Callable[[Work], None]:
        """What one thread does with each piece of work, with memory of its own."""
        memory = _Memory(self.sizes)

        def do(piece: Work) -> None:
            file, work = piece
            if isinstance(work, Block):
                self._fill(work, memory)
                data = memory.block.bytes.data[: work.nbytes]
                self._sum(file, work.start, data)
                self.sink.write(file.filename, work.start, data)
            else:
                self._rearrange(file, work, memory)
            self._wrote(file, work.nbytes, work.name)

        return do

    def _wrote(self, file: ShardFile, nbytes: int, name: str = "") -> None:
        """Count what was written; whoever writes the last bytes of a file finishes it."""
        with self._lock:
            self.tally.done += nbytes
            self.tally.current = name or self.tally.current
            self._unwritten[file.filename] -= nbytes
            if self._unwritten[file.filename]:
                return
        self.sink.finish(file.filename, sync=self.sync)
        path, noticed = self.sink.staged(file.filename), self.tally.finish(file)
        if self._finished is not None:
            crc = self._sums.take(file.filename, file.nbytes, path) if path is not None else 0
            self._finished(file, crc, noticed)

    def _sum(self, file: ShardFile, start: int, data: memoryview) -> None:
        if self._finished is not None:
            self._sums.add(file.filename, start, data)

    def _fill(self, block: Block, memory: _Memory) -> None:
        """Read and cast a block, a slab at a time."""
        for slab in block.slabs:
            check_stopped()
            end = 0 if slab.casts else slab.at
            bits = (memory.stored if slab.casts else memory.block).bits(slab.source.itemsize)
            for part, first, stop in slab.reads():
                start, end = end, end + stop - first
                part.read(first, stop, bits[start:end])
            self._cast(slab, memory)

    def _rearrange(self, file: ShardFile, tile: Tile, memory: _Memory) -> None:
        """Read a tile, cast it, and write it row by row."""
        part, view, tensor = tile.part, tile.part.view, tile.part.tensor
        shape, strides = [stop - start for start, stop in tile.region], row_major(view.shape)
        itemsize = tensor.dtype.itemsize
        count = tile.nbytes // itemsize
        bits = (memory.stored if tensor.cast else memory.block).bits(tensor.output.dtype.itemsize)
        read_view(part.reader, view, tile.region, bits[:count].reshape(shape))
        self._cast(Slab(tensor.output.dtype, tensor.dtype, 0, False, count, [(part, 0, count)]), memory)
        corner = sum(start * stride for (start, _), stride in zip(tile.region, strides, strict=True))
        data = memory.block.bytes.data
        for to, start, length in runs(shape, strides):
            row = data[start * itemsize : (start + length) * itemsize]
            self.sink.write(file.filename, part.start + (corner + to) * itemsize, row)

    def _cast(self, slab: Slab, memory: _Memory) -> None:
        """Cast a slab, if necessary; count what became Inf, and look for outputs that are NaN."""
        cast = memory.cast(slab.source, slab.target) if slab.casts else None
        infinite = cast is not None and cast(slab.count, slab.at, scalar=slab.is_scalar)
        if not slab.target.kind.startswith("float"):
            return
        bits, at = memory.block.bits(slab.target.itemsize), slab.at
        for part, start, stop in slab.values:
            name, count = part.tensor.output.name, stop - start
            self.tally.look(name, bits[at : at + count], slab.target)
            if cast is not None and infinite and (overflows := cast.became_inf(at - slab.at, count, at)):
                with self._lock:
                    self.tally.overflows[name] += overflows
            at += count


class _Readers:
    """One reader per key, so that a tensor that is cut into many outputs has its items opened and checked once."""

    def __init__(self, checkpoint: Checkpoint, files: Iterable[ShardFile], checksums: Checksums, window: int) -> None:
        self._checkpoint, self._checksums, self._window = checkpoint, checksums, window
        self._uses = Counter(view.key for file in files for tensor in file.tensors for view in tensor.output.sources)
        self._open: dict[str, TensorReader] = {}  # those that further views need
        self._lock = threading.Lock()

    def new(self, tensors: Iterable[PlannedTensor]) -> Iterator[TensorReader]:
        """Readers of the sources that nobody has asked for yet; ``get`` will return them."""
        for key in {view.key: None for tensor in tensors for view in tensor.output.sources}:
            with self._lock:
                if key in self._open:
                    continue
                reader = self._open[key] = self._new(key)
            yield reader

    def get(self, key: str) -> TensorReader:
        """To be called once for each view."""
        with self._lock:
            reader = self._open.pop(key, None) or self._new(key)
            self._uses[key] -= 1
            if self._uses[key]:
                self._open[key] = reader
        return reader

    def _new(self, key: str) -> TensorReader:
        return TensorReader(self._checkpoint[key], self._checksums, window=self._window)

    def chunks(self, tensor: PlannedTensor) -> int:
        """How many chunks the sources of an output have."""
        tensors, count = self._checkpoint.tensors, 0
        for view in tensor.output.sources:  # not a generator: there are very many outputs of one source
            count += len(tensors[view.key].offsets)
        return count


class _Memory:
    """What one worker uses again and again: room for stored values and for a block of the output."""

    def __init__(self, sizes: Sizes) -> None:
        self.stored, self.block = Buffer(sizes.slab_bytes), Buffer(sizes.block_bytes)
        self._casts: dict[tuple[str, str], Cast] = {}

    def cast(self, source: DType, target: DType) -> Cast:
        """From the stored values into the block."""
        key = source.name, target.name
        if key not in self._casts:
            self._casts[key] = Cast(self.stored, source, self.block, target)
        return self._casts[key]


class OutputEngine(Engine):
    """Fills files that are published afterwards."""

    sink: OutputSink

    def commit(self, names: Sequence[str]) -> None:
        """Give finished files their names, many at a time; also those that the sink has from others."""
        commit_all(self.sink, names)
