"""The zip archive that ``torch.save`` writes, as far as a stored tensor needs it.

An item of a ``.distcp`` file is such an archive: entries ``<name>/data.pkl``, ``<name>/byteorder``, ``<name>/data/0``
and a few more, all uncompressed. The format: PKWARE's APPNOTE 6.3 (sections 4.3.7, 4.3.12, 4.3.14 to 16); torch writes
through a stream, so sizes are in the central directory and not in the local headers.

It is parsed here and not by the standard library, which reads some archives differently from torch: ``zipfile`` takes
as many entries as the directory has bytes for, torch as many as the end record counts, and so one file could be two
tensors. (It also takes 60 us per archive instead of 20.) What torch would not have written is refused.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import Any, NamedTuple

from isal import isal_zlib

from dcptools.errors import BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint
from dcptools.storage import Source

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
# Central directory file header: flags, method, CRC-32, packed and unpacked bytes, three lengths, place of the entry
_ENTRY = struct.Struct("<4s4x2H4x3L3H8xL")
_MOST_NAME_BYTES = 1024  # torch's have fewer than a hundred
_CRC_AT = 16  # bytes from the start of such a header
_LOCAL = struct.Struct("<4s22x2H")  # of a local file header: two lengths
HEAD_BYTES = 2048  # covers data.pkl, byteorder and the local header of data/0 of a plain tensor
TAIL_BYTES = 1024  # covers the central directory
MAX_DIRECTORY_BYTES = 1 << 16
MAX_PICKLE_BYTES = 1 << 16
PARSED = frozenset(("data.pkl", "byteorder"))  # and the storages, data/0, are read; the rest is of no use here


class Entry(NamedTuple):
    name: str
    header: int  # bytes from the start of the archive to its local header
    nbytes: int
    crc: int  # CRC-32 of the content; 0: torch was told not to compute it


class Frame(NamedTuple):
    """The bytes around the values of an archive, by which others with values at the same place are recognized.

    Checkpoints have thousands of archives of the same few shapes, which differ only in their values and checksums.
    """

    head: bytes  # up to the first byte of the values
    end: int  # the central directory and all after it, as a little-endian number with zeros for some checksums:
    mask: int  # of the values, and of entries that nobody looks at
    end_nbytes: int
    crc_shift: int  # bits; where the CRC-32 of the values is in that number

    def crc(self, source: Source, file: str, start: int, nbytes: int) -> int | None:
        """The CRC-32 of the values of an archive, if they are in the same frame. Everything else was checked before."""
        head = bytearray(len(self.head))
        source.read_into(file, start, memoryview(head))
        if head != self.head:
            return None
        tail = bytearray(self.end_nbytes)
        source.read_into(file, start + nbytes - self.end_nbytes, memoryview(tail))
        end = int.from_bytes(tail, "little")
        return end >> self.crc_shift & 0xFFFFFFFF if end & self.mask == self.end else None


class Archive:
    """One archive inside ``file``; reads its head and its tail once and serves small reads from them."""

    def __init__(self, source: Source, file: str, start: int, nbytes: int) -> None:
        self.source, self.file, self.start, self.nbytes = source, file, start, nbytes
        self._parts: list[tuple[int, int, bytearray]] = []  # first and last byte, and what is there
        whole = nbytes <= HEAD_BYTES + TAIL_BYTES
        self._load(0, nbytes if whole else HEAD_BYTES)
        if not whole:
            self._load(nbytes - TAIL_BYTES, TAIL_BYTES)
        self._tail = self._parts[-1][2]

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """By their names below the archive's own name."""
        found, seen = {}, set()
        for name, _, fields, extra in self._directory:
            folded = name.lower()  # torch does not distinguish upper and lower case
            if folded not in PARSED and not folded.startswith("data/"):
                continue
            if folded in seen:
                raise self.broken(f"it has two entries {name}")
            seen.add(folded)
            found[name] = self._entry(name, fields, extra)
        return found

    @property
    def where(self) -> str:
        return f"{self.source.location}/{self.file}, bytes {self.start:,} to {self.start + self.nbytes:,}"

    def frame(self, values: Entry) -> Frame | None:
        """The frame around that entry; None if it is more than what is read at once, or if something that was parsed
        is neither before the values nor in the directory or after it."""
        start = self.content_start(values)
        parsed = [entry for name in PARSED if (entry := self.entries.get(name)) is not None]
        if any(self.content_start(entry) + entry.nbytes > start for entry in parsed):
            return None
        directory_start, _, _ = self._directory_place()
        end_nbytes = self.nbytes - directory_start
        if start > len(self._parts[0][2]) or end_nbytes > len(self._tail):
            return None
        varying = {name: 8 * at for name, at, _, _ in self._directory if name not in PARSED}
        mask = ~sum(0xFFFFFFFF << shift for shift in varying.values())
        end = int.from_bytes(self._tail[-end_nbytes:], "little")
        return Frame(self._bytes(0, start), end & mask, mask, end_nbytes, varying[values.name])

    def content(self, entry: Entry) -> bytes:
        """The content of a small entry, checked: a flipped bit in ``data.pkl`` may be another stride."""
        if entry.nbytes > MAX_PICKLE_BYTES:
            raise self.broken(f"{entry.name} has {entry.nbytes:,} bytes")
        content = self._bytes(self.content_start(entry), entry.nbytes)
        if entry.crc and isal_zlib.crc32(content) != entry.crc:
            raise ChecksumError(
                f"{self.where}: {entry.name} is not what was saved.\nThe file is damaged. Copy the checkpoint again."
            )
        return content

    def content_start(self, entry: Entry) -> int:
        """Bytes from the start of the archive to the entry's content."""
        signature, name_bytes, extra_bytes = self._unpack(_LOCAL, entry.header)
        start: int = entry.header + _LOCAL.size + name_bytes + extra_bytes
        if signature != b"PK\x03\x04" or start + entry.nbytes > self.nbytes:
            raise self.broken(f"the local header of {entry.name} is damaged")
        return start

    def broken(self, what: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self.where}: {what}.\nThe file is damaged. Copy the checkpoint again.")

    @cached_property
    def _directory(self) -> list[tuple[str, int, tuple[Any, ...], bytes]]:
        """Each entry: its name, bytes from the start of the directory to its CRC-32, header fields, and extra field."""
        if self._bytes(0, min(4, self.nbytes)) != b"PK\x03\x04":
            raise UnsupportedCheckpoint(
                f"{self.where}: not an archive as torch.save writes it (it starts with "
                f"{self._bytes(0, min(8, self.nbytes))!r}).\n"
                "Expected torch's default, SerializationFormat.TORCH_SAVE, or a damaged file."
            )
        start, nbytes, count = self._directory_place()
        if nbytes > MAX_DIRECTORY_BYTES or count * _ENTRY.size > nbytes:
            raise self.broken("its central directory is damaged")
        directory, found, at = self._bytes(start, nbytes), [], 0
        for _ in range(count):
            header, name_at = at, at + _ENTRY.size
            if name_at > nbytes:
                raise self.broken("its central directory is damaged")
            fields = _ENTRY.unpack_from(directory, header)
            if fields[6] > _MOST_NAME_BYTES:
                raise self.broken(f"an entry has a name of {fields[6]:,} bytes")
            extra_at = name_at + fields[6]
            extra_end = extra_at + fields[7]
            at = extra_end + fields[8]
            if fields[0] != b"PK\x01\x02" or at > nbytes:
                raise self.broken("its central directory is damaged")
            name = directory[name_at:extra_at].partition(b"/")[2].decode("utf-8", "replace")
            found.append((name, header + _CRC_AT, fields, directory[extra_at:extra_end]))
        return found

    def _directory_place(self) -> tuple[int, int, int]:
        """Start, bytes and number of entries of the central directory."""
        end_at = self.nbytes - _END.size
        if end_at < 0:
            raise self.broken("it is too short")
        signature, _, _, _, count, nbytes, start, comment = self._unpack(_END, end_at)
        if signature != b"PK\x05\x06" or comment:
            raise self.broken("it has no end record")
        locator_at = end_at - _END64_LOCATOR.size
        if locator_at >= 0:
            signature, _, end64_at, _ = self._unpack(_END64_LOCATOR, locator_at)
            if signature == b"PK\x06\x07":
                if end64_at + _END64.size > locator_at:
                    raise self.broken("its end record is damaged")
                *_, count, nbytes, start = self._unpack(_END64, end64_at)
                end_at = end64_at
        if start + nbytes > end_at:  # one after the other, or there would be bytes with two meanings
            raise self.broken("its central directory is damaged")
        return start, nbytes, count

    def _entry(self, name: str, fields: tuple[Any, ...], extra: bytes) -> Entry:
        """An entry, checked to be stored uncompressed and within the archive."""
        _, flags, method, crc, packed, nbytes, _, _, _, header = fields
        if extra:
            nbytes, packed, header = _zip64(extra, nbytes, packed, header)
        if method != 0 or flags & 1 or packed != nbytes:
            raise UnsupportedCheckpoint(
                f"{self.where}: {name} is compressed or encrypted, which torch.save never does."
            )
        if header + _LOCAL.size + nbytes > self.nbytes:
            raise self.broken(f"{name} reaches past its end")
        return Entry(name, header, nbytes, crc)

    def _load(self, start: int, nbytes: int) -> None:
        """Read bytes of the archive, and keep them."""
        data = bytearray(nbytes)
        self.source.read_into(self.file, self.start + start, memoryview(data))
        self._parts.append((start, start + nbytes, data))

    def _find(self, start: int, nbytes: int) -> tuple[bytearray, int]:
        """A part that has these bytes, and where in it they are."""
        for first, last, data in self._parts:
            if first <= start and start + nbytes <= last:
                return data, start - first
        if start < 0 or start + nbytes > self.nbytes:
            raise self.broken("a record reaches past its end")
        self._load(start, nbytes)
        return self._parts[-1][2], 0

    def _bytes(self, start: int, nbytes: int) -> bytes:
        data, at = self._find(start, nbytes)
        return bytes(data[at : at + nbytes])

    def _unpack(self, record: struct.Struct, start: int) -> tuple[Any, ...]:
        return record.unpack_from(*self._find(start, record.size))


def _zip64(extra: bytes, *fields: int) -> list[int]:
    """Fields that are all ones are found, in this order, in the extra field 0x0001 with 8 bytes each."""
    at = 0
    while at + 4 <= len(extra):
        tag, nbytes = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            values = iter(struct.unpack_from(f"<{min(nbytes, len(extra) - at - 4) // 8}Q", extra, at + 4))
            return [next(values, field) if field == 0xFFFFFFFF else field for field in fields]
        at += 4 + nbytes
    return list(fields)
