"""Memory as the place that is written to, and how much of it is free."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcptools._text import format_bytes
from dcptools.errors import NotEnoughMemory

if TYPE_CHECKING:
    import torch

# The files of a control group that give its limit, what it uses, and how much of that it can give back: versions 2 and
# 1.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", r"^inactive_file (\d+)"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", r"^total_inactive_file (\d+)"),
}


class MemorySink:
    """Holds each file in memory of its own, which torch allocates, aligned like that of any tensor."""

    shared = False

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}  # uint8, by file name
        self._bytes: dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}
        self._lock = threading.Lock()

    def create(self, name: str, nbytes: int) -> None:
        import torch

        try:
            values = torch.empty(nbytes, dtype=torch.uint8)
        except RuntimeError:  # what torch raises when there is no memory
            raise not_enough(nbytes, available_bytes() or 0) from None
        with self._lock:
            self.values[name], self._bytes[name] = values, values.numpy()

    def write(self, name: str, start: int, data: memoryview) -> None:
        self._bytes[name][start : start + data.nbytes] = np.frombuffer(data, np.uint8)

    def flush(self) -> None:
        """Nothing: there is no disk."""

    def finish(self, name: str, *, sync: bool) -> None:
        """Nothing: there is no disk."""

    def staged(self, name: str) -> None:
        """None: it has no path."""


def not_enough(needed: int, available: int, where: str = "here") -> NotEnoughMemory:
    """The error that gives both numbers."""
    return NotEnoughMemory(
        f"This takes {format_bytes(needed)} of memory, but {format_bytes(available)} is free {where}.\n"
        "Load only a part of it, use a narrower dtype, or use a machine with more memory.",
        needed,
        available,
    )


def check_fits(needed: int) -> None:
    """Raises NotEnoughMemory if that many bytes are not free, where that can be known."""
    available = available_bytes()
    if available is not None and needed > available:
        raise not_enough(needed, available)


def available_bytes() -> int | None:
    """The memory that this process can still take: that of the machine, or of the job that it runs in if that is less.

    None if it is not known.
    """
    return min((*_machine(), *_groups()), default=None)


def _machine() -> Iterator[int]:
    with contextlib.suppress(OSError):
        if found := re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE):
            yield int(found[1]) * 1024
            return
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not Linux: everything
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups(proc: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What is free in each control group around this process that has a limit, as batch jobs and containers have."""
    with contextlib.suppress(OSError):
        for line in proc.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in _GROUP_FILES:
                continue
            top = mounted / controllers
            below = top / path.lstrip("/")
            for directory in (below, *below.parents):
                with contextlib.suppress(OSError, ValueError):  # "max": no limit
                    yield _free(directory, *_GROUP_FILES[controllers])
                if directory == top:
                    break


def _free(directory: Path, limit: str, used: str, reclaimable: str) -> int:
    found = re.search(reclaimable, (directory / "memory.stat").read_text(), re.MULTILINE)
    taken = int((directory / used).read_text()) - int(found[1] if found else 0)
    return max(0, int((directory / limit).read_text()) - taken)
