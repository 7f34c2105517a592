"""The second step: look into the checkpoint: keys, modules, sizes, values, single tensors."""

from __future__ import annotations

from typing import Any

import ipywidgets as W
import pandas as pd
import traitlets as T

from dcptools import plots
from dcptools._text import format_bytes, format_shape
from dcptools.checkpoint import Checkpoint
from dcptools.tree import tree
from dcptools.widgets._base import Step, figure_html, handler
from dcptools.widgets._table import PagedTable
from dcptools.widgets._tree import TreeView
from dcptools.widgets._values import OneTensor, Values

COLUMNS = ["key", "kind", "root", "shape", "dtype", "numel", "nbytes", "chunks", "files", "warning"]
KEYS, TREE, SIZES, VALUES, TENSOR = range(5)  # the tabs


class Inspect(Step):
    """Search, filter and page through the keys; the tree of modules; sizes; NaN and Inf; one tensor at a time.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned; may be set later.

    Attributes
    ----------
    stats
        The DataFrame of :func:`dcptools.stats`, once it was asked for.
    """

    title = "Inspect"
    checkpoint = T.Any(None, allow_none=True)
    stats = T.Any(None, allow_none=True)

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.key_table = PagedTable(
            pd.DataFrame(columns=COLUMNS),
            search=["key"],
            facets=["root", "kind", "dtype"],
            flags={"only warnings": lambda frame: frame["warning"] != ""},
            formats={"nbytes": format_bytes, "shape": _shape, "numel": "{:,}".format, "chunks": "{:,}".format},
            numeric=["numel", "nbytes", "chunks", "files"],
        )
        self.tree = TreeView()
        self.sizes = W.HTML()
        self.values = Values(self._with_stats, self.show_error)
        self.tensor = OneTensor(self.show_error)
        self.tabs = W.Tab(
            [self.key_table, self.tree, self.sizes, self.values, self.tensor],
            titles=("Keys", "Tree", "Sizes", "Values", "One tensor"),
            layout={"width": "99%"},
        )
        super().__init__([self.tabs])
        self.tabs.observe(self._fill, "selected_index")
        self.observe(self._new, "checkpoint")
        self.blocked = "Read a checkpoint first."
        self.checkpoint = checkpoint

    @handler
    def _new(self, _: Any) -> None:
        self.stats, self.sizes.value = None, ""
        self.tree.tree = None
        self.values.checkpoint = self.tensor.checkpoint = self.checkpoint
        self.tabs.layout.display = "none" if self.checkpoint is None else ""
        if self.checkpoint is None:
            self.blocked = "Read a checkpoint first."
            return
        self.blocked = ""
        self._show_keys()
        self._fill()

    def _show_keys(self) -> None:
        frame = self.checkpoint.to_frame()
        warnings: dict[str, list[str]] = {}
        for finding in self.checkpoint.findings:
            warnings.setdefault(finding.key, []).append(finding.code)
        if self.stats is not None:
            for row in self.stats.itertuples():
                counts = [f"{n:,} {name}" for name, n in (("NaN", row.nan), ("Inf", row.inf)) if n]
                warnings.setdefault(row.key, []).extend(counts)
        frame["warning"] = frame["key"].map(lambda key: ", ".join(warnings.get(key, ())))
        self.key_table.frame = frame

    @handler
    def _fill(self, _: Any = None) -> None:
        """Fill the tab that is shown; trees and figures take a moment, so only when they are looked at."""
        if self.checkpoint is None:
            return
        if self.tabs.selected_index == TREE and self.tree.tree is None:
            self.tree.tree = tree(self.checkpoint)
        if self.tabs.selected_index == SIZES and not self.sizes.value:
            figures = (plots.sizes(self.checkpoint, by=by) for by in ("root", "dtype", "module"))
            self.sizes.value = "<br>".join(map(figure_html, figures))

    def _with_stats(self, frame: pd.DataFrame) -> None:
        self.stats = frame
        self._show_keys()

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        if self.checkpoint is None:
            return "No checkpoint is open.", [], []
        frame = self.checkpoint.to_frame()
        rows = [
            [str(row.key), str(row.dtype), _shape(row.shape), format_bytes(row.nbytes or 0)]
            for row in frame.itertuples()
        ]
        return f"{self.checkpoint.path}: {len(frame):,} keys", ["key", "dtype", "shape", "bytes"], rows


def _shape(shape: Any) -> str:
    """Of a row of the frame; an object has none."""
    return format_shape(shape) if isinstance(shape, tuple) else ""
