"""Frozen dataclasses with slots, of which there are very many objects.

What such a class itself does to set a field takes several times as long as in another class. So an object has the class
:func:`unfrozen` until its fields are set: Python lets the class of an object be changed to one that has the same slots.
Such a dataclass has no subclasses.
"""

from __future__ import annotations

from typing import Any


def unfrozen(kind: type[Any]) -> type[Any]:
    """A class with the same slots whose fields can be set.

    >>> class Point:
    ...     __slots__ = ("x",)
    >>> point = unfrozen(Point)()
    >>> point.x = 1
    >>> point.__class__ = Point
    >>> type(point).__name__, point.x
    ('Point', 1)
    """
    return type(f"Unfrozen{kind.__name__}", (), {"__slots__": kind.__slots__})


set_class = vars(object)["__class__"].__set__  # of an object that is frozen
