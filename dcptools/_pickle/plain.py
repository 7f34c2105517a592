"""Opcodes of plain values."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from dcptools._pickle.stack import Stack


class PlainOpcodes(Stack):
    def proto(self, at: int) -> int:
        return at + 1

    def frame(self, at: int) -> int:
        nbytes = int.from_bytes(self.data[at : at + 8], "little")
        return at + 8 if at + 8 + nbytes <= len(self.data) else self.missing()

    def none(self, at: int) -> int:
        self.stack.append(None)
        return at

    def true(self, at: int) -> int:
        self.stack.append(True)
        return at

    def false(self, at: int) -> int:
        self.stack.append(False)
        return at

    def int2(self, at: int) -> int:
        self.stack.append(int.from_bytes(self.data[at : at + 2], "little"))
        return at + 2

    def int4(self, at: int) -> int:
        self.stack.append(int.from_bytes(self.data[at : at + 4], "little", signed=True))
        return at + 4

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

    def _counted(self, at: int, width: int, convert: Callable[[bytes], Any]) -> int:
        start = at + width
        end = start + int.from_bytes(self.data[at:start], "little")
        if end > len(self.data):
            return self.missing()
        self.stack.append(convert(self.data[start:end]))
        return end

    def text4(self, at: int) -> int:
        return self._counted(at, 4, utf8)

    def bytes1(self, at: int) -> int:
        return self._counted(at, 1, bytes)

    def bytes4(self, at: int) -> int:
        return self._counted(at, 4, bytes)

    def string1(self, at: int) -> int:
        return self._counted(at, 1, _latin1)

    def string4(self, at: int) -> int:
        return self._counted(at, 4, _latin1)


def utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _latin1(raw: bytes) -> str:
    return raw.decode("latin-1")
