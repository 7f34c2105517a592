"""The first step: find a checkpoint, and say what it is."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools._text import counted, format_bytes, format_count, printable, some
from dcptools.checkpoint import Checkpoint, is_checkpoint, read
from dcptools.storage import is_url, join, open_source, parent
from dcptools.widgets._base import Step, alert, findings_html, handler, table_html, typed_path

MAX_FOLDERS = 500
LOOKING = 16  # threads that look which of them are checkpoints


class Open(Step):
    """Choose a checkpoint directory and read its metadata.

    Parameters
    ----------
    load_dir
        Where to begin; it is read at once if it is a checkpoint.

    Attributes
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or None.
    """

    title = "Checkpoint"
    checkpoint = T.Any(None, allow_none=True)

    def __init__(self, load_dir: str | os.PathLike[str] | None = None) -> None:
        self.path = W.Text(
            value=str(load_dir or ""), description="Path", placeholder="directory that holds .metadata",
            continuous_update=False, layout={"width": "640px"},
        )  # fmt: skip
        self.read = W.Button(description="Read", button_style="primary", layout={"width": "100px"})
        self.folders = W.Select(description="Folders", rows=8, layout={"width": "640px"})
        self.up = W.Button(description="Up", layout={"width": "100px"})
        self.enter = W.Button(description="Open folder", layout={"width": "120px"})
        self.found = W.HTML()
        chooser = W.Accordion([W.VBox([self.folders, W.HBox([self.up, self.enter])])], titles=("Browse",))
        super().__init__([W.HBox([self.path, self.read]), chooser, self.found])
        self._here = ""
        self.read.on_click(self._read)
        self.path.observe(self._read, "value")
        self.up.on_click(self._go_up)
        self.enter.on_click(self._go_in)
        self.folders.observe(self._choose, "value")
        self._list(self._start())
        self.blocked = "Read a checkpoint first."
        if self.path.value:
            self._read()

    def _start(self) -> str:
        typed = typed_path(self.path.value)
        if is_url(typed):
            return typed
        path = os.path.abspath(typed)
        return parent(path) if is_checkpoint(path) else path if os.path.isdir(path) else os.getcwd()

    @handler
    def _read(self, _: Any = None) -> None:
        self.checkpoint, self.found.value = None, ""
        self.blocked = "This is not a readable checkpoint."
        if not self.path.value.strip():
            raise FileNotFoundError("Give the directory of a checkpoint, the one that holds .metadata.")
        typed = typed_path(self.path.value)
        if is_url(typed) and not is_checkpoint(typed):
            self._list(typed)  # a bucket, to look around in
        checkpoint = read(typed)
        self.found.value = _found(checkpoint)
        self.blocked = ""
        self.checkpoint = checkpoint

    @handler
    def _list(self, directory: str) -> None:
        names = [name for name in open_source(directory).folders() if not name.startswith(".")][:MAX_FOLDERS]
        places = [join(directory, name) for name in names]
        with ThreadPoolExecutor(LOOKING) as pool:
            found = list(pool.map(is_checkpoint, places))
        labels = [
            f"{printable(n)}/{'   (DCP checkpoint)' if is_one else ''}" for n, is_one in zip(names, found, strict=True)
        ]
        self._here = directory
        self.folders.options = [(directory, ""), *zip(labels, places, strict=True)]
        self.folders.value = ""

    @handler
    def _choose(self, change: Any) -> None:
        if change["new"] and is_checkpoint(change["new"]):
            self.path.value = change["new"]

    @handler
    def _go_up(self, _: Any) -> None:
        self._list(parent(self._here))

    @handler
    def _go_in(self, _: Any) -> None:
        if self.folders.value:
            self._list(self.folders.value)

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        if self.checkpoint is None:
            return "No checkpoint is open.", [], []
        return _sentence(self.checkpoint), *_roots(self.checkpoint)


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
