"""CRC-32 of whole files whose bytes are written in pieces, without an extra read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from isal import isal_zlib

from dcptools._parallel import check_stopped
from dcptools.storage import open_regular
from dcptools.tensors import combined

PIECE_BYTES = 1 << 20


class FileSums:
    """CRC-32 of whole files whose bytes are written in pieces, by several threads, in any order."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[tuple[int, int, int]]] = defaultdict(list)  # by file: start, bytes, crc

    def add(self, filename: str, start: int, data: memoryview) -> None:
        """Say that this was written; what is never reported is read again at the end."""
        self._pieces[filename].append((start, data.nbytes, isal_zlib.crc32(data)))

    def take(self, filename: str, nbytes: int, path: str) -> int:
        """The checksum of a file that is finished."""
        crc = combined(self._pieces.pop(filename), nbytes)
        return file_crc(path) if crc is None else crc


def file_crc(path: str, read: Callable[[int], None] = lambda nbytes: None) -> int:
    """The checksum of a file; ``read`` hears about each piece."""
    crc, buffer = 0, memoryview(bytearray(PIECE_BYTES))
    with open(open_regular(Path(path)), "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            check_stopped()
            crc = isal_zlib.crc32(buffer[:count], crc)
            read(count)
    return crc
