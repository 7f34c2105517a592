"""Programs that write as many bytes as they read, from files that are not in memory.

``python -m tests.bench.cold ours|cp|reader LOAD_DIR SAVE_DIR WORKERS``. The pages of the files are dropped before the
clock starts, and what is written is on the disk before it stops.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import safetensors  # noqa: F401  (the conversion imports it when it looks at what was written)

import dcptools
from tests.bench.floor import run as floor

SHARD_SIZE = 1_000_000_000  # bytes
SETTLE_SECONDS = 1


def ours(load_dir: Path, save_dir: Path, workers: int) -> None:
    dcptools.convert(load_dir, save_dir, shard_size=SHARD_SIZE, dtype="keep", workers=workers)


def cp(load_dir: Path, save_dir: Path, workers: int) -> None:
    program = shutil.which("cp")
    assert program is not None
    subprocess.run([program, "-r", str(load_dir), str(save_dir)], check=True)
    for path in save_dir.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def reader(load_dir: Path, save_dir: Path, workers: int) -> None:
    """So many reads in flight, one by each thread."""
    floor(load_dir, save_dir, str(SHARD_SIZE), "1", str(workers), "sync")


PROGRAMS: dict[str, Callable[[Path, Path, int], None]] = {"ours": ours, "cp": cp, "reader": reader}


def drop(load_dir: Path) -> None:
    """Have the kernel forget the files; those of others stay.

    First the disk is left to itself, until it has taken in which blocks are free since an earlier output was removed.
    """
    os.sync()
    time.sleep(SETTLE_SECONDS)
    for path in sorted(load_dir.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # what is not on the disk yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    name, load_dir, save_dir, workers = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    drop(load_dir)
    start = time.perf_counter()
    PROGRAMS[name](load_dir, save_dir, workers)
    print(json.dumps({"seconds": time.perf_counter() - start}))
