"""The keys of a checkpoint as a tree of modules, repeated layers collapsed.

``layers.0 ... layers.27`` with the same tensors inside become one node ``layers.{0..27}``; whatever differs in a name,
a shape or a dtype stays apart.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dcptools._table import format_bytes, format_count, printable
from dcptools.checkpoint import Checkpoint, as_checkpoint

__all__ = ["Node", "Tree", "tree"]


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
            return f"{times}[{', '.join(map(str, self.shape))}] {self.dtype}".replace("[] object", "object")
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
    ['extra_state', 'model', 'optimizer']
    """
    checkpoint = as_checkpoint(checkpoint)
    root: dict[str, Any] = {}
    for key, tensor in checkpoint.tensors.items():
        _insert(root, key, (tensor.shape, tensor.dtype.name, tensor.numel, tensor.nbytes))
    for key, entry in checkpoint.objects.items():
        _insert(root, key, ((), "object", 0, entry.nbytes or 0))
    return Tree(_nodes(root, _Signatures(), "", 0, 1))


_LEAF = ""  # the name under which a module keeps a tensor of its own name; no segment is empty that others share


def _insert(root: dict[str, Any], key: str, leaf: tuple[Any, ...]) -> None:
    node = root
    for part in key.split("."):
        node = node.setdefault(part, {})
    node[_LEAF] = leaf


class _Signatures:
    """Numbers for kinds of modules: equal numbers, equal names, shapes and dtypes all the way down."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}
        self._of: dict[int, int] = {}  # id of a dict of the trie -> its number

    def __call__(self, node: Any) -> int:
        if not isinstance(node, dict):
            return self._known.setdefault(node[:2], len(self._known))
        if id(node) not in self._of:
            kind = tuple((name, self(child)) for name, child in sorted(node.items()))
            self._of[id(node)] = self._known.setdefault(kind, len(self._known))
        return self._of[id(node)]


def _nodes(module: dict[str, Any], signatures: _Signatures, path: str, depth: int, count: int) -> tuple[Node, ...]:
    return tuple(
        _node(label, children, signatures, path, depth, count) for label, children in _groups(module, signatures)
    )


def _groups(module: dict[str, Any], signatures: _Signatures) -> Iterator[tuple[str, list[Any]]]:
    """The children: each by itself, but numbered ones of one kind together."""
    numbered: dict[int, list[int]] = {}
    for name, child in module.items():
        if name.isdecimal() and str(int(name)) == name:
            numbered.setdefault(signatures(child), []).append(int(name))
        elif name != _LEAF:
            yield name, [child]
    for numbers in numbered.values():
        numbers.sort()
        label = f"{{{_ranges(numbers)}}}" if len(numbers) > 1 else str(numbers[0])
        yield label, [module[str(number)] for number in numbers]


def _ranges(numbers: Sequence[int]) -> str:
    """``0..3,5`` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}..{last}" if first != last else str(first) for first, last in runs)


def _node(label: str, equal: list[dict[str, Any]], signatures: _Signatures, path: str, depth: int, count: int) -> Node:
    """The node for equal modules, with a chain of only children merged into its label."""
    module, count = equal[0], count * len(equal)
    while len(module) == 1 and _LEAF not in module:
        ((part, inner),) = _groups(module, signatures)
        label, module, count = f"{label}.{part}", inner[0], count * len(inner)
    full = f"{path}.{label}" if path else label
    children = _nodes(module, signatures, full, depth + 1, count)
    shape, dtype, numel, nbytes = module.get(_LEAF, ((), "", 0, 0))
    own = count if _LEAF in module else 0
    return Node(
        label, full, depth, count, shape, dtype,
        own + sum(child.tensors for child in children),
        own * numel + sum(child.numel for child in children),
        own * nbytes + sum(child.nbytes for child in children),
        children,
    )  # fmt: skip
