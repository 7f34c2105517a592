"""Items that cannot be read from the middle: unpacked into a temporary file, and read from there."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from typing import IO, Any, cast

from dcptools._parallel import check_stopped
from dcptools.checkpoint import Chunk
from dcptools.errors import BrokenCheckpoint, TargetError, UnsupportedCheckpoint
from dcptools.storage import MORE_DESCRIPTORS, NO_DESCRIPTOR, LocalSource, Source


def decompress(source: Source, chunk: Chunk, most: int, unpacked: Unpacked) -> tuple[int, int]:
    """Unpack a zstd item of at most that many bytes; returns the place of its archive in ``unpacked``."""
    try:
        import zstandard
    except ImportError:
        raise UnsupportedCheckpoint(
            "It is compressed with zstd, but the package zstandard is not installed.\n"
            "Install it: pip install 'dcptools[zstd]'."
        ) from None
    try:
        start = unpacked.reserve(most)
    except TargetError:
        source.close()  # it may keep so many files open that there was no descriptor left
        start = unpacked.reserve(most)
    nbytes = 0
    try:
        packed = cast(IO[bytes], _Range(source, chunk))
        stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed)
        while part := stream.read(1 << 20):
            check_stopped()
            if nbytes + len(part) > most:
                raise BrokenCheckpoint("its zstd stream unpacks to more than such a tensor can have.")
            unpacked.write(start + nbytes, part)
            nbytes += len(part)
    except zstandard.ZstdError as error:
        raise BrokenCheckpoint(f"its zstd stream is damaged: {error}.") from None
    return start, nbytes


class _Range(io.RawIOBase):
    """The stored bytes of one chunk as a stream."""

    def __init__(self, source: Source, chunk: Chunk) -> None:
        self._source, self._chunk, self._done = source, chunk, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = memoryview(buffer)[: self._chunk.nbytes - self._done]
        self._source.read_into(self._chunk.file, self._chunk.start + self._done, part)
        self._done += len(part)
        return len(part)


# Of an archive without its values: torch writes 1.5 KB, or seven records that each begin at a page of 4 KiB. Its
# storage has no more than the values, because DCP saves a clone of a tensor with a larger one.
ARCHIVE_BYTES = 1 << 16
UNPACKED = "(unpacked)"


class Unpacked:
    """Unpacked items of one tensor, in one unnamed temporary file: a file for each would be too many open files."""

    def __init__(self) -> None:
        try:
            self.source = LocalSource(tempfile.gettempdir())
        except OSError as error:
            raise _no_room("There is no directory for temporary files", error) from None
        self._descriptor = -1  # none yet
        self._end = 0  # bytes; what is reserved reaches up to here, and the file is sparse
        self._lock = threading.Lock()

    def reserve(self, nbytes: int) -> int:
        """Room that nobody else writes to; returns its start."""
        with self._lock:
            if self._descriptor < 0:
                try:
                    with tempfile.TemporaryFile(prefix="dcptools-", dir=self.source.directory) as file:
                        self._descriptor = os.dup(file.fileno())
                except OSError as error:
                    raise _no_room(f"Unpacking into {self.source.location} failed", error) from None
                self.source.adopt(UNPACKED, self._descriptor)
            start = self._end
            self._end += nbytes
            return start

    def write(self, start: int, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], start + done)
        except OSError as error:
            raise _no_room(f"Unpacking into {self.source.location} failed", error) from None


def _no_room(what: str, error: OSError) -> TargetError:
    """The error for what the system says while unpacking."""
    advice = "Set the environment variable TMPDIR to a writable directory with enough space."
    return TargetError(
        f"{what}: {error.strerror}.\n"
        "It is compressed with zstd and must be unpacked to be read.\n"
        f"{MORE_DESCRIPTORS if error.errno in NO_DESCRIPTOR else advice}"
    )
