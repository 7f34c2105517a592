"""Checks of single fields of untrusted values, as those of ``.metadata``; each gives the path to the wrong field."""

from __future__ import annotations

import reprlib
from typing import Any

from dcptools._pickle import Class, Record, type_name

TOO_LARGE = 2**62  # elements or bytes; sums of two still fit in 64 bits
LONGEST_KEY = 4096  # characters
MOST_DIMS = 64  # of a tensor; torch has no larger ones


class Wrong(Exception):
    """A field that is not as it must be. Each layer puts its own part in front of the field's name."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"

    def inside(self, outer: str) -> Wrong:
        return Wrong(outer + self.field, self.problem)


def expected(field: str, expected: str, found: Any) -> Wrong:
    """``found`` is untrusted: it is shown only if it is short."""
    shown = REPR.repr(found) if type(found) in _SHOWN else f"a {type_name(found)}"
    return Wrong(field, f"expected {expected}, found {shown}")


def no_field(where: str, error: KeyError) -> Wrong:
    return Wrong(where, f"expected a field {error.args[0]}, found none")


_SHOWN = (str, bytes, int, float, bool, tuple, list, type(None))


class _Repr(reprlib.Repr):
    """Short, and of what is not plain data only the type: Python itself would show where it lies in memory."""

    def repr_instance(self, x: Any, level: int) -> str:
        return super().repr_instance(x, level) if type(x) in _SHOWN else f"<{type_name(x)}>"


REPR = _Repr()
REPR.maxstring = REPR.maxother = REPR.maxlong = 200
REPR.maxlevel = 2


def is_record(value: Any, kind: Class) -> bool:
    return type(value) is Record and value.kind is kind


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a record; none for anything else."""
    return record.state if type(record) is Record and type(record.state) is dict else {}


def dict_of(fields: dict[str, Any], name: str) -> dict[Any, Any]:
    if name not in fields:
        raise Wrong(name, "expected a dict, found nothing")
    value = fields[name]
    if not isinstance(value, dict):
        raise expected(name, "a dict", value)
    return value


def text_of(value: Any, field: str, longest: int | None = LONGEST_KEY) -> str:
    if type(value) is not str:
        raise expected(field, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no file can hold
        raise expected(field, "a string of Unicode", value) from None
    if longest is not None and len(value) > longest:
        raise expected(field, f"a string of at most {longest:,} characters", value)
    return value


def number_of(value: Any, field: str) -> int:
    if type(value) is not int or not 0 <= value < TOO_LARGE:
        raise expected(field, "a number of bytes below 2**62", value)
    return value


def is_integers(value: Any) -> bool:
    """Whether it is a tuple of integers, and no more than a tensor has dimensions: fast to hash and to multiply."""
    return type(value) is tuple and len(value) <= MOST_DIMS and _INTEGERS.issuperset(map(type, value))


_INTEGERS = {int}
