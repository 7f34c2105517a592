"""The table of all steps: in the browser what ``table.js`` shows, here what it is asked for.

The browser has a screen of rows and asks for more as they come into view, so what is sent does not grow with the rows.
Nothing is computed for a table before it is looked at.
"""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets as T

from dcptools._collector import no_collections
from dcptools._text import printable
from dcptools.tree import Leaf
from dcptools.widgets._outline import HEADINGS, Outline
from dcptools.widgets._rows import Column, Mask, Query, Rows, Selection
from dcptools.widgets._sheets import HERE, style_sheet

FIRST_ROWS = 40  # that are sent with an answer
MOST_ROWS = 100  # that are sent at once
CSV_ROWS = 2000  # in a piece of a download, some tens of kB when packed
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # how a cell that a spreadsheet would run begins
Frame = pd.DataFrame | Callable[[], pd.DataFrame]
Leaves = tuple[Sequence[int], Sequence[str], Sequence[Leaf]]  # rows of the frame, their keys, and what is stored


class Table(anywidget.AnyWidget):
    """Shows a DataFrame: search, filters with counts, order by a click, all rows by scrolling, a chosen row.

    Parameters
    ----------
    columns
        Which columns of the frame are shown, and how.
    noun
        What a row is, in the singular.
    leaves
        Makes, from rows of the frame (with its index), what a tree is built from: then they can be shown as a tree.
    order, descending
        The column by which the rows are sorted at first; the frame's own order if empty.
    sorted_by
        The column by which every frame is already ordered, with numbers as numbers.
    """

    _esm = HERE / "table.js"
    _css = style_sheet("table.css")

    head = T.Dict().tag(sync=True)  # columns, words
    answer = T.Dict().tag(sync=True)  # what was last asked, and the first rows of what was found
    reveal = T.Dict().tag(sync=True)  # a row that Python chose: it is scrolled into view
    chosen = T.Int(-1)  # the row of the frame that somebody chose; -1: none
    opened = T.Int(-1)  # the row on which somebody pressed Enter, or clicked twice; it becomes -1 again

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        noun: str = "key",
        leaves: Callable[[pd.DataFrame], Leaves] | None = None,
        order: str = "",
        descending: bool = False,
        sorted_by: str = "",
    ) -> None:
        self._lock = threading.RLock()  # callbacks may come on another thread than the one that sets the frame
        self._columns, self._leaves, self._sorted_by = tuple(columns), leaves, sorted_by
        self._version, self._frames = 0, 0  # of what is shown, and of the frame
        self._query, self._tree = Query(sort=order, descending=descending), False
        names = [column.name for column in self._columns]
        self._source: Frame = pd.DataFrame(columns=names)
        self._rows: Rows | None = None  # None: nobody has looked yet
        self._selection: Selection | None = None
        self._only: tuple[str, frozenset[int]] = ("", frozenset())  # rows that somebody wants to see alone, and why
        self._outline: Outline | None = None
        shown = [column.to_json() for column in self._columns if not column.optional]
        head = {"columns": shown, "noun": noun, "tree": None}
        if leaves is not None:
            head["tree"] = [column.to_json() for column in HEADINGS]
        super().__init__(head=head)
        self.on_msg(lambda _, content, buffers: self.receive(content))
        self.frame = self._source

    # the values

    @property
    def frame(self) -> pd.DataFrame:
        """All rows; may be set to a function that makes them, which is called when somebody looks."""
        return self._looked_at().frame

    @frame.setter
    def frame(self, frame: Frame) -> None:
        with self._lock:
            self._source, self._rows, self._selection, self._outline = frame, None, None, None
            self._version, self._frames = self._version + 1, self._frames + 1
            self._only = ("", frozenset())
            self.chosen = -1
            self.answer = {"version": self._version, "stale": True, **self._asked()}

    @property
    def selected(self) -> pd.DataFrame:
        """The rows that match, in the order that is shown."""
        return self.frame.iloc[self._matching().positions]

    @property
    def found(self) -> int:
        """How many rows match."""
        return len(self._matching().positions)

    def ask(self, **changes: Any) -> None:
        """Search, filter or sort: the fields of the query that change, ``chips`` as kinds by column."""
        self.receive({"kind": "ask", **changes})

    def only(self, positions: Iterable[int], why: str) -> None:
        """Show only these rows of the frame, whatever was searched for, until somebody undoes that."""
        with self._lock:
            self._only = (printable(why), frozenset(positions))
            self._query, self._tree = Query(sort=self._query.sort, descending=self._query.descending), False
            self._select()

    def show(self, position: int) -> None:
        """Choose a row of the frame and bring it into view, whatever was searched for."""
        with self._lock:
            if self._matching().index(position) < 0 or self._tree:
                self._only = ("", frozenset())
                self._query, self._tree = Query(sort=self._query.sort, descending=self._query.descending), False
                self._select()
            self.chosen = position
            index = self._matching().index(position)
            self.reveal = {"index": index, "turn": self.reveal.get("turn", 0) + 1}

    # what the browser asks

    def receive(self, message: dict[str, Any]) -> None:
        """Answer a message of the browser; one that makes no sense is ignored."""
        handlers = {
            "look": self._look, "ask": self._ask, "rows": self._send_rows, "choose": self._choose,
            "open": self._open, "toggle": self._toggle, "expand": self._expand, "csv": self._send_csv,
        }  # fmt: skip
        handler = handlers.get(str(message.get("kind")))
        if handler is not None:
            with self._lock:
                handler(message)

    def _look(self, _: dict[str, Any]) -> None:
        if self._selection is None:
            self._select()

    def _ask(self, message: dict[str, Any]) -> None:
        before = self._query
        chips = {str(name): frozenset(map(str, kinds)) for name, kinds in message.get("chips", before.chips).items()}
        self._query = Query(
            str(message.get("search", before.search)),
            bool(message.get("regex", before.regex)),
            str(message.get("sort", before.sort)),
            bool(message.get("descending", before.descending)),
            chips,
        )
        self._tree = bool(message.get("tree", self._tree)) and self._leaves is not None
        if "only" in message:  # a page can only undo it
            self._only = ("", frozenset())
        self._select()

    def _choose(self, message: dict[str, Any]) -> None:
        self.chosen = self._position(message)
        if self.chosen >= 0 and message.get("version") != self._version:  # the rows have moved since
            self._publish()

    def _open(self, message: dict[str, Any]) -> None:
        self.opened = self._position(message)
        self.opened = -1

    def _position(self, message: dict[str, Any]) -> int:
        """The row of the frame that a message names; -1: none, a module of the tree, or a row of another frame."""
        position = int(message.get("id", -1))
        known = message.get("frame") == self._frames and 0 <= position < len(self._looked_at())
        return position if known else -1

    def _toggle(self, message: dict[str, Any]) -> None:
        if self._outline is not None:
            self._outline = self._outline.turned(str(message.get("path")), bool(message.get("open")))
            self._publish()

    def _expand(self, message: dict[str, Any]) -> None:
        if self._outline is not None:
            self._outline = self._outline.expanded_all() if message.get("all") else self._outline.collapsed()
            self._publish()

    def _send_rows(self, message: dict[str, Any]) -> None:
        if message.get("version") == self._version:
            first = max(0, int(message.get("first", 0)))
            self.send({"kind": "rows", "version": self._version, "first": first, "rows": self.page(first, MOST_ROWS)})

    def _send_csv(self, message: dict[str, Any]) -> None:
        """A piece of the rows that match, packed: the browser puts the pieces together."""
        first = max(0, int(message.get("first", 0)))
        rows = self.selected.iloc[first : first + CSV_ROWS]
        text = rows.map(_harmless).to_csv(index=False, header=first == 0, lineterminator="\r\n")
        done = first + len(rows)
        self.send({"kind": "csv", "done": done, "of": self.found}, [gzip.compress(text.encode(), 6)])

    # what is shown

    def page(self, first: int, count: int) -> list[dict[str, Any]]:
        """Some of the rows that are shown, as the browser gets them."""
        if self._outline is not None:
            return self._outline.page(first, count)
        return self._looked_at().page(self._matching(), first, count)

    def _looked_at(self) -> Rows:
        with self._lock:
            if self._rows is None:
                frame = self._source() if callable(self._source) else self._source
                columns = tuple(column for column in self._columns if column.is_wanted(frame))
                self._rows = Rows(frame, columns, self._sorted_by)
                self.head = {**self.head, "columns": [column.to_json() for column in columns]}
            return self._rows

    def _matching(self) -> Selection:
        with self._lock:
            if self._selection is None:
                self._select()
            assert self._selection is not None
            return self._selection

    @no_collections()
    def _select(self) -> None:
        rows = self._looked_at()
        try:
            self._selection = rows.select(self._query, self._wanted(len(rows)))
        except re.error as error:
            self._selection = self._selection or rows.select(Query())
            wrong = f"This is not a valid regular expression: {error}."
            self.answer = {**self.answer, **self._asked(), "stale": False, "error": wrong}
            return
        self._outline = None
        if self._tree and self._leaves is not None:
            matching = rows.frame.iloc[self._selection.positions]
            self._outline = Outline.of(*self._leaves(matching), everything=bool(self._query.search))
        self._publish()

    def _wanted(self, rows: int) -> Mask | None:
        """The rows that somebody wants to see alone; None: all."""
        why, positions = self._only
        return np.isin(np.arange(rows), list(positions)) if why else None

    def _publish(self) -> None:
        """Send what was found, with its first rows."""
        matching = self._matching()
        self._version += 1
        self.answer = {
            "version": self._version,
            "stale": False,
            "error": "",
            "found": len(matching.positions),
            "total": len(self._looked_at()),
            "shown": len(self._outline) if self._outline is not None else len(matching.positions),
            "at": -1 if self._outline is not None else matching.index(self.chosen),
            "counts": {name: list(kinds.items()) for name, kinds in matching.chips.items()},
            "rows": self.page(0, FIRST_ROWS),
            **self._asked(),
        }

    def _asked(self) -> dict[str, Any]:
        return {"query": self._query.to_json(), "only": self._only[0], "tree": self._tree, "frame": self._frames}


def _harmless(cell: Any) -> Any:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell
