"""One stored chunk: where its values are, and in which order.

``data.pkl`` tells how torch would rebuild the tensor: dtype, shape, strides, an offset into the storage, and
the conjugate and negative bits (``torch/_utils.py``: ``_rebuild_tensor_v2``, ``_rebuild_tensor_v3``,
``_rebuild_parameter``).
The strides are not always those of row-major order: a saved ``w.t()`` keeps them, and its bytes lie transposed.
"""

from __future__ import annotations

import functools
import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, cast

from dcptools._parallel import check_stopped
from dcptools._pickle import loads, ordered_dict, size
from dcptools.checkpoint import Chunk, StoredTensor
from dcptools.dtypes import TABLE, DType, by_name
from dcptools.errors import BrokenCheckpoint, DcptoolsError, TargetError, UnsupportedCheckpoint
from dcptools.storage import MORE_DESCRIPTORS, NO_DESCRIPTOR, LocalSource, OpenFile, Source
from dcptools.tensors.archive import Archive, Entry, Frame
from dcptools.tensors.geometry import is_row_major


@dataclass(frozen=True, slots=True)
class Layout:
    """What ``data.pkl`` says."""

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements
    offset: int  # elements from the start of the storage
    storage: str  # the name of the storage, "0"
    conjugate: bool
    negative: bool
    row_major: bool  # whether the values lie one after the other in row-major order
    end: int  # bytes from the start of the storage to the end of the last value

    @property
    def plain(self) -> bool:
        """Whether the stored bytes are the values in row-major order, as they are."""
        return self.row_major and not (self.conjugate or self.negative)


class Item(NamedTuple):
    """The values of one chunk: ``storage_nbytes`` bytes from ``start`` on in ``file`` of ``source``."""

    source: Source
    file: str
    start: int  # bytes from the start of the file to the first byte of the storage
    storage_nbytes: int
    crc: int  # CRC-32 of the storage; 0: not known
    layout: Layout
    key: str  # of the tensor
    chunk: Chunk

    @property
    def label(self) -> str:
        """What an error message calls it."""
        return _label(self.key, self.chunk)

    @property
    def place(self) -> tuple[str, int]:
        """Where the whole item is in the checkpoint: the same for all who read it."""
        return self.chunk.file, self.chunk.start

    @property
    def dense(self) -> bool:
        """Whether the storage is the chunk in row-major order, and nothing else."""
        return self.layout.row_major and self.layout.offset == 0 and self.layout.end == self.storage_nbytes


def open_item(source: Source, tensor: StoredTensor, chunk: Chunk, unpacked: Callable[[], Unpacked]) -> Item:
    """Parse the archive of one chunk and check it against the metadata.

    An item that cannot be read from the middle is unpacked into ``unpacked()``, and read from there.

    Raises
    ------
    UnsupportedCheckpoint
        The encoding is not one that dcptools reads.
    BrokenCheckpoint
        The item is damaged, or is not what the metadata announces.
    TargetError
        There is no space to unpack it, or no directory for it.
    """
    try:
        return _like_another(source, tensor, chunk) or _open(
            _archive(source, tensor.dtype, chunk, unpacked), tensor, chunk
        )
    except DcptoolsError as error:
        raise type(error)(f"{_label(tensor.key, chunk)}:\n{error}") from None


def _label(key: str, chunk: Chunk) -> str:
    return f"{key!r}, chunk at {chunk.offsets} of {chunk.shape} in {chunk.file or 'no file'}"


def _archive(source: Source, dtype: DType, chunk: Chunk, unpacked: Callable[[], Unpacked]) -> Archive:
    if not chunk.file:
        raise BrokenCheckpoint("The metadata does not say where it is stored.")
    if chunk.encoding == "zstd":
        target = unpacked()
        most = math.prod(chunk.shape) * dtype.itemsize + ARCHIVE_BYTES
        return Archive(target, UNPACKED, *_decompress(source, chunk, most, target))
    if chunk.encoding != "torch":
        raise UnsupportedCheckpoint(f"The encoding {chunk.encoding} is not one that dcptools reads.")
    return Archive(source, chunk.file, chunk.start, chunk.nbytes)


class _Content(NamedTuple):
    """What an archive says of its values."""

    start: int  # bytes from the start of the archive to the storage
    nbytes: int  # of the storage
    layout: Layout


# Archives that were parsed, by bytes, dtype and shape: another one in the same frame need not be parsed again.
_parsed: dict[tuple[int, str, tuple[int, ...]], tuple[Frame, _Content]] = {}
MAX_PARSED = 1024


def _like_another(source: Source, tensor: StoredTensor, chunk: Chunk) -> Item | None:
    """The item, if it is in the frame of one that was parsed. Most are, so there is nothing here that can be spared."""
    parsed = _parsed.get((chunk.nbytes, tensor.dtype.name, chunk.shape))
    if parsed is None or chunk.encoding != "torch" or not chunk.file:
        return None
    frame, (start, nbytes, layout) = parsed
    crc = frame.crc(source, chunk.file, chunk.start, chunk.nbytes)
    if crc is None:
        return None
    return Item(source, chunk.file, chunk.start + start, nbytes, crc, layout, tensor.key, chunk)


def _open(archive: Archive, tensor: StoredTensor, chunk: Chunk) -> Item:
    content, values = _parse(archive, tensor.dtype, chunk.shape)
    frame = archive.frame(values)
    if frame is not None:
        if len(_parsed) >= MAX_PARSED:
            _parsed.clear()
        _parsed[archive.nbytes, tensor.dtype.name, chunk.shape] = frame, content
    start, nbytes, layout = content
    return Item(archive.source, archive.file, archive.start + start, nbytes, values.crc, layout, tensor.key, chunk)


def _parse(archive: Archive, dtype: DType, shape: tuple[int, ...]) -> tuple[_Content, Entry]:
    """What the archive says, checked, and the entry of its storage."""
    pickled, order = archive.entries.get("data.pkl"), archive.entries.get("byteorder")
    if pickled is None:
        raise archive.broken("it has no data.pkl")
    if order is not None and archive.content(order) != b"little":
        raise UnsupportedCheckpoint("It was saved on a big-endian machine, which dcptools does not read.")
    layout = parse_layout(archive.content(pickled))
    if layout.dtype != dtype or layout.shape != shape:
        raise BrokenCheckpoint(
            f"it holds {layout.dtype.name} {layout.shape}, and the metadata says {dtype.name} {shape}.\n"
            "The metadata belongs to another save than this file. Copy the whole checkpoint again."
        )
    storage = archive.entries.get(f"data/{layout.storage}")
    if storage is None:
        raise archive.broken(f"it has no data/{layout.storage}")
    if layout.end > storage.nbytes:
        raise archive.broken(f"its {storage.nbytes:,} bytes of values are too few for {layout.shape}")
    return _Content(archive.content_start(storage), storage.nbytes, layout), storage


@functools.lru_cache(maxsize=4096)
def parse_layout(data: bytes) -> Layout:
    """What a ``data.pkl`` says. The same few layouts occur again and again, so they are remembered.

    Raises
    ------
    UnsupportedCheckpoint
        It is something else than a plain tensor.
    """
    value, foreign = loads(data, what="data.pkl", allowed=_NAMES, persistent=_storage)
    if foreign or not isinstance(value, Layout):
        raise UnsupportedCheckpoint(f"data.pkl holds {', '.join(foreign) or type(value).__name__}, not a plain tensor.")
    return value


@dataclass(frozen=True, slots=True)
class _Storage:
    name: str
    dtype: str | None  # None: untyped


def _storage(pid: Any) -> _Storage:
    kind, dtype, name, _location, _numel = pid
    if kind != "storage" or type(dtype) not in (str, type(None)) or type(name) is not str:
        raise ValueError("a persistent id is not that of a storage")
    return _Storage(name, dtype)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, *rest: Any) -> Layout:
    """Stands for ``_rebuild_tensor_v2``."""
    return _layout(storage, storage.dtype, offset, shape, strides, rest[0] if rest and rest[0] is not None else {})


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> Layout:
    """Stands for ``_rebuild_tensor_v3``."""
    return _layout(storage, dtype, offset, shape, strides, rest[0] if rest and rest[0] is not None else {})


def _parameter(data: Any, *_rest: Any) -> Any:
    """Stands for ``_rebuild_parameter``."""
    return data


_STORAGES = {  # torch.<name>Storage -> dtype
    "Bool": "bool", "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64",
    "Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4",
}  # fmt: skip

_NAMES: Mapping[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": ordered_dict,
    "torch.Size": size,
    "torch.storage.UntypedStorage": None,
    "torch.UntypedStorage": None,
    **{f"torch.{name}": name for name in TABLE},
    **{f"torch.{storage}Storage": dtype for storage, dtype in _STORAGES.items()},
}


def _layout(storage: Any, dtype: Any, offset: Any, shape: Any, strides: Any, flags: Any) -> Layout:
    numbers = (offset, *shape, *strides)
    dtype = by_name(dtype) if type(dtype) is str else None
    if not isinstance(storage, _Storage) or dtype is None or len(shape) != len(strides):
        raise ValueError("the arguments of the tensor are not as torch writes them")
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or not set(flags) <= {"conj", "neg"}:
        raise ValueError("the sizes of the tensor are not as torch writes them")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return Layout(
        dtype, tuple(shape), tuple(strides), offset, storage.name,
        flags.get("conj") is True, flags.get("neg") is True, is_row_major(shape, strides),
        0 if 0 in shape else (last + 1) * dtype.itemsize,
    )  # fmt: skip


def _decompress(source: Source, chunk: Chunk, most: int, unpacked: Unpacked) -> tuple[int, int]:
    """Unpack a zstd item of at most so many bytes; returns the place of its archive in ``unpacked``."""
    try:
        import zstandard
    except ImportError:
        raise UnsupportedCheckpoint(
            "It is compressed with zstd, and the package zstandard is not installed.\n"
            "Install it: pip install 'dcptools[zstd]'."
        ) from None
    try:
        start = unpacked.reserve(most)
    except TargetError:
        source.close()  # it may keep open so many files that there was no descriptor left
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


class Unpacked(LocalSource):
    """Unpacked items of one tensor, in one unnamed temporary file: a file for each would be too many open ones."""

    def __init__(self) -> None:
        try:
            super().__init__(tempfile.gettempdir())
        except OSError as error:
            raise _no_room("There is no directory for temporary files", error) from None
        self._end = 0  # bytes; reserved regions reach up to here, and the file is sparse

    def reserve(self, nbytes: int) -> int:
        """A region that nobody else writes to; returns its start."""
        with self._lock:
            if UNPACKED not in self._open:
                try:
                    with tempfile.TemporaryFile(prefix="dcptools-", dir=self.directory) as file:
                        self._open[UNPACKED] = OpenFile(os.dup(file.fileno()))  # it lives as long as this object
                except OSError as error:
                    raise _no_room(f"Unpacking into {self.directory} failed", error) from None
            start = self._end
            self._end += nbytes
            return start

    def write(self, start: int, data: bytes) -> None:
        descriptor, done = self._open[UNPACKED].descriptor, 0
        try:
            while done < len(data):
                done += os.pwrite(descriptor, data[done:], start + done)
        except OSError as error:
            raise _no_room(f"Unpacking into {self.directory} failed", error) from None


def _no_room(what: str, error: OSError) -> TargetError:
    advice = "Set the environment variable TMPDIR to a directory that can be written to and has enough space."
    return TargetError(
        f"{what}: {error.strerror}.\n"
        "It is compressed with zstd, and has to be unpacked to be read.\n"
        f"{MORE_DESCRIPTORS if error.errno in NO_DESCRIPTOR else advice}"
    )
