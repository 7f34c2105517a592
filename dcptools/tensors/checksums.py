"""CRC-32 of items whose bytes pass by in pieces, through several threads, in any order.

Every zip entry has a CRC-32 of its content, which ``torch.load`` does not look at. The pieces' checksums are combined
(``crc32_combine``), so checking costs no read of its own. Only items whose bytes are not read in straight pieces
(transposed, a part of a larger storage, or wanted in another order) are read once more, from beginning to end.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from isal import isal_zlib

from dcptools._parallel import check_stopped
from dcptools.errors import ChecksumError
from dcptools.tensors.item import Item

PIECE_BYTES = 1 << 20
MAX_PIECES = 1 << 16  # of one item; beyond that, remembering them is not worth the memory, and it is read again


class ItemPart(NamedTuple):
    """What one process has read of an item; another one may have read the rest."""

    place: tuple[str, int]
    label: str
    crc: int  # of the whole storage, as it was saved
    storage_nbytes: int
    pieces: tuple[tuple[int, int, int], ...]  # start, bytes, crc


class Checksums:
    """Collects what was read of each item. ``checked``, ``unchecked`` and ``without`` count items."""

    def __init__(self) -> None:
        self.checked = 0  # read whole, and right
        self.without = 0  # stored without a checksum
        self._pending: dict[tuple[str, int], _Pieces] = {}  # by place
        self._lock = threading.Lock()

    @property
    def unchecked(self) -> int:
        """Items of which only a part was read, so far."""
        return len(self._pending)

    def open(self, item: Item) -> None:
        """Say that an item will be read."""
        if not item.crc and item.storage_nbytes:
            with self._lock:
                self.without += 1
        elif not item.dense:
            self._read_through(item)
        elif item.storage_nbytes:
            with self._lock:
                self._pending.setdefault(item.place, _Pieces(item))

    def add(self, item: Item, start: int, data: memoryview) -> None:
        """Say that ``data`` was read at ``start`` of the item's storage.

        Raises
        ------
        ChecksumError
            These were the last bytes of the item, and it is not what was saved.
        """
        pieces = self._pending.get(item.place)
        if pieces is None:
            return  # it has no checksum, was already read through, or is read a second time
        crc = isal_zlib.crc32(data)
        with self._lock:
            pieces.found.append((start, len(data), crc))
            pieces.nbytes += len(data)
            if pieces.nbytes < item.storage_nbytes and len(pieces.found) < MAX_PIECES:
                return
            if self._pending.pop(item.place, None) is None:
                return  # another thread had the last one
        whole = combined(pieces.found, item.storage_nbytes)
        if whole is not None:
            self._compare(item, whole)
        else:  # some bytes were read twice: pieces that overlap, as of a transposed view
            self._read_through(item)

    def parts(self) -> list[ItemPart]:
        """The items of which only a part was read, for another process to put them together."""
        return [
            ItemPart(place, pieces.item.label, pieces.item.crc, pieces.item.storage_nbytes, tuple(pieces.found))
            for place, pieces in self._pending.items()
        ]

    def join(self, others: Iterable[ItemPart]) -> None:
        """Add what other processes have read to what was read here, once everything is read.

        Raises
        ------
        ChecksumError
            An item is complete now, but not what was saved.
        """
        parts: dict[tuple[str, int], list[ItemPart]] = defaultdict(list)
        for part in (*self.parts(), *others):
            parts[part.place].append(part)
        for place, found in parts.items():
            pieces = self._pending.setdefault(place, _Pieces(found[0]))
            pieces.found = [piece for part in found for piece in part.pieces]
            whole = combined(pieces.found, found[0].storage_nbytes)
            if whole is not None:
                del self._pending[place]
                self._compare(found[0], whole)

    def _read_through(self, item: Item) -> None:
        buffer, crc = memoryview(bytearray(PIECE_BYTES)), 0
        for start in range(0, item.storage_nbytes, PIECE_BYTES):
            check_stopped()
            piece = buffer[: min(PIECE_BYTES, item.storage_nbytes - start)]
            item.source.read_into(item.file, item.start + start, piece)
            crc = isal_zlib.crc32(piece, crc)
        self._compare(item, crc)

    def _compare(self, item: Item | ItemPart, crc: int) -> None:
        if crc != item.crc:
            raise ChecksumError(
                f"{item.label}:\nthe stored bytes have the CRC-32 {crc:08x}, but {item.crc:08x} was saved with them.\n"
                "The file was damaged after it was saved. Copy it again, or use another checkpoint."
            )
        with self._lock:
            self.checked += 1


class _Pieces:
    """What was read of one item so far."""

    def __init__(self, item: Item | ItemPart) -> None:
        self.item = item
        self.found: list[tuple[int, int, int]] = []  # start, bytes, crc
        self.nbytes = 0


def combined(pieces: Iterable[tuple[int, int, int]], nbytes: int) -> int | None:
    """The CRC-32 of that many bytes, from the start, bytes and CRC-32 of pieces; None if the pieces do not tile them.

    >>> crcs = [isal_zlib.crc32(piece) for piece in (b"read it in ", b"pieces")]
    >>> combined([(11, 6, crcs[1]), (0, 11, crcs[0])], 17) == isal_zlib.crc32(b"read it in pieces")
    True
    """
    crc, at = 0, 0
    for start, length, piece in sorted(pieces):
        if start != at:
            return None
        crc, at = isal_zlib.crc32_combine(crc, piece, length), at + length
    return crc if at == nbytes else None
