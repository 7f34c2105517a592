"""The keys of a checkpoint as a tree of modules, repeated layers collapsed.

``layers.0 ... layers.27`` with the same tensors inside become one node ``layers.{0..27}``; whatever differs in a name,
a shape or a dtype stays apart.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dcptools._text import format_bytes, format_count, format_shape, printable
from dcptools.checkpoint import Checkpoint, as_checkpoint

__all__ = ["Node", "Tree", "tree"]

MAX_DEPTH = 100  # dots of a key that make levels; whoever writes more of them only wants to see a stack overflow
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
        """What stands behind the label."""
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
    tensors, objects = checkpoint.tensors.items(), checkpoint.objects.items()
    leaves = [(key, (tensor.shape, tensor.dtype.name, tensor.numel, tensor.nbytes)) for key, tensor in tensors]
    return tree_of([*leaves, *((key, ((), "object", 0, entry.nbytes or 0)) for key, entry in objects)])


def tree_of(leaves: Iterable[tuple[str, Leaf]]) -> Tree:
    """The tree of some keys, each with its shape, dtype, elements and bytes; the dtype of an object is "object"."""
    top = _Module()
    for key, leaf in leaves:
        top.insert(key, leaf)
    signatures = _Signatures()
    return Tree(_nodes(_groups(top, signatures), signatures, "", 0, 1))


class _Module:
    """What lies below a name, and the tensor of just that name where there is one."""

    __slots__ = ("children", "leaf")

    def __init__(self) -> None:
        self.children: dict[str, _Module] = {}
        self.leaf: Leaf | None = None

    def insert(self, key: str, leaf: Leaf) -> None:
        module = self
        for part in key.split(".", MAX_DEPTH):
            if part not in module.children:
                module.children[part] = _Module()
            module = module.children[part]
        module.leaf = leaf


class _Signatures:
    """Numbers for kinds of modules: equal numbers, equal names, shapes and dtypes all the way down."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}
        self._of: dict[int, int] = {}  # id of a module -> its number

    def __call__(self, module: _Module) -> int:
        if id(module) not in self._of:
            below = tuple(sorted((name, self(child)) for name, child in module.children.items()))
            kind = (module.leaf[:2] if module.leaf else None, below)
            self._of[id(module)] = self._known.setdefault(kind, len(self._known))
        return self._of[id(module)]


def _nodes(groups: Iterable[_Group], signatures: _Signatures, path: str, depth: int, count: int) -> tuple[Node, ...]:
    return tuple(_node(label, equal, signatures, path, depth, count) for label, equal in groups)


def _groups(module: _Module, signatures: _Signatures) -> Iterator[_Group]:
    """The children: each by itself, but numbered ones of one kind together."""
    numbered: dict[int, list[int]] = {}
    for name, child in module.children.items():
        if name.isdecimal() and len(name) <= MAX_DIGITS and str(int(name)) == name:
            numbered.setdefault(signatures(child), []).append(int(name))
        else:
            yield name, [child]
    for numbers in sorted(map(sorted, numbered.values())):
        label = f"{{{_ranges(numbers)}}}" if len(numbers) > 1 else str(numbers[0])
        yield label, [module.children[str(number)] for number in numbers]


def _ranges(numbers: Sequence[int]) -> str:
    """``0..3,5`` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}..{last}" if first != last else str(first) for first, last in runs)


def _node(label: str, equal: list[_Module], signatures: _Signatures, path: str, depth: int, count: int) -> Node:
    """The node for equal modules, with a chain of only children merged into its label."""
    module, count = equal[0], count * len(equal)
    groups = list(_groups(module, signatures))
    while len(groups) == 1 and module.leaf is None:
        ((part, inner),) = groups
        label, module, count = f"{label}.{part}", inner[0], count * len(inner)
        groups = list(_groups(module, signatures))
    full = f"{path}.{label}" if path else label
    children = _nodes(groups, signatures, full, depth + 1, count)
    shape, dtype, numel, nbytes = module.leaf or ((), "", 0, 0)
    own = count if module.leaf else 0
    return Node(
        label, full, depth, count, shape, dtype,
        own + sum(child.tensors for child in children),
        own * numel + sum(child.numel for child in children),
        own * nbytes + sum(child.nbytes for child in children),
        children,
    )  # fmt: skip
