"""The slab engine: fills the planned files, a few MiB at a time, with several threads.

A worker takes an output range, reads just the source bytes under it, casts them into a reused buffer, and writes them
at their place. So memory is workers x buffers, whatever the size of a shard or of a single tensor.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from dcptools._parallel import Progress, one_thread_each, run
from dcptools.checkpoint import Checkpoint
from dcptools.shards import SLAB_BYTES, PlannedTensor, ShardFile, ShardPlan
from dcptools.storage import Sink
from dcptools.tensors import Bits, Checksums, Region, TensorReader, read_view, slabs
from dcptools.tensors._view import row_major
from dcptools.writer._cast import buffer, cast

FLUSH_SECONDS = 0.01  # between two flushes of a durable run


@dataclass
class Tally:
    """What the workers counted."""

    done: int = 0  # bytes written
    current: str = ""
    overflows: dict[str, int] = field(default_factory=dict)  # output name -> values that became Inf


class _Job:
    """One output tensor, shared by the workers that fill it."""

    def __init__(self, file: ShardFile, planned: PlannedTensor, reader: TensorReader) -> None:
        self.file, self.planned, self.reader = file, planned, reader
        (self.view,) = planned.output.sources
        self.strides = row_major(planned.output.shape)

    def regions(self, elements: int) -> Iterator[Region]:
        """The output in regions of about ``elements``."""
        if self.view.is_whole(self.reader.tensor.shape):
            return self.reader.regions(elements)
        return slabs(self.planned.output.shape, elements)


class Engine:
    """Fills the files of one plan. ``run`` is called once."""

    def __init__(self, plan: ShardPlan, sink: Sink, *, workers: int, sync: bool) -> None:
        self.plan, self.sink, self.workers, self.sync = plan, sink, workers, sync
        self._stop = threading.Event()
        self.checksums = Checksums(self._stop)
        self.tally = Tally()
        self._lock = threading.Lock()  # guards the tally and the counts of open work
        self._open: dict[str, int] = {}  # filename -> regions handed out and not written, plus one while more come
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
            run(self._all_work(), self._worker, workers=self.workers, report=report, cancel=cancel, stop=self._stop)

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

    def _all_work(self) -> Iterator[tuple[_Job, Region]]:
        for file in self.plan.files:
            self.sink.create(file.filename, file.nbytes)
            self.sink.write(file.filename, 0, memoryview(file.header))
            with self._lock:
                self._open[file.filename] = 1
            for planned in file.tensors:
                job = self._job(file, planned)
                for region in job.regions(_elements(planned)):
                    with self._lock:
                        self._open[file.filename] += 1
                    yield job, region
            self._close(file)

    def _job(self, file: ShardFile, planned: PlannedTensor) -> _Job:
        return _Job(file, planned, self._reader(planned.output.sources[0].key))

    def _reader(self, key: str) -> TensorReader:
        """One reader a key, so that a tensor that is cut into many outputs has its items opened and checked once."""
        checkpoint: Checkpoint = self.plan.mapping.checkpoint
        reader = self._readers.pop(key, None) or TensorReader(checkpoint[key], self.checksums)
        self._uses[key] -= 1
        if self._uses[key]:
            self._readers[key] = reader
        return reader

    def _worker(self) -> Callable[[tuple[_Job, Region]], None]:
        buffers = _Buffers()

        def do(work: tuple[_Job, Region]) -> None:
            job, region = work
            overflow = self._copy(job, region, buffers)
            with self._lock:
                self.tally.done += math.prod(b - a for a, b in region) * job.planned.dtype.itemsize
                self.tally.current = name = job.planned.output.name
                if overflow:
                    self.tally.overflows[name] = self.tally.overflows.get(name, 0) + overflow
            self._close(job.file)

        return do

    def _close(self, file: ShardFile) -> None:
        """Count one piece of open work less; whoever closes the last one finishes the file."""
        with self._lock:
            self._open[file.filename] -= 1
            if self._open[file.filename]:
                return
        self.sink.finish(file.filename, sync=self.sync)

    def _copy(self, job: _Job, region: Region, buffers: _Buffers) -> int:
        planned = job.planned
        source, target = planned.output.dtype, planned.dtype
        shape = [stop - start for start, stop in region]
        count = math.prod(shape)
        values = buffers.get("values", source.itemsize)[:count]
        read_view(job.reader, job.view, region, values.reshape(shape))
        overflow = 0
        if planned.cast:
            result = buffers.get("result", target.itemsize)[:count]
            overflow = cast(values.reshape(shape), source, result.reshape(shape), target)
            values = result
        self._write(job, region, shape, values)
        return overflow

    def _write(self, job: _Job, region: Region, shape: Sequence[int], values: Bits) -> None:
        """Write a region: in one piece if it lies in one piece, else row by row."""
        planned, itemsize = job.planned, job.planned.dtype.itemsize
        first = sum(start * stride for (start, _), stride in zip(region, job.strides, strict=True))
        data = values.data.cast("B")
        for offset, start, nbytes in _runs(shape, job.strides, itemsize):
            place = planned.start + first * itemsize + offset
            self.sink.write(job.file.filename, place, data[start : start + nbytes])


class _Buffers:
    """The reused buffers of one worker."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int], Bits] = {}

    def get(self, role: str, itemsize: int) -> Bits:
        """A buffer for a slab of values of that width."""
        if (role, itemsize) not in self._buffers:
            for key in [key for key in self._buffers if key[0] == role]:
                del self._buffers[key]
            self._buffers[role, itemsize] = buffer(itemsize, SLAB_BYTES // itemsize)
        return self._buffers[role, itemsize]


def _elements(planned: PlannedTensor) -> int:
    """Elements of a slab: as many as fit a buffer in the wider of the two dtypes."""
    return SLAB_BYTES // max(planned.output.dtype.itemsize, planned.dtype.itemsize)


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
