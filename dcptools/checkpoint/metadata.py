"""``.metadata`` to plain Python: the allow-list for its pickle, and a check of every field.

The classes are those of ``torch.distributed.checkpoint`` (``metadata.py``, ``filesystem.py``); the names were
collected from files written by torch 2.2 to 2.13. Torch is not imported.
"""

from __future__ import annotations

import contextlib
import gc
import math
import reprlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from dcptools._pickle import Class, Record, Refused, loads, ordered_dict, size, type_name
from dcptools.checkpoint.cover import Ints
from dcptools.checkpoint.runs import CHUNK, INDEX, PROPERTIES, STORED, TAKEN, TENSOR, Run, shortcuts
from dcptools.dtypes import ALIASES, TABLE, DType, by_name
from dcptools.errors import BrokenCheckpoint

TOO_LARGE = 2**62  # elements or bytes; sums of two still fit in 64 bits
LONGEST_PATH = 4096  # characters of a file's name; Linux has no longer ones
LONGEST_KEY = 4096  # characters, of a path in the state dict too
LONGEST_TRANSFORMS = 1000  # characters
MANY_HASHES = 8192
MOST_DIMS = 64  # of a tensor; torch has no larger ones
MOST_UNSTORED = 1 << 20  # chunks of which the metadata does not say where they are stored
MOST_PARTS = 100  # of a path in the state dict
ENCODINGS = {(): "torch", ("stream.zstd/1",): "zstd"}  # transform descriptors -> our name of the encoding
READABLE = frozenset(ENCODINGS.values())


@dataclass(slots=True)
class RawTensor:
    key: str
    shape: tuple[int, ...]
    dtype: DType
    path: tuple[str, ...]  # from planner_data; () where it is not known
    offsets: Ints  # (chunks, dimensions), elements
    sizes: Ints  # (chunks, dimensions), elements
    first: int  # row of its first chunk in the columns of RawMetadata


@dataclass(slots=True)
class RawMetadata:
    """The checked content; the columns have one row a chunk."""

    tensors: list[RawTensor]
    objects: list[tuple[str, tuple[str, ...], int]]  # key, path, row
    file_names: list[str]
    file: npt.NDArray[np.int32]  # index in file_names, or -1: no storage info
    start: npt.NDArray[np.int64]  # bytes from the start of the file
    nbytes: npt.NDArray[np.int64]  # bytes of the item as stored
    encoding: npt.NDArray[np.int8]  # index in encodings
    encodings: list[str]
    foreign: tuple[str, ...]
    version: str
    one_by_one: int = field(default=0, repr=False)  # items that were not read in steps


class _Wrong(Exception):
    """A field that is not as it must be. Each layer puts its own part before the field's name."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem

    def inside(self, outer: str) -> _Wrong:
        return _Wrong(outer + self.field, self.problem)


def _expected(field: str, expected: str, found: Any) -> _Wrong:
    """``found`` is untrusted: it is shown only where that is short."""
    shown = _REPR.repr(found) if type(found) in _SHOWN else f"a {type_name(found)}"
    return _Wrong(field, f"expected {expected}, found {shown}")


def _no_field(where: str, error: KeyError) -> _Wrong:
    return _Wrong(where, f"expected a field {error.args[0]}, found none")


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxlevel = 2
_SHOWN = (str, bytes, int, float, bool, tuple, list, type(None))


_METADATA = "torch.distributed.checkpoint.metadata"
_TOP = Class(f"{_METADATA}.Metadata")
_OBJECT = Class(f"{_METADATA}.BytesStorageMetadata")


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a record; none of anything else."""
    return record.state if type(record) is Record and type(record.state) is dict else {}


class _Paths:
    """Stands for the classes of pathlib. Parts may occur again and again, so what is joined is counted."""

    def __init__(self, most: int) -> None:
        self._left = most  # characters

    def __call__(self, *parts: str) -> str:
        path = "/".join(parts)
        self._left -= len(path)
        if len(path) > LONGEST_PATH or self._left < 0:
            raise ValueError(f"a path of {len(path):,} characters" if self._left >= 0 else "paths of the same parts")
        return path


def _same(value: Any) -> Any:
    return value


def _member(owner: Any, name: Any) -> Any:
    """``getattr(cls, name)`` is how Python 3.11.0 to 3.11.3 pickled a member of an enumeration."""
    if owner is _same:
        return name
    if type(owner) is Class and owner not in _CLASSES and type(name) is str and name.isupper():
        return Record(owner)
    raise Refused(
        "asks for an attribute with builtins.getattr, which no checkpoint needs.\n"
        "Nothing was run. Do not load this file with torch either."
    )


_CLASSES = (_TOP, TENSOR, PROPERTIES, _OBJECT, CHUNK, INDEX, STORED, Class(f"{_METADATA}.StorageMeta"))
_OLD = "torch.distributed._shard.sharded_tensor.metadata"  # where torch 2.3 and older have two of the names
_NAMES: Mapping[str, Any] = {
    "torch.Size": size,
    "torch.serialization._get_layout": _same,
    "collections.OrderedDict": ordered_dict,
    "builtins.getattr": _member,
    **{kind.name: kind for kind in _CLASSES},
    f"{_OLD}.TensorProperties": PROPERTIES,
    **{
        f"{place}.{name}": _same
        for place in (_METADATA, _OLD)
        for name in ("_MEM_FORMAT_ENCODING", "MEM_FORMAT_ENCODING")
    },
    **{f"torch.{name}": name for name in (*TABLE, *ALIASES)},
}
_PATH_NAMES = tuple(
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
)


def parse(data: bytes, what: str) -> RawMetadata:
    """Unpickle and check. A million chunks take some seconds and, while it runs, about 300 bytes a chunk.

    ``what`` is how errors call it.

    Raises
    ------
    BrokenCheckpoint
        With the path of the field that is not as it must be.
    UnsafeMetadata
        The pickle asks for what no checkpoint needs.
    """
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects and no cycle: collections would only triple the time
    try:
        with contextlib.suppress(BrokenCheckpoint):
            return _checked(*loads(data, what=what, allowed=_allowed(data), shortcuts=shortcuts), what, len(data))
        # The fault may be in what was taken in one step, or something refers to a part of it: one by one, then
        return _checked(*loads(data, what=what, allowed=_allowed(data)), what, len(data))
    finally:
        if collecting:
            gc.enable()


def _allowed(data: bytes) -> Mapping[str, Any]:
    return {**_NAMES, **dict.fromkeys(_PATH_NAMES, _Paths(len(data)))}


def _checked(top: Any, foreign: tuple[str, ...], what: str, nbytes: int) -> RawMetadata:
    if type(top) is not Record or top.kind is not _TOP:
        raise BrokenCheckpoint(
            f"{what} is a pickle of {type_name(top)}, and not of the Metadata of a distributed checkpoint."
        )
    try:
        return _content(top, foreign, nbytes)
    except _Wrong as wrong:
        raise BrokenCheckpoint(f"{what} is damaged: {wrong.field}: {wrong.problem}.") from None


def _content(top: Record, foreign: tuple[str, ...], nbytes: int) -> RawMetadata:
    fields = _fields(top)
    version = fields.get("version")
    tensors: list[RawTensor] = []
    objects: list[tuple[str, tuple[str, ...], int]] = []
    entries = _dict(fields, "state_dict_metadata")
    paths = _paths(fields.get("planner_data"))
    stored = _Stored(_dict(fields, "storage_data"), MOST_UNSTORED + nbytes)
    for key, entry in entries.items():
        try:
            _text(key, ", a key")
            if type(entry) is Record and entry.kind is TENSOR:
                tensors.append(_tensor(key, _fields(entry), paths.get(key, ()), stored))
            elif type(entry) is Record and entry.kind is _OBJECT:
                objects.append((key, paths.get(key, ()), stored.pick(key, [None])))
            else:
                raise _expected("", "tensor or bytes metadata", entry)
        except _Wrong as wrong:
            raise wrong.inside(f"state_dict_metadata[{_REPR.repr(key)}]") from None
        except KeyError as error:
            raise _no_field(f"state_dict_metadata[{_REPR.repr(key)}]", error) from None
    picked = np.frombuffer(stored.picked, dtype=np.int64)
    return RawMetadata(
        tensors,
        objects,
        list(stored.file_ids),
        np.frombuffer(stored.file, dtype=np.int32)[picked],
        np.frombuffer(stored.start, dtype=np.int64)[picked],
        np.frombuffer(stored.nbytes, dtype=np.int64)[picked],
        np.frombuffer(stored.encoding, dtype=np.int8)[picked],
        stored.encoding_ids.names,
        foreign,
        version if type(version) is str else "",
        stored.one_by_one,
    )


def _tensor(key: str, fields: dict[str, Any], path: tuple[str, ...], stored: _Stored) -> RawTensor:
    shape, dtype, chunks = fields["size"], _dtype(fields["properties"]), fields["chunks"]
    known = by_name(dtype) if type(dtype) is str else None
    if not _is_integers(shape) or not all(0 <= n < TOO_LARGE for n in shape):
        raise _expected(".size", "a tuple of sizes below 2**62", shape)
    if known is None:
        raise _expected(".properties.dtype", "a dtype of torch", dtype)
    if math.prod(max(1, n) for n in shape) * known.itemsize >= TOO_LARGE:
        raise _expected(".size", "less than 2**62 bytes", shape)
    if type(chunks) is not list:
        raise _expected(".chunks", "a list", chunks)
    offsets, sizes = _boxes(chunks)
    stored.count(len(offsets) * len(shape))
    starts, extents = _columns([*offsets, *sizes], len(shape))
    return RawTensor(key, shape, known, path, starts, extents, stored.pick(key, offsets))


def _dtype(properties: Any) -> Any:
    """The first part of a state of (dtype, layout, requires_grad, memory format, pin_memory)."""
    state = properties.state if type(properties) is Record and properties.kind is PROPERTIES else None
    if type(state) is tuple and state:
        return state[0]
    return state.get("dtype") if type(state) is dict else None


def _boxes(chunks: list[Any]) -> tuple[list[Any], list[Any]]:
    """The offsets of all chunks, and their sizes."""
    offsets: list[Any] = []
    sizes: list[Any] = []
    for chunk in chunks:
        if type(chunk) is Run and chunk.kind is CHUNK:
            offsets += chunk.columns[0]
            sizes += chunk.columns[1]
        elif chunk is not TAKEN:
            fields = _fields(chunk)
            offsets.append(fields.get("offsets"))
            sizes.append(fields.get("sizes"))
    return offsets, sizes


def _columns(rows: list[Any], dims: int) -> Ints:
    """The offsets of all chunks and then their sizes, of shape (2, chunks, dimensions)."""
    if set(map(type, rows)) <= {tuple} and set(map(len, rows)) <= {dims}:
        numbers = list(chain.from_iterable(rows))
        if set(map(type, numbers)) <= {int}:
            with contextlib.suppress(OverflowError):
                return np.array(numbers, dtype=np.int64).reshape(2, len(rows) // 2, dims)
    at = next(n for n, row in enumerate(rows) if not _is_box(row, dims))
    name, number = ("offsets", "sizes")[at // (len(rows) // 2)], at % (len(rows) // 2)
    raise _expected(f".chunks[{number}].{name}", f"{dims} integers of 64 bits", rows[at])


def _is_box(row: Any, dims: int) -> bool:
    return type(row) is tuple and len(row) == dims and all(type(n) is int and abs(n) < 2**63 for n in row)


class _Stored:
    """The checked ``storage_data``, one row an item; read in the order of the pickle, in which it lies in memory."""

    def __init__(self, storage: dict[Any, Any], most_numbers: int) -> None:
        self._numbers_left = most_numbers  # of offsets and sizes; one chunk may occur again and again
        self.one_by_one = 0
        self._hashes: list[int] = []  # of the places of items that were added last
        self.file_ids, self.encoding_ids = _FileIds(), _EncodingIds()
        self._rows: dict[str, dict[tuple[int, ...] | None, int]] = {}  # by key and offsets; None: an object
        self.file, self.start, self.nbytes, self.encoding = array("i"), array("q"), array("q"), array("b")
        self.picked = array("q")
        self._read(storage)
        for column in (self.file, self.start, self.nbytes):
            column.append(-1)  # the last row, -1: no storage info
        self.encoding.append(0)

    def _read(self, storage: dict[Any, Any]) -> None:
        """A row for each item."""
        for index, info in storage.items():
            if type(index) is Run and index.kind is INDEX:
                self._add(*index.columns)
            elif index is not TAKEN:
                self.one_by_one += 1
                self._add_one(_fields(index), _fields(info))

    def _add_one(self, index: dict[str, Any], info: dict[str, Any]) -> None:
        key, offsets = index.get("fqn"), index.get("offset")
        if type(key) is not str:
            raise _expected("storage_data, a key", "a MetadataIndex with a name", key)
        if offsets is not None and not _is_integers(offsets):
            raise _expected(f"storage_data, an offset of {_REPR.repr(key)}", "a tuple of integers", offsets)
        try:
            name, start, nbytes = info["relative_path"], info["offset"], info["length"]
            if type(start) is not int or not 0 <= start < TOO_LARGE:
                raise _expected(".offset", "a number of bytes below 2**62", start)
            if type(nbytes) is not int or not 0 <= nbytes < TOO_LARGE:
                raise _expected(".length", "a number of bytes below 2**62", nbytes)
            transforms = _transforms(info.get("transform_descriptors"))
            self._add([key], [offsets], [_text(name, ".relative_path")], [start], [nbytes], [transforms])
        except _Wrong as wrong:
            raise wrong.inside(f"storage_data[{_REPR.repr(key)}]") from None
        except KeyError as error:
            raise _no_field(f"storage_data[{_REPR.repr(key)}]", error) from None

    def _add(
        self,
        keys: list[str],
        offsets: list[tuple[int, ...] | None],
        names: list[str],
        starts: list[int],
        nbytes: list[int],
        transforms: list[tuple[str, ...] | None],
    ) -> None:
        """A row for each of many items, column by column: their types are known.

        What is wrong with one of a run is said when it is read again, one by one.
        """
        self._watch(keys, offsets)
        if not 0 <= min(starts) <= max(starts) < TOO_LARGE or not 0 <= min(nbytes) <= max(nbytes) < TOO_LARGE:
            raise _Wrong("storage_data", "a place that cannot be")
        rows_of = self._rows
        for row, (key, offset) in enumerate(zip(keys, offsets, strict=True), len(self.start)):
            rows = rows_of.get(key)
            if rows is None:
                rows = rows_of[key] = {}
            if rows.setdefault(offset, row) != row:
                raise _Wrong("", f"there are two items for the offset {offset!r}")
        self.file.extend(map(self.file_ids.__getitem__, names))
        self.start.extend(starts)
        self.nbytes.extend(nbytes)
        self.encoding.extend(map(self.encoding_ids.__getitem__, transforms))

    def _watch(self, keys: list[str], offsets: list[tuple[int, ...] | None]) -> None:
        """Tuples of integers can be made to have the same hash, and then looking one up is comparing it with all."""
        for first in range(0, len(keys), MANY_HASHES):
            last = first + MANY_HASHES
            self._hashes += map(hash, zip(keys[first:last], offsets[first:last], strict=True))
            if len(self._hashes) >= MANY_HASHES:
                if len(set(self._hashes)) < 0.9 * len(self._hashes):
                    raise _Wrong("storage_data", "offsets that were made to collide in Python's hash")
                self._hashes.clear()

    def count(self, numbers: int) -> None:
        """Refuse offsets and sizes that are far more than the pickle has bytes for."""
        self._numbers_left -= numbers
        if self._numbers_left < 0:
            raise _Wrong(".chunks", "the same chunks occur again and again")

    def pick(self, key: str, offsets: list[Any]) -> int:
        """Take the chunks at those offsets, or an object, as the next rows of the checkpoint; returns the first one."""
        rows, first = self._rows.get(key, {}), len(self.picked)
        if first + len(offsets) > MOST_UNSTORED + 2 * len(self.file):  # one list of a million chunks for all tensors
            raise _Wrong(".chunks", f"there are far more chunks than the {len(self.file) - 1:,} that are stored")
        # mostly in the same order, and hashing a million tuples takes long; -1: nothing says where it is stored
        self.picked.extend(rows.values() if list(rows) == offsets else map(rows.get, offsets, repeat(-1)))
        return first


class _FileIds(dict[str, int]):
    """Numbers for the names of files, each of which is checked once."""

    def __missing__(self, name: str) -> int:
        number = self[_file_name(name)] = len(self)
        return number


class _EncodingIds(dict["tuple[str, ...] | None", int]):
    """Numbers for the transforms of an item, and our name of each encoding; 0 is the plain one."""

    def __init__(self) -> None:
        super().__init__({None: 0, (): 0})
        self.names = [ENCODINGS[()]]

    def __missing__(self, transforms: tuple[str, ...]) -> int:
        if len(self) > 100:
            raise _Wrong(".transform_descriptors", "more than 100 different ones")
        number = self[transforms] = len(self.names)
        self.names.append(ENCODINGS.get(transforms, "transform " + ", ".join(transforms)))
        return number


def _transforms(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if type(value) not in (list, tuple) or len(value) > 100:
        raise _expected(".transform_descriptors", "a list of names", value)
    names = tuple(_text(name, ".transform_descriptors") for name in value)
    if sum(map(len, names)) > LONGEST_TRANSFORMS:
        raise _Wrong(".transform_descriptors", "names of more than a thousand characters")
    return names


def _is_integers(value: Any) -> bool:
    """Whether it is a tuple of integers, and no more than a tensor has dimensions: fast to hash and to multiply."""
    return type(value) is tuple and len(value) <= MOST_DIMS and _INTEGERS.issuperset(map(type, value))


_INTEGERS = {int}


def _file_name(name: Any) -> str:
    """A relative path that stays in the checkpoint's directory."""
    parts = _text(name, ".relative_path").replace("\\", "/").split("/")
    if not name or ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name:
        raise _expected(".relative_path", "the name of a file in the checkpoint's directory", name)
    return str(name)


def _paths(planner_data: Any) -> dict[str, tuple[str, ...]]:
    """Flat key -> path in the nested state dict, for the entries that are as torch's default planner writes them."""
    if not isinstance(planner_data, dict):
        return {}
    return {
        key: tuple(map(str, path))
        for key, path in planner_data.items()
        if type(path) is tuple
        and len(path) <= MOST_PARTS
        and all(type(part) in (str, int) for part in path)
        and sum(len(part) for part in path if type(part) is str) <= LONGEST_KEY
    }


def _dict(fields: dict[str, Any], name: str) -> dict[Any, Any]:
    if name not in fields:
        raise _Wrong(name, "expected a dict, found nothing")
    value = fields[name]
    if not isinstance(value, dict):
        raise _expected(name, "a dict", value)
    return value


def _text(value: Any, field: str) -> str:
    if type(value) is not str:
        raise _expected(field, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no file can hold
        raise _expected(field, "a string of Unicode", value) from None
    if len(value) > LONGEST_KEY:
        raise _expected(field, f"a string of at most {LONGEST_KEY:,} characters", value)
    return value
