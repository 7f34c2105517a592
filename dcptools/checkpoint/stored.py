"""What is stored: tensors and their chunks, objects, files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dcptools.checkpoint.cover import Ints
from dcptools.dtypes import DType
from dcptools.storage import Range, Source


def _read_only(*arrays: npt.NDArray[Any]) -> None:
    for array in arrays:
        array.flags.writeable = False


class _MadeAgain:
    """A copy, even in another process, is made as the first one was: so its arrays are read-only as well."""

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), tuple(getattr(self, name) for name in self.__slots__)


class Chunk(NamedTuple):
    """A stored part of a tensor: where it lies in the tensor, and where its bytes are."""

    offsets: tuple[int, ...]  # elements, one per dimension
    shape: tuple[int, ...]  # elements
    file: str  # name in the checkpoint's directory; "" if the metadata does not say
    start: int  # bytes from the start of the file
    nbytes: int  # bytes as stored: a torch.save archive, what a transform made of it, or the values
    encoding: str  # "torch", "zstd", "values", or "transform ..." for what dcptools cannot undo


@dataclass(frozen=True, slots=True)
class StoredFile:
    name: str
    nbytes: int | None  # None: the file is missing


@dataclass(frozen=True, slots=True, eq=False)
class Columns(_MadeAgain):
    """One row per chunk, for all tensors of a checkpoint; 25 bytes per chunk instead of a million small objects."""

    source: Source
    file_names: tuple[str, ...]
    encodings: tuple[str, ...]
    file: npt.NDArray[np.int32]  # index in file_names; -1: none
    start: npt.NDArray[np.int64]  # bytes
    nbytes: npt.NDArray[np.int64]  # bytes
    encoding: npt.NDArray[np.int8]  # index in encodings

    def __post_init__(self) -> None:
        _read_only(self.file, self.start, self.nbytes, self.encoding)


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor(_MadeAgain):
    """A tensor of the checkpoint as the metadata describes it.

    ``path`` is the tensor's path in the state dict that was saved (``("model", "model.norm.weight")``), ``()`` if
    the metadata does not say. Chunks are kept as columns: ``offsets`` and ``sizes`` have the shape (chunks,
    dimensions), and :attr:`chunks` makes objects of them.
    """

    key: str
    shape: tuple[int, ...]
    dtype: DType
    path: tuple[str, ...]
    offsets: Ints = field(repr=False)
    sizes: Ints = field(repr=False)
    problem: str  # how the chunks fail to cover it exactly; "" if they do
    first: int = field(repr=False)  # row of its first chunk in the columns
    columns: Columns = field(repr=False)

    def __post_init__(self) -> None:
        _read_only(self.offsets, self.sizes)

    @property
    def covered(self) -> bool:
        """Whether the chunks cover it exactly; if not, it cannot be read."""
        return not self.problem

    @property
    def root(self) -> str | None:
        """The container in the saved state dict (``model``, ``optimizer``); None for a key at its top level."""
        return self.path[0] if len(self.path) > 1 else None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values, without the overhead of the archive."""
        return self.numel * self.dtype.itemsize

    @property
    def rows(self) -> slice:
        """The rows of this tensor's chunks in the columns."""
        return slice(self.first, self.first + len(self.offsets))

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that hold its chunks."""
        indices = self.columns.file[self.rows].tolist()
        return tuple(self.columns.file_names[i] for i in dict.fromkeys(indices) if i >= 0)

    @property
    def file_count(self) -> int:
        """How many files hold its chunks; quicker than naming them."""
        if len(self.offsets) == 1:
            return int(self.columns.file.item(self.first) >= 0)
        return len(self.files)

    @property
    def source(self) -> Source:
        """Where the bytes of its chunks are read from."""
        return self.columns.source

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(self._chunks(0, len(self.offsets)))

    def chunk(self, index: int) -> Chunk:
        """The chunk with that number, from 0 on; raises IndexError if there is none."""
        if not 0 <= index < len(self.offsets):
            raise IndexError(f"{self.key!r} has {len(self.offsets)} chunks, and none has the number {index}.")
        return next(self._chunks(index, index + 1))

    def place(self, index: int) -> Range:
        """Where the bytes of that chunk are, as in a :class:`Chunk`: file, start, count; takes a tenth of its time."""
        row, columns = self.first + index, self.columns
        file = columns.file.item(row)
        return columns.file_names[file] if file >= 0 else "", columns.start.item(row), columns.nbytes.item(row)

    def _chunks(self, first: int, last: int) -> Iterator[Chunk]:
        """The chunks with these numbers, made from the columns."""
        columns, rows = self.columns, slice(self.first + first, self.first + last)
        for offsets, sizes, file, start, nbytes, encoding in zip(
            self.offsets[first:last].tolist(),
            self.sizes[first:last].tolist(),
            columns.file[rows].tolist(),
            columns.start[rows].tolist(),
            columns.nbytes[rows].tolist(),
            columns.encoding[rows].tolist(),
            strict=True,
        ):
            name = columns.file_names[file] if file >= 0 else ""
            yield Chunk(tuple(offsets), tuple(sizes), name, start, nbytes, columns.encodings[encoding])


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A pickled Python object of the checkpoint. It is listed, but never unpickled."""

    key: str
    path: tuple[str, ...]
    file: str
    nbytes: int | None  # bytes as stored; None if the metadata does not say

    @property
    def root(self) -> str | None:
        return self.path[0] if len(self.path) > 1 else None
