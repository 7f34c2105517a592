"""The machine itself: one opcode after another."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, Final

from dcptools._pickle.classes import ClassOpcodes
from dcptools._pickle.containers import ContainerOpcodes
from dcptools._pickle.plain import PlainOpcodes
from dcptools._pickle.values import Class, Refused, Shortcut
from dcptools.errors import BrokenCheckpoint, UnsafeMetadata


def loads(
    data: bytes,
    *,
    what: str,
    allowed: Mapping[str, Any],
    alike: Mapping[str, Class] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    shortcuts: Callable[[list[Any]], Mapping[Class, Shortcut]] | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """The value of a pickle, and the names in it that are not ``allowed``, each of which became a :class:`Class`.

    ``allowed`` says what ``module.name`` stands for: a function, which may be called with whatever is in the pickle; a
    :class:`Class`; or a constant. ``alike`` says which class one that is not allowed stands for, by its name without
    the module. ``persistent`` gives the value of a persistent id. ``what`` is what errors call it.
    ``shortcuts`` gives, for the memo of the machine, what may take instances of a class in one step.

    Raises
    ------
    UnsafeMetadata
        The pickle has an opcode that no checkpoint needs, names what only one that runs something would name, or nests
        tuples so that looking at them takes forever.
    BrokenCheckpoint
        It is not a pickle, ends too early, or does not make sense.

    Examples
    --------
    >>> import pickle
    >>> loads(pickle.dumps({"lr": 0.1, "shape": (2, 3)}), what="It", allowed={})
    ({'lr': 0.1, 'shape': (2, 3)}, ())
    """
    if not data.startswith(b"\x80"):  # PROTO; DCP never wrote protocol 0 or 1, which have none
        raise BrokenCheckpoint(f"{what} is not a pickle: it starts with {data[:24]!r}.")
    return _Machine(data, what, allowed, alike or {}, persistent, shortcuts).run()


class _Machine(PlainOpcodes, ContainerOpcodes, ClassOpcodes):
    def run(self) -> tuple[Any, tuple[str, ...]]:
        """The value, and the names that are not known."""
        try:
            value = self._steps()
        except (UnsafeMetadata, BrokenCheckpoint, MemoryError):
            raise
        except Refused as refused:
            raise UnsafeMetadata(f"{self.what} {refused}") from None
        except Exception as error:
            if self._at >= len(self.data):
                cut = "has no end" if self._at == len(self.data) else "ends in the middle of a value"
                raise BrokenCheckpoint(f"{self.what} {cut}: it is truncated.") from None
            raise BrokenCheckpoint(f"{self.what} cannot be unpickled: {error or type(error).__name__}.") from None
        if self._at < len(self.data):
            more = len(self.data) - self._at
            raise BrokenCheckpoint(f"{self.what} goes on after its end: {more:,} bytes too many.")
        return value, tuple(sorted(self.foreign))

    def _steps(self) -> Any:
        """One opcode after another, up to STOP; ``_at`` says how far that got."""
        data, stack, memo, handlers = self.data, self.stack, self.memo, _HANDLERS
        push = stack.append
        at = 0
        try:
            while True:
                code = data[at]
                at += 1
                # the frequent ones first, and inline: a call takes longer than what they do
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
                    self.marks.append(len(stack))
                elif code == 0x2E:  # STOP
                    return stack.pop()
                else:
                    handler = handlers.get(code)
                    if handler is None:
                        raise self.refusal(at - 1)
                    at = handler(self, at)
        finally:
            self._at = at


# Of pickle, nothing but the names of its opcodes is used
_HANDLERS: Final[dict[int, Callable[[_Machine, int], int]]] = {
    pickle.PROTO[0]: _Machine.proto,
    pickle.FRAME[0]: _Machine.frame,
    pickle.NONE[0]: _Machine.none,
    pickle.NEWTRUE[0]: _Machine.true,
    pickle.NEWFALSE[0]: _Machine.false,
    pickle.BININT2[0]: _Machine.int2,
    pickle.BININT[0]: _Machine.int4,
    pickle.LONG1[0]: _Machine.long1,
    pickle.BINFLOAT[0]: _Machine.float_,
    pickle.BINUNICODE[0]: _Machine.text4,
    pickle.SHORT_BINBYTES[0]: _Machine.bytes1,
    pickle.BINBYTES[0]: _Machine.bytes4,
    pickle.SHORT_BINSTRING[0]: _Machine.string1,
    pickle.BINSTRING[0]: _Machine.string4,
    pickle.EMPTY_TUPLE[0]: _Machine.empty_tuple,
    pickle.TUPLE1[0]: _Machine.tuple1,
    pickle.TUPLE2[0]: _Machine.tuple2,
    pickle.TUPLE3[0]: _Machine.tuple3,
    pickle.TUPLE[0]: _Machine.tuple_,
    pickle.EMPTY_LIST[0]: _Machine.empty_list,
    pickle.LIST[0]: _Machine.list_,
    pickle.APPEND[0]: _Machine.append,
    pickle.APPENDS[0]: _Machine.appends,
    pickle.EMPTY_DICT[0]: _Machine.empty_dict,
    pickle.DICT[0]: _Machine.dict_,
    pickle.SETITEM[0]: _Machine.setitem,
    pickle.SETITEMS[0]: _Machine.setitems,
    pickle.EMPTY_SET[0]: _Machine.empty_set,
    pickle.ADDITEMS[0]: _Machine.additems,
    pickle.FROZENSET[0]: _Machine.frozenset_,
    pickle.LONG_BINGET[0]: _Machine.get4,
    pickle.BINPUT[0]: _Machine.put1,
    pickle.LONG_BINPUT[0]: _Machine.put4,
    pickle.GLOBAL[0]: _Machine.global_,
    pickle.STACK_GLOBAL[0]: _Machine.stack_global,
    pickle.REDUCE[0]: _Machine.reduce,
    pickle.NEWOBJ[0]: _Machine.newobj,
    pickle.BUILD[0]: _Machine.build,
    pickle.BINPERSID[0]: _Machine.persid,
}
