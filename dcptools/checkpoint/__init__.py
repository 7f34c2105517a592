"""The only room that knows DCP's files: ``read`` turns a directory into a checked, frozen :class:`Checkpoint`.

No tensor data is read and torch is not imported. The facts about the format come from torch's
``distributed/checkpoint`` (``metadata.py``, ``filesystem.py``, ``_nested_dict.py``) and from files that torch 2.2
to 2.13 wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dcptools._table import counted, format_bytes, format_count, format_shape, html_table, some, text_table
from dcptools.checkpoint._cover import Ints, check_cover
from dcptools.checkpoint._lookalikes import METADATA, explain, is_file
from dcptools.checkpoint._metadata import RawMetadata, RawTensor, parse
from dcptools.checkpoint._times import newer_files
from dcptools.dtypes import DType
from dcptools.errors import BrokenCheckpoint, NotACheckpoint, UnknownKey, UnsafeMetadata, system_errors
from dcptools.findings import Finding, HasFindings, summary_lines
from dcptools.storage import FileState, LocalSource, Source

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Checkpoint",
    "Chunk",
    "StoredFile",
    "StoredObject",
    "StoredTensor",
    "as_checkpoint",
    "check_cover",
    "inspect",
    "read",
]

NO_ROOT = "(top level)"
_SAVE_AGAIN = "use another checkpoint, or save again"
_COPY_AGAIN = "Copy or download the checkpoint again, use another one, or save again."


class Chunk(NamedTuple):
    """A stored piece of a tensor: where it lies in the tensor, and where its bytes are."""

    offsets: tuple[int, ...]  # elements, a dimension each
    shape: tuple[int, ...]  # elements
    file: str  # name in the checkpoint's directory; "" if the metadata does not say
    start: int  # bytes from the start of the file
    nbytes: int  # bytes as stored: a torch.save archive, or what a transform made of it
    encoding: str  # "torch", "zstd", or "unsupported: ..."


@dataclass(frozen=True, slots=True)
class StoredFile:
    name: str
    nbytes: int | None  # None: the file is not there


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """One row a chunk, for all tensors of a checkpoint; 25 bytes a chunk instead of a million small objects."""

    source: Source
    file_names: tuple[str, ...]
    encodings: tuple[str, ...]
    file: npt.NDArray[np.int32]  # index in file_names; -1: none
    start: npt.NDArray[np.int64]  # bytes
    nbytes: npt.NDArray[np.int64]  # bytes
    encoding: npt.NDArray[np.int8]  # index in encodings


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor of the checkpoint as the metadata describes it.

    ``path`` is the tensor's path in the state dict that was saved (``("model", "model.norm.weight")``), ``()`` where
    the metadata does not say. Chunks are kept as columns: ``offsets`` and ``sizes`` have the shape (chunks,
    dimensions), and :attr:`chunks` makes objects of them.
    """

    key: str
    shape: tuple[int, ...]
    dtype: DType
    path: tuple[str, ...]
    offsets: Ints = field(repr=False)
    sizes: Ints = field(repr=False)
    covered: bool  # whether the chunks cover it exactly; if not, a finding says what is wrong
    _first: int = field(repr=False)
    _columns: _Columns = field(repr=False)

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
        return slice(self._first, self._first + len(self.offsets))

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that hold its chunks."""
        indices = self._columns.file[self.rows].tolist()
        return tuple(self._columns.file_names[i] for i in dict.fromkeys(indices) if i >= 0)

    @property
    def source(self) -> Source:
        """Where the bytes of its chunks are read from."""
        return self._columns.source

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(self._chunks(0, len(self.offsets)))

    def chunk(self, index: int) -> Chunk:
        """The chunk of that number, from 0 on; raises IndexError if there is none."""
        if not 0 <= index < len(self.offsets):
            raise IndexError(f"{self.key!r} has {len(self.offsets)} chunks and none of number {index}.")
        return next(self._chunks(index, index + 1))

    def _chunks(self, first: int, last: int) -> Iterator[Chunk]:
        columns, rows = self._columns, slice(self._first + first, self._first + last)
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
    """A pickled Python object of the checkpoint. It is listed, and never unpickled."""

    key: str
    path: tuple[str, ...]
    file: str
    nbytes: int | None  # bytes as stored; None if the metadata does not say

    @property
    def root(self) -> str | None:
        return self.path[0] if len(self.path) > 1 else None


@dataclass(frozen=True, eq=False)
class Checkpoint(HasFindings):
    """The content of a distributed checkpoint, from its metadata and file sizes alone.

    ``tensors`` and ``objects`` map keys to what is stored under them. ``findings`` holds what is wrong with
    single keys (a hole, a missing file): such a checkpoint can still be looked at, and a conversion that needs one
    of those keys is refused.
    """

    path: str
    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, StoredObject]
    files: tuple[StoredFile, ...]
    findings: tuple[Finding, ...]
    version: str  # of the metadata, as torch wrote it; "" if it did not
    metadata_nbytes: int  # bytes of the file .metadata
    digest: str  # SHA-256 of the file .metadata, hexadecimal
    source: Source = field(repr=False)
    _identities: Mapping[str, str | None] = field(repr=False)  # of .metadata and all files; None: it was not there

    def changed_files(self) -> tuple[str, ...]:
        """The names of the files, also ``.metadata``, that were written to, replaced or removed since it was read."""
        return tuple(name for name, identity in self._identities.items() if identity != _identity(self.source, name))

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that wrote, by the names of the files (``__<rank>_<n>.distcp``)."""
        found = (re.fullmatch(r"__(\d+)_\d+\.distcp", file.name.rpartition("/")[2]) for file in self.files)
        return tuple(sorted({int(match[1]) for match in found if match}))

    @cached_property
    def chunk_count(self) -> int:
        return sum(len(tensor.offsets) for tensor in self.tensors.values())

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors' values."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __getitem__(self, key: str) -> StoredTensor:
        try:
            return self.tensors[key]
        except KeyError:
            raise UnknownKey(_unknown_key(self, key)) from None

    def to_frame(self) -> pd.DataFrame:
        """One row a key: key, kind, root, shape, dtype, numel, nbytes, chunks, files."""
        import pandas as pd

        tensors, objects = self.tensors.values(), self.objects.values()
        columns: dict[str, list[Any]] = {
            "key": [*self.tensors, *self.objects],
            "kind": ["tensor"] * len(tensors) + ["object"] * len(objects),
            "root": [t.root for t in tensors] + [o.root for o in objects],
            "shape": [t.shape for t in tensors] + [None] * len(objects),
            "dtype": [t.dtype.name for t in tensors] + [None] * len(objects),
            "numel": [t.numel for t in tensors] + [None] * len(objects),
            "nbytes": [t.nbytes for t in tensors] + [o.nbytes for o in objects],
            "chunks": [len(t.offsets) for t in tensors] + [1] * len(objects),
            "files": [len(t.files) for t in tensors] + [int(bool(o.file)) for o in objects],
        }
        types = {"numel": "Int64", "nbytes": "Int64", "chunks": "int64", "files": "int64"}
        frame = pd.DataFrame({n: pd.Series(v, dtype=types.get(n, "object")) for n, v in columns.items()})
        return frame.sort_values("key", ignore_index=True)

    def summary(self) -> list[tuple[str, int, int, int, str]]:
        """One row a container: root, keys, parameters, bytes, dtypes."""
        rows: dict[str, list[Any]] = {}
        for tensor in self.tensors.values():
            row = rows.setdefault(tensor.root or NO_ROOT, [0, 0, 0, {}])
            row[0] += 1
            row[1] += tensor.numel
            row[2] += tensor.nbytes
            row[3][tensor.dtype.name] = None
        for entry in self.objects.values():
            row = rows.setdefault(entry.root or NO_ROOT, [0, 0, 0, {}])
            row[0] += 1
            row[2] += entry.nbytes or 0
            row[3]["object"] = None
        return [(root, row[0], row[1], row[2], ", ".join(row[3])) for root, row in sorted(rows.items())]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "tensors": [
                {"key": t.key, "root": t.root, "shape": t.shape, "dtype": t.dtype.name, "chunks": len(t.offsets)}
                for t in self.tensors.values()
            ],
            "objects": [{"key": o.key, "root": o.root, "nbytes": o.nbytes} for o in self.objects.values()],
            "files": [{"name": f.name, "nbytes": f.nbytes} for f in self.files],
            "findings": [f.to_json() for f in self.findings],
        }

    def _headline(self) -> str:
        parameters = sum(tensor.numel for tensor in self.tensors.values())
        return (
            f"{self.path}: {counted(len(self.tensors), 'tensor')} with {format_count(parameters)} elements in "
            f"{format_bytes(self.nbytes)}, {counted(len(self.objects), 'object')}, "
            f"{counted(self.chunk_count, 'chunk')} in {counted(len(self.files), 'file')}"
        )

    def _rows(self) -> list[tuple[Any, ...]]:
        return [(r, f"{n:,}", format_count(e), format_bytes(b), d) for r, n, e, b, d in self.summary()]

    def keys_table(self, most: int | None = 20) -> str:
        """The keys as a text table, at most ``most`` of each container (None: all)."""
        groups: dict[str, list[tuple[Any, ...]]] = {}
        for tensor in self.tensors.values():
            row = (
                tensor.key,
                format_shape(tensor.shape),
                tensor.dtype.name,
                format_bytes(tensor.nbytes),
                len(tensor.offsets),
            )
            groups.setdefault(tensor.root or NO_ROOT, []).append(row)
        for entry in self.objects.values():
            row = (entry.key, "", "object", format_bytes(entry.nbytes or 0), 1)
            groups.setdefault(entry.root or NO_ROOT, []).append(row)
        header = ("key", "shape", "dtype", "bytes", "chunks")
        tables = (text_table(header, sorted(rows), most=most or len(rows)) for _, rows in sorted(groups.items()))
        return "\n\n".join(tables)

    def __str__(self) -> str:
        lines = [self._headline(), text_table(_SUMMARY, self._rows()), *summary_lines(self.findings)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        found = html_table(["finding"], [[line] for line in summary_lines(self.findings)]) if self.findings else ""
        return html_table(_SUMMARY, self._rows(), title=self._headline()) + found


_SUMMARY = ("root", "keys", "elements", "bytes", "dtypes")


def read(load_dir: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint's metadata; no tensor data, no torch.

    Parameters
    ----------
    load_dir
        The directory that holds ``.metadata``.

    Raises
    ------
    NotACheckpoint
        The path does not exist or is something else; the message says what.
    UnsupportedCheckpoint
        It is a checkpoint without ``.metadata`` that dcptools does not read.
    BrokenCheckpoint
        ``.metadata`` is damaged. What is wrong with single keys is not raised: see ``Checkpoint.findings``.
    UnsafeMetadata
        ``.metadata`` asks to run code. It was not run.

    Examples
    --------
    >>> checkpoint = read(demo.checkpoint)
    >>> checkpoint["model.lm_head.weight"].dtype.name
    'float32'
    """
    path, source = Path(load_dir), LocalSource(load_dir)
    metadata = path / METADATA
    with system_errors(NotACheckpoint, f"{metadata} cannot be read"):
        if not is_file(metadata):
            raise explain(path)
        state = source.state(METADATA)  # before it is read: what is written to meanwhile counts as changed
        data = metadata.read_bytes()
    if not data:
        raise BrokenCheckpoint(f"{metadata} is empty: the save was interrupted.\n{_COPY_AGAIN}")
    try:
        raw = parse(data, str(metadata))
    except UnsafeMetadata:
        raise
    except BrokenCheckpoint as error:
        raise BrokenCheckpoint(f"{error}\n{_COPY_AGAIN}") from None
    return _build(str(path), source, raw, len(data), hashlib.sha256(data).hexdigest(), state)


def as_checkpoint(checkpoint: Checkpoint | str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint itself, or the one at that path."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint)


def inspect(checkpoint: Checkpoint | str | os.PathLike[str]) -> pd.DataFrame:
    """What is in a checkpoint: one row a key, sorted, with key, kind, root, shape, dtype, numel, nbytes, chunks, files.

    ``nbytes`` counts the values of a tensor, and the stored bytes of an object. ``root`` is the container in the state
    dict that was saved, where the metadata says so.

    Parameters
    ----------
    checkpoint
        What :func:`read` returned, or a path.

    Raises
    ------
    DcptoolsError
        What :func:`read` raises for a path.

    Examples
    --------
    >>> inspect(demo.checkpoint).query("root == 'model'")["dtype"].unique().tolist()
    ['float32']
    """
    return as_checkpoint(checkpoint).to_frame()


def _identity(source: Source, name: str) -> str | None:
    with contextlib.suppress(OSError):
        state = source.state(name)
        return state.identity if state else None
    return None


def _build(
    path: str, source: Source, raw: RawMetadata, metadata_nbytes: int, digest: str, metadata: FileState | None
) -> Checkpoint:
    columns = _Columns(
        source,
        tuple(raw.file_names),
        tuple(raw.encodings),
        raw.file,
        raw.start,
        raw.nbytes,
        raw.encoding,
    )
    with system_errors(BrokenCheckpoint, f"The files that {path}/{METADATA} names cannot be looked at"):
        states = {name: source.state(name) for name in raw.file_names}
    files = tuple(StoredFile(name, state.nbytes if (state := states[name]) else None) for name in raw.file_names)
    holes = {finding.key: finding for finding in _holes(raw.tensors)}
    tensors = {
        t.key: StoredTensor(t.key, t.shape, t.dtype, t.path, t.offsets, t.sizes, t.key not in holes, t.first, columns)
        for t in raw.tensors
    }
    objects = {key: _stored_object(key, path_, row, columns) for key, path_, row in raw.objects}
    rows = [(t.key, t.first, len(t.offsets)) for t in raw.tensors] + [(key, row, 1) for key, _, row in raw.objects]
    findings = [
        *_foreign(raw),
        *_not_archives(tensors.values()),
        *holes.values(),
        *_storage_problems(rows, columns, files),
        *newer_files(metadata, states),
    ]
    identities = {name: state.identity if state else None for name, state in {METADATA: metadata, **states}.items()}
    return Checkpoint(
        path, MappingProxyType(tensors), MappingProxyType(objects), files, tuple(findings), raw.version,
        metadata_nbytes, digest, source, MappingProxyType(identities),
    )  # fmt: skip


def _stored_object(key: str, path: tuple[str, ...], row: int, columns: _Columns) -> StoredObject:
    file = int(columns.file[row])
    if file < 0:
        return StoredObject(key, path, "", None)
    return StoredObject(key, path, columns.file_names[file], int(columns.nbytes[row]))


def _foreign(raw: RawMetadata) -> Iterator[Finding]:
    if raw.foreign:
        yield Finding(
            "foreign-class", "warning", "", f".metadata names {some(raw.foreign)}; nothing of it was imported",
            "harmless unless keys are missing",
        )  # fmt: skip


def _not_archives(tensors: Iterable[StoredTensor]) -> Iterator[Finding]:
    """An item of exactly the values' bytes has no archive around it: SerializationFormat.SAFETENSORS."""
    tensor = next((t for t in tensors if t.numel and len(t.offsets)), None)
    if tensor is None:
        return
    chunk = tensor.chunk(0)
    if chunk.encoding == "torch" and chunk.nbytes == math.prod(chunk.shape) * tensor.dtype.itemsize > 0:
        yield Finding(
            "unsupported-encoding", "error", "", "the .distcp files are not archives of torch.save; they were written "
            "with SerializationFormat.SAFETENSORS, which torch itself cannot load either", "save in the default format",
        )  # fmt: skip


def _holes(tensors: Iterable[RawTensor]) -> Iterator[Finding]:
    for tensor in tensors:
        if len(tensor.offsets) == 1 and not tensor.offsets.any() and tuple(tensor.sizes[0].tolist()) == tensor.shape:
            continue  # by far the most tensors; keeps 100,000 keys fast
        problem = check_cover(tensor.shape, tensor.offsets, tensor.sizes)
        if problem:
            yield Finding(problem[0], "error", tensor.key, problem[1], _SAVE_AGAIN)


def _storage_problems(
    rows: list[tuple[str, int, int]], columns: _Columns, files: tuple[StoredFile, ...]
) -> Iterator[Finding]:
    """Chunks whose bytes are not where the metadata says, one finding a key and kind of problem."""
    length = np.array([-1 if file.nbytes is None else file.nbytes for file in files] + [0], dtype=np.int64)
    of_chunk = length[columns.file]  # index -1, no storage info, takes the last
    no_storage = columns.file < 0
    missing = ~no_storage & (of_chunk < 0)
    truncated = ~no_storage & ~missing & (columns.start + columns.nbytes > of_chunk)
    encodings = np.array([name.startswith("unsupported") for name in columns.encodings] or [False])
    unsupported = encodings[columns.encoding] if len(columns.encoding) else no_storage
    if not (no_storage | missing | truncated | unsupported).any():
        return
    for key, first, count in rows:
        span = slice(first, first + count)
        if no_storage[span].any():
            lost = f"{no_storage[span].sum()} of its {count} chunks are" if count > 1 else "it is"
            yield Finding("no-storage", "error", key, f"storage_data does not say where {lost} stored", _SAVE_AGAIN)
        if missing[span].any():
            names = dict.fromkeys(files[i].name for i in columns.file[span][missing[span]].tolist())
            yield Finding("missing-file", "error", key, f"there is no file {some(names)}", "copy the missing files")
        if truncated[span].any():
            ends: dict[int, int] = {}  # of the cut file, where its last item here should end
            for row in (np.flatnonzero(truncated[span]) + first).tolist():
                file, end = int(columns.file[row]), int(columns.start[row] + columns.nbytes[row])
                ends[file] = max(end, ends.get(file, 0))
            short = some(f"{files[i].name} has {files[i].nbytes:,} bytes and needs {end:,}" for i, end in ends.items())
            yield Finding("truncated-file", "error", key, short, "copy the file again")
        if unsupported[span].any():
            names = dict.fromkeys(columns.encodings[i] for i in columns.encoding[span][unsupported[span]].tolist())
            what = some(name.removeprefix("unsupported: ") for name in names)
            yield Finding(
                "unsupported-encoding", "error", key, f"dcptools cannot undo the transform {what}", "save without it"
            )


def _unknown_key(checkpoint: Checkpoint, key: str) -> str:
    import difflib

    if key in checkpoint.objects:
        return f"{key!r} is a pickled object, not a tensor. dcptools lists objects and never unpickles them."
    close = difflib.get_close_matches(key, list(checkpoint.tensors)[:20_000], n=3)
    hint = f"Did you mean {some(close)}?" if close else "inspect() lists all keys."
    return f"{checkpoint.path} has no tensor {key!r}.\n{hint}"
