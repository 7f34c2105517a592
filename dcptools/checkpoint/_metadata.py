"""``.metadata`` to plain Python: the allow-list for its pickle, and a check of every field.

The classes are those of ``torch.distributed.checkpoint`` (``metadata.py``, ``filesystem.py``); the names were
collected from files written by torch 2.2 to 2.13. Torch is not imported.
"""

from __future__ import annotations

import gc
import math
import pickle
import reprlib
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dcptools import _pickle
from dcptools.checkpoint._cover import Ints
from dcptools.dtypes import ALIASES, TABLE, DType, by_name
from dcptools.errors import BrokenCheckpoint, DcptoolsError, UnsafeMetadata

TOO_LARGE = 2**62  # elements or bytes; sums of two still fit in 64 bits
COMPACT_FROM = 1 << 20  # bytes of .metadata
ENCODINGS = {(): "torch", ("stream.zstd/1",): "zstd"}  # transform descriptors -> our name of the encoding


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

    tensors: list[RawTensor] = field(default_factory=list)
    objects: list[tuple[str, tuple[str, ...], int]] = field(default_factory=list)  # key, path, row
    file_names: list[str] = field(default_factory=list)
    file: array[int] = field(default_factory=lambda: array("i"))  # index in file_names, or -1: no storage info
    start: array[int] = field(default_factory=lambda: array("q"))  # bytes from the start of the file
    nbytes: array[int] = field(default_factory=lambda: array("q"))  # bytes of the item as stored
    encoding: array[int] = field(default_factory=lambda: array("b"))  # index in encodings
    encodings: list[str] = field(default_factory=list)
    foreign: tuple[str, ...] = ()
    version: str = ""


class _Wrong(Exception):
    """A field that is not as it must be. Each layer puts its own part before the field's name."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem

    def inside(self, outer: str) -> _Wrong:
        return _Wrong(outer + self.field, self.problem)


def _expected(field: str, expected: str, found: Any) -> _Wrong:
    """``found`` is untrusted: it is shown only where that is short."""
    shown = _REPR.repr(found) if type(found) in _SHOWN else f"a {_pickle.kind(found)}"
    return _Wrong(field, f"expected {expected}, found {shown}")


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_SHOWN = (str, bytes, int, float, bool, tuple, list, type(None))


def _allowed(what: str) -> Mapping[str, Any]:
    """The stand-ins for the names in a ``.metadata``, made anew for each load."""

    class Record:
        """Any of DCP's dataclasses; the unpickler fills ``__dict__``."""

    class Index(Record):
        fqn = offset = None

    class StorageInfo(Record):
        transform_descriptors = None

    class Properties:
        """TensorProperties has a state of its own: (dtype, layout, requires_grad, memory format, pin_memory)."""

        def __setstate__(self, state: Any) -> None:
            self.dtype = state[0] if isinstance(state, tuple) else state["dtype"]

    def path(*parts: str) -> str:
        return "/".join(parts)

    def same(value: Any) -> Any:
        return value

    def member(owner: Any, name: Any) -> Any:
        """``getattr(cls, name)`` is how Python 3.11.0 to 3.11.3 pickled a member of an enumeration."""
        if owner is same:
            return name
        if isinstance(owner, type) and issubclass(owner, _pickle.Stub) and str(name).isupper():
            return owner()
        raise UnsafeMetadata(
            f"{what} asks for an attribute with builtins.getattr, which no checkpoint needs.\n"
            "Nothing was run. Do not load this file with torch either."
        )

    # torch 2.3 and older kept these two elsewhere
    places = ("torch.distributed.checkpoint.metadata", "torch.distributed._shard.sharded_tensor.metadata")
    names: dict[str, Any] = {
        "torch.Size": tuple,
        "torch.serialization._get_layout": same,
        "torch.distributed.checkpoint.filesystem._StorageInfo": StorageInfo,
        "collections.OrderedDict": dict,
        "builtins.getattr": member,
        **{f"{place}.TensorProperties": Properties for place in places},
        **{f"{place}.{name}": same for place in places for name in ("_MEM_FORMAT_ENCODING", "MEM_FORMAT_ENCODING")},
        **{f"torch.{name}": name for name in (*TABLE, *ALIASES)},  # strings: nothing can be set on them
    }
    for module in ("pathlib", "pathlib._local"):
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"):
            names[f"{module}.{name}"] = path
    for name in ("Metadata", "ChunkStorageMetadata", "TensorStorageMetadata", "BytesStorageMetadata", "StorageMeta"):
        names[f"{places[0]}.{name}"] = type(name, (Record,), {})
    names[f"{places[0]}.MetadataIndex"] = Index
    return names


def parse(data: bytes, what: str) -> RawMetadata:
    """Unpickle and check. A million chunks take some seconds and, while it runs, about 2 kB a chunk.

    ``what`` is how errors call it.

    A large result is pickled and loaded again: its few long-lived objects were made among millions of short-lived
    ones, and would keep all that memory from going back to the system.

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
        result = _parse(data, what)
        if len(data) > COMPACT_FROM:
            compact = pickle.dumps(result, protocol=5)
            del result
            result = pickle.loads(compact)
    finally:
        if collecting:
            gc.enable()
    return result


def _parse(data: bytes, what: str) -> RawMetadata:
    allowed = _allowed(what)
    top, foreign = _pickle.loads(data, what=what, allowed=allowed)
    if type(top) is not allowed["torch.distributed.checkpoint.metadata.Metadata"]:
        raise BrokenCheckpoint(
            f"{what} is a pickle of {_pickle.kind(top)}, and not of the Metadata of a distributed checkpoint."
        )
    try:
        return _checked(top, foreign, allowed)
    except _Wrong as wrong:
        raise BrokenCheckpoint(f"{what} is damaged: {wrong.field}: {wrong.problem}.") from None
    except DcptoolsError:
        raise
    except Exception as error:  # a pickle can give its objects methods that raise anything
        raise BrokenCheckpoint(f"{what} is damaged: {error or type(error).__name__}.") from None


def _checked(top: Any, foreign: tuple[str, ...], allowed: Mapping[str, Any]) -> RawMetadata:
    version = getattr(top, "version", None)
    raw = RawMetadata(foreign=foreign, version=version if type(version) is str else "")
    entries = _dict(top, "state_dict_metadata")
    paths = _paths(getattr(top, "planner_data", None))
    stored = _by_key(_dict(top, "storage_data"))
    add_row = _row_adder(raw)
    tensor_class = allowed["torch.distributed.checkpoint.metadata.TensorStorageMetadata"]
    object_class = allowed["torch.distributed.checkpoint.metadata.BytesStorageMetadata"]
    for key, entry in entries.items():
        where = f"state_dict_metadata[{_REPR.repr(key)}]"
        try:
            _text(key, ", a key")
            if type(entry) is tensor_class:
                raw.tensors.append(_tensor(key, entry, paths.get(key, ()), len(raw.file)))
                wanted: list[Any] = _tuples(raw.tensors[-1].offsets)
            elif type(entry) is object_class:
                raw.objects.append((key, paths.get(key, ()), len(raw.file)))
                wanted = [None]
            else:
                raise _expected("", "tensor or bytes metadata", entry)
            infos = stored.get(key, {})
            where = f"storage_data[{key!r}]"
            for offsets in wanted:
                add_row(infos.get(offsets))
        except _Wrong as wrong:
            raise wrong.inside(where) from None
        except AttributeError as error:
            raise _Wrong(where, f"expected a field {error.name}, found none") from None
    return raw


def _tensor(key: str, entry: Any, path: tuple[str, ...], first: int) -> RawTensor:
    shape, dtype = entry.size, getattr(entry.properties, "dtype", None)
    known = by_name(dtype) if type(dtype) is str else None
    if type(shape) is not tuple or not all(type(n) is int and 0 <= n < TOO_LARGE for n in shape):
        raise _expected(".size", "a tuple of sizes below 2**62", shape)
    if known is None:
        raise _expected(".properties.dtype", "a dtype of torch", dtype)
    if math.prod(shape) * known.itemsize >= TOO_LARGE:
        raise _expected(".size", "less than 2**62 bytes", shape)
    if type(entry.chunks) is not list:
        raise _expected(".chunks", "a list", entry.chunks)
    offsets = _box_column(entry.chunks, "offsets", len(shape))
    sizes = _box_column(entry.chunks, "sizes", len(shape))
    return RawTensor(key, shape, known, path, offsets, sizes, first)


def _box_column(chunks: list[Any], name: str, dims: int) -> Ints:
    rows = [getattr(chunk, name, None) for chunk in chunks]
    if not all(type(row) is tuple and len(row) == dims for row in rows):
        raise _wrong_box(rows, name, dims)
    if not rows or not dims:
        return np.zeros((len(rows), dims), dtype=np.int64)
    column = np.array(rows)
    if column.dtype != np.int64 or column.ndim != 2:  # floats, booleans, or beyond 64 bits
        raise _wrong_box(rows, name, dims)
    return column


def _wrong_box(rows: list[Any], name: str, dims: int) -> _Wrong:
    index = next((i for i, row in enumerate(rows) if not _is_box(row, dims)), 0)
    return _expected(f".chunks[{index}].{name}", f"{dims} integers of 64 bits", rows[index])


def _is_box(row: Any, dims: int) -> bool:
    return type(row) is tuple and len(row) == dims and all(type(n) is int and abs(n) < 2**63 for n in row)


def _tuples(column: Ints) -> list[tuple[int, ...]]:
    return list(map(tuple, column.tolist()))


def _row_adder(raw: RawMetadata) -> Callable[[Any], None]:
    """A function that appends one _StorageInfo to the columns. Called a million times: lookups are bound here."""
    file_ids: dict[str, int] = {}
    encoding_ids: dict[tuple[str, ...], int] = {}
    add_file, add_start = raw.file.append, raw.start.append
    add_nbytes, add_encoding = raw.nbytes.append, raw.encoding.append

    def add(info: Any) -> None:
        if info is None:
            file = start = nbytes = -1
            encoding = 0
        else:
            name, start, nbytes = info.relative_path, info.offset, info.length
            file = file_ids.get(name, -1) if type(name) is str else -1
            if file < 0:
                file = file_ids[_file_name(name)] = len(raw.file_names)
                raw.file_names.append(name)
            if type(start) is not int or not 0 <= start < TOO_LARGE:
                raise _expected(".offset", "a number of bytes below 2**62", start)
            if type(nbytes) is not int or not 0 <= nbytes < TOO_LARGE:
                raise _expected(".length", "a number of bytes below 2**62", nbytes)
            transforms = info.transform_descriptors
            encoding = 0 if transforms is None else _encoding(raw, encoding_ids, transforms)
        add_file(file)
        add_start(start)
        add_nbytes(nbytes)
        add_encoding(encoding)

    _encoding(raw, encoding_ids, ())  # index 0 is the plain encoding
    return add


def _encoding(raw: RawMetadata, ids: dict[tuple[str, ...], int], transforms: Any) -> int:
    if type(transforms) not in (list, tuple):
        raise _expected(".transform_descriptors", "a list of names", transforms)
    known = tuple(_text(name, ".transform_descriptors") for name in transforms)
    if known not in ids:
        if len(ids) > 100:
            raise _Wrong(".transform_descriptors", "more than 100 different ones")
        ids[known] = len(raw.encodings)
        raw.encodings.append(ENCODINGS.get(known, "unsupported: " + ", ".join(known)))
    return ids[known]


def _file_name(name: Any) -> str:
    """A relative path that stays in the checkpoint's directory."""
    parts = _text(name, ".relative_path").replace("\\", "/").split("/")
    if not name or ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name:
        raise _expected(".relative_path", "the name of a file in the checkpoint's directory", name)
    return str(name)


def _by_key(storage: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """storage_data as key -> offsets (None for bytes) -> storage info."""
    by_key: dict[str, dict[Any, Any]] = {}
    for index, info in storage.items():
        key, offsets = getattr(index, "fqn", None), getattr(index, "offset", None)
        if type(key) is not str:
            raise _expected("storage_data, a key", "a MetadataIndex with a name", key)
        # a nested tuple could take for ever to hash, so its members are looked at first
        if offsets is not None and not (type(offsets) is tuple and _INTEGERS.issuperset(map(type, offsets))):
            raise _expected(f"storage_data, an offset of {_REPR.repr(key)}", "a tuple of integers", offsets)
        infos = by_key.setdefault(key, {})
        if offsets in infos:
            raise _Wrong(f"storage_data[{_REPR.repr(key)}]", f"there are two items for the offset {offsets!r}")
        infos[offsets] = info
    return by_key


_INTEGERS = {int}


def _paths(planner_data: Any) -> dict[str, tuple[str, ...]]:
    """Flat key -> path in the nested state dict, for the entries that are as torch's default planner writes them."""
    if not isinstance(planner_data, dict):
        return {}
    return {
        key: tuple(map(str, path))
        for key, path in planner_data.items()
        if type(path) is tuple and all(type(part) in (str, int) for part in path)
    }


def _dict(top: Any, name: str) -> dict[Any, Any]:
    if name not in vars(top):
        raise _Wrong(name, "expected a dict, found nothing")
    value = vars(top)[name]
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
    return value
