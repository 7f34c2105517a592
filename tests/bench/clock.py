"""The clock of the contenders: it starts when everything is imported and memory is at hand."""

from __future__ import annotations

import gc
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.process import MAXRSS_UNIT

NEED = (
    1.25  # bytes of memory that a contender uses at most, its output in the page cache included, for each that it reads
)
BLOCK = 2 << 20  # bytes


def timed(load_dir: Path, save_dir: Path, work: Callable[[], None]) -> None:
    """Do the work, and print how long it took and the peak memory of this process."""
    sources = sorted(load_dir.glob("*.distcp"))
    claim_memory(round(NEED * sum(path.stat().st_size for path in sources)), save_dir.parent)
    for path in sources:  # once more: the host of a virtual machine may take a while's unused memory, cached or free
        read_through(path)
    gc.collect()  # of what the imports left: by chance it would be due during the work, and take a tenth of a second
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def claim_memory(nbytes: int, directory: Path) -> None:
    """Have the kernel find so much free memory now, and give it back to the kernel.

    A virtual machine may return free memory to its host, and then the first to need it waits: 2 GB took ten times
    as long to write as when they were written again. It would hit the contender that comes after a frugal one.
    Pages of a file's hole are of the kind that output files need, and have not to be written to the disk.
    """
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        os.ftruncate(file.fileno(), nbytes)
        read_through(Path(file.name))


def read_through(path: Path) -> None:
    """Read a file from one end to the other."""
    buffer = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
