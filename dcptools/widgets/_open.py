"""The first step: find a checkpoint, and say what it is."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools._text import counted, format_bytes, format_count, some
from dcptools.checkpoint import METADATA, Checkpoint, read
from dcptools.recipe import to_inspect
from dcptools.storage import is_url
from dcptools.widgets._base import Step, alert, findings_html, handler, table_html, typed_path
from dcptools.widgets._chooser import Chooser
from dcptools.widgets._latest import Latest
from dcptools.widgets._lines import lines_of

SMALL_METADATA = 1_000_000  # bytes, which are read in a moment
CLICK_SECONDS = 1.0  # from leaving a field with the mouse to the end of that click


class Open(Step):
    """Choose a checkpoint directory and read its metadata.

    Parameters
    ----------
    load_dir
        Where to begin; it is read at once if it is a checkpoint.

    Attributes
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or None; also None while it is being read.
    """

    title = "Checkpoint"
    checkpoint = T.Any(None, allow_none=True)

    def __init__(self, load_dir: str | os.PathLike[str] | None = None) -> None:
        self.read = W.Button(description="Read", button_style="primary", layout={"width": "100px"})
        self.chooser = Chooser(
            "Path", str(load_dir or ""), "directory that holds .metadata", marks=(METADATA,), beside=[self.read]
        )
        self.path, self.found = self.chooser.field, W.HTML()
        self.lines = lines_of(self, "checkpoint", to_inspect)
        super().__init__([self.chooser, self.found, self.lines])
        self._later = Latest(self._read_now)
        self._typed_at = -math.inf  # when the path was changed last, by the clock
        self.read.on_click(self._clicked)
        self.path.observe(self._typed, "value")
        self.blocked = "Read a checkpoint first."
        if self.path.value:
            self._read()

    def inputs(self) -> tuple[W.Widget, ...]:
        return *self.chooser.inputs(), self.read

    def join(self, timeout: float | None = None) -> None:
        """Wait until what is to be read is read."""
        self._later.join(timeout)

    def _typed(self, _: Any) -> None:
        self._typed_at = time.monotonic()
        self._read()

    def _clicked(self, _: Any) -> None:
        """Read again, unless this is the click that took the focus from the field, which has already made it read."""
        if time.monotonic() - self._typed_at > CLICK_SECONDS:
            self._read()
        self._typed_at = -math.inf

    @handler
    def _read(self) -> None:
        self.checkpoint, self.found.value = None, ""
        self.blocked = "Read a checkpoint first."
        typed = typed_path(self.path.value)
        if not typed:
            raise FileNotFoundError("Give the directory of a checkpoint, the one that holds .metadata.")
        self.busy = f"Reading {typed} …"
        self.found.value, self.blocked = alert("busy", self.busy), "The checkpoint is being read; wait a moment."
        self._later.ask(at_once=not _takes_long(typed))

    @handler
    def _read_now(self) -> None:
        typed = typed_path(self.path.value)
        try:
            checkpoint = read(typed)
        except Exception:
            if self._later.asked:  # of a path that was changed in the meantime
                return
            self._show("", "This is not a readable checkpoint.")
            raise
        if not self._later.asked:
            self._show(_found(checkpoint), "")
            self.checkpoint = checkpoint

    def _show(self, found: str, blocked: str) -> None:
        self.busy, self.found.value, self.blocked = "", found, blocked

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        if self.checkpoint is None:
            return "No checkpoint is open.", [], []
        return _sentence(self.checkpoint), *_roots(self.checkpoint)


def _takes_long(path: str) -> bool:
    """Whether reading what may be there takes more than a moment."""
    if is_url(path):
        return True
    try:
        return os.stat(os.path.join(path, METADATA)).st_size > SMALL_METADATA
    except FileNotFoundError:
        return os.path.isdir(path)  # then the headers of its files are read
    except (OSError, ValueError):
        return False


def _sentence(checkpoint: Checkpoint) -> str:
    tensors = checkpoint.tensors.values()
    dtypes = some(dict.fromkeys(t.dtype.name for t in tensors), 6) or "no tensors"
    return (
        f"{counted(len(tensors), 'tensor')} ({format_count(sum(t.numel for t in tensors))} elements, "
        f"{format_bytes(checkpoint.nbytes)}, {dtypes}) and {counted(len(checkpoint.objects), 'pickled object')}, "
        f"written by {counted(len(checkpoint.ranks), 'rank')} in {counted(len(checkpoint.files), 'file')}."
    )


def _roots(checkpoint: Checkpoint) -> tuple[list[str], list[list[str]]]:
    rows = [[root, f"{n:,}", format_count(e), format_bytes(b), d] for root, n, e, b, d in checkpoint.summary()]
    return ["root", "keys", "elements", "bytes", "dtypes"], rows


def _found(checkpoint: Checkpoint) -> str:
    return (
        alert("success", _sentence(checkpoint)) + table_html(*_roots(checkpoint), numeric=(1, 2, 3))
        + findings_html(checkpoint.findings)
    )  # fmt: skip
