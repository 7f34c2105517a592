"""``.metadata`` to plain Python: the allow-list for its pickle, and a check of every field.

The classes are those of ``torch.distributed.checkpoint`` (``metadata.py``, ``filesystem.py``); the names were
collected from files written by torch 2.2 to 2.13. Torch is not imported.
"""

from __future__ import annotations

import gc
import pickle
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dcptools import _pickle
from dcptools.checkpoint._cover import Ints
from dcptools.dtypes import ALIASES, TABLE, DType, by_name
from dcptools.errors import BrokenCheckpoint

WHAT = "The file .metadata"
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


def _allowed() -> Mapping[str, Any]:
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

    # torch 2.3 and older kept these two elsewhere
    places = ("torch.distributed.checkpoint.metadata", "torch.distributed._shard.sharded_tensor.metadata")
    names: dict[str, Any] = {
        "torch.Size": tuple,
        "torch.serialization._get_layout": same,
        "torch.distributed.checkpoint.filesystem._StorageInfo": StorageInfo,
        "collections.OrderedDict": dict,
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


def parse(data: bytes) -> RawMetadata:
    """Unpickle and check. A million chunks take some seconds and, while it runs, about 2 kB a chunk.

    The result is pickled and loaded again: its few long-lived objects were made among millions of short-lived
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
        compact = pickle.dumps(_parse(data), protocol=5)
    finally:
        if collecting:
            gc.enable()
    result: RawMetadata = pickle.loads(compact)
    return result


def _parse(data: bytes) -> RawMetadata:
    allowed = _allowed()
    top, foreign = _pickle.loads(data, what=WHAT, allowed=allowed)
    if type(top) is not allowed["torch.distributed.checkpoint.metadata.Metadata"]:
        raise BrokenCheckpoint(
            f"{WHAT} is a pickle of {type(top).__name__}, not of torch's checkpoint Metadata.\n"
            "This is not the metadata of a distributed checkpoint."
        )
    raw = RawMetadata(foreign=foreign, version=str(getattr(top, "version", None) or ""))
    entries = _dict(_get(top, "state_dict_metadata"), "state_dict_metadata")
    paths = _paths(getattr(top, "planner_data", None))
    stored = _by_key(_dict(_get(top, "storage_data"), "storage_data"))
    add_row = _row_adder(raw)
    tensor_class = allowed["torch.distributed.checkpoint.metadata.TensorStorageMetadata"]
    object_class = allowed["torch.distributed.checkpoint.metadata.BytesStorageMetadata"]
    for key, entry in entries.items():
        where = f"state_dict_metadata[{key!r}]"
        try:
            infos = stored.get(key, {})
            if type(entry) is tensor_class:
                raw.tensors.append(_tensor(key, entry, paths.get(key, ()), len(raw.file)))
                for offsets in _tuples(raw.tensors[-1].offsets):
                    add_row(infos.get(offsets))
            elif type(entry) is object_class:
                raw.objects.append((_text(key), paths.get(key, ()), len(raw.file)))
                add_row(infos.get(None))
            else:
                raise ValueError(f"is a {type(entry).__name__}, not tensor or bytes metadata")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise BrokenCheckpoint(f"{WHAT} is damaged: {where}: {error}.") from None
    return raw


def _tensor(key: Any, entry: Any, path: tuple[str, ...], first: int) -> RawTensor:
    shape, dtype = entry.size, entry.properties.dtype
    dtype = by_name(dtype) if type(dtype) is str else None
    if type(shape) is not tuple or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise ValueError(f"size {shape!r} is not a tuple of sizes")
    if dtype is None:
        raise ValueError(f"{entry.properties.dtype!r} is not a known dtype")
    chunks = list(entry.chunks)
    offsets = _box_column([chunk.offsets for chunk in chunks], len(shape), "offsets")
    sizes = _box_column([chunk.sizes for chunk in chunks], len(shape), "sizes")
    return RawTensor(_text(key), shape, dtype, path, offsets, sizes, first)


def _box_column(rows: list[Any], dims: int, name: str) -> Ints:
    if not all(type(row) is tuple and len(row) == dims for row in rows):
        raise ValueError(f"a chunk's {name} are not a tuple of {dims} integers")
    if not rows or not dims:
        return np.zeros((len(rows), dims), dtype=np.int64)
    column = np.array(rows)
    if column.dtype != np.int64:  # floats, booleans, or beyond 64 bits
        raise ValueError(f"a chunk's {name} are not integers of 64 bits")
    return column


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
            file = file_ids.get(name, -1)
            if file < 0:
                file = file_ids[_file_name(name)] = len(raw.file_names)
                raw.file_names.append(name)
            if type(start) is not int or type(nbytes) is not int or start < 0 or nbytes < 0 or start + nbytes >= 2**62:
                raise ValueError(f"storage offset {start!r} and length {nbytes!r} are not a byte range")
            transforms = info.transform_descriptors
            encoding = 0 if transforms is None else _encoding(raw, encoding_ids, transforms)
        add_file(file)
        add_start(start)
        add_nbytes(nbytes)
        add_encoding(encoding)

    _encoding(raw, encoding_ids, ())  # index 0 is the plain encoding
    return add


def _encoding(raw: RawMetadata, ids: dict[tuple[str, ...], int], transforms: Any) -> int:
    known = tuple(_text(name) for name in transforms)
    if known not in ids:
        if len(ids) > 100:
            raise ValueError("more than 100 different transforms")
        ids[known] = len(raw.encodings)
        raw.encodings.append(ENCODINGS.get(known, "unsupported: " + ", ".join(known)))
    return ids[known]


def _file_name(name: Any) -> str:
    """A relative path that stays in the checkpoint's directory."""
    parts = _text(name).replace("\\", "/").split("/")
    if not name or ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name:
        raise ValueError(f"the file name {name!r} leaves the checkpoint's directory")
    return str(name)


def _by_key(storage: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """storage_data as key -> offsets (None for bytes) -> storage info."""
    by_key: dict[str, dict[Any, Any]] = {}
    try:
        for index, info in storage.items():
            infos = by_key.setdefault(index.fqn, {})
            if index.offset in infos:
                raise BrokenCheckpoint(f"{WHAT} is damaged: storage_data has {index.fqn!r} at {index.offset!r} twice.")
            infos[index.offset] = info
    except (AttributeError, TypeError, RecursionError) as error:
        raise BrokenCheckpoint(f"{WHAT} is damaged: a key of storage_data is not a MetadataIndex: {error}.") from None
    return by_key


def _paths(planner_data: Any) -> dict[str, tuple[str, ...]]:
    """Flat key -> path in the nested state dict, for the entries that are as torch's default planner writes them."""
    if not isinstance(planner_data, dict):
        return {}
    return {
        key: tuple(map(str, path))
        for key, path in planner_data.items()
        if type(path) is tuple and all(type(part) in (str, int) for part in path)
    }


def _get(record: Any, name: str) -> Any:
    if name not in vars(record):
        raise BrokenCheckpoint(f"{WHAT} is damaged: it has no {name}.")
    return vars(record)[name]


def _dict(value: Any, name: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise BrokenCheckpoint(f"{WHAT} is damaged: {name} is a {type(value).__name__}, not a dict.")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r} is not a string")
    value.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
    return value
