"""What a checkpoint is: what is stored under which keys, in which files, and what is wrong with it."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dcptools._display import Shown, Table
from dcptools._table import SHOWN_ROWS, text_table
from dcptools._text import counted, format_bytes, format_count, format_shape, natural, some
from dcptools.checkpoint.stored import StoredFile, StoredObject, StoredTensor
from dcptools.errors import UnknownKey
from dcptools.findings import Finding, HasFindings
from dcptools.storage import Source

if TYPE_CHECKING:
    import pandas as pd

NO_ROOT = "(top level)"
_RANKED = re.compile(r"__(\d+)_\d+\.distcp|shard-(\d+)-model-.*")


def rank_of(file: str) -> int | None:
    """The rank that wrote a file, by the file's name; None if the name does not say.

    >>> rank_of("__3_0.distcp"), rank_of("other")
    (3, None)
    """
    match = _RANKED.fullmatch(file.rpartition("/")[2])
    return None if match is None else int(match[1]) if match[1] else int(match[2]) - 1


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Shown, HasFindings):
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
    source: Source
    identities: Mapping[str, str | None]  # of .metadata and all files; None: it was not there

    def __eq__(self, other: object) -> bool:
        """Whether both are the same save at the same place, as it was read."""
        if not isinstance(other, Checkpoint):
            return NotImplemented
        return (self.path, self.digest, self.identities) == (other.path, other.digest, other.identities)

    def __hash__(self) -> int:
        return hash((self.path, self.digest))

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: dict(value) if isinstance(value, MappingProxyType) else value for name, value in vars(self).items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: MappingProxyType(v) if isinstance(v, dict) else v for name, v in state.items()})

    def changed_files(self) -> tuple[str, ...]:
        """The names of the files, also ``.metadata``, that were written to, replaced or removed since it was read."""
        now = _identities(self.source, list(self.identities))
        return tuple(name for name, identity in self.identities.items() if identity != now[name])

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that wrote, by the names of the files (``__<rank>_<n>.distcp``, ``shard-<rank + 1>-model-...``)."""
        found = {rank_of(file.name) for file in self.files}
        return tuple(sorted(rank for rank in found if rank is not None))

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
        """One row per key, 2 before 10: key, kind, root, shape, dtype, numel, nbytes, chunks, files."""
        import pandas as pd

        tensors, objects = self.tensors.values(), self.objects.values()
        numel = [t.numel for t in tensors]
        columns: dict[str, list[Any]] = {
            "key": [*self.tensors, *self.objects],
            "kind": ["tensor"] * len(tensors) + ["object"] * len(objects),
            "root": [t.root for t in tensors] + [o.root for o in objects],
            "shape": [t.shape for t in tensors] + [None] * len(objects),
            "dtype": [t.dtype.name for t in tensors] + [None] * len(objects),
            "numel": numel + [None] * len(objects),
            "nbytes": [n * t.dtype.itemsize for n, t in zip(numel, tensors, strict=True)] + [o.nbytes for o in objects],
            "chunks": [len(t.offsets) for t in tensors] + [1] * len(objects),
            "files": [t.file_count for t in tensors] + [int(bool(o.file)) for o in objects],
        }
        types = {"numel": "Int64", "nbytes": "Int64", "chunks": "int64", "files": "int64"}
        frame = pd.DataFrame({n: pd.Series(v, dtype=types.get(n, "object")) for n, v in columns.items()})
        sorting = list(map(natural, columns["key"]))
        return frame.take(sorted(range(len(frame)), key=sorting.__getitem__)).reset_index(drop=True)

    def summary(self) -> list[tuple[str, int, int, int, str]]:
        """One row per container: root, keys, parameters, bytes, dtypes."""
        rows: dict[str, list[Any]] = {}
        entries = [(t.root, t.numel, t.nbytes, t.dtype.name) for t in self.tensors.values()]
        entries += [(o.root, 0, o.nbytes or 0, "object") for o in self.objects.values()]
        for root, numel, nbytes, dtype in entries:
            row = rows.setdefault(root or NO_ROOT, [0, 0, 0, {}])
            row[0] += 1
            row[1] += numel
            row[2] += nbytes
            row[3][dtype] = None
        ordered = sorted(rows.items(), key=lambda group: natural(group[0]))
        return [(root, row[0], row[1], row[2], ", ".join(row[3])) for root, row in ordered]

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

    def headline(self) -> str:
        parameters = sum(tensor.numel for tensor in self.tensors.values())
        return (
            f"{self.path}: {counted(len(self.tensors), 'tensor')} with {format_count(parameters)} elements in "
            f"{format_bytes(self.nbytes)}, {counted(len(self.objects), 'object')}, "
            f"{counted(self.chunk_count, 'chunk')} in {counted(len(self.files), 'file')}"
        )

    def _tables(self, most: int | None = SHOWN_ROWS) -> list[Table]:
        rows = [(root, f"{n:,}", format_count(e), format_bytes(b), dtypes) for root, n, e, b, dtypes in self.summary()]
        return [Table(("root", "keys", "elements", "bytes", "dtypes"), rows)]

    def keys_table(self, most: int | None = SHOWN_ROWS, rest: str = "") -> str:
        """The keys as a text table, at most ``most`` of each container (None: all).

        ``rest`` says how to see the others, where there are any.
        """
        groups: dict[str, list[tuple[Any, ...]]] = {}
        for t in self.tensors.values():
            row = (t.key, format_shape(t.shape), t.dtype.name, format_bytes(t.nbytes), len(t.offsets))
            groups.setdefault(t.root or NO_ROOT, []).append(row)
        for o in self.objects.values():
            groups.setdefault(o.root or NO_ROOT, []).append((o.key, "", "object", format_bytes(o.nbytes or 0), 1))
        header = ("key", "shape", "dtype", "bytes", "chunks")
        roots = sorted(groups.items(), key=lambda group: natural(group[0]))
        ordered = (sorted(rows, key=lambda row: natural(row[0])) for _, rows in roots)
        return "\n\n".join(text_table(header, rows, most=most, rest=rest) for rows in ordered)


def _identities(source: Source, names: list[str]) -> dict[str, str | None]:
    """The current identities of files; None for one that is not there, or cannot be read."""
    try:
        states = source.states(names)
    except OSError as error:
        if error.errno == errno.ENETUNREACH:  # that nobody answers says nothing about the files
            raise
        states = {}
        for name in names:
            with contextlib.suppress(OSError):
                states[name] = source.state(name)
    found = {name: states.get(name) for name in names}
    return {name: state.identity if state else None for name, state in found.items()}


def _unknown_key(checkpoint: Checkpoint, key: str) -> str:
    """What to say about a key that is not a tensor's."""
    import difflib

    if key in checkpoint.objects:
        return f"{key!r} is a pickled object, not a tensor. dcptools lists objects and never unpickles them."
    close = difflib.get_close_matches(key, list(checkpoint.tensors)[:20_000], n=3)
    hint = f"Did you mean {some(close)}?" if close else "inspect() lists all keys."
    return f"{checkpoint.path} has no tensor {key!r}.\n{hint}"
