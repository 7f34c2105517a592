"""The rows of a table as a tree of modules: a value, of which some nodes are expanded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dcptools._text import format_bytes, format_count, format_shape, printable
from dcptools.tree import Leaf, Node, Tree, tree_of
from dcptools.widgets._rows import Column

HEADINGS = (
    Column("module", searched=True), Column("keys", numeric=True), Column("shape"), Column("dtype"),
    Column("elements", numeric=True), Column("bytes", numeric=True),
)  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """A tree, the paths of the expanded nodes, and the rows of the frame that its tensors are."""

    tree: Tree
    expanded: frozenset[str]
    positions: dict[str, int] = field(repr=False)  # by key

    @classmethod
    def of(cls, positions: Iterable[int], keys: Sequence[str], leaves: Sequence[Leaf], *, everything: bool) -> Outline:
        """The outline of some rows of a frame, each with its key.

        ``everything`` expands all of it; otherwise the model is expanded, with what is directly below it.
        """
        shown = tree_of(keys, leaves)
        tops = [node for node in shown.nodes if node.label.split(".")[0] == "model"] or shown.nodes[:1]
        opened = frozenset(node.path for top in tops for node in (top, *top.children))
        outline = cls(shown, opened, dict(zip(keys, positions, strict=True)))
        return outline.expanded_all() if everything else outline

    @cached_property
    def nodes(self) -> list[Node]:
        """Those that are visible, in their order."""
        return list(self.tree.rows(self.expanded))

    def __len__(self) -> int:
        return len(self.nodes)

    def turned(self, path: str, opened: bool) -> Outline:
        """The same with one node expanded or collapsed; requested twice, as by two quick keys, it is the same."""
        return replace(self, expanded=self.expanded | {path} if opened else self.expanded - {path})

    def expanded_all(self) -> Outline:
        return replace(self, expanded=frozenset(node.path for node in self.tree.rows() if node.children))

    def collapsed(self) -> Outline:
        return replace(self, expanded=frozenset())

    def page(self, first: int, count: int) -> list[dict[str, Any]]:
        """Some visible nodes, as they are sent."""
        return [self._row(node) for node in self.nodes[max(0, first) : first + count]]

    def _row(self, node: Node) -> dict[str, Any]:
        is_tensor = node.dtype not in ("", "object")
        shape = format_shape(node.shape) if is_tensor else ""
        elements = "" if node.dtype == "object" else format_count(node.numel)
        return {
            "id": self.positions.get(node.path, -1),
            "path": node.path,
            "level": node.depth + 1,
            "open": node.path in self.expanded if node.children else None,
            "cells": [
                printable(node.label),
                f"{node.tensors:,}",
                shape,
                node.dtype,
                elements,
                format_bytes(node.nbytes),
            ],
        }
