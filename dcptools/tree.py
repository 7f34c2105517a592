"""The keys of a checkpoint as a tree of modules, repeated layers collapsed.

``layers.0 ... layers.27`` with the same tensors inside become one node ``layers.{0..27}``; whatever differs in a name,
a shape or a dtype stays apart.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from dcptools._text import format_bytes, format_count, format_shape, printable
from dcptools.checkpoint import Checkpoint, as_checkpoint

__all__ = ["Node", "Tree", "tree"]

MAX_DEPTH = 100  # dots of a key that make levels; whoever writes more of them only wants to cause a stack overflow
MAX_DIGITS = 9  # of a layer's number
Leaf = tuple[tuple[int, ...], str, int, int]  # shape, dtype, numel, nbytes
_Group: TypeAlias = "tuple[str, list[_Module]]"  # a label and the equal modules that it stands for


@dataclass(frozen=True, slots=True)
class Node:
    """A module, a group of equal modules, or a tensor (then it has a dtype and no children)."""

    label: str  # one or several segments: "layers.{0..27}", "q_proj.weight"
    path: str  # the labels from the top, with dots
    depth: int
    count: int  # tensors of this kind, or modules; repetitions above are multiplied in
    shape: tuple[int, ...]
    dtype: str  # of a tensor; "object" for a pickled object; "" for a module
    tensors: int  # keys in it
    numel: int
    nbytes: int
    children: tuple[Node, ...]

    def describe(self) -> str:
        """What is shown after the label."""
        times = f"{self.count} x " if self.count > 1 else ""
        if self.dtype:
            shape = "" if self.dtype == "object" else f"{format_shape(self.shape)} "
            return f"{times}{shape}{self.dtype}"
        return f"{self.tensors:,} keys, {format_count(self.numel)} elements, {format_bytes(self.nbytes)}"


@dataclass(frozen=True, slots=True)
class Tree:
    """The top-level nodes; shows itself as indented text."""

    nodes: tuple[Node, ...]

    def rows(self, expanded: Collection[str] | None = None) -> Iterator[Node]:
        """The visible nodes in order: children only of the nodes whose path is in ``expanded`` (None: of all)."""
        stack = list(reversed(self.nodes))
        while stack:
            node = stack.pop()
            yield node
            if expanded is None or node.path in expanded:
                stack.extend(reversed(node.children))

    def __str__(self) -> str:
        labels = [(f"{'  ' * node.depth}{printable(node.label)}", node.describe()) for node in self.rows()]
        width = min(60, max((len(label) for label, _ in labels), default=0))
        return "\n".join(f"{label:<{width}}  {text}" for label, text in labels)

    __repr__ = __str__


def tree(checkpoint: Checkpoint | str | os.PathLike[str]) -> Tree:
    """The keys as a tree. Raises what :func:`dcptools.read` raises for a path.

    >>> print([node.label for node in tree(demo.checkpoint).rows(())])
    ['model', 'optimizer', 'extra_state']
    """
    checkpoint = as_checkpoint(checkpoint)
    tensors, objects = checkpoint.tensors.values(), checkpoint.objects.values()
    leaves: list[Leaf] = [(tensor.shape, tensor.dtype.name, tensor.numel, tensor.nbytes) for tensor in tensors]
    leaves += [((), "object", 0, stored.nbytes or 0) for stored in objects]
    return tree_of([*checkpoint.tensors, *checkpoint.objects], leaves)


def tree_of(keys: Sequence[str], leaves: Sequence[Leaf]) -> Tree:
    """The tree of some keys, each with its shape, dtype, elements and bytes; the dtype of an object is "object"."""
    order = sorted(range(len(keys)), key=keys.__getitem__)
    known = _Keys([keys[place] for place in order], [leaves[place] for place in order], order)
    return Tree(_nodes(_groups(_Module(known, "", 0, 0, len(order))), "", 0, 1))


class _Keys(NamedTuple):
    """All keys, sorted: those of a module follow each other, so that none is cut before its module is looked at."""

    names: list[str]
    leaves: list[Leaf]
    places: list[int]  # in the checkpoint


class _Module:
    """What lies below a name: the tensor of exactly that name if there is one, and the keys that continue."""

    __slots__ = ("first", "keys", "leaf", "level", "place", "prefix", "stop")

    def __init__(self, keys: _Keys, prefix: str, level: int, first: int = 0, stop: int = 0) -> None:
        self.keys, self.prefix, self.level = keys, prefix, level  # the name with its dot; how many names that is
        self.first, self.stop = first, stop  # the keys that continue
        self.leaf: Leaf | None = None
        self.place = len(keys.names)  # of the first key in it

    def children(self) -> list[tuple[str, _Module]]:
        """With their names, in the order of the checkpoint."""
        names, leaves, places = self.keys
        found: dict[str, _Module] = {}
        at = self.first
        while at < self.stop:
            rest = names[at][len(self.prefix) :]
            name, dot, _ = rest.partition(".") if self.level < MAX_DEPTH else (rest, "", "")
            if name not in found:
                found[name] = _Module(self.keys, f"{self.prefix}{name}.", self.level + 1)
            child, first = found[name], at
            if dot:
                after = f"{self.prefix}{name}/"  # the character that follows the dot
                child.first, child.stop = first, bisect_left(names, after, first, self.stop)
                at = child.stop
            else:
                child.leaf = leaves[first]
                at += 1
            child.place = min(child.place, *places[first:at])
        return sorted(found.items(), key=lambda each: each[1].place)

    def kind(self) -> tuple[Any, ...]:
        """Equal for modules with the same names, shapes and dtypes all the way down."""
        rests = tuple(name[len(self.prefix) :] for name in self.keys.names[self.first : self.stop])
        kinds = tuple(leaf[:2] for leaf in self.keys.leaves[self.first : self.stop])
        return self.leaf[:2] if self.leaf else None, rests, kinds


def _nodes(groups: Iterable[_Group], path: str, depth: int, count: int) -> tuple[Node, ...]:
    return tuple(_node(label, equal, path, depth, count) for label, equal in groups)


def _groups(module: _Module) -> Iterator[_Group]:
    """The children: each by itself, but numbered ones of one kind together."""
    children = module.children()
    numbered: dict[Any, list[int]] = {}
    for name, child in children:
        if name.isdecimal() and len(name) <= MAX_DIGITS and str(int(name)) == name:
            numbered.setdefault(child.kind(), []).append(int(name))
        else:
            yield name, [child]
    by_name = dict(children)
    for numbers in sorted(map(sorted, numbered.values())):
        label = f"{{{_ranges(numbers)}}}" if len(numbers) > 1 else str(numbers[0])
        yield label, [by_name[str(number)] for number in numbers]


def _ranges(numbers: Sequence[int]) -> str:
    """``0..3,5`` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}..{last}" if first != last else str(first) for first, last in runs)


def _node(label: str, equal: list[_Module], path: str, depth: int, count: int) -> Node:
    """The node for equal modules, with a chain of only children merged into its label."""
    module, count = equal[0], count * len(equal)
    groups = list(_groups(module))
    while len(groups) == 1 and module.leaf is None:
        ((part, inner),) = groups
        label, module, count = f"{label}.{part}", inner[0], count * len(inner)
        groups = list(_groups(module))
    full = f"{path}.{label}" if path else label
    children = _nodes(groups, full, depth + 1, count)
    shape, dtype, numel, nbytes = module.leaf or ((), "", 0, 0)
    own = count if module.leaf else 0
    return Node(
        label, full, depth, count, shape, dtype,
        own + sum(child.tensors for child in children),
        own * numel + sum(child.numel for child in children),
        own * nbytes + sum(child.nbytes for child in children),
        children,
    )  # fmt: skip
