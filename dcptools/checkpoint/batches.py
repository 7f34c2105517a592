"""Batches: consecutive records of one class in ``.metadata``, read in one step.

A checkpoint has two records per chunk: where it lies in the tensor, and where it is stored. In the pickle they are
the same few opcodes again and again, except for some numbers and names. A regular expression finds one after another,
and cuts it into parts, most of which occurred before: what a part means is worked out once (see ``records``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dcptools._pickle import HIDDEN, Class, Placeholder, Record, Shortcut
from dcptools.checkpoint.records import (
    CHUNK,
    CHUNK_PARTS,
    CHUNK_RECORD,
    INDEX,
    ITEM_RECORD,
    NAMED_PARTS,
    PLACED_PARTS,
    PROPERTIES,
    SIZED_PARTS,
    STORED,
    TENSOR,
    TENSOR_HEAD,
    Meanings,
    Other,
    RecordReader,
)


class Batch(Placeholder):
    """Stands for many records: their class, and their fields as columns. See :func:`shortcuts`."""

    __slots__ = ("columns", "kind")

    def __init__(self, kind: Class, columns: tuple[list[Any], ...]) -> None:
        self.kind: Final = kind
        self.columns: Final = columns


class _Taken(Placeholder):
    __slots__ = ()


TAKEN: Final = _Taken()
"""Stands behind a batch where its other records would be, so that there are as many values."""


def shortcuts(memo: list[Any]) -> Mapping[Class, Shortcut]:
    """For the machine with that memo.

    A batch of ``CHUNK`` has the columns offsets and sizes, tuples of integers. A batch of ``INDEX`` stands for the keys
    and the values of ``storage_data``; its columns are the names, the offsets (a tuple of integers, or None: an
    object), the names of the files, the first bytes and the numbers of bytes in them, and the transforms (a tuple of
    names, or None). A tensor is a record as always, with a batch of chunks in it.
    """
    chunks = _Chunks(memo)
    return {CHUNK: chunks, INDEX: _Items(memo), TENSOR: _Tensors(memo, chunks)}


class _Chunks(RecordReader):
    def __init__(self, memo: list[Any]) -> None:
        super().__init__(memo)
        self._boxes = Meanings(self._box)

    def __call__(self, data: bytes, at: int) -> tuple[list[Any], int] | None:
        batch, end = self.batch(data, self.begin(data, at, CHUNK))
        count = len(batch.columns[0])
        return ([batch, *[TAKEN] * (count - 1)], end) if count else None

    def batch(self, data: bytes, at: int) -> tuple[Batch, int]:
        """All that follow each other from there on."""
        boxes, memo = self._boxes, self.memo
        offsets: list[Any] = []
        sizes: list[Any] = []
        try:
            while (found := CHUNK_RECORD.match(data, at)) is not None:
                offset, shape, puts = boxes[found[0]]
                memo += puts
                offsets.append(offset)
                sizes.append(shape)
                at = found.end()
        except Other:
            pass
        return Batch(CHUNK, (offsets, sizes)), at

    def _box(self, record: bytes) -> tuple[Any, Any, tuple[Any, ...]]:
        parts = self.parts(CHUNK_PARTS, record, kind=CHUNK, offsets_key="offsets", sizes_key="sizes")
        offsets, puts = self.size(parts["offsets"])
        sizes, puts_too = self.size(parts["sizes"])
        return offsets, sizes, (HIDDEN, HIDDEN, *puts, *puts_too)


class _Tensors(RecordReader):
    def __init__(self, memo: list[Any], chunks: _Chunks) -> None:
        super().__init__(memo)
        self._chunks, self._heads = chunks, Meanings(self._head)

    def __call__(self, data: bytes, at: int) -> tuple[list[Any], int] | None:
        found = TENSOR_HEAD.match(data, self.begin(data, at, TENSOR))
        if found is None:
            return None
        before, end = len(self.memo), found.end()
        try:
            dtype, shape, puts = self._heads[found[0]]
        except Other:
            return None
        self.memo += puts
        many = data[end] == ord("(")
        batch, end = self._chunks.batch(data, end + many)
        close = b"eub" if many else b"aub"  # APPENDS or APPEND, and the record is built
        if not data.startswith(close, end):
            del self.memo[before:]
            return None
        properties, tensor = Record(PROPERTIES), Record(TENSOR)
        properties.state = (dtype,)
        tensor.state = {"properties": properties, "size": shape, "chunks": [batch]}
        return [tensor], end + len(close)

    def _head(self, record: bytes) -> tuple[str, Any, tuple[Any, ...]]:
        """What a tensor's record says before its chunks: dtype, shape, and what is put into the memo."""
        parts = self.parts(
            TENSOR_HEAD, record, kind=TENSOR, properties_key="properties", properties=PROPERTIES, size_key="size",
            chunks_key="chunks",
        )  # fmt: skip
        self.check_known(parts["layout"], parts["memory_format"])
        dtype, _ = self.name(parts["dtype"])
        shape, puts = self.size(parts["size"])
        return dtype, shape, (HIDDEN, HIDDEN, HIDDEN, HIDDEN, *puts, HIDDEN)


class _Items(RecordReader):
    def __init__(self, memo: list[Any]) -> None:
        super().__init__(memo)
        self._names, self._places, self._lengths = Meanings(self._name), Meanings(self._place), Meanings(self._length)
        self._numbers = Meanings(self.number)

    def __call__(self, data: bytes, at: int) -> tuple[list[Any], int] | None:
        names, places, lengths, numbers, memo = self._names, self._places, self._lengths, self._numbers, self.memo
        columns: tuple[list[Any], ...] = ([], [], [], [], [], [])
        add_name, add_offset, add_file, add_start, add_length, add_transforms = (column.append for column in columns)
        end = self.begin(data, at, INDEX)
        try:
            while (found := ITEM_RECORD.match(data, end)) is not None:
                named, placed, start, sized = found.groups()
                name, puts = names[named]
                offset, file, puts_too = places[placed]
                length, transforms, puts_last = lengths[sized]
                memo += puts
                memo += puts_too
                memo += puts_last
                add_name(name)
                add_offset(offset)
                add_file(file)
                add_start(numbers[start])
                add_length(length)
                add_transforms(transforms)
                end = found.end()
        except Other:
            pass
        return ([Batch(INDEX, columns), *[TAKEN] * (2 * len(columns[0]) - 1)], end) if columns[0] else None

    def _name(self, record: bytes) -> tuple[str, tuple[Any, ...]]:
        parts = self.parts(NAMED_PARTS, record, kind=INDEX, name_key="fqn")
        name, puts = self.name(parts["name"])
        return name, (HIDDEN, HIDDEN, *puts)

    def _place(self, record: bytes) -> tuple[Any, str, tuple[Any, ...]]:
        """The chunk's offset in its tensor, None for an object; the file; and what is put into the memo."""
        parts = self.parts(
            PLACED_PARTS, record, index_key="index", offset_key="offset", kind=STORED, path_key="relative_path",
            start_key="offset",
        )  # fmt: skip
        file, puts_too = self.name(parts["path"])
        if parts["offset"] is None:
            return None, file, (HIDDEN, HIDDEN, *puts_too)
        offset, puts = self.size(parts["offset"])
        return offset, file, (*puts, HIDDEN, HIDDEN, *puts_too)

    def _length(self, record: bytes) -> tuple[int, tuple[str, ...] | None, tuple[Any, ...]]:
        parts = self.parts(SIZED_PARTS, record, length_key="length", transforms_key="transform_descriptors")
        length = self.number(parts["length"])
        if parts["transform"] is None:
            return length, None, ()
        name, puts = self.name(parts["transform"])
        return length, (name,), (HIDDEN, *puts)
