"""``storage_data`` of ``.metadata``: which item of which file has the bytes of a chunk, one row each, in columns."""

from __future__ import annotations

from array import array
from itertools import repeat
from typing import Any

from dcptools._fields import (
    REPR,
    TOO_LARGE,
    Wrong,
    expected,
    fields_of,
    is_integers,
    no_field,
    number_of,
    text_of,
)
from dcptools._pickle import Record
from dcptools.checkpoint.batches import TAKEN, Batch
from dcptools.checkpoint.records import INDEX, STORED

LONGEST_TRANSFORMS = 1000  # characters
MANY_HASHES = 1024
FEW_COLLISIONS = 2  # among so many; by chance there would be none
MOST_UNSTORED = 1 << 16  # chunks for which the metadata does not say where they are stored
ENCODINGS = {(): "torch", ("stream.zstd/1",): "zstd"}  # transform descriptors -> our name of the encoding
VALUES = "values"  # the values themselves in row-major order, inside a safetensors file
READABLE = frozenset((*ENCODINGS.values(), VALUES))


class StorageData:
    """The checked ``storage_data``, one row per item; read in the order of the pickle, in which it lies in memory."""

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
            if type(index) is Batch and index.kind is INDEX:
                self._add(*index.columns)
            elif index is not TAKEN:
                self.one_by_one += 1
                self._add_one(fields_of(index), info)
        self._look_at_hashes()

    def _add_one(self, index: dict[str, Any], stored: Any) -> None:
        """Check the fields of one item, and add a row for it."""
        key, offsets = index.get("fqn"), index.get("offset")
        if type(key) is not str:
            raise expected("storage_data, a key", "a MetadataIndex with a name", key)
        if offsets is not None and not is_integers(offsets):
            raise expected(f"storage_data, an offset of {REPR.repr(key)}", "a tuple of integers", offsets)
        try:
            if type(stored) is Record and stored.kind is not STORED:
                raise expected("", "torch's _StorageInfo", stored)
            info = fields_of(stored)
            name, start, nbytes = info["relative_path"], info["offset"], info["length"]
            number_of(start, ".offset")
            number_of(nbytes, ".length")
            transforms = _transforms(info.get("transform_descriptors"))
            self._add([key], [offsets], [text_of(name, ".relative_path")], [start], [nbytes], [transforms])
        except Wrong as wrong:
            raise wrong.inside(f"storage_data[{REPR.repr(key)}]") from None
        except KeyError as error:
            raise no_field(f"storage_data[{REPR.repr(key)}]", error) from None

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

        What is wrong with one of a batch is reported when it is read again, one by one.
        """
        self._watch(keys, offsets)
        if not 0 <= min(starts) <= max(starts) < TOO_LARGE or not 0 <= min(nbytes) <= max(nbytes) < TOO_LARGE:
            raise Wrong("storage_data", "a place that cannot be")
        rows_of = self._rows
        for row, (key, offset) in enumerate(zip(keys, offsets, strict=True), len(self.start)):
            rows = rows_of.get(key)
            if rows is None:
                rows = rows_of[key] = {}
            if rows.setdefault(offset, row) != row:
                raise Wrong("", f"there are two items for the offset {offset!r}")
        self.file.extend(map(self.file_ids.__getitem__, names))
        self.start.extend(starts)
        self.nbytes.extend(nbytes)
        self.encoding.extend(map(self.encoding_ids.__getitem__, transforms))

    def _watch(self, keys: list[str], offsets: list[tuple[int, ...] | None]) -> None:
        """Tuples of integers can be made to have the same hash, and then looking one up means comparing it with all."""
        for first in range(0, len(keys), MANY_HASHES):
            last = first + MANY_HASHES
            self._hashes += map(hash, zip(keys[first:last], offsets[first:last], strict=True))
            if len(self._hashes) >= MANY_HASHES:
                self._look_at_hashes()

    def _look_at_hashes(self) -> None:
        if len(self._hashes) - len(set(self._hashes)) > FEW_COLLISIONS:
            raise Wrong("storage_data", "offsets that were made to collide in Python's hash")
        self._hashes.clear()

    def count(self, numbers: int) -> None:
        """Refuse far more offsets and sizes than the pickle has bytes for."""
        self._numbers_left -= numbers
        if self._numbers_left < 0:
            raise Wrong(".chunks", "the same chunks occur again and again")

    def pick(self, key: str, offsets: list[Any]) -> int:
        """Take the chunks at those offsets, or an object, as the next rows of the checkpoint; returns the first one."""
        rows, first = self._rows.pop(key, {}), len(self.picked)
        if first + len(offsets) > MOST_UNSTORED + 2 * len(self.file):  # one list of a million chunks for all tensors
            raise Wrong(".chunks", f"there are far more chunks than the {len(self.file) - 1:,} that are stored")
        # usually in the same order, and hashing a million tuples takes long; -1: nothing says where it is stored
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
            raise Wrong(".transform_descriptors", "more than 100 different ones")
        number = self[transforms] = len(self.names)
        self.names.append(ENCODINGS.get(transforms, "transform " + ", ".join(transforms)))
        return number


def _transforms(value: Any) -> tuple[str, ...] | None:
    """The names of what was done to the bytes of an item; None: nothing."""
    if value is None:
        return None
    if type(value) not in (list, tuple) or len(value) > 100:
        raise expected(".transform_descriptors", "a list of names", value)
    names = tuple(text_of(name, ".transform_descriptors") for name in value)
    if sum(map(len, names)) > LONGEST_TRANSFORMS:
        raise Wrong(".transform_descriptors", "names of more than a thousand characters")
    return names


def _file_name(name: Any) -> str:
    """A relative path that stays in the checkpoint's directory."""
    parts = text_of(name, ".relative_path").replace("\\", "/").split("/")
    if not name or ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name:
        raise expected(".relative_path", "the name of a file in the checkpoint's directory", name)
    return str(name)
