"""A sink in an object store or another file system that fsspec knows.

Object stores take a file in parts, from its start to its end, and show nothing of it before it is completed. So a file
is uploaded while it is written, with a part of it in memory. What comes out of turn waits: in memory if it is little,
otherwise, as with a tensor that is written in another order than it is read, in a temporary file.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dcptools._parallel import starting_threads
from dcptools.storage.sink import OutputSink, write_at
from dcptools.storage.urls import as_system_errors, open_url

PART_BYTES = 8 << 20  # of an upload
MOST_PARTS = 9000  # S3 takes 10,000
TOGETHER = 16  # files that are completed at the same time
WAITING_BYTES = 32 << 20  # that came out of turn and are kept in memory, for all files together
COPIES = 3  # of a part, while it is sent: in the library's buffer, as the body of a request, and in the socket


def part_bytes(nbytes: int) -> int:
    """How large the parts of a file of that size are."""
    return max(PART_BYTES, -(-nbytes // MOST_PARTS))


def uploading_bytes(nbytes: int, count: int) -> int:
    """The most memory that this many uploads, each of at most ``nbytes``, take together."""
    return WAITING_BYTES + count * COPIES * part_bytes(nbytes)


class RemoteSink:
    """Files below a URL. They are uploaded as they are written, and completed by ``commit``."""

    shared = False  # only the process that has sent the parts knows them

    def __init__(self, url: str, at_once: Iterable[str] = ()) -> None:
        """Files with those names are completed as soon as they are whole."""
        self._fs, self._root = open_url(url)
        self._url, self._at_once = url.rstrip("/"), frozenset(at_once)
        self._uploads: dict[str, _Streamed | _Staged] = {}
        self._lock, self._room = threading.Lock(), _Room()

    def __reduce__(self) -> tuple[type[RemoteSink], tuple[str, frozenset[str]]]:
        """Another process has a sink of the same kind, with nothing in it."""
        return type(self), (self._url, self._at_once)

    def create(self, name: str, nbytes: int) -> None:
        with self._errors(name):
            path = f"{self._root}/{name}"
            if self._fs.async_impl:  # object stores are, and show only what is whole
                upload: _Streamed | _Staged = _Streamed(self._fs, path, nbytes, self._room)
            else:
                upload = _Staged(self._fs, path, nbytes)
        with self._lock:
            self._uploads[name] = upload

    def write(self, name: str, start: int, data: memoryview) -> None:
        with self._errors(name):
            self._uploads[name].write(start, data)

    def flush(self) -> None:
        """Nothing: what is written is on its way."""

    def finish(self, name: str, *, sync: bool) -> None:
        with self._errors(name):
            self._uploads[name].finish()
        if name in self._at_once:
            self.commit(name)

    def staged(self, name: str) -> None:
        """None: an upload is visible once it is completed."""

    def commit(self, name: str) -> None:
        if name in self._at_once and name not in self._uploads:
            return
        with self._errors(name):
            self._uploads[name].commit()
        with self._lock:
            del self._uploads[name]

    def adopt(self, name: str) -> None:
        """Nothing: the process that has uploaded a file completes it."""

    def close(self) -> None:
        self.discard()

    def discard(self) -> None:
        with self._lock:
            uploads, self._uploads = self._uploads, {}
        for upload in uploads.values():
            upload.discard()

    def put(self, name: str, content: bytes) -> None:
        """Write a small file, which is visible at once; raises OSError."""
        with self._errors(name):
            self._fs.pipe_file(f"{self._root}/{name}", content)

    def remove(self, name: str) -> None:
        """Remove an existing file; raises OSError."""
        with self._errors(name):
            self._fs.rm_file(f"{self._root}/{name}")

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        with as_system_errors(f"{self._url}/{name}"):
            yield


def commit_all(sink: OutputSink, names: Iterable[str]) -> None:
    """Give finished files their names, many at a time."""
    with ThreadPoolExecutor(TOGETHER, thread_name_prefix="dcptools-publish") as pool:
        with starting_threads():
            committed = pool.map(sink.commit, names)
        list(committed)


class _Room:
    """Memory for what comes out of turn, for all files of a sink together."""

    def __init__(self) -> None:
        self._taken, self._lock = 0, threading.Lock()

    def take(self, nbytes: int) -> bool:
        """Take that many bytes, unless that is more than is left; returns whether they were taken."""
        with self._lock:
            if self._taken + nbytes > WAITING_BYTES:
                return False
            self._taken += nbytes
            return True

    def give(self, nbytes: int) -> None:
        with self._lock:
            self._taken -= nbytes


class _Streamed:
    """A file that is uploaded from its start to its end, and completed later."""

    def __init__(self, fs: Any, path: str, nbytes: int, room: _Room) -> None:
        from fsspec.spec import AbstractBufferedFile

        self._nbytes, self._room = nbytes, room
        self._file = fs.open(path, "wb", block_size=part_bytes(nbytes), autocommit=False)
        # a library that cannot send everything first and complete it later does both at the end
        self._at_once = type(self._file).commit is AbstractBufferedFile.commit
        self._file.autocommit = self._at_once
        self._end = 0  # bytes that were handed to the library
        self._waiting: dict[int, bytes | int] = {}  # by place: what came out of turn; or how long it is, if spilled
        self._spilled: Any = None
        self._lock = threading.Lock()  # whoever has bytes waits while others are sent: so memory is bounded

    def write(self, start: int, data: memoryview) -> None:
        with self._lock:
            if start != self._end:
                self._wait(start, data)
                return
            self._push(data)
            while (waiting := self._waiting.pop(self._end, None)) is not None:
                self._push(self._back(waiting))

    def finish(self) -> None:
        if self._end != self._nbytes:
            raise OSError(f"{self._end:,} of {self._nbytes:,} bytes were written")
        if not self._at_once:
            self._file.close()

    def commit(self) -> None:
        if self._at_once:
            self._file.close()
        else:
            self._file.commit()
        self._let_go()

    def discard(self) -> None:
        with self._lock, contextlib.suppress(Exception):  # what made the run fail is reported, not what this fails with
            self._let_go()
            self._file.closed = True  # or it would be completed when it is collected
            self._file.discard()

    def _push(self, data: memoryview | bytes) -> None:
        self._file.write(data)
        self._end += len(data)

    def _wait(self, start: int, data: memoryview) -> None:
        if self._room.take(data.nbytes):
            self._waiting[start] = bytes(data)
            return
        if self._spilled is None:
            self._spilled = tempfile.TemporaryFile(prefix="dcptools-")  # noqa: SIM115
        write_at(self._spilled.fileno(), start, data)
        self._waiting[start] = data.nbytes

    def _back(self, waiting: bytes | int) -> bytes:
        """What came out of turn, and whose turn it is now."""
        if isinstance(waiting, bytes):
            self._room.give(len(waiting))
            return waiting
        return os.pread(self._spilled.fileno(), waiting, self._end)

    def _let_go(self) -> None:
        self._room.give(sum(len(waiting) for waiting in self._waiting.values() if isinstance(waiting, bytes)))
        self._waiting.clear()
        if self._spilled is not None:
            self._spilled.close()


class _Staged:
    """A file for a file system that shows half-written files: it waits in a temporary file until it is whole."""

    def __init__(self, fs: Any, path: str, nbytes: int) -> None:
        self._fs, self._path = fs, path
        self._file = tempfile.NamedTemporaryFile(prefix="dcptools-")  # noqa: SIM115
        self._file.truncate(nbytes)

    def write(self, start: int, data: memoryview) -> None:
        write_at(self._file.fileno(), start, data)

    def finish(self) -> None:
        """Nothing: it is on the disk."""

    def commit(self) -> None:
        self._fs.makedirs(self._path.rpartition("/")[0], exist_ok=True)
        self._fs.put_file(self._file.name, self._path)
        self._file.close()

    def discard(self) -> None:
        self._file.close()
