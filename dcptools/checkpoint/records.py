"""Records of ``.metadata`` as bytes of its pickle: the patterns that find them, and what their parts mean.

The opcodes are those of CPython's pickletools.py. What a pattern does not match, or has other fields, is left to the
machine of :mod:`dcptools._pickle`, which is slower, but reads the same.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import Any, Final

from dcptools._pickle import HIDDEN, Class, size

CHUNK: Final = Class("torch.distributed.checkpoint.metadata.ChunkStorageMetadata")
INDEX: Final = Class("torch.distributed.checkpoint.metadata.MetadataIndex")
TENSOR: Final = Class("torch.distributed.checkpoint.metadata.TensorStorageMetadata")
PROPERTIES: Final = Class("torch.distributed.checkpoint.metadata.TensorProperties")
STORED: Final = Class("torch.distributed.checkpoint.filesystem._StorageInfo")
MOST_MEANINGS = 100_000  # that are remembered

_REF = rb"(?:h.|j.{4})"  # BINGET, LONG_BINGET
_INT = rb"(?:K.|M..|J.{4}|\x8a(?:\x05.{5}|\x04.{4}|\x06.{6}|\x07.{7}|\x08.{8}))"  # BININT1, BININT2, BININT, LONG1
_NAME = rb"(?:\x8c.[^\x94]{0,255}+\x94|" + _REF + b")"  # SHORT_BINUNICODE MEMOIZE
# REDUCE of torch.Size and a tuple in a tuple; each is memoized, except for the empty one
_SIZE = _REF + rb"(?:(?:(?:" + _INT + rb"*+[\x85-\x87]|\(" + _INT + rb"*+t)\x94|\))\x85\x94R\x94)?+"
_BEGUN = rb"\)\x81\x94\}\x94\("  # EMPTY_TUPLE NEWOBJ MEMOIZE EMPTY_DICT MEMOIZE MARK: an instance, and its state
_BUILT = rb"ub"  # SETITEMS BUILD
_LIST = rb"\]\x94"  # EMPTY_LIST MEMOIZE


def _pattern(*parts: bytes) -> re.Pattern[bytes]:
    return re.compile(b"".join(parts), re.DOTALL)


def _part(name: str, *parts: bytes) -> bytes:
    return b"(?P<" + name.encode() + b">" + b"".join(parts) + b")"


# {"offsets": size, "sizes": size}; once to find them one after the other, and once to take one apart
CHUNK_RECORD = _pattern(_REF, _BEGUN, _REF, _SIZE, _REF, _SIZE, _BUILT)
CHUNK_PARTS = _pattern(
    _part("kind", _REF), _BEGUN, _part("offsets_key", _REF), _part("offsets", _SIZE),
    _part("sizes_key", _REF), _part("sizes", _SIZE), _BUILT,
)  # fmt: skip
# {"properties": its state a tuple of dtype, layout, requires_grad, memory format, pin_memory; "size": size,
# "chunks": list}. This is everything up to the list, which is still empty.
TENSOR_HEAD = _pattern(
    _part("kind", _REF), _BEGUN, _part("properties_key", _REF), _part("properties", _REF), rb"\)\x81\x94\(",
    _part("dtype", _REF), _part("layout", _REF), rb"[\x88\x89]", _part("memory_format", _REF), rb"[\x88\x89]t\x94b",
    _part("size_key", _REF), _part("size", _SIZE), _part("chunks_key", _REF), _LIST,
)  # fmt: skip
# An index: {"fqn": name, "index": number or None, "offset": size}; and what is stored: {"relative_path": name,
# "offset": number, "length": number, "transform_descriptors": a list of one name, or nothing}. It is cut where what
# comes again and again ends: after the name, after the last "offset", and after its number.
_NAMED = (_REF, _BEGUN, _REF, _NAME)
_PLACED = (_REF, rb"(?:N|", _INT, rb")(?:", _REF, _SIZE, rb")?+", _BUILT, _REF, _BEGUN, _REF, _NAME, _REF)
_SIZED = (_REF, _INT, rb"(?:", _REF, _LIST, _NAME, rb"a)?+", _BUILT)
ITEM_RECORD = _pattern(
    _part("named", *_NAMED), _part("placed", *_PLACED), _part("start", _INT), _part("sized", *_SIZED)
)
NAMED_PARTS = _pattern(_part("kind", _REF), _BEGUN, _part("name_key", _REF), _part("name", _NAME))
PLACED_PARTS = _pattern(
    _part("index_key", _REF), rb"(?:N|", _INT, rb")(?:", _part("offset_key", _REF), _part("offset", _SIZE), rb")?+",
    _BUILT, _part("kind", _REF), _BEGUN, _part("path_key", _REF), _part("path", _NAME), _part("start_key", _REF),
)  # fmt: skip
SIZED_PARTS = _pattern(
    _part("length_key", _REF), _part("length", _INT),
    rb"(?:", _part("transforms_key", _REF), _LIST, _part("transform", _NAME), rb"a)?+", _BUILT,
)  # fmt: skip
_INTS = _pattern(_INT)


class Other(Exception):
    """The record is of another class, or has other fields."""


class Meanings(dict[bytes, Any]):
    """What parts of the pickle mean, worked out when they first occur. The memo only grows, so that stays true."""

    def __init__(self, meaning: Callable[[bytes], Any]) -> None:
        # a method of the owner of these: weak, or all this and the memo would stay until the next collection
        self._meaning = weakref.WeakMethod(meaning)

    def __missing__(self, part: bytes) -> Any:
        work_out = self._meaning()
        assert work_out is not None
        if len(self) >= MOST_MEANINGS:
            self.clear()
        meaning = self[part] = work_out(part)
        return meaning


class RecordReader:
    """Reads parts of records; ``puts`` is what they add to the memo."""

    def __init__(self, memo: list[Any]) -> None:
        self.memo, self._values = memo, Meanings(self._value)

    def begin(self, data: bytes, at: int, kind: Class) -> int:
        """Where the record begins: a reference to its class, EMPTY_TUPLE and NEWOBJ lie before ``at``."""
        number = data[at - 3]
        short = data[at - 4] == ord("h") and number < len(self.memo) and self.memo[number] is kind
        return at - 4 if short else at - 7

    def parts(self, pattern: re.Pattern[bytes], record: bytes, **expected: Class | str) -> dict[str, Any]:
        """The named parts of a record; some of them, if present, refer to what is expected."""
        found = pattern.fullmatch(record)
        if found is None:
            raise Other
        parts = found.groupdict()
        for name, value in expected.items():
            if parts[name] is not None:
                self._check(parts[name], value)
        return parts

    def _check(self, ref: bytes, expected: Any) -> None:
        value = self._values[ref]
        if value is not expected and not (type(value) is str and value == expected):
            raise Other

    def check_known(self, *refs: bytes) -> None:
        """Whatever they refer to: it must be there."""
        for ref in refs:
            self._values[ref]

    def number(self, part: bytes) -> int:
        code = part[0]
        return int.from_bytes(part[2 if code == 0x8A else 1 :], "little", signed=code in b"J\x8a")

    def name(self, part: bytes) -> tuple[str, tuple[Any, ...]]:
        if part[:1] == b"\x8c":
            if len(part) != part[1] + 3:
                raise Other  # the MEMOIZE that was found is a byte of the text
            name = str(part[2:-1], "utf-8", "surrogatepass")
            return name, (name,)
        value = self._values[part]
        if type(value) is not str:
            raise Other
        return value, ()

    def size(self, part: bytes) -> tuple[tuple[int, ...], tuple[Any, ...]]:
        width = 2 if part.startswith(b"h") else 5  # of the reference with which it begins
        if len(part) == width:
            value = self._values[part]
            if type(value) is not tuple or not {int}.issuperset(map(type, value)):
                raise Other
            return value, ()
        self._check(part[:width], size)
        if part[width] == ord(")"):
            return (), (HIDDEN, ())
        numbers = tuple(map(self.number, _INTS.findall(part, width)))
        if part[-6] != ord("t") and len(numbers) != part[-6] - 0x84:  # TUPLE1, TUPLE2, TUPLE3
            raise Other
        return numbers, (numbers, HIDDEN, numbers)

    def _value(self, ref: bytes) -> Any:
        index = int.from_bytes(ref[1:], "little")
        if index >= len(self.memo):
            raise Other
        return self.memo[index]
