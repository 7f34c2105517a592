"""Opcodes of tuples, lists, dicts and sets, and of the memo.

What is put together here is bounded, because comparing, hashing or printing it later might never end: tuples and
sets can have the same parts again and again, through the memo.
"""

from __future__ import annotations

from typing import Any

from dcptools._pickle.plain import pushing
from dcptools._pickle.stack import Stack
from dcptools._pickle.values import Placeholder, Record, type_name

MAX_DEPTH = 8  # of tuples in tuples; a checkpoint has two
MAX_KEY = 100  # members of a tuple that is a key, including those of tuples in it; hashed each time it is looked up
MAX_KEY_TEXT = 4096  # characters or bytes of a key; compared with an equal one each time it is looked up
MAX_TUPLE_KEYS = 1000  # of all dicts and sets; others can be made to have the same hash, as large integers can
MAX_INTEGER_KEY = 2**61 - 1  # CPython's hash of an integer is its remainder by that
_PLAIN = {int, str, float, bool, bytes, type(None)}


class ContainerOpcodes(Stack):
    empty_tuple, empty_list, empty_dict, empty_set = pushing(tuple), pushing(list), pushing(dict), pushing(set)

    def __init__(self, data: bytes, what: str, *rest: Any) -> None:
        super().__init__(data, what, *rest)
        self._deep: dict[int, tuple[int, tuple[Any, ...]]] = {}  # tuples with tuples in them, by id: depth, itself
        self._tuple_keys = 0

    def _push_tuple(self, values: tuple[Any, ...], at: int) -> int:
        """Refuses nested ones: printing, comparing or hashing them would take forever or exhaust the C stack."""
        if not _PLAIN.issuperset(map(type, values)):
            depth = 1 + max(self._deep.get(id(value), _FLAT)[0] for value in values)
            if depth > MAX_DEPTH:
                raise self.unsafe(at - 1, "it nests tuples more deeply than any checkpoint does")
            if any(isinstance(value, Placeholder) for value in values):
                raise ValueError("a tuple has a record that was read in one step with others")
            if any(type(value) is tuple for value in values):
                self._deep[id(values)] = depth, values
        self.stack.append(values)
        return at

    def tuple1(self, at: int) -> int:
        return self._push_tuple((self.stack.pop(),), at)

    def tuple2(self, at: int) -> int:
        second, first = self.stack.pop(), self.stack.pop()
        return self._push_tuple((first, second), at)

    def tuple3(self, at: int) -> int:
        third, second, first = self.stack.pop(), self.stack.pop(), self.stack.pop()
        return self._push_tuple((first, second, third), at)

    def tuple_(self, at: int) -> int:
        return self._push_tuple(tuple(self.popped()), at)

    def list_(self, at: int) -> int:
        self.stack.append(self.popped())
        return at

    def append(self, at: int) -> int:
        return self._extend([self.stack.pop()], at)

    def appends(self, at: int) -> int:
        return self._extend(self.popped(), at)

    def _extend(self, values: list[Any], at: int) -> int:
        """Add values to the list on top of the stack."""
        target = self.stack[-1]
        if type(target) is list:
            target += values
        elif type(target) is not Record:  # which takes all, and keeps nothing
            raise ValueError(f"values are appended to {type_name(target)}")
        return at

    def dict_(self, at: int) -> int:
        values = self.popped()
        self.stack.append({})
        return self._set(values, at)

    def setitem(self, at: int) -> int:
        value, key = self.stack.pop(), self.stack.pop()
        return self._set([key, value], at)

    def setitems(self, at: int) -> int:
        return self._set(self.popped(), at)

    def additems(self, at: int) -> int:
        target, values = self.stack[self.marks[-1] - 1], self.popped()
        if type(target) is set:
            target.update(self._keys(values, at))
        elif type(target) is not Record:
            raise ValueError(f"values are added to {type_name(target)}")
        return at

    def frozenset_(self, at: int) -> int:
        self.stack.append(frozenset(self._keys(self.popped(), at)))
        return at

    def _set(self, values: list[Any], at: int) -> int:
        """Set keys and values, one after another, in the dict on top of the stack."""
        target = self.stack[-1]
        if type(target) is dict:
            target.update(zip(self._keys(values[::2], at), values[1::2], strict=True))
        elif type(target) is not Record:
            raise ValueError(f"items are set in {type_name(target)}")
        return at

    def _keys(self, keys: list[Any], at: int) -> list[Any]:
        """Refuses what takes a long time to hash or to compare."""
        for key in keys:
            kind = type(key)
            if kind is tuple:
                self._tuple_keys += 1
                if _members(key, MAX_KEY) > MAX_KEY:
                    raise self.unsafe(at - 1, "a key is a larger tuple than any checkpoint has there")
                if self._tuple_keys > MAX_TUPLE_KEYS:
                    raise self.unsafe(at - 1, "more keys are tuples than in any checkpoint")
            elif kind is str or kind is bytes:
                if len(key) > MAX_KEY_TEXT:
                    raise self.unsafe(at - 1, "a key is longer than in any checkpoint")
            elif kind is frozenset:
                raise self.unsafe(at - 1, "a set is a key, or is in another set, as in no checkpoint")
            elif kind is int and not -MAX_INTEGER_KEY < key < MAX_INTEGER_KEY:
                raise self.unsafe(at - 1, "a key is a larger integer than in any checkpoint")
        return keys

    # --- memo

    def get4(self, at: int) -> int:
        self.stack.append(self.memo[int.from_bytes(self.data[at : at + 4], "little")])
        return at + 4

    def _put(self, index: int, at: int) -> int:
        """Protocol 3 and older give numbers. They count up too: a large one would only blow up the memo."""
        if index > len(self.memo):
            raise self.refusal(at - 1)
        self.memo[index : index + 1] = [self.stack[-1]]
        self.shortcuts = {}  # what they learnt from the memo may be another value now
        return at

    def put1(self, at: int) -> int:
        return self._put(self.data[at], at) + 1

    def put4(self, at: int) -> int:
        return self._put(int.from_bytes(self.data[at : at + 4], "little"), at) + 4


_FLAT = 0, ()


def _members(value: tuple[Any, ...], most: int) -> int:
    """How many members a tuple and those in it have; stops counting soon after ``most``. A set has more than any."""
    count = len(value)
    for member in value:
        if count > most:
            break
        if type(member) is tuple:
            count += _members(member, most - count)
        elif type(member) is frozenset or (type(member) is str and len(member) > MAX_KEY_TEXT):
            count = most + 1
    return count
