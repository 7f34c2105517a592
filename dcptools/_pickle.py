"""Unpickle untrusted bytes without running anything: an opcode gate, then an allow-list of exact names.

Python's own C unpickler does the work, since a checkpoint of a million chunks has fifty million opcodes. Two
things make that safe. First, :func:`gate` walks over every opcode and admits only those that a checkpoint needs,
so the memo cannot be blown up (``LONG_BINPUT`` with a large index makes the C code allocate 16 bytes an index),
and no opcode reaches ``copyreg`` or a persistent-id hook that was not meant. Second, ``find_class`` never imports: a
name is looked up in a table that the caller made for this one load, so nothing that the pickle does to the
objects it gets (``BUILD`` may set attributes of classes) outlives it.

What remains possible is to be slow: nested tuples as dict keys are hashed over and over. The gate stops the plain
forms of that.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dcptools.errors import BrokenCheckpoint, UnsafeMetadata

# Opcodes from CPython's pickletools. Strings with a 4-byte length are left out of the expression and handled
# one at a time: pickles of protocol 4 and later, which is what DCP writes, have next to none.
_PLAIN = re.escape(b"(.)]}N\x88\x89\x85\x86\x87\x8f\x90\x91\x93\x94\x81Rbsuaetld")
_ONE = re.escape(b"Khq\x80")  # BININT1, BINGET, BINPUT, PROTO
_COUNTED = b"|".join(b"\\x%02x.{%d}" % (n, n) for n in range(256))
_RUN = re.compile(
    b"(?:[%s]*+(?:(?:[%s].)++|M..|[Jj].{4}|r..[\\x00-\\x3f]\\x00|[\\x8cUC\\x8a](?:%s)|[G\\x95].{8}"
    b"|c[A-Za-z0-9_.]{1,200}\\n[A-Za-z0-9_.]{1,200}\\n|Q|(?=[XBT])|(?<=\\.)\\Z))*+" % (_PLAIN, _ONE, _COUNTED),
    re.DOTALL,
)
# Eight tuples, one in another. A level has at most as many BINGETs as the tuple has members; more are other values on
# the stack: ``{key: (key,)}``, the planner_data of bare names, is BINGET, BINGET, TUPLE1 for each key, and harmless.
_NESTED = re.compile(
    b"[\x85\x86\x87t](?:(?:\x94|q.)*+(?:(?:h.)?\x85|(?:h.){0,2}\x86|(?:h.){0,3}\x87|(?:h.)*+t)){7}", re.DOTALL
)
_LONG_STRINGS = b"XBT"  # BINUNICODE, BINBYTES, BINSTRING: opcode, 4 bytes little-endian length, bytes


def gate(data: bytes, what: str) -> None:
    """Refuse a pickle with an opcode that no checkpoint needs, or that is cut short.

    Raises
    ------
    UnsafeMetadata
        An opcode is not admitted, or a memo index is absurd.
    BrokenCheckpoint
        The bytes end before the pickle does.
    """
    at, end = 0, len(data)
    while at < end:
        match = _RUN.match(data, at)
        at = match.end() if match else at
        if at == end:
            break
        if data[at] not in _LONG_STRINGS:
            if data[at] in b"KhqMJjr\x8cUC\x8aG\x95c\x80" and end - at < 256:
                raise BrokenCheckpoint(f"{what} ends in the middle of a value: the file is truncated.")
            raise UnsafeMetadata(
                f"{what} is not a pickle that a checkpoint would have: byte {at} is {data[at : at + 1]!r}.\n"
                "It was not loaded, and nothing of it was run."
            )
        at += 5 + int.from_bytes(data[at + 1 : at + 5], "little")
    nested = _NESTED.search(data)
    if nested:
        raise UnsafeMetadata(
            f"{what} nests tuples, at byte {nested.start()}, as no checkpoint does. It was not loaded."
        )
    if at > end or not data.endswith(b"."):
        raise BrokenCheckpoint(f"{what} has no end: the file is truncated.")


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

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


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
        if top in sys.stdlib_module_names or (top == "torch" and "." in name):
            raise UnsafeMetadata(
                f"{self._what} asks for {full}, which no checkpoint needs.\n"
                "It was not imported, and nothing was run. Do not load this file with torch either."
            )
        if full not in self.foreign:
            self.foreign[full] = type("Stub", (Stub,), {"__qualname__": f"Stub[{full}]"})
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
