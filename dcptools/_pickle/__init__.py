"""Read untrusted pickles: a machine of our own for the few opcodes that a checkpoint needs.

A pickle is a program for a machine with a stack and a memo (CPython's ``pickletools.py`` describes it). This machine
knows plain data, and two more things: a class is a :class:`Class`, which is a name, and an instance is a
:class:`Record`, which is its class and its state. No module is imported; what can be called are the functions that
the caller hands over, by their exact names. So there is nothing that a pickle could run, or change for the next one.

A Python program is slow at this, and a checkpoint of a million chunks has fifty million opcodes. But they are the
same few, a million times over. A *shortcut*, which the caller hands over for a class, does in one step all that the
machine would do for many consecutive instances.
"""

from __future__ import annotations

from dcptools._pickle.machine import loads
from dcptools._pickle.values import HIDDEN, Class, Placeholder, Record, Refused, Shortcut, ordered_dict, size, type_name

__all__ = [
    "HIDDEN",
    "Class",
    "Placeholder",
    "Record",
    "Refused",
    "Shortcut",
    "loads",
    "ordered_dict",
    "size",
    "type_name",
]
