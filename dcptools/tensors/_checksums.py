"""CRC-32 of items whose bytes pass in pieces, through several threads, in any order.

Every zip entry has a CRC-32 of its content, which ``torch.load`` does not look at. The pieces' checksums are combined
(``crc32_combine``), so checking costs no read of its own. Only items whose bytes are not read in straight pieces
(transposed, or a part of a larger storage) are read once more, from one end to the other.
"""

from __future__ import annotations

import threading

from isal import isal_zlib

from dcptools.errors import ChecksumError
from dcptools.tensors._item import Item

PIECE_BYTES = 1 << 20


class Checksums:
    """Collects what was read of each item. ``checked``, ``unchecked`` and ``without`` count items."""

    def __init__(self) -> None:
        self.checked = 0  # read whole, and right
        self.without = 0  # stored without a checksum
        self._pending: dict[tuple[str, int], list[tuple[int, int, int]]] = {}  # start, bytes, crc of each piece
        self._seen: dict[tuple[str, int], int] = {}  # bytes so far
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
                self._pending.setdefault(_id(item), [])

    def add(self, item: Item, start: int, data: memoryview) -> None:
        """Say that ``data`` was read at ``start`` of the item's storage.

        Raises
        ------
        ChecksumError
            These were the last bytes of the item, and it is not what was saved.
        """
        if not item.crc or not item.dense:
            return
        piece = (start, len(data), isal_zlib.crc32(data))
        with self._lock:
            pieces = self._pending.get(_id(item))
            if pieces is None:
                return  # checked already; it is read a second time
            pieces.append(piece)
            seen = self._seen[_id(item)] = self._seen.get(_id(item), 0) + len(data)
            if seen < item.storage_nbytes:
                return
            pieces = sorted(set(pieces))
            if not _is_tiling(pieces, item.storage_nbytes):
                return  # some bytes were read twice; the rest is still to come
            del self._pending[_id(item)], self._seen[_id(item)]
            self.checked += 1
        crc = 0
        for _, nbytes, piece_crc in pieces:
            crc = isal_zlib.crc32_combine(crc, piece_crc, nbytes)
        _compare(item, crc)

    def _read_through(self, item: Item) -> None:
        buffer, crc = memoryview(bytearray(PIECE_BYTES)), 0
        for start in range(0, item.storage_nbytes, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, item.storage_nbytes - start)]
            item.source.read_into(item.file, item.start + start, piece)
            crc = isal_zlib.crc32(piece, crc)
        _compare(item, crc)
        with self._lock:
            self.checked += 1


def _id(item: Item) -> tuple[str, int]:
    return f"{item.source.location}/{item.file}", item.start


def _is_tiling(pieces: list[tuple[int, int, int]], nbytes: int) -> bool:
    at = 0
    for start, length, _ in pieces:
        if start != at:
            return False
        at += length
    return at == nbytes


def _compare(item: Item, crc: int) -> None:
    if crc != item.crc:
        raise ChecksumError(
            f"{item.label}:\nthe stored bytes have the CRC-32 {crc:08x}, and {item.crc:08x} was saved with them.\n"
            "The file was damaged after it was saved. Copy it again, or use another checkpoint."
        )
