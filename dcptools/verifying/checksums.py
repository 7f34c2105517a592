"""The CRC-32 of each weight of a model, computed from its files by several threads.

The writer does not see the bytes of a tensor in order, and CRC-32 is what zip files and DCP's own items have: it
can be put together from parts (``crc32_combine``), so a large tensor keeps all threads busy, and any changed byte
changes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from isal import isal_zlib

from dcptools._parallel import Progress, run
from dcptools._progress import bar
from dcptools.comparing import checked_workers
from dcptools.hf import Model, Weight
from dcptools.storage import Range, Source, announced, share_of_reads

PIECE_BYTES = 1 << 20
_Work = tuple[Weight, int, int]  # bytes from the start of the file, the first and the one after the last


def checksums(
    model: Model,
    files: Sequence[str] | None = None,
    *,
    workers: int | None,
    progress: Progress | bool | None,
    cancel: threading.Event | None,
) -> dict[str, int]:
    """The CRC-32 of each weight's bytes, by name; of those in some of the files, if they are given.

    Raises
    ------
    BrokenCheckpoint
        A file cannot be read.
    Cancelled
        The event was set.
    """
    by_file = [model.by_file[file] for file in (model.by_file if files is None else files)]
    found: dict[str, list[tuple[int, int, int]]] = {weight.name: [] for weights in by_file for weight in weights}
    lock, total = threading.Lock(), sum(weight.nbytes for weights in by_file for weight in weights)
    done, current = 0, ""

    def make_worker() -> Callable[[_Work], None]:
        buffer = memoryview(bytearray(PIECE_BYTES))

        def do(work: _Work) -> None:
            nonlocal done, current
            weight, start, stop = work
            part = buffer[: stop - start]
            model.source.read_into(weight.file, start, part)
            crc = isal_zlib.crc32(part)
            with lock:
                found[weight.name].append((start, stop - start, crc))
                done, current = done + len(part), weight.name

        return do

    def places(work: _Work) -> Iterable[tuple[Source, Iterable[Range]]]:
        weight, start, stop = work
        return [(model.source, [(weight.file, start, stop - start)])]

    with bar(progress, "checksums") as shown:

        def report() -> None:
            if shown is not None:
                shown(done, total, current)

        count = checked_workers(workers)
        most = share_of_reads(min(count, len(by_file)))
        streams = (announced(_pieces(weights), places, most) for weights in by_file)
        try:
            run(streams, make_worker, workers=count, report=report, cancel=cancel)
        finally:
            model.source.close()
    return {name: _combined(parts) for name, parts in found.items()}


def _pieces(weights: tuple[Weight, ...]) -> Iterator[_Work]:
    for weight in weights:
        end = weight.start + weight.nbytes
        for start in range(weight.start, end, PIECE_BYTES):
            yield weight, start, min(start + PIECE_BYTES, end)


def _combined(parts: list[tuple[int, int, int]]) -> int:
    crc = 0
    for _, nbytes, part in sorted(parts):
        crc = isal_zlib.crc32_combine(crc, part, nbytes)
    return crc
