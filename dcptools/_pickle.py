"""Unpickle untrusted bytes without running anything: an opcode gate, then an allow-list of exact names.

Python's own C unpickler does the work, since a checkpoint of a million chunks has fifty million opcodes. Two
things make that safe. First, :func:`gate` walks over every opcode and admits only those that a checkpoint needs,
so the memo cannot be blown up (``LONG_BINPUT`` with a large index makes the C code allocate 16 bytes an index),
and no opcode reaches ``copyreg`` or a persistent-id hook that was not meant. Second, ``find_class`` never imports: a
name is looked up in a table that the caller made for this one load, so nothing that the pickle does to the
objects it gets (``BUILD`` may set attributes of classes) outlives it.

What remains possible is to be slow: nested tuples as dict keys are hashed over and over. The gate stops the plain
forms of that, tuples built one around the other. It does not follow the memo, so it can be evaded; what it must not
do is to refuse a checkpoint that only looks like it.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dcptools._table import printable
from dcptools.errors import BrokenCheckpoint, UnsafeMetadata

# Opcodes from CPython's pickletools. Strings with a 4-byte length are left out of the expression and handled
# one at a time: pickles of protocol 4 and later, which is what DCP writes, have next to none.
_PLAIN = re.escape(b"(.)]}N\x88\x89\x8f\x90\x91\x93\x94\x81Rbsuaeld")
_ONE = re.escape(b"Khq\x80")  # BININT1, BINGET, BINPUT, PROTO
_COUNTED = b"|".join(b"\\x%02x.{%d}" % (n, n) for n in range(256))
_TUPLES = b"\x85\x86\x87t"  # TUPLE1, TUPLE2, TUPLE3, TUPLE
_PUSH = rb"(?:[N)\]}\x88\x89]|[Kh].|M..|[Jj].{4})"  # what puts one small value on the stack
# Seven more tuples, each around the one before: fewer values are pushed in between than the tuple takes.
_NESTED = b"(?:(?:\x94|q.|r.{4})*+(?:\x85|%s?+\x86|%s{0,2}+\x87|%s*+t)){7}" % (_PUSH, _PUSH, _PUSH)
# ``torch.Size((4, 0))``, by far the most frequent tuples: TUPLE2 MEMOIZE TUPLE1 MEMOIZE REDUCE.
_SIZE = b"[\x85\x86\x87]\x94\x85\x94R"
# Each of the frequent ones takes along what mostly follows it: the fewer are tried, the less time it takes.
_ALTERNATIVES = (
    b"(?:[%s].)++(?:%s)?+[%s]*+" % (_ONE, _SIZE, _PLAIN),
    b"[Jj].{4}[%s]*+(?:j.{4})?+" % _PLAIN,
    b"M..(?:%s)?+[%s]*+" % (_SIZE, _PLAIN),
    b"[%s]++" % _PLAIN,
    b"[%s](?!%s)" % (_TUPLES, _NESTED),
    rb"r..[\x00-\x3f]\x00",
    rb"[\x8cUC\x8a](?:%s)" % _COUNTED,
    rb"[G\x95].{8}",
    rb"c[A-Za-z0-9_.]{1,200}\n[A-Za-z0-9_.]{1,200}\n",
    b"Q",
)
_RUN = re.compile(b"(?:%s)*+" % b"|".join(_ALTERNATIVES), re.DOTALL)
_OPERANDS = {**dict.fromkeys(b"Khq\x80", 1), ord("M"): 2, **dict.fromkeys(b"Jjr", 4), **dict.fromkeys(b"G\x95", 8)}
_LONG_STRINGS = b"XBT"  # BINUNICODE, BINBYTES, BINSTRING: opcode, 4 bytes little-endian length, bytes
# Who names one of these modules wants to run something; Python 2 calls builtins __builtin__
_NOT_DATA = sys.stdlib_module_names | {"__builtin__"}
# ... or has plain values of the standard library in planner_data, which become stubs like other foreign classes
_PLAIN_VALUES = frozenset(
    f"{module}.{name}"
    for module, names in {
        "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple",
        "collections": "Counter defaultdict deque",
        "datetime": "date datetime time timedelta timezone",
        "argparse": "Namespace",
        "types": "SimpleNamespace",
        "uuid": "UUID",
        "_io": "BytesIO",
    }.items()
    for name in names.split()
)


def gate(data: bytes, what: str) -> None:
    """Refuse a pickle with an opcode that no checkpoint needs, or that is cut short.

    Raises
    ------
    UnsafeMetadata
        An opcode is not admitted, or a memo index is absurd.
    BrokenCheckpoint
        The bytes end before the pickle does.
    """
    if not data.startswith(b"\x80"):  # PROTO; DCP never wrote protocol 0 or 1, which have none
        raise BrokenCheckpoint(f"{what} is not a pickle: it starts with {data[:24]!r}.")
    at, end = 0, len(data)
    while at < end:
        match = _RUN.match(data, at)
        at = match.end() if match else at
        if at == end:
            break
        if data[at] not in _LONG_STRINGS:
            raise _refusal(data, at, what)
        at += 5 + int.from_bytes(data[at + 1 : at + 5], "little")
    if at > end or not data.endswith(b"."):
        raise BrokenCheckpoint(f"{what} has no end: it is truncated.")


def _refusal(data: bytes, at: int, what: str) -> BrokenCheckpoint:
    """Why the gate stopped at that byte."""
    if _cut_short(data, at):
        return BrokenCheckpoint(f"{what} ends in the middle of a value: it is truncated.")
    if data[at] in _TUPLES:
        why = f"at byte {at:,} it nests tuples deeper than any checkpoint does"
    else:
        why = f"at byte {at:,} is {data[at : at + 1]!r}, an instruction that no checkpoint needs"
    return UnsafeMetadata(f"{what} is refused: {why}.\nIt was not loaded, and nothing of it was run.")


def _cut_short(data: bytes, at: int) -> bool:
    """Whether the operand of the opcode at that byte does not fit in the rest."""
    code, rest = data[at], data[at + 1 : at + 403]
    if code in b"\x8cUC\x8a":
        return not rest or len(data) - at - 2 < rest[0]
    if code == ord("c"):
        return rest.count(b"\n") < 2 and len(rest) < 402
    return code in _OPERANDS and len(rest) < _OPERANDS[code]


class Stub:
    """Stands in for an instance of a class that is not on the allow-list; takes everything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


def kind(value: Any) -> str:
    """What an error calls the type of an unpickled value; a stub is called by the name it stands for."""
    return printable(type(value).__name__)[:200]


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, what: str, allowed: Mapping[str, Any], persistent: Callable[[Any], Any] | None):
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self._what, self._allowed, self._persistent = what, allowed, persistent
        self.foreign: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._allowed:
            return self._allowed[full]
        top = module.partition(".")[0]
        if (top in _NOT_DATA and full not in _PLAIN_VALUES) or (top == "torch" and "." in name):
            raise UnsafeMetadata(
                f"{self._what} asks for {printable(full)[:200]}, which no checkpoint needs.\n"
                "It was not imported, and nothing was run. Do not load this file with torch either."
            )
        if full not in self.foreign:
            self.foreign[full] = type(full, (Stub,), {})  # so an error can say what it is
        return self.foreign[full]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise UnsafeMetadata(f"{self._what} has a persistent id, which does not belong there.")
        return self._persistent(pid)


def loads(
    data: bytes, *, what: str, allowed: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None
) -> tuple[Any, tuple[str, ...]]:
    """Unpickle ``data`` with the names in ``allowed`` (``module.name`` to a stand-in) and nothing else.

    Returns the value and the names that were replaced by inert stubs. The stand-ins must be made anew for each
    call: a pickle can set attributes on them.

    Raises
    ------
    UnsafeMetadata, BrokenCheckpoint
        As :func:`gate`; also for names of the standard library, and for whatever the unpickler stumbles over.
    """
    gate(data, what)
    unpickler = _Unpickler(data, what, allowed, persistent)
    try:
        value = unpickler.load()
    except UnsafeMetadata:
        raise
    except Exception as error:
        raise BrokenCheckpoint(f"{what} cannot be unpickled: {error or type(error).__name__}.") from None
    return value, tuple(sorted(unpickler.foreign))
