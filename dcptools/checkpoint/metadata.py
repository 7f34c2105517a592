"""``.metadata`` to plain Python: the allow-list for its pickle, and a check of every field.

The classes are those of ``torch.distributed.checkpoint`` (``metadata.py``, ``filesystem.py``); the names were
collected from files written by torch 2.2 to 2.13. Torch is not imported.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from dcptools._collector import no_collections
from dcptools._fields import (
    REPR,
    TOO_LARGE,
    Wrong,
    dict_of,
    expected,
    fields_of,
    is_integers,
    is_record,
    no_field,
    text_of,
)
from dcptools._pickle import Class, Record, Refused, loads, ordered_dict, size, type_name
from dcptools.checkpoint.batches import TAKEN, Batch, shortcuts
from dcptools.checkpoint.cover import Ints
from dcptools.checkpoint.records import CHUNK, INDEX, PROPERTIES, STORED, TENSOR
from dcptools.checkpoint.storage_data import MOST_UNSTORED, StorageData
from dcptools.dtypes import ALIASES, TABLE, DType, by_name
from dcptools.errors import BrokenCheckpoint

LONGEST_PATH = 4096  # characters of a file's name; Linux allows no longer ones


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
    """The checked content; the columns have one row per chunk."""

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


_METADATA = "torch.distributed.checkpoint.metadata"
_TOP = Class(f"{_METADATA}.Metadata")
_OBJECT = Class(f"{_METADATA}.BytesStorageMetadata")


class _Paths:
    """Stands for the classes of pathlib. Parts may be repeated again and again, so what is joined is counted."""

    def __init__(self, most: int) -> None:
        self._left = most  # characters

    def __call__(self, *parts: str) -> str:
        characters = sum(map(len, parts)) + len(parts)
        self._left -= characters
        if characters > LONGEST_PATH or self._left < 0:
            raise ValueError(f"a path of {characters:,} characters" if self._left >= 0 else "paths of the same parts")
        return "/".join(parts)


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
# A trainer with a writer of its own may have a class of its own too: with torch's name and fields, it says the same.
ALIKE: Mapping[str, Class] = {"_StorageInfo": STORED}
_PATH_NAMES = tuple(
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
)


@no_collections()
def parse(data: bytes, what: str) -> RawMetadata:
    """Unpickle and check. A million chunks take some seconds and, while it runs, about 300 bytes per chunk.

    ``what`` is what errors call it.

    Raises
    ------
    BrokenCheckpoint
        With the path of the field that is wrong.
    UnsafeMetadata
        The pickle asks for what no checkpoint needs.
    """
    with contextlib.suppress(BrokenCheckpoint):
        return _checked(*_loads(data, what, in_steps=True), what, len(data))
    # The fault may be in what was taken in one step, or something may refer to a part of it: so read one by one
    return _checked(*_loads(data, what, in_steps=False), what, len(data))


def _loads(data: bytes, what: str, *, in_steps: bool) -> tuple[Any, tuple[str, ...]]:
    return loads(data, what=what, allowed=_allowed(data), alike=ALIKE, shortcuts=shortcuts if in_steps else None)


def _allowed(data: bytes) -> dict[str, Any]:
    """What a pickle may name; the paths in it are counted for it alone."""
    return {**_NAMES, **dict.fromkeys(_PATH_NAMES, _Paths(len(data)))}


def _checked(top: Any, foreign: tuple[str, ...], what: str, nbytes: int) -> RawMetadata:
    """The content of the pickled value, or an error that says what it is."""
    if not is_record(top, _TOP):
        raise BrokenCheckpoint(
            f"{what} is a pickle of {type_name(top)}, and not of the Metadata of a distributed checkpoint."
        )
    try:
        return _content(top, foreign, nbytes)
    except Wrong as wrong:
        verdict = "has classes of another program and cannot be read" if foreign else "is damaged"
        raise BrokenCheckpoint(f"{what} {verdict}: {wrong}.") from None


def _content(top: Record, foreign: tuple[str, ...], nbytes: int) -> RawMetadata:
    """Every tensor and object with its rows in the columns; raises Wrong."""
    fields = fields_of(top)
    version = fields.get("version")
    tensors: list[RawTensor] = []
    objects: list[tuple[str, tuple[str, ...], int]] = []
    entries = dict_of(fields, "state_dict_metadata")
    paths = _paths(fields.get("planner_data"))
    stored = StorageData(dict_of(fields, "storage_data"), MOST_UNSTORED + nbytes)
    fields.pop("planner_data", None)
    del fields["storage_data"]
    for key in list(entries):
        entry = entries.pop(key)  # the values that are made take the memory of those that are used up
        try:
            text_of(key, ", a key")
            if is_record(entry, TENSOR):
                tensors.append(_tensor(key, fields_of(entry), paths.get(key, ()), stored))
            elif is_record(entry, _OBJECT):
                objects.append((key, paths.get(key, ()), stored.pick(key, [None])))
            else:
                raise expected("", "tensor or bytes metadata", entry)
        except Wrong as wrong:
            raise wrong.inside(f"state_dict_metadata[{REPR.repr(key)}]") from None
        except KeyError as error:
            raise no_field(f"state_dict_metadata[{REPR.repr(key)}]", error) from None
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


def _tensor(key: str, fields: dict[str, Any], path: tuple[str, ...], stored: StorageData) -> RawTensor:
    """A tensor and its chunks, whose rows are the next ones to be picked."""
    shape, dtype, chunks = fields["size"], _dtype(fields["properties"]), fields["chunks"]
    known = by_name(dtype) if type(dtype) is str else None
    if not is_integers(shape) or not all(0 <= n < TOO_LARGE for n in shape):
        raise expected(".size", "a tuple of sizes below 2**62", shape)
    if known is None:
        raise expected(".properties.dtype", "a dtype of torch", dtype)
    if math.prod(max(1, n) for n in shape) * known.itemsize >= TOO_LARGE:
        raise expected(".size", "less than 2**62 bytes", shape)
    if type(chunks) is not list:
        raise expected(".chunks", "a list", chunks)
    offsets, sizes = _boxes(chunks)
    stored.count(len(offsets) * len(shape))
    starts, extents = _columns([*offsets, *sizes], len(shape))
    return RawTensor(key, shape, known, path, starts, extents, stored.pick(key, offsets))


def _dtype(properties: Any) -> Any:
    """The first part of a state of (dtype, layout, requires_grad, memory format, pin_memory)."""
    state = properties.state if is_record(properties, PROPERTIES) else None
    if type(state) is tuple and state:
        return state[0]
    return state.get("dtype") if type(state) is dict else None


def _boxes(chunks: list[Any]) -> tuple[list[Any], list[Any]]:
    """The offsets of all chunks, and their sizes."""
    offsets: list[Any] = []
    sizes: list[Any] = []
    for chunk in chunks:
        if type(chunk) is Batch and chunk.kind is CHUNK:
            offsets += chunk.columns[0]
            sizes += chunk.columns[1]
        elif chunk is not TAKEN:
            fields = fields_of(chunk)
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
    raise expected(f".chunks[{number}].{name}", f"{dims} integers of 64 bits", rows[at])


def _is_box(row: Any, dims: int) -> bool:
    """Whether it is the offsets or the sizes of a chunk with that many dimensions."""
    return type(row) is tuple and len(row) == dims and all(type(n) is int and abs(n) < 2**63 for n in row)


_TEXT = {str}


def _paths(planner_data: Any) -> dict[str, tuple[str, ...]]:
    """Flat key -> path in the nested state dict, for the entries that are as torch's default planner writes them.

    The planner makes the key of the path's parts. A path with more parts than its key does not count: a long one could
    be that of all keys.
    """
    if not isinstance(planner_data, dict):
        return {}
    return {
        key: path if set(map(type, path)) <= _TEXT else tuple(map(str, path))
        for key, path in planner_data.items()
        if type(key) is str and type(path) is tuple and _is_path(path, len(key))
    }


def _is_path(path: tuple[Any, ...], characters: int) -> bool:
    left = characters + 1
    for part in path:
        if type(part) is not str and (type(part) is not int or not 0 <= part < TOO_LARGE):
            return False
        left -= len(str(part)) + 1
        if left < 0:
            return False
    return True
