"""Where output files go. Nothing is visible under its final name before ``commit``."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import threading
from pathlib import Path
from typing import Any, Protocol

from dcptools.storage.source import BINARY

TEMPORARY = ".dcptools-"  # how temporary names start
# Given 2 MiB at once, Linux takes pages of that size, which a virtual machine may have lent to its host: writes were
# 3 to 7 times slower while it got them back. Smaller ones are as fast where it has not.
WRITE_BYTES = 1 << 20
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


def _find_fallocate() -> Any:
    """Linux's fallocate(2), or None. ``os.posix_fallocate`` will not do: if the file system cannot reserve space,
    the C library writes a byte into every block instead."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) < 8:
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


_fallocate = _find_fallocate()


def _reserve(descriptor: int, nbytes: int) -> None:
    """Reserve the space of a file that is going to be filled: then a full disk is noticed before the first byte, and
    writing costs the kernel about half (measured on ext4). Has no effect on file systems that cannot do it.

    Raises
    ------
    OSError
        There is not that much space.
    """
    if _fallocate is None or not nbytes or _fallocate(descriptor, 0, 0, nbytes) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(number, os.strerror(number))


def write_at(descriptor: int, start: int, data: memoryview) -> None:
    """Write all of it at a place, in pieces."""
    done = 0
    while done < data.nbytes:
        done += os.pwrite(descriptor, data[done : done + WRITE_BYTES], start + done)


class Sink(Protocol):
    """Where files are filled."""

    shared: bool  # whether a sink of the same kind in another process can commit what was finished here

    def create(self, name: str, nbytes: int) -> None:
        """Prepare a file of that size; raises OSError if one with that name is already waiting for its commit."""

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Write at a place; from several threads, in any order."""

    def flush(self) -> None:
        """Flush what was written so far to the disk, while more is being written; to be called by another thread."""

    def finish(self, name: str, *, sync: bool) -> None:
        """Say that all bytes of the file are written; with ``sync``, wait until they are on the disk."""

    def staged(self, name: str) -> str | None:
        """A path at which the finished file can be checked; None if it is not visible anywhere before its commit."""


class OutputSink(Sink, Protocol):
    """Where output files go. Nothing is visible under its final name before ``commit``. Can be pickled, to fill other
    files of the same place from another process."""

    def commit(self, name: str) -> None:
        """Give the file its final name, in one step; if sinks are shared, also one that another sink has finished."""

    def adopt(self, name: str) -> None:
        """Count a file that another sink fills as created here, if sinks are shared: it is committed or discarded
        here."""

    def close(self) -> None:
        """Let go of the files, and leave what was not committed for a later run."""

    def discard(self) -> None:
        """Remove everything that was created here and not committed."""


class LocalSink:
    """A directory. Files are written under hidden temporary names beside their final ones and renamed."""

    shared = True

    def __init__(self, directory: str | os.PathLike[str], tag: str) -> None:
        self.directory, self._tag = Path(directory), tag
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        self._created: set[str] = set()  # and not committed

    def __reduce__(self) -> tuple[type[LocalSink], tuple[Path, str]]:
        """Another process has a sink of the same kind, with nothing in it."""
        return type(self), (self.directory, self._tag)

    def create(self, name: str, nbytes: int) -> None:
        # a file of our own, never one that a link leads to; the mode is that of open(): 0o666 less the umask
        descriptor = os.open(self.staged(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        with self._lock:
            self._descriptors[name] = descriptor
            self._created.add(name)
        os.ftruncate(descriptor, nbytes)
        _reserve(descriptor, nbytes)

    def write(self, name: str, start: int, data: memoryview) -> None:
        write_at(self._descriptors[name], start, data)

    def flush(self) -> None:
        with self._lock:  # a copy of the descriptor stays valid if the file is finished in the meantime
            copies = [os.dup(descriptor) for descriptor in self._descriptors.values()]
        try:
            for copy in copies:
                _sync_data(copy)
        finally:
            for copy in copies:
                os.close(copy)

    def finish(self, name: str, *, sync: bool) -> None:
        with self._lock:
            descriptor = self._descriptors.pop(name)
        try:
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def staged(self, name: str) -> str:
        return str(self.directory / f"{TEMPORARY}{self._tag}-{name}.tmp")

    def commit(self, name: str) -> None:
        os.replace(self.staged(name), self.directory / name)
        self._created.discard(name)

    def adopt(self, name: str) -> None:
        self._created.add(name)

    def close(self) -> None:
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def discard(self) -> None:
        self.close()
        for name in self._created:
            with contextlib.suppress(OSError):  # what made the run fail is reported, not what this fails with
                os.unlink(self.staged(name))
        self._created.clear()
