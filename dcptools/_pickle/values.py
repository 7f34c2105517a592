"""What the machine makes of a pickle: plain data, and stand-ins for classes and instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dcptools._text import printable


class Class:
    """What stands for a class or function that is named and not called. Two are the same if they are one object."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name: Final = name


class Record:
    """What stands for an instance: its class, and the state that it was given."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: Class) -> None:
        self.kind: Final = kind
        self.state: Any = None


class Refused(Exception):
    """Raised by a function that was handed over: what it is asked to do is not what a checkpoint asks for."""


class Placeholder:
    """Stands for what a shortcut took; it is not part of any value."""

    __slots__ = ()


class _Hidden(Placeholder):
    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # it may stand for a list or a dict


HIDDEN: Final = _Hidden()
"""In the memo: a part of what a shortcut took. What is read of a checkpoint does not come back to it."""

Shortcut = Callable[[bytes, int], "tuple[list[Any], int] | None"]
"""Called with the pickle and the place behind a NEWOBJ. Either returns None and has changed nothing, or adds to the
memo what the machine would have added, and returns as many values as it would have left on the stack instead of the
new instance, and the place where to go on."""


def type_name(value: Any) -> str:
    """What an error calls the type of an unpickled value."""
    name = value.name if isinstance(value, Class) else type(value).__name__
    return printable(value.kind.name if isinstance(value, Record) else name)[:200]


def size(values: Any) -> tuple[Any, ...]:
    """Stands for ``torch.Size``."""
    if type(values) is not tuple:
        raise ValueError("a size is not made of a tuple")
    return values


def ordered_dict() -> dict[Any, Any]:
    """Stands for ``collections.OrderedDict``, whose items come later."""
    return {}
