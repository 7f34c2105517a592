"""Opcodes of classes and instances: names and records, and calls of the functions that were handed over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from dcptools._pickle.plain import utf8
from dcptools._pickle.stack import Stack
from dcptools._pickle.values import Class, Placeholder, Record, Shortcut, type_name
from dcptools._text import printable
from dcptools.errors import UnsafeMetadata

MAX_NAME = 500  # characters of a module and a class
MAX_FOREIGN = 1000  # names that are not known

# Whoever names one of these modules wants to run something; Python 2 calls builtins __builtin__
_NOT_DATA = sys.stdlib_module_names | {"__builtin__"}
# ... or has plain values of the standard library in planner_data, which are foreign classes like others
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


class ClassOpcodes(Stack):
    def __init__(
        self,
        data: bytes,
        what: str,
        allowed: Mapping[str, Any],
        alike: Mapping[str, Class],
        persistent: Callable[[Any], Any] | None,
        shortcuts: Callable[[list[Any]], Mapping[Class, Shortcut]] | None,
    ) -> None:
        super().__init__(data, what)
        self.shortcuts = shortcuts(self.memo) if shortcuts is not None else {}
        self._allowed, self._alike, self._persistent = allowed, alike, persistent
        self.foreign: dict[str, Class] = {}

    def global_(self, at: int) -> int:
        line, name = self.data.find(b"\n", at), -1
        if line >= 0:
            name = self.data.find(b"\n", line + 1)
        if name < 0:
            return self.missing()
        self.stack.append(self._find(utf8(self.data[at:line]), utf8(self.data[line + 1 : name])))
        return name + 1

    def stack_global(self, at: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("the name of a class is not a string")
        self.stack.append(self._find(module, name))
        return at

    def _find(self, module: str, name: str) -> Any:
        """What a name stands for: what is allowed, or a stand-in for what is not known."""
        if len(module) + len(name) > MAX_NAME:
            raise self.refused(f"names a class of {len(module) + len(name):,} characters")
        full = f"{module}.{name}"
        if full in self._allowed:
            return self._allowed[full]
        top = module.partition(".")[0]
        if (top in _NOT_DATA and full not in _PLAIN_VALUES) or (top == "torch" and "." in name):
            raise UnsafeMetadata(
                f"{self.what} asks for {printable(full)[:200]}, which no checkpoint needs.\n"
                "It was not imported, and nothing was run. Do not load this file with torch either."
            )
        if len(self.foreign) >= MAX_FOREIGN and full not in self.foreign:
            raise self.refused(f"names more than {MAX_FOREIGN:,} unknown classes")
        return self.foreign.setdefault(full, self._alike.get(name) or Class(full))

    def reduce(self, at: int) -> int:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple:
            raise ValueError("arguments are not a tuple")
        if type(function) is Class:
            self.stack.append(Record(function))
        elif callable(function):
            self.stack.append(function(*arguments))
        else:
            raise ValueError(f"{type_name(function)} is called")
        return at

    def newobj(self, at: int) -> int:
        _arguments, made = self.stack.pop(), self.stack.pop()
        if type(made) is not Class:
            raise ValueError(f"{type_name(made)} is not a class")
        shortcut = self.shortcuts.get(made)
        if shortcut is not None and (taken := shortcut(self.data, at)) is not None:
            if isinstance(taken[0][-1], Placeholder) and self.data[taken[1] : taken[1] + 1] in (b"\x94", b"q", b"r"):
                raise ValueError("a record that was read in one step with others is memoized")
            self.stack += taken[0]
            return taken[1]
        self.stack.append(Record(made))
        return at

    def build(self, at: int) -> int:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is not Record:
            raise ValueError(f"{type_name(target)} is given a state")
        if target.kind.name not in self.foreign:  # whose state nobody looks at
            if type(state) is dict:  # pickle copies it: what is set in it afterwards is not the instance's
                self.charge(len(state), at)
                state = state.copy()
            target.state = state
        return at

    def persid(self, at: int) -> int:
        if self._persistent is None:
            raise UnsafeMetadata(f"{self.what} has a persistent id, which does not belong there.")
        self.stack.append(self._persistent(self.stack.pop()))
        return at
