"""Convert a checkpoint from a place where each read takes a while before its first byte comes.

``python -m tests.bench.far LOAD_DIR SAVE_DIR LATENCY WORKERS``, with the latency in seconds. The place is modelled as a
disk of any bandwidth and queue depth behind a page cache: what was announced arrives a latency later, and a read waits
for what of it has not arrived. Prints ``{"seconds": ..., "reads": ...}``; one read after another would take so many
latencies.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors  # noqa: F401
import torch  # noqa: F401

import dcptools
from dcptools.storage import LocalSource

PAGE = 4096  # bytes


class Far:
    """When the pages of all files arrive."""

    def __init__(self, latency: float) -> None:
        self.latency, self.reads = latency, 0
        self._arrives: dict[tuple[str, int], float] = {}
        self._lock = threading.Lock()

    def request(self, name: str, start: int, nbytes: int) -> float:
        """Ask for the pages that nobody has asked for yet; returns when all are there."""
        arrives = time.monotonic() + self.latency
        with self._lock:
            pages = range(start // PAGE, (start + max(nbytes, 1) - 1) // PAGE + 1)
            return max(self._arrives.setdefault((name, page), arrives) for page in pages)


def install(far: Far) -> None:
    """Put the latency into the local directory."""
    read_into, content = LocalSource.read_into, LocalSource.content

    def far_read_into(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        far.reads += 1
        time.sleep(max(0.0, far.request(name, start, out.nbytes) - time.monotonic()))
        read_into(self, name, start, out)

    def far_content(self: LocalSource, name: str) -> bytes:
        far.reads += 1
        time.sleep(far.latency)
        return content(self, name)

    def will_read(self: LocalSource, ranges: Iterable[tuple[str, int, int]]) -> None:
        for place in ranges:
            far.request(*place)

    changed: dict[str, Any] = {
        **{"read_into": far_read_into, "content": far_content, "will_read": will_read},
        "ahead": True,  # each read takes so long that the small ones are announced too
    }
    for name, value in changed.items():
        setattr(LocalSource, name, value)


if __name__ == "__main__":
    load_dir, save_dir, latency, workers = sys.argv[1:]
    far = Far(float(latency))
    install(far)
    start = time.perf_counter()
    dcptools.convert(Path(load_dir), Path(save_dir), workers=int(workers), fsync=False)
    print(json.dumps({"seconds": time.perf_counter() - start, "reads": far.reads}))
