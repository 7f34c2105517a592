"""Opcodes of plain values."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from dcptools._pickle.stack import Stack


def pushing(make: Callable[[], Any]) -> Callable[[Stack, int], int]:
    """The handler of an opcode without an operand that puts a new value onto the stack."""

    def handler(machine: Stack, at: int) -> int:
        machine.stack.append(make())
        return at

    return handler


def _integer(width: int, *, signed: bool) -> Callable[[Stack, int], int]:
    def handler(machine: Stack, at: int) -> int:
        machine.stack.append(int.from_bytes(machine.data[at : at + width], "little", signed=signed))
        return at + width

    return handler


def _counted(width: int, convert: Callable[[bytes], Any]) -> Callable[[Stack, int], int]:
    """The handler of an opcode with a count of that many bytes, followed by as many bytes as the count says."""

    def handler(machine: Stack, at: int) -> int:
        start = at + width
        end = start + int.from_bytes(machine.data[at:start], "little")
        if end > len(machine.data):
            return machine.missing()
        machine.stack.append(convert(machine.data[start:end]))
        return end

    return handler


def utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _latin1(raw: bytes) -> str:
    return raw.decode("latin-1")


class PlainOpcodes(Stack):
    none, true, false = pushing(lambda: None), pushing(lambda: True), pushing(lambda: False)
    int2, int4 = _integer(2, signed=False), _integer(4, signed=True)
    text4, bytes1, bytes4 = _counted(4, utf8), _counted(1, bytes), _counted(4, bytes)
    string1, string4 = _counted(1, _latin1), _counted(4, _latin1)

    def proto(self, at: int) -> int:
        return at + 1

    def frame(self, at: int) -> int:
        nbytes = int.from_bytes(self.data[at : at + 8], "little")
        return at + 8 if at + 8 + nbytes <= len(self.data) else self.missing()

    def long1(self, at: int) -> int:
        end = at + 1 + self.data[at]
        self.stack.append(int.from_bytes(self.data[at + 1 : end], "little", signed=True))
        return end

    def float_(self, at: int) -> int:
        raw = self.data[at : at + 8]
        if len(raw) < 8:
            return self.missing()
        self.stack.append(struct.unpack(">d", raw)[0])
        return at + 8
