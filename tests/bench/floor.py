"""The least that any converter must do: read all bytes of the checkpoint and write as many as the result has.

``python -m tests.bench.floor LOAD_DIR SAVE_DIR SHARD_SIZE READ_PER_WRITTEN WORKERS sync|nosync``. Nothing is parsed,
checked, cast or moved to its place; two bytes that are read for each that is written stand for a cast from fp32 to
bf16. What is written is rubbish.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from tests.bench.clock import timed

WRITE_BYTES = 1 << 20  # at once: more would be put into larger pages, which a virtual machine may first have to get
SLAB = 2 << 20  # bytes read at once: it stays in a core's cache
PAUSE = 0.01  # seconds between two syncs


@dataclass(frozen=True, slots=True)
class Slab:
    source: int  # file descriptor
    offset: int  # bytes
    target: int  # file descriptor
    position: int  # bytes
    written: int  # bytes


class Floor:
    """The work, cut into slabs. The files have their final size before the first byte is written."""

    def __init__(self, sources: list[Path], save_dir: Path, shard_size: int, read_per_written: int) -> None:
        self.targets: list[int] = []
        self.slabs: deque[Slab] = deque()
        save_dir.mkdir(parents=True)
        position = 0
        for path in sources:
            size = path.stat().st_size
            source = os.open(path, os.O_RDONLY)
            for offset in range(0, size, SLAB):
                written = min(SLAB, size - offset) // read_per_written
                if not self.targets or position + written > shard_size:
                    self._close_shard(position)
                    self.targets.append(os.open(save_dir / f"{len(self.targets)}.bin", os.O_CREAT | os.O_WRONLY))
                    position = 0
                self.slabs.append(Slab(source, offset, self.targets[-1], position, written))
                position += written
        self._close_shard(position)

    def _close_shard(self, size: int) -> None:
        if self.targets:
            os.ftruncate(self.targets[-1], size)

    def copy(self) -> None:
        """What each worker does: take the next slab, until there are none."""
        buffer = memoryview(bytearray(SLAB))
        while self.slabs:
            try:
                slab = self.slabs.popleft()
            except IndexError:  # another worker took the last one
                return
            os.preadv(slab.source, [buffer], slab.offset)
            for start in range(0, slab.written, WRITE_BYTES):
                piece = buffer[start : min(start + WRITE_BYTES, slab.written)]
                os.pwrite(slab.target, piece, slab.position + start)

    def sync(self, copied: threading.Event) -> None:
        """Sync what has been written so far, again and again: the disk is at work while the workers still copy."""
        while not copied.wait(PAUSE):
            for target in self.targets:
                os.fdatasync(target)


def run(load_dir: Path, save_dir: Path, shard_size: str, read_per_written: str, workers: str, sync: str) -> None:
    floor = Floor(sorted(load_dir.glob("*.distcp")), save_dir, int(shard_size), int(read_per_written))
    copied = threading.Event()
    syncer = threading.Thread(target=floor.sync, args=(copied,))
    threads = [threading.Thread(target=floor.copy) for _ in range(int(workers))]
    if sync == "sync":
        syncer.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copied.set()
    if sync == "sync":
        syncer.join()
        for target in floor.targets:
            os.fsync(target)


if __name__ == "__main__":
    load_dir, save_dir = Path(sys.argv[1]), Path(sys.argv[2])
    timed(load_dir, save_dir, lambda: run(load_dir, save_dir, *sys.argv[3:]))
