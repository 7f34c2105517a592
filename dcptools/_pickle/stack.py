"""The machine's stack, marks and memo, and how it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcptools._pickle.values import Class, Shortcut
from dcptools.errors import UnsafeMetadata


class Stack:
    """What all opcodes work on.

    Each handler gets the place after its opcode, and returns the one after its operand.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what = data, what
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: list[Any] = []
        self.shortcuts: Mapping[Class, Shortcut] = {}
        self._work = 0

    def missing(self) -> int:
        """A place past the end: the operand is not there."""
        return len(self.data) + 1

    def popped(self) -> list[Any]:
        """What lies above the last mark."""
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    def charge(self, count: int, at: int) -> None:
        """Count what is copied: in a pickle that was written by pickle, each part of it has bytes of its own."""
        self._work += count
        if self._work > len(self.data):
            raise self.unsafe(at - 1, "it copies the same things again and again")

    def refused(self, why: str) -> UnsafeMetadata:
        return UnsafeMetadata(
            f"{self.what} is refused: it {why}, as no checkpoint does.\nIt was not loaded, and nothing of it was run."
        )

    def refusal(self, at: int) -> UnsafeMetadata:
        return self.unsafe(at, f"is {self.data[at : at + 1]!r}, an instruction that no checkpoint needs")

    def unsafe(self, at: int, why: str) -> UnsafeMetadata:
        return UnsafeMetadata(
            f"{self.what} is refused: at byte {at:,} {why}.\nIt was not loaded, and nothing of it was run."
        )
