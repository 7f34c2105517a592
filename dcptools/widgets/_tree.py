"""The tree of modules, a page at a time."""

from __future__ import annotations

import ipywidgets as W
import traitlets as T

from dcptools._text import printable
from dcptools.tree import Tree
from dcptools.widgets._base import escape

TREE_ROWS = 24


class TreeView(W.VBox):  # type: ignore[misc]
    """A tree as pages of indented rows; the button of a row expands it. The rows are one pool of widgets, reused."""

    tree = T.Any(None, allow_none=True)

    def __init__(self) -> None:
        self.rows = [
            (W.Button(layout={"width": "440px", "margin": "0"}), W.HTML(layout={"margin": "0 0 0 12px"}))
            for _ in range(TREE_ROWS)
        ]
        self.lines = [W.HBox(row, layout={"align_items": "center"}) for row in self.rows]
        self.previous = W.Button(description="Previous page", layout={"width": "140px"})
        self.next = W.Button(description="Next page", layout={"width": "140px"})
        self.all = W.Button(description="Expand all", layout={"width": "110px"})
        self.none = W.Button(description="Collapse all", layout={"width": "110px"})
        self.status = W.HTML()
        body = W.VBox(self.lines, layout={"min_height": f"{TREE_ROWS // 2 * 30}px"})
        body.add_class("dcp-tree")
        buttons = [self.all, self.none, self.previous, self.next, self.status]
        super().__init__([W.HBox(buttons, layout={"align_items": "center"}), body])
        self._expanded: set[str] = set()
        self._first = 0
        for number, (button, _) in enumerate(self.rows):
            button.on_click(lambda _, number=number: self._toggle(number))
        self.previous.on_click(lambda _: self._turn(-TREE_ROWS))
        self.next.on_click(lambda _: self._turn(TREE_ROWS))
        self.all.on_click(lambda _: self._expand(True))
        self.none.on_click(lambda _: self._expand(False))
        self.observe(lambda _: self._reset(), "tree")
        self._reset()

    @property
    def labels(self) -> list[str]:
        """What the rows of this page say."""
        return [
            f"{button.description} {text.value}" for (button, text), node in zip(self.rows, self._page, strict=False)
        ]

    def _reset(self) -> None:
        tops = self.tree.nodes if self.tree is not None else ()
        tops = [node for node in tops if node.label.split(".")[0] == "model"]
        self._expanded = {node.path for top in tops for node in (top, *top.children)}
        self._first = 0
        self._show()

    def _expand(self, everything: bool) -> None:
        shown: Tree = self.tree or Tree(())
        self._expanded = {node.path for node in shown.rows() if node.children} if everything else set()
        self._first = 0
        self._show()

    def _toggle(self, number: int) -> None:
        if number < len(self._page):
            self._expanded ^= {self._page[number].path}
            self._show()

    def _turn(self, rows: int) -> None:
        self._first = max(0, self._first + rows)
        self._show()

    def _show(self) -> None:
        nodes = list(self.tree.rows(self._expanded)) if self.tree is not None else []
        self._first = min(self._first, max(0, (len(nodes) - 1) // TREE_ROWS * TREE_ROWS))
        self._page = nodes[self._first : self._first + TREE_ROWS]
        for (button, text), line, number in zip(self.rows, self.lines, range(TREE_ROWS), strict=True):
            line.layout.display = "flex" if number < len(self._page) else "none"
            if number < len(self._page):
                node = self._page[number]
                mark = "" if not node.children else "▾ " if node.path in self._expanded else "▸ "
                button.description = f"{'    ' * node.depth}{mark}{printable(node.label)}"
                button.disabled, button.tooltip = not node.children, printable(node.path)
                text.value = f"<span class='dcp-soft'>{escape(node.describe())}</span>"
        last = self._first + len(self._page)
        self.status.value = f"<span role='status'>Rows {self._first + 1:,} to {last:,} of {len(nodes):,}</span>"
        self.previous.disabled, self.next.disabled = self._first == 0, last >= len(nodes)
