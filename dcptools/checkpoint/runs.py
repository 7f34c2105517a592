"""Runs: records of one class that follow each other in ``.metadata``, read in one step.

A checkpoint has two records for each chunk: where it lies in the tensor, and where it is stored. In the pickle they are
the same few opcodes again and again, but for some numbers and names. A regular expression finds one after the other,
and takes it apart into pieces of which most occurred before: what a piece means is worked out once. What does not fit
is left to the machine of :mod:`dcptools._pickle`, which is slower, and reads the same.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final

from dcptools._pickle import HIDDEN, Class, Placeholder, Record, Shortcut, size

CHUNK: Final = Class("torch.distributed.checkpoint.metadata.ChunkStorageMetadata")
INDEX: Final = Class("torch.distributed.checkpoint.metadata.MetadataIndex")
TENSOR: Final = Class("torch.distributed.checkpoint.metadata.TensorStorageMetadata")
PROPERTIES: Final = Class("torch.distributed.checkpoint.metadata.TensorProperties")
STORED: Final = Class("torch.distributed.checkpoint.filesystem._StorageInfo")
MAX_PIECES = 100_000  # whose meaning is remembered

# Opcodes: CPython's pickletools.py
_REF = rb"(?:h.|j.{4})"  # BINGET, LONG_BINGET
_INT = rb"(?:K.|M..|J.{4}|\x8a(?:\x05.{5}|\x04.{4}|\x06.{6}|\x07.{7}|\x08.{8}))"  # BININT1, BININT2, BININT, LONG1
_NAME = rb"(?:\x8c.[^\x94]{0,255}+\x94|" + _REF + b")"  # SHORT_BINUNICODE MEMOIZE
# REDUCE of torch.Size and a tuple in a tuple; each is memoized, except for the empty one
_SIZE = _REF + rb"(?:(?:(?:" + _INT + rb"*+[\x85-\x87]|\(" + _INT + rb"*+t)\x94|\))\x85\x94R\x94)?+"
_NEW = _REF + rb"\)\x81\x94\}\x94\("  # EMPTY_TUPLE NEWOBJ MEMOIZE EMPTY_DICT MEMOIZE MARK: an instance, and its state
_BUILT = rb"ub"  # SETITEMS BUILD


def _compiled(*parts: bytes) -> re.Pattern[bytes]:
    return re.compile(b"".join(parts), re.DOTALL)


def _group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b")"


# A chunk: {"offsets": size, "sizes": size}
_CHUNK = _compiled(_NEW, _REF, _SIZE, _REF, _SIZE, _BUILT)
_CHUNK_PARTS = _compiled(_group(_NEW), _group(_REF), _group(_SIZE), _group(_REF), _group(_SIZE), _BUILT)
# A tensor: {"properties": its state a tuple of dtype, layout, requires_grad, memory format, pin_memory; "size": size,
# "chunks": list}. This is all up to the list, which is empty yet.
_TENSOR = _compiled(
    _group(_NEW), _group(_REF), _group(_REF), rb"\)\x81\x94\(", _group(_REF), _group(_REF), rb"[\x88\x89]",
    _group(_REF), rb"[\x88\x89]t\x94b", _group(_REF), _group(_SIZE), _group(_REF), rb"\]\x94",
)  # fmt: skip
# An index: {"fqn": name, "index": number or None, "offset": size}; and what is stored: {"relative_path": name,
# "offset": number, "length": number, "transform_descriptors": a list of one name, or nothing}. The pieces are the name,
# all up to the last "offset", its number, and the rest.
_INDEX = (_REF, rb"(?:N|", _INT, rb")(?:", _REF, _SIZE, rb")?+", _BUILT, _NEW, _REF, _NAME, _REF)
_LENGTH = (_REF, _INT, rb"(?:", _REF, rb"\]\x94", _NAME, rb"a)?+", _BUILT)
_STORED = _compiled(_group(_NEW, _REF, _NAME), _group(*_INDEX), _group(_INT), _group(*_LENGTH))
_FQN_PARTS = _compiled(_group(_NEW), _group(_REF), _group(_NAME))
_INDEX_PARTS = _compiled(
    _group(_REF), rb"(?:N|", _INT, rb")(?:", _group(_REF), _group(_SIZE), rb")?+", _BUILT,
    _group(_NEW), _group(_REF), _group(_NAME), _group(_REF),
)  # fmt: skip
_LENGTH_PARTS = _compiled(
    _group(_REF), _group(_INT), rb"(?:", _group(_REF), rb"\]\x94", _group(_NAME), rb"a)?+", _BUILT
)  # fmt: skip
_INTS = _compiled(_INT)


class Run(Placeholder):
    """Stands for many records: their class, and their fields as columns. See :func:`shortcuts`."""

    __slots__ = ("columns", "kind")

    def __init__(self, kind: Class, columns: tuple[list[Any], ...]) -> None:
        self.kind: Final = kind
        self.columns: Final = columns


class _Taken(Placeholder):
    __slots__ = ()


TAKEN: Final = _Taken()
"""Stands behind a run where its other records would be, so that there are as many values."""


def shortcuts(memo: list[Any]) -> Mapping[Class, Shortcut]:
    """For the machine with that memo.

    A run of ``CHUNK`` has the columns offsets and sizes, tuples of integers. A run of ``INDEX`` stands for the keys and
    the values of ``storage_data``; its columns are the names, the offsets (a tuple of integers, or None: an object),
    the names of the files, the first bytes and the numbers of bytes in them, and the transforms (a tuple of names, or
    None). A tensor is a record as always, with a run of chunks in it.
    """
    chunks = _Chunks(memo)
    return {CHUNK: chunks, INDEX: _Items(memo), TENSOR: _Tensors(memo, chunks)}


class _Other(Exception):
    """The record is of another class, or has other fields."""


class _Pieces(dict[bytes, Any]):
    """What pieces of the pickle mean, worked out when they occur first. The memo only grows, so that stays so."""

    def __init__(self, meaning: Callable[[bytes], Any]) -> None:
        # a method of who has these pieces: weak, or all this and the memo would stay until the next collection
        self._meaning = weakref.WeakMethod(meaning)

    def __missing__(self, piece: bytes) -> Any:
        work_out = self._meaning()
        assert work_out is not None
        if len(self) >= MAX_PIECES:
            self.clear()
        meaning = self[piece] = work_out(piece)
        return meaning


class _Reader:
    """Reads parts of records; ``puts`` is what they add to the memo."""

    def __init__(self, memo: list[Any]) -> None:
        self._memo, self._values = memo, _Pieces(self._value)

    def begin(self, data: bytes, at: int, kind: Class) -> int:
        """Where the record begins: a reference to its class, EMPTY_TUPLE and NEWOBJ lie before ``at``."""
        number = data[at - 3]
        short = data[at - 4] == ord("h") and number < len(self._memo) and self._memo[number] is kind
        return at - 4 if short else at - 7

    def check(self, ref: bytes, expected: Any) -> None:
        """Refuse a record in which something else is at that place."""
        value = self._values[ref]
        if value is not expected and not (type(value) is str and value == expected):
            raise _Other

    def check_known(self, *refs: bytes) -> None:
        for ref in refs:
            self._values[ref]

    def check_new(self, new: bytes, expected: Class) -> None:
        self.check(new[: _width(new)], expected)

    def number(self, piece: bytes) -> int:
        code = piece[0]
        return int.from_bytes(piece[2 if code == 0x8A else 1 :], "little", signed=code in b"J\x8a")

    def name(self, piece: bytes) -> tuple[str, tuple[Any, ...]]:
        if piece[:1] == b"\x8c":
            if len(piece) != piece[1] + 3:
                raise _Other  # the MEMOIZE that was found is a byte of the text
            name = str(piece[2:-1], "utf-8", "surrogatepass")
            return name, (name,)
        value = self._values[piece]
        if type(value) is not str:
            raise _Other
        return value, ()

    def size(self, piece: bytes) -> tuple[tuple[int, ...], tuple[Any, ...]]:
        width = _width(piece)
        if len(piece) == width:
            value = self._values[piece]
            if type(value) is not tuple or not {int}.issuperset(map(type, value)):
                raise _Other
            return value, ()
        self.check(piece[:width], size)
        if piece[width] == ord(")"):
            return (), (HIDDEN, ())
        numbers = tuple(map(self.number, _INTS.findall(piece, width)))
        if piece[-6] != ord("t") and len(numbers) != piece[-6] - 0x84:  # TUPLE1, TUPLE2, TUPLE3
            raise _Other
        return numbers, (numbers, HIDDEN, numbers)

    def _value(self, ref: bytes) -> Any:
        index = int.from_bytes(ref[1:], "little")
        if index >= len(self._memo):
            raise _Other
        return self._memo[index]


def _width(piece: bytes) -> int:
    """Bytes of the reference with which it begins."""
    return 2 if piece.startswith(b"h") else 5


class _Chunks(_Reader):
    def __init__(self, memo: list[Any]) -> None:
        super().__init__(memo)
        self._boxes = _Pieces(self._box)

    def __call__(self, data: bytes, at: int) -> tuple[list[Any], int] | None:
        run, end = self.run(data, self.begin(data, at, CHUNK))
        count = len(run.columns[0])
        return ([run, *[TAKEN] * (count - 1)], end) if count else None

    def run(self, data: bytes, at: int) -> tuple[Run, int]:
        """All that follow each other from there on."""
        boxes, memo = self._boxes, self._memo
        offsets: list[Any] = []
        sizes: list[Any] = []
        try:
            while (found := _CHUNK.match(data, at)) is not None:
                offset, shape, puts = boxes[found[0]]
                memo += puts
                offsets.append(offset)
                sizes.append(shape)
                at = found.end()
        except _Other:
            pass
        return Run(CHUNK, (offsets, sizes)), at

    def _box(self, piece: bytes) -> tuple[Any, Any, tuple[Any, ...]]:
        new, offsets_ref, offsets, sizes_ref, sizes = _groups(_CHUNK_PARTS, piece)
        self.check_new(new, CHUNK)
        self.check(offsets_ref, "offsets")
        self.check(sizes_ref, "sizes")
        offset, puts = self.size(offsets)
        shape, puts_too = self.size(sizes)
        return offset, shape, (HIDDEN, HIDDEN, *puts, *puts_too)


class _Tensors(_Reader):
    def __init__(self, memo: list[Any], chunks: _Chunks) -> None:
        super().__init__(memo)
        self._chunks, self._heads = chunks, _Pieces(self._head)

    def __call__(self, data: bytes, at: int) -> tuple[list[Any], int] | None:
        found = _TENSOR.match(data, self.begin(data, at, TENSOR))
        if found is None:
            return None
        before, end = len(self._memo), found.end()
        try:
            dtype, shape, puts = self._heads[found[0]]
        except _Other:
            return None
        self._memo += puts
        many = data[end] == ord("(")
        run, end = self._chunks.run(data, end + many)
        close = b"eub" if many else b"aub"  # APPENDS or APPEND, and the record is built
        if not data.startswith(close, end):
            del self._memo[before:]
            return None
        properties, tensor = Record(PROPERTIES), Record(TENSOR)
        properties.state = (dtype,)
        tensor.state = {"properties": properties, "size": shape, "chunks": [run]}
        return [tensor], end + len(close)

    def _head(self, piece: bytes) -> tuple[str, Any, tuple[Any, ...]]:
        new, properties_ref, properties, dtype, layout, memory_format, size_ref, shape, chunks_ref = _groups(
            _TENSOR, piece
        )
        self.check_new(new, TENSOR)
        self.check(properties_ref, "properties")
        self.check(properties, PROPERTIES)
        self.check(size_ref, "size")
        self.check(chunks_ref, "chunks")
        value, puts = self.size(shape)
        name, _ = self.name(dtype)
        self.check_known(layout, memory_format)
        return name, value, (HIDDEN, HIDDEN, HIDDEN, HIDDEN, *puts, HIDDEN)


class _Items(_Reader):
    def __init__(self, memo: list[Any]) -> None:
        super().__init__(memo)
        self._names, self._places, self._lengths = _Pieces(self._name), _Pieces(self._place), _Pieces(self._length)
        self._numbers = _Pieces(self.number)

    def __call__(self, data: bytes, at: int) -> tuple[list[Any], int] | None:
        names, places, lengths, numbers, memo = self._names, self._places, self._lengths, self._numbers, self._memo
        columns: tuple[list[Any], ...] = ([], [], [], [], [], [])
        add_name, add_offset, add_file, add_start, add_length, add_transforms = (column.append for column in columns)
        end = self.begin(data, at, INDEX)
        try:
            while (found := _STORED.match(data, end)) is not None:
                a, b, c, d = found.groups()
                name, puts = names[a]
                offset, file, puts_too = places[b]
                length, transforms, puts_last = lengths[d]
                memo += puts
                memo += puts_too
                memo += puts_last
                add_name(name)
                add_offset(offset)
                add_file(file)
                add_start(numbers[c])
                add_length(length)
                add_transforms(transforms)
                end = found.end()
        except _Other:
            pass
        return ([Run(INDEX, columns), *[TAKEN] * (2 * len(columns[0]) - 1)], end) if columns[0] else None

    def _name(self, piece: bytes) -> tuple[str, tuple[Any, ...]]:
        new, ref, name = _groups(_FQN_PARTS, piece)
        self.check_new(new, INDEX)
        self.check(ref, "fqn")
        text, puts = self.name(name)
        return text, (HIDDEN, HIDDEN, *puts)

    def _place(self, piece: bytes) -> tuple[Any, str, tuple[Any, ...]]:
        index_ref, offset_ref, offset, new, path_ref, path, start_ref = _groups(_INDEX_PARTS, piece)
        self.check(index_ref, "index")
        self.check_new(new, STORED)
        self.check(path_ref, "relative_path")
        self.check(start_ref, "offset")
        file, puts_too = self.name(path)
        if offset_ref is None:
            return None, file, (HIDDEN, HIDDEN, *puts_too)
        self.check(offset_ref, "offset")
        value, puts = self.size(offset)
        return value, file, (*puts, HIDDEN, HIDDEN, *puts_too)

    def _length(self, piece: bytes) -> tuple[int, tuple[str, ...] | None, tuple[Any, ...]]:
        ref, number, transforms_ref, transform = _groups(_LENGTH_PARTS, piece)
        self.check(ref, "length")
        if transforms_ref is None:
            return self.number(number), None, ()
        self.check(transforms_ref, "transform_descriptors")
        name, puts = self.name(transform)
        return self.number(number), (name,), (HIDDEN, *puts)


def _groups(pattern: re.Pattern[bytes], piece: bytes) -> tuple[Any, ...]:
    found = pattern.fullmatch(piece)
    if found is None:
        raise _Other
    return found.groups()
