"""A field for a path, and the folders to choose it from: for the checkpoint, the assets, and where to save to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anywidget
import ipywidgets as W
import traitlets as T

from dcptools._text import natural, printable
from dcptools.assets import CONFIG
from dcptools.checkpoint import METADATA
from dcptools.errors import DcptoolsError
from dcptools.storage import is_url, join, open_source, parent
from dcptools.widgets._base import typed_path
from dcptools.widgets._latest import Latest
from dcptools.widgets._sheets import HERE, style_sheet

MOST_FOLDERS = 500  # that are shown of a directory
LOOKING = 16  # threads that find out what the folders are
MARKS = {METADATA: "DCP checkpoint", CONFIG: "model"}  # by the file that marks such a folder


class Folders(anywidget.AnyWidget):
    """In the browser, what ``chooser.js`` shows: the folders of one place, used by mouse or keys."""

    _esm = HERE / "chooser.js"
    _css = style_sheet("chooser.css")

    label = T.Unicode("").tag(sync=True)  # of the field
    shown = T.Bool(False).tag(sync=True)
    here = T.Unicode("").tag(sync=True)  # the place, as text
    entries: Any = T.List().tag(sync=True)  # each a name as text, and what it is (empty: any other folder)
    at = T.Int(-1).tag(sync=True)  # the folder that is chosen at first; -1: none
    note = T.Unicode("").tag(sync=True)
    renames = T.Bool(False).tag(sync=True)  # whether a folder that does not exist may be named


class Chooser(W.VBox):  # type: ignore[misc]
    """A path is typed into ``field``, or chosen below it; of a folder, only whether it is a checkpoint is read.

    Parameters
    ----------
    field
        Where the path is typed; one is made if it is None.
    marks
        The files by which a folder is recognized as what is looked for: Enter chooses it instead of going in.
    renames
        Whether a folder that does not exist yet may be named.
    beside
        What is shown to the right of the field.
    """

    def __init__(
        self, label: str, value: str = "", hint: str = "", *, field: W.Text | None = None,
        marks: Sequence[str] = (METADATA, CONFIG), renames: bool = False, beside: Iterable[W.Widget] = (),
    ) -> None:  # fmt: skip
        self.field = field or W.Text(
            value=value, description=label, placeholder=hint, continuous_update=False, layout={"width": "640px"}
        )
        self.browse = W.Button(
            description="Browse", tooltip=f"Choose a folder for {label}", layout={"width": "100px"}, icon="folder-open"
        )
        self.browse.add_class("dcp-browse")  # where the focus goes back to
        self.folders = Folders(label=label, renames=renames)
        self._marks, self._places = marks, list[str]()
        self._wanted, self._from = "", ""  # the place to show, and the folder in it that is then chosen
        self._first = False  # whether the place was typed, and need not exist
        self._later = Latest(self._list)
        row = W.HBox([self.field, *beside, self.browse], layout=W.Layout(flex_flow="row wrap", align_items="center"))
        super().__init__([row, self.folders])
        self.add_class("dcp-chooser")
        self.browse.on_click(lambda _: self._turn())
        self.browse.observe(lambda _: setattr(self.folders, "shown", False), "disabled")
        self.folders.on_msg(lambda _, content, buffers: self.receive(content))

    def inputs(self) -> tuple[W.Widget, ...]:
        """What is disabled while something runs."""
        return self.field, self.browse

    def join(self, timeout: float | None = None) -> None:
        """Wait until the folders are shown."""
        self._later.join(timeout)

    def receive(self, message: dict[str, Any]) -> None:
        """Do what was clicked; a message that makes no sense is ignored."""
        kind, number = message.get("kind"), message.get("at", -1)
        place = self._places[number] if isinstance(number, int) and 0 <= number < len(self._places) else ""
        if kind == "close":
            self.folders.shown = False
        elif kind == "up":
            self._go(parent(self._wanted), self._wanted)
        elif kind == "enter" and place:
            self._go(place)
        elif kind == "take" and (place or number == -1):
            self._take(place or self._wanted)
        elif kind == "name" and str(message.get("name", "")).strip():
            self._take(join(self._wanted, str(message["name"]).strip()))

    def _take(self, place: str) -> None:
        self.folders.shown = False
        self.field.value = place

    def _turn(self) -> None:
        if self.folders.shown:
            self.folders.shown = False
            return
        typed = typed_path(self.field.value)
        self._go(typed if is_url(typed) else os.path.abspath(typed), first=True)

    def _go(self, place: str, chosen: str = "", *, first: bool = False) -> None:
        """Show the folders of a place; with ``first``, or of the nearest one above it that exists."""
        self._wanted, self._from, self._first = place, chosen, first
        self._places = []
        with self.folders.hold_sync():
            self.folders.entries, self.folders.at = [], -1
            self.folders.here, self.folders.note, self.folders.shown = printable(place), "Looking …", True
        self._later.ask(at_once=not is_url(place))

    def _list(self) -> None:
        """List the folders; what each one is follows as soon as it is known."""
        place, chosen = self._wanted, self._from
        try:
            if self._first:
                place, chosen = _nearest(place, self._marks)
            names = sorted((name for name in open_source(place).folders() if not name.startswith(".")), key=natural)
            note = "" if names else "There is no folder here."
            if len(names) > MOST_FOLDERS:
                note = f"The first {MOST_FOLDERS} of {len(names):,} folders; type the path of another one."
        except (DcptoolsError, OSError, ValueError) as error:  # ValueError: a zero byte in a path
            names, note = [], str(error)
        names = names[:MOST_FOLDERS]
        if self._show(place, chosen, [(name, "") for name in names], note) and names:
            with ThreadPoolExecutor(LOOKING) as pool:
                marks = pool.map(lambda name: _mark(join(place, name), self._marks), names)
                marked = list(zip(names, marks, strict=True))
            self._show(place, chosen, marked, note)

    def _show(self, place: str, chosen: str, entries: Sequence[tuple[str, str]], note: str) -> bool:
        """Whether that is still what is looked for."""
        if self._later.asked:
            return False
        self._wanted, self._first = place, False
        self._places = [join(place, name) for name, _ in entries]
        with self.folders.hold_sync():
            self.folders.here, self.folders.note = printable(place), printable(note)
            self.folders.at = self._places.index(chosen) if chosen in self._places else -1
            self.folders.entries = [[printable(name), mark] for name, mark in entries]
        return True


def _nearest(place: str, marks: Sequence[str]) -> tuple[str, str]:
    """The place to begin at, and the folder that is chosen in it: what was typed, if it is what is looked for."""
    while open_source(place).kind() != "directory" and parent(place) != place:
        place = parent(place)
    return (parent(place), place) if _mark(place, marks) and parent(place) != place else (place, "")


def _mark(place: str, marks: Sequence[str]) -> str:
    """What a folder is, by one of its files; nothing is read."""
    source = open_source(place)
    try:
        return next((MARKS[name] for name in marks if source.kind(name) == "file"), "")
    except (DcptoolsError, OSError, ValueError):
        return ""
