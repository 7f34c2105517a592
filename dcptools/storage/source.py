"""Where bytes come from: positional reads of named files."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, Protocol

from dcptools._paths import expanded
from dcptools.errors import BrokenCheckpoint
from dcptools.storage.ranges import FIRST, Range, requests

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
MORE_DESCRIPTORS = "This process may not open so many files. Allow more: ulimit -n 4096."
AHEAD_BYTES = 128 << 10  # told to the kernel at once: of more it reads only the first part, as much as a device takes
# If so many ranges are at hand, it is likely that all others are too; of the first ones, those that are larger say
# more: small ones may lie in a page that was read with a neighbour
ENOUGH_AT_HAND, LARGER_BYTES = 8, 8192
MAX_OPEN_FILES = 256  # of one source; a checkpoint from 4096 ranks must not run into the limit of 1024 descriptors


class FileState(NamedTuple):
    """What is known about a file without reading it."""

    nbytes: int
    modified_ns: int  # since the epoch
    identity: str  # opaque; it changes as soon as the file is written to or replaced


class Source(Protocol):
    """Named files that can be read at any place. Safe to use from several threads."""

    @property
    def ahead(self) -> bool:
        """Whether each read takes so long that all are worth announcing, even those of a few bytes."""

    @property
    def location(self) -> str:
        """What a person calls it: a path or a URL."""

    def path(self, name: str) -> str:
        """What a person calls a file in it."""

    def kind(self, name: str = "") -> str | None:
        """``file``, ``directory``, ``other``, or None if there is nothing; "" is the place itself.

        Raises OSError if the system does not allow looking.
        """

    def entries(self, name: str = "") -> list[str]:
        """The names in a directory, sorted; raises OSError if it cannot be listed."""

    def folders(self) -> list[str]:
        """The names of the directories in the place, sorted; raises OSError if it cannot be listed."""

    def state(self, name: str) -> FileState | None:
        """The state of the file now, or None if there is no such file."""

    def states(self, names: Iterable[str]) -> dict[str, FileState | None]:
        """The states of several files."""

    def content(self, name: str) -> bytes:
        """The whole of a file; raises OSError if it cannot be read."""

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``start`` on; raise BrokenCheckpoint if they cannot be read."""

    def will_read(self, ranges: Iterable[Range]) -> None:
        """Say which bytes will be read soon, to start reading them now; does nothing if they are already at hand."""

    def close(self) -> None:
        """Let go of what is kept open and not in use; the next read opens it again."""


class OpenFile:
    """A descriptor that is closed when nobody has this object any more, so that no read finds it closed."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class LocalSource:
    """A directory. Files are opened when first read and kept open, as many as the process can afford."""

    ahead = False

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(expanded(directory))
        self._open: dict[str, OpenFile] = {}  # the one that was opened first comes first
        self._lock = threading.Lock()  # guards changes to it

    def __reduce__(self) -> tuple[type[LocalSource], tuple[Path]]:
        return type(self), (self.directory,)

    @property
    def location(self) -> str:
        return str(self.directory)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def kind(self, name: str = "") -> str | None:
        try:
            mode = os.stat(self.directory / name).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"

    def entries(self, name: str = "") -> list[str]:
        return sorted(os.listdir(self.directory / name))

    def folders(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.directory) if entry.is_dir())

    def state(self, name: str) -> FileState | None:
        try:
            found = os.stat(self.directory / name)
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise
        if not stat.S_ISREG(found.st_mode):
            return None
        return FileState(found.st_size, found.st_mtime_ns, f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}")

    def states(self, names: Iterable[str]) -> dict[str, FileState | None]:
        return {name: self.state(name) for name in names}

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        done, wanted = 0, out.nbytes
        try:
            file = self._open.get(name) or self._open_now(name)
            while done < wanted and (count := _read_at(file.descriptor, start + done, out[done:] if done else out)):
                done += count
        except OSError as error:
            advice = "Check that it exists and that you may read it; otherwise copy it again."
            raise BrokenCheckpoint(
                f"{self.directory / name} cannot be read: {error.strerror or error}.\n"
                f"{MORE_DESCRIPTORS if error.errno in NO_DESCRIPTOR else advice}"
            ) from error
        if done < wanted:
            end = min(os.fstat(file.descriptor).st_size, start + done)  # it may end before the first byte wanted
            raise BrokenCheckpoint(
                f"{self.directory / name} ends at byte {end:,}, {start + wanted - end:,} bytes too early.\n"
                "The file is truncated, or still being written. Copy the checkpoint again."
            )

    def will_read(self, ranges: Iterable[Range]) -> None:
        """Tell the kernel, in the order of the files; unless some from all over the first ranges are at hand."""
        left = iter(ranges)
        first = list(islice(left, FIRST))
        larger = [each for each in first if each[2] >= LARGER_BYTES] or first
        looked_at = larger[:: -(-len(larger) // ENOUGH_AT_HAND) or 1]
        if _CAN_READ_AHEAD and not all(self.at_hand(*each) for each in looked_at):
            for each in requests(chain(first, left)):
                self.read_ahead(*each)

    def at_hand(self, name: str, start: int, nbytes: int) -> bool:
        """Whether the middle of these bytes can be read without waiting for the disk."""
        try:
            return _is_cached((self._open.get(name) or self._open_now(name)).descriptor, start + nbytes // 2)
        except OSError:  # what is wrong with the file is said when it is read
            return True

    def read_ahead(self, name: str, start: int, nbytes: int) -> None:
        """Have the kernel begin to read what it does not have."""
        with suppress(OSError):
            descriptor = (self._open.get(name) or self._open_now(name)).descriptor
            for at in range(start, start + nbytes, AHEAD_BYTES):
                os.posix_fadvise(descriptor, at, min(AHEAD_BYTES, start + nbytes - at), os.POSIX_FADV_WILLNEED)

    def content(self, name: str) -> bytes:
        with open(open_regular(self.directory / name), "rb") as file:  # files that the kernel makes up have no end
            return file.read(os.fstat(file.fileno()).st_size)

    def adopt(self, name: str, descriptor: int) -> None:
        """Read the file of that name from an open descriptor, which is closed when this object goes."""
        with self._lock:
            self._open[name] = OpenFile(descriptor)

    def close(self) -> None:
        """Close the files; those that are being read are closed when that is done. The next read opens them again."""
        with self._lock:
            self._open.clear()

    def _open_now(self, name: str) -> OpenFile:
        """The open file, opened by this thread or by another one in the meantime."""
        with self._lock:
            if name not in self._open:
                while len(self._open) >= _most_open():
                    del self._open[next(iter(self._open))]
                self._open[name] = OpenFile(self._descriptor(name))
            return self._open[name]

    def _descriptor(self, name: str) -> int:
        """Open the file; if the process has too many open, at the expense of all others of this source."""
        try:
            return open_regular(self.directory / name)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR or not self._open:
                raise
        self._open.clear()
        return open_regular(self.directory / name)


def _most_open() -> int:
    """How many files a source keeps open: a quarter of those that the process may have, as it has others to open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else -1
    return min(MAX_OPEN_FILES, max(1, soft // 4)) if soft >= 0 else MAX_OPEN_FILES


def open_regular(path: Path) -> int:
    """Open a file for reading, if it is one: opening a pipe or a device can wait forever."""
    descriptor = os.open(path, os.O_RDONLY | BINARY | _NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "It is a pipe, a device or the like, not a file")


_CAN_READ_AHEAD = hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")  # Linux


def _is_cached(descriptor: int, at: int) -> bool:
    """Whether a byte can be read without waiting for the disk; also False if that is not known."""
    try:
        return os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except OSError:
        return False


# a name that is too long for the file system, or a symlink that leads to itself, is not a file either
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
BINARY, _NONBLOCK = getattr(os, "O_BINARY", 0), getattr(os, "O_NONBLOCK", 0)

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
