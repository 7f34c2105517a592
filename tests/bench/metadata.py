"""Read only the metadata, and say what it took: ``python -m tests.bench.metadata torch|dcptools LOAD_DIR``.

Prints ``{"seconds": ..., "resident_bytes": ..., "peak_bytes": ...}``: memory beyond what the imports had taken, held
while the metadata is in use, and at the worst moment of reading it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.bench.process import MAXRSS_UNIT


def torch_reader() -> Callable[[str], Any]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    return lambda load_dir: FileSystemReader(load_dir).read_metadata()


def dcptools_reader() -> Callable[[str], Any]:
    import dcptools

    return dcptools.read


READERS = {"torch": torch_reader, "dcptools": dcptools_reader}


def measure(read: Callable[[str], Any], load_dir: str) -> dict[str, float]:
    process = psutil.Process()
    before = process.memory_info().rss
    start = time.perf_counter()
    value = read(load_dir)
    seconds = time.perf_counter() - start
    resident = process.memory_info().rss - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT - before
    del value  # it had to live until here
    return {"seconds": seconds, "resident_bytes": resident, "peak_bytes": peak}


if __name__ == "__main__":
    name, load_dir = sys.argv[1:]
    print(json.dumps(measure(READERS[name](), load_dir)))
