"""One stored chunk: where its values are, and in which order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from dcptools.checkpoint import Chunk, StoredTensor
from dcptools.dtypes import DType
from dcptools.errors import BrokenCheckpoint, DcptoolsError, UnsupportedCheckpoint
from dcptools.storage import Source
from dcptools.tensors.archive import Archive, Entry, Frame
from dcptools.tensors.arrangement import Arrangement, in_order, parse_arrangement
from dcptools.tensors.unpacked import ARCHIVE_BYTES, UNPACKED, Unpacked, decompress

NOWHERE = "The metadata does not say where it is stored."


class Item(NamedTuple):
    """The values of one chunk: ``storage_nbytes`` bytes from ``start`` on in ``file`` of ``source``."""

    source: Source
    file: str
    start: int  # bytes from the start of the file to the first byte of the storage
    storage_nbytes: int
    crc: int  # CRC-32 of the storage; 0: not known
    arrangement: Arrangement
    key: str  # of the tensor
    chunk: Chunk

    @property
    def label(self) -> str:
        """What an error message calls it."""
        return _label(self.key, self.chunk)

    @property
    def place(self) -> tuple[str, int]:
        """Where the whole item is in the checkpoint: the same for everyone who reads it."""
        return self.chunk.file, self.chunk.start

    @property
    def dense(self) -> bool:
        """Whether the storage is the chunk in row-major order, and nothing else."""
        return (
            self.arrangement.row_major and self.arrangement.offset == 0 and self.arrangement.end == self.storage_nbytes
        )


def open_item(source: Source, tensor: StoredTensor, chunk: Chunk, unpacked: Callable[[], Unpacked]) -> Item:
    """Parse the archive of one chunk and check it against the metadata.

    An item that cannot be read from the middle is unpacked into ``unpacked()``, and read from there.

    Raises
    ------
    UnsupportedCheckpoint
        The encoding is not one that dcptools can read.
    BrokenCheckpoint
        The item is damaged, or is not what the metadata announces.
    TargetError
        There is no space to unpack it, or no directory for it.
    """
    try:
        if chunk.encoding == "values":
            return _values(source, tensor, chunk)
        return _like_another(source, tensor, chunk) or _open(
            _archive(source, tensor.dtype, chunk, unpacked), tensor, chunk
        )
    except DcptoolsError as error:
        raise type(error)(f"{_label(tensor.key, chunk)}:\n{error}") from None


def _values(source: Source, tensor: StoredTensor, chunk: Chunk) -> Item:
    """An item that consists of the values and nothing else; there is no checksum."""
    if not chunk.file:
        raise BrokenCheckpoint(NOWHERE)
    arrangement = in_order(tensor.dtype, chunk.shape)
    if arrangement.end != chunk.nbytes:
        raise BrokenCheckpoint(f"{chunk.nbytes:,} bytes are stored, but {arrangement.end:,} are expected.")
    return Item(source, chunk.file, chunk.start, chunk.nbytes, 0, arrangement, tensor.key, chunk)


def _label(key: str, chunk: Chunk) -> str:
    return f"{key!r}, chunk at {chunk.offsets} of {chunk.shape} in {chunk.file or 'no file'}"


def _archive(source: Source, dtype: DType, chunk: Chunk, unpacked: Callable[[], Unpacked]) -> Archive:
    """The archive of a chunk, which is unpacked first if necessary."""
    if not chunk.file:
        raise BrokenCheckpoint(NOWHERE)
    if chunk.encoding == "zstd":
        target = unpacked()
        most = math.prod(chunk.shape) * dtype.itemsize + ARCHIVE_BYTES
        return Archive(target.source, UNPACKED, *decompress(source, chunk, most, target))
    if chunk.encoding != "torch":
        raise UnsupportedCheckpoint(f"The encoding {chunk.encoding} is not one that dcptools can read.")
    return Archive(source, chunk.file, chunk.start, chunk.nbytes)


class _Content(NamedTuple):
    """What an archive says about its values."""

    start: int  # bytes from the start of the archive to the storage
    nbytes: int  # of the storage
    arrangement: Arrangement


# Archives that were parsed, by bytes, dtype and shape: another one in the same frame need not be parsed again.
_parsed: dict[tuple[int, str, tuple[int, ...]], tuple[Frame, _Content]] = {}
MAX_PARSED = 1024


def _like_another(source: Source, tensor: StoredTensor, chunk: Chunk) -> Item | None:
    """The item, if it is in the frame of one that was parsed. Most are, so this does only what is necessary."""
    parsed = _parsed.get((chunk.nbytes, tensor.dtype.name, chunk.shape))
    if parsed is None or chunk.encoding != "torch" or not chunk.file:
        return None
    frame, (start, nbytes, arrangement) = parsed
    crc = frame.crc(source, chunk.file, chunk.start, chunk.nbytes)
    if crc is None:
        return None
    return Item(source, chunk.file, chunk.start + start, nbytes, crc, arrangement, tensor.key, chunk)


def _open(archive: Archive, tensor: StoredTensor, chunk: Chunk) -> Item:
    """Parse an archive, and remember its frame for others."""
    content, values = _parse(archive, tensor.dtype, chunk.shape)
    frame = archive.frame(values)
    if frame is not None:
        if len(_parsed) >= MAX_PARSED:
            _parsed.clear()
        _parsed[archive.nbytes, tensor.dtype.name, chunk.shape] = frame, content
    start, nbytes, arrangement = content
    return Item(archive.source, archive.file, archive.start + start, nbytes, values.crc, arrangement, tensor.key, chunk)


def _parse(archive: Archive, dtype: DType, shape: tuple[int, ...]) -> tuple[_Content, Entry]:
    """What the archive says, checked, and the entry of its storage."""
    pickled, order = archive.entries.get("data.pkl"), archive.entries.get("byteorder")
    if pickled is None:
        raise archive.broken("it has no data.pkl")
    if order is not None and archive.content(order) != b"little":
        raise UnsupportedCheckpoint("It was saved on a big-endian machine, which dcptools does not read.")
    arrangement = parse_arrangement(archive.content(pickled))
    if arrangement.dtype != dtype or arrangement.shape != shape:
        raise BrokenCheckpoint(
            f"it holds {arrangement.dtype.name} {arrangement.shape}, but the metadata says {dtype.name} {shape}.\n"
            "The metadata belongs to another save than this file. Copy the whole checkpoint again."
        )
    storage = archive.entries.get(f"data/{arrangement.storage}")
    if storage is None:
        raise archive.broken(f"it has no data/{arrangement.storage[:100]}")
    if arrangement.end > storage.nbytes:
        raise archive.broken(f"its {storage.nbytes:,} bytes of values are too few for {arrangement.shape}")
    return _Content(archive.content_start(storage), storage.nbytes, arrangement), storage
