"""Where bytes come from: positional reads of named files, the same for a local directory and an object store.

``Source`` is all that the rest of the package knows about the input. The output side is ``dcptools.sink``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dcptools.errors import BrokenCheckpoint

MAX_OPEN_FILES = 256  # of one source; a checkpoint of 4096 ranks must not run into the limit of 1024 descriptors


class Source(Protocol):
    """Named files that can be read from any place. Safe to use from several threads."""

    @property
    def location(self) -> str:
        """What a person calls it: a path or a URL."""

    def size(self, name: str) -> int | None:
        """Bytes in the file, or None if there is no such file."""

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``start`` on; raise BrokenCheckpoint if the file ends before."""


class LocalSource:
    """A directory. Files are opened when first read and kept open, at most ``MAX_OPEN_FILES`` of them."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._open: dict[str, list[int]] = {}  # name -> [descriptor, readers now], least recently used first
        self._lock = threading.Lock()

    @property
    def location(self) -> str:
        return str(self.directory)

    def size(self, name: str) -> int | None:
        try:
            return os.stat(self.directory / name).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        done, wanted = 0, out.nbytes
        with self._descriptor(name) as descriptor:
            while done < wanted:
                count = _read_at(descriptor, start + done, out[done:])
                if count == 0:
                    raise BrokenCheckpoint(
                        f"{self.directory / name} ends at byte {start + done:,}, {wanted - done:,} bytes too early.\n"
                        "The file is truncated, or it is being written. Copy the checkpoint again."
                    )
                done += count

    def read(self, name: str, start: int, nbytes: int) -> bytearray:
        """``nbytes`` bytes from ``start`` on."""
        out = bytearray(nbytes)
        self.read_into(name, start, memoryview(out))
        return out

    def close(self) -> None:
        """Close all files; the next read opens them again."""
        with self._lock:
            for descriptor, _ in self._open.values():
                os.close(descriptor)
            self._open.clear()

    @contextmanager
    def _descriptor(self, name: str) -> Iterator[int]:
        with self._lock:
            entry = self._open.pop(name, None) or [os.open(self.directory / name, os.O_RDONLY | _BINARY), 0]
            entry[1] += 1
            self._open[name] = entry  # now the most recently used
            if len(self._open) > MAX_OPEN_FILES:
                self._close_oldest()
        try:
            yield entry[0]
        finally:
            with self._lock:
                entry[1] -= 1

    def _close_oldest(self) -> None:
        idle = next((name for name, (_, readers) in self._open.items() if not readers), None)
        if idle is not None:
            os.close(self._open.pop(idle)[0])

    def __del__(self) -> None:
        self.close()


_BINARY = getattr(os, "O_BINARY", 0)

if hasattr(os, "preadv"):

    def _read_at(descriptor: int, start: int, out: memoryview) -> int:
        return os.preadv(descriptor, [out], start)

else:  # Windows and old macOS: a seek and a read under one lock
    _seek_lock = threading.Lock()

    def _read_at(descriptor: int, start: int, out: memoryview) -> int:
        with _seek_lock:
            os.lseek(descriptor, start, os.SEEK_SET)
            data = os.read(descriptor, out.nbytes)
        out[: len(data)] = data
        return len(data)
