"""Which kind of place a path or URL is."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator

from dcptools.storage.remote import RemoteSource
from dcptools.storage.source import LocalSource, Source
from dcptools.storage.urls import is_url

PIECE_BYTES = 1 << 20
AHEAD_BYTES = 32 << 20  # announced together if each read takes long


def open_source(place: str | os.PathLike[str]) -> Source:
    """The files of a directory, or below a URL.

    Raises
    ------
    UsageError
        The library of a URL is not installed, or does not know the URL.
    """
    return RemoteSource(os.fspath(place)) if is_url(place) else LocalSource(place)


def pieces(source: Source, name: str) -> Generator[bytes]:
    """A file from its start to its end, a piece at a time.

    Raises
    ------
    OSError
        There is no such file, or it cannot be read.
    """
    state = source.state(name)
    if state is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source.path(name))
    for start in range(0, state.nbytes, PIECE_BYTES):
        if source.ahead and start % AHEAD_BYTES == 0:
            source.will_read([(name, start, min(AHEAD_BYTES, state.nbytes - start))])
        piece = bytearray(min(PIECE_BYTES, state.nbytes - start))
        source.read_into(name, start, memoryview(piece))
        yield bytes(piece)
