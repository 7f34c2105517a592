"""Read untrusted pickles: a machine of our own for the few opcodes that a checkpoint needs.

A pickle is a program for a machine with a stack and a memo (CPython's ``pickletools.py`` describes it). This machine
knows plain data, and two things more: a class is a :class:`Class`, which is a name, and an instance is a
:class:`Record`, which is its class and its state. No module is imported; what can be called are the functions that
the caller hands over, by their exact names. So there is nothing that a pickle could run, or change for the next one.

A Python program is slow at this, and a checkpoint of a million chunks has fifty million opcodes. But they are a
million times the same few ones. A *shortcut*, which the caller hands over for a class, takes all that the machine
would do for many instances that follow each other in one step.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from dcptools._text import printable
from dcptools.errors import BrokenCheckpoint, UnsafeMetadata

MAX_DEPTH = 8  # of tuples in tuples; a checkpoint has two
MAX_KEY = 100  # members of a tuple that is a key, those of tuples in it included; hashed each time it is looked up

# Who names one of these modules wants to run something; Python 2 calls builtins __builtin__
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
    """Raised by a function that is handed over: what it is asked for is not what a checkpoint asks for."""


class _Hidden:
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


def loads(
    data: bytes,
    *,
    what: str,
    allowed: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
    shortcuts: Callable[[list[Any]], Mapping[Class, Shortcut]] | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """The value of a pickle, and the names in it that are not ``allowed``, which became a :class:`Class` each.

    ``allowed`` says what ``module.name`` stands for: a function, which may be called with whatever is in the pickle; a
    :class:`Class`; or a constant. ``persistent`` gives the value of a persistent id. ``what`` is how errors call it.
    ``shortcuts`` gives, for the memo of the machine, what may take instances of a class in one step.

    Raises
    ------
    UnsafeMetadata
        The pickle has an opcode that no checkpoint needs, names what only one that runs something would name, or nests
        tuples so that to look at them takes for ever.
    BrokenCheckpoint
        It is no pickle, ends too early, or does not make sense.

    Examples
    --------
    >>> import pickle
    >>> loads(pickle.dumps({"lr": 0.1, "shape": (2, 3)}), what="It", allowed={})
    ({'lr': 0.1, 'shape': (2, 3)}, ())
    """
    if not data.startswith(b"\x80"):  # PROTO; DCP never wrote protocol 0 or 1, which have none
        raise BrokenCheckpoint(f"{what} is not a pickle: it starts with {data[:24]!r}.")
    return _Machine(data, what, allowed, persistent, shortcuts).run()


class _Machine:
    def __init__(
        self,
        data: bytes,
        what: str,
        allowed: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None,
        shortcuts: Callable[[list[Any]], Mapping[Class, Shortcut]] | None,
    ) -> None:
        self._data, self._what = data, what
        self._allowed, self._persistent = allowed, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: list[Any] = []
        self._shortcuts = {} if shortcuts is None else shortcuts(self._memo)
        self._deep: dict[int, tuple[int, tuple[Any, ...]]] = {}  # tuples with tuples in them, by id: depth, itself
        self._foreign: dict[str, Class] = {}

    def run(self) -> tuple[Any, tuple[str, ...]]:
        data, stack, memo, handlers = self._data, self._stack, self._memo, _HANDLERS
        push = stack.append
        at = 0
        try:
            while True:
                code = data[at]
                at += 1
                # the frequent ones first, and here: to call something takes longer than what they do
                if code == 0x94:  # MEMOIZE
                    memo.append(stack[-1])
                elif code == 0x68:  # BINGET
                    push(memo[data[at]])
                    at += 1
                elif code == 0x8C:  # SHORT_BINUNICODE
                    start = at + 1
                    at = start + data[at]
                    push(str(data[start:at], "utf-8", "surrogatepass"))
                elif code == 0x4B:  # BININT1
                    push(data[at])
                    at += 1
                elif code == 0x28:  # MARK
                    self._marks.append(len(stack))
                elif code == 0x2E:  # STOP
                    break
                else:
                    handler = handlers.get(code)
                    if handler is None:
                        raise self._refusal(at - 1)
                    at = handler(self, at)
            value = stack.pop()
        except (UnsafeMetadata, BrokenCheckpoint):
            raise
        except Refused as refused:
            raise UnsafeMetadata(f"{self._what} {refused}") from None
        except Exception as error:
            if at >= len(data):
                cut = "has no end" if at == len(data) else "ends in the middle of a value"
                raise BrokenCheckpoint(f"{self._what} {cut}: it is truncated.") from None
            raise BrokenCheckpoint(f"{self._what} cannot be unpickled: {error or type(error).__name__}.") from None
        if at < len(data):
            raise BrokenCheckpoint(f"{self._what} goes on after its end: {len(data) - at:,} bytes too many.")
        return value, tuple(sorted(self._foreign))

    # Each handler gets the place behind its opcode, and returns the place behind its operand.

    def _proto(self, at: int) -> int:
        return at + 1

    def _frame(self, at: int) -> int:
        nbytes = int.from_bytes(self._data[at : at + 8], "little")
        return at + 8 if at + 8 + nbytes <= len(self._data) else self._missing()

    def _missing(self) -> int:
        """A place behind the end: the operand is not there."""
        return len(self._data) + 1

    # --- plain values

    def _none(self, at: int) -> int:
        self._stack.append(None)
        return at

    def _true(self, at: int) -> int:
        self._stack.append(True)
        return at

    def _false(self, at: int) -> int:
        self._stack.append(False)
        return at

    def _int2(self, at: int) -> int:
        self._stack.append(int.from_bytes(self._data[at : at + 2], "little"))
        return at + 2

    def _int4(self, at: int) -> int:
        self._stack.append(int.from_bytes(self._data[at : at + 4], "little", signed=True))
        return at + 4

    def _long1(self, at: int) -> int:
        end = at + 1 + self._data[at]
        self._stack.append(int.from_bytes(self._data[at + 1 : end], "little", signed=True))
        return end

    def _float(self, at: int) -> int:
        raw = self._data[at : at + 8]
        if len(raw) < 8:
            return self._missing()
        self._stack.append(struct.unpack(">d", raw)[0])
        return at + 8

    def _counted(self, at: int, width: int, convert: Callable[[bytes], Any]) -> int:
        start = at + width
        end = start + int.from_bytes(self._data[at:start], "little")
        if end > len(self._data):
            return self._missing()
        self._stack.append(convert(self._data[start:end]))
        return end

    def _text4(self, at: int) -> int:
        return self._counted(at, 4, _utf8)

    def _bytes1(self, at: int) -> int:
        return self._counted(at, 1, bytes)

    def _bytes4(self, at: int) -> int:
        return self._counted(at, 4, bytes)

    def _string1(self, at: int) -> int:
        return self._counted(at, 1, _latin1)

    def _string4(self, at: int) -> int:
        return self._counted(at, 4, _latin1)

    # --- tuples, lists, dicts, sets

    def _popped(self) -> list[Any]:
        """What lies above the last mark."""
        height = self._marks.pop()
        values = self._stack[height:]
        del self._stack[height:]
        return values

    def _push_tuple(self, values: tuple[Any, ...], at: int) -> int:
        """Refuses nested ones: whoever prints, compares or hashes them would take for ever or exhaust the C stack."""
        if tuple in map(type, values):
            depth = 1 + max(self._deep.get(id(value), _FLAT)[0] for value in values if type(value) is tuple)
            if depth > MAX_DEPTH:
                raise self._unsafe(at - 1, "it nests tuples deeper than any checkpoint does")
            self._deep[id(values)] = depth, values
        self._stack.append(values)
        return at

    def _empty_tuple(self, at: int) -> int:
        self._stack.append(())
        return at

    def _tuple1(self, at: int) -> int:
        return self._push_tuple((self._stack.pop(),), at)

    def _tuple2(self, at: int) -> int:
        second, first = self._stack.pop(), self._stack.pop()
        return self._push_tuple((first, second), at)

    def _tuple3(self, at: int) -> int:
        third, second, first = self._stack.pop(), self._stack.pop(), self._stack.pop()
        return self._push_tuple((first, second, third), at)

    def _tuple(self, at: int) -> int:
        return self._push_tuple(tuple(self._popped()), at)

    def _empty_list(self, at: int) -> int:
        self._stack.append([])
        return at

    def _list(self, at: int) -> int:
        self._stack.append(self._popped())
        return at

    def _append(self, at: int) -> int:
        return self._extend([self._stack.pop()], at)

    def _appends(self, at: int) -> int:
        return self._extend(self._popped(), at)

    def _extend(self, values: list[Any], at: int) -> int:
        target = self._stack[-1]
        if type(target) is list:
            target += values
        elif type(target) is not Record:  # which takes all, and keeps nothing
            raise ValueError(f"values are appended to {type_name(target)}")
        return at

    def _empty_dict(self, at: int) -> int:
        self._stack.append({})
        return at

    def _dict(self, at: int) -> int:
        values = self._popped()
        self._stack.append({})
        return self._set(values, at)

    def _setitem(self, at: int) -> int:
        value, key = self._stack.pop(), self._stack.pop()
        return self._set([key, value], at)

    def _setitems(self, at: int) -> int:
        return self._set(self._popped(), at)

    def _empty_set(self, at: int) -> int:
        self._stack.append(set())
        return at

    def _additems(self, at: int) -> int:
        target, values = self._stack[self._marks[-1] - 1], self._popped()
        if type(target) is set:
            target.update(self._keys(values, at))
        elif type(target) is not Record:
            raise ValueError(f"values are added to {type_name(target)}")
        return at

    def _frozenset(self, at: int) -> int:
        self._stack.append(frozenset(self._keys(self._popped(), at)))
        return at

    def _set(self, values: list[Any], at: int) -> int:
        target = self._stack[-1]
        if type(target) is dict:
            target.update(zip(self._keys(values[::2], at), values[1::2], strict=True))
        elif type(target) is not Record:
            raise ValueError(f"items are set in {type_name(target)}")
        return at

    def _keys(self, keys: list[Any], at: int) -> list[Any]:
        """Refuses what takes long to hash, because a tuple does not remember its hash."""
        for key in keys:
            if type(key) is tuple and _members(key, MAX_KEY) > MAX_KEY:
                raise self._unsafe(at - 1, "a key is a larger tuple than any checkpoint has there")
        return keys

    # --- memo

    def _get4(self, at: int) -> int:
        self._stack.append(self._memo[int.from_bytes(self._data[at : at + 4], "little")])
        return at + 4

    def _put(self, index: int, at: int) -> int:
        """Protocol 3 and older give numbers. They count up too: a large one would only blow up the memo."""
        if index > len(self._memo):
            raise self._refusal(at - 1)
        self._memo[index : index + 1] = [self._stack[-1]]
        self._shortcuts = {}  # what they learnt from the memo may be another value now
        return at

    def _put1(self, at: int) -> int:
        return self._put(self._data[at], at) + 1

    def _put4(self, at: int) -> int:
        return self._put(int.from_bytes(self._data[at : at + 4], "little"), at) + 4

    # --- classes and instances

    def _global(self, at: int) -> int:
        line, name = self._data.find(b"\n", at), -1
        if line >= 0:
            name = self._data.find(b"\n", line + 1)
        if name < 0:
            return self._missing()
        self._stack.append(self._find(_utf8(self._data[at:line]), _utf8(self._data[line + 1 : name])))
        return name + 1

    def _stack_global(self, at: int) -> int:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("the name of a class is not a text")
        self._stack.append(self._find(module, name))
        return at

    def _find(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._allowed:
            return self._allowed[full]
        top = module.partition(".")[0]
        if (top in _NOT_DATA and full not in _PLAIN_VALUES) or (top == "torch" and "." in name):
            raise UnsafeMetadata(
                f"{self._what} asks for {printable(full)[:200]}, which no checkpoint needs.\n"
                "It was not imported, and nothing was run. Do not load this file with torch either."
            )
        return self._foreign.setdefault(full, Class(full))

    def _reduce(self, at: int) -> int:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple:
            raise ValueError("arguments are not a tuple")
        if type(function) is Class:
            self._stack.append(Record(function))
        elif callable(function):
            self._stack.append(function(*arguments))
        else:
            raise ValueError(f"{type_name(function)} is called")
        return at

    def _newobj(self, at: int) -> int:
        _arguments, made = self._stack.pop(), self._stack.pop()
        if type(made) is not Class:
            raise ValueError(f"{type_name(made)} is no class")
        shortcut = self._shortcuts.get(made)
        if shortcut is not None and (taken := shortcut(self._data, at)) is not None:
            self._stack += taken[0]
            return taken[1]
        self._stack.append(Record(made))
        return at

    def _build(self, at: int) -> int:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is not Record:
            raise ValueError(f"{type_name(target)} is given a state")
        if target.kind.name not in self._foreign:  # of which nobody looks at the state
            target.state = state
        return at

    def _persid(self, at: int) -> int:
        if self._persistent is None:
            raise UnsafeMetadata(f"{self._what} has a persistent id, which does not belong there.")
        self._stack.append(self._persistent(self._stack.pop()))
        return at

    # --- errors

    def _refusal(self, at: int) -> UnsafeMetadata:
        return self._unsafe(at, f"is {self._data[at : at + 1]!r}, an instruction that no checkpoint needs")

    def _unsafe(self, at: int, why: str) -> UnsafeMetadata:
        return UnsafeMetadata(
            f"{self._what} is refused: at byte {at:,} {why}.\nIt was not loaded, and nothing of it was run."
        )


_FLAT = 0, ()


def _members(value: tuple[Any, ...], most: int) -> int:
    """How many there are in a tuple and those in it; stops counting soon after ``most``."""
    count = len(value)
    for member in value:
        if count > most:
            break
        if type(member) is tuple:
            count += _members(member, most - count)
    return count


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _latin1(raw: bytes) -> str:
    return raw.decode("latin-1")


# Nothing else of pickle is used than the names of its opcodes
_HANDLERS: Final[dict[int, Callable[[_Machine, int], int]]] = {
    pickle.PROTO[0]: _Machine._proto,
    pickle.FRAME[0]: _Machine._frame,
    pickle.NONE[0]: _Machine._none,
    pickle.NEWTRUE[0]: _Machine._true,
    pickle.NEWFALSE[0]: _Machine._false,
    pickle.BININT2[0]: _Machine._int2,
    pickle.BININT[0]: _Machine._int4,
    pickle.LONG1[0]: _Machine._long1,
    pickle.BINFLOAT[0]: _Machine._float,
    pickle.BINUNICODE[0]: _Machine._text4,
    pickle.SHORT_BINBYTES[0]: _Machine._bytes1,
    pickle.BINBYTES[0]: _Machine._bytes4,
    pickle.SHORT_BINSTRING[0]: _Machine._string1,
    pickle.BINSTRING[0]: _Machine._string4,
    pickle.EMPTY_TUPLE[0]: _Machine._empty_tuple,
    pickle.TUPLE1[0]: _Machine._tuple1,
    pickle.TUPLE2[0]: _Machine._tuple2,
    pickle.TUPLE3[0]: _Machine._tuple3,
    pickle.TUPLE[0]: _Machine._tuple,
    pickle.EMPTY_LIST[0]: _Machine._empty_list,
    pickle.LIST[0]: _Machine._list,
    pickle.APPEND[0]: _Machine._append,
    pickle.APPENDS[0]: _Machine._appends,
    pickle.EMPTY_DICT[0]: _Machine._empty_dict,
    pickle.DICT[0]: _Machine._dict,
    pickle.SETITEM[0]: _Machine._setitem,
    pickle.SETITEMS[0]: _Machine._setitems,
    pickle.EMPTY_SET[0]: _Machine._empty_set,
    pickle.ADDITEMS[0]: _Machine._additems,
    pickle.FROZENSET[0]: _Machine._frozenset,
    pickle.LONG_BINGET[0]: _Machine._get4,
    pickle.BINPUT[0]: _Machine._put1,
    pickle.LONG_BINPUT[0]: _Machine._put4,
    pickle.GLOBAL[0]: _Machine._global,
    pickle.STACK_GLOBAL[0]: _Machine._stack_global,
    pickle.REDUCE[0]: _Machine._reduce,
    pickle.NEWOBJ[0]: _Machine._newobj,
    pickle.BUILD[0]: _Machine._build,
    pickle.BINPERSID[0]: _Machine._persid,
}
