"""The second step: look into the checkpoint: keys, modules, sizes, values, findings, single tensors."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import ipywidgets as W
import numpy as np
import pandas as pd
import traitlets as T

from dcptools import plots
from dcptools._text import counted, format_bytes, format_shape
from dcptools.checkpoint import NO_ROOT, Checkpoint
from dcptools.findings import Finding, Group
from dcptools.recipe import to_inspect
from dcptools.widgets._base import Step, beside, figure_html, handler
from dcptools.widgets._cards import Cards
from dcptools.widgets._detail import About, Detail
from dcptools.widgets._findings import by_key, findings_frame, findings_table, row_of, row_with, with_text
from dcptools.widgets._lines import lines_of
from dcptools.widgets._rows import Column, is_missing
from dcptools.widgets._table import Leaves, Table
from dcptools.widgets._values import Values

KEYS, SIZES, VALUES, FINDINGS = range(4)  # the tabs


def _shape(shape: Any) -> str:
    """The dtype of a row of the frame; an object has none."""
    return format_shape(shape) if isinstance(shape, tuple) else ""


def _codes(text: str) -> list[str]:
    """The kinds behind "hole, 2 NaN": codes, and what was counted."""
    return [re.sub(r"^[\d,]+ ", "", part) for part in text.split(", ")] if text else []


COUNT = "{:,}".format
COLUMNS = (
    Column("key", searched=True),
    Column("warning", label="finding", optional=True, kinds=_codes),
    Column("root", missing=NO_ROOT, kinds=lambda root: [root or NO_ROOT]),
    Column("dtype", missing="object", kinds=lambda dtype: [dtype or "object"]),
    Column("shape", _shape),
    Column("numel", COUNT, "elements", numeric=True),
    Column("nbytes", format_bytes, "bytes", numeric=True),
    Column("chunks", COUNT, numeric=True),
    Column("files", COUNT, numeric=True),
)


class Inspect(Step):
    """Search, filter and sort the keys, flat or as a tree of modules; sizes; NaN and Inf; one tensor beside its row.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned; may be set later.

    Attributes
    ----------
    stats
        The DataFrame of :func:`dcptools.stats`, once it was requested.
    """

    title = "Inspect"
    checkpoint = T.Any(None, allow_none=True)
    mapping = T.Any(None, allow_none=True)  # what is converted; None: not known yet
    stats = T.Any(None, allow_none=True)

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.key_table = Table(COLUMNS, leaves=self._leaves, order="key", sorted_by="key")
        self.findings = findings_table()
        self.cards = Cards(self._show_concerned)
        self.sizes = W.HTML()
        self.values = Values(self._with_stats, self.show_error)
        tables = (self.key_table, self.values.table, self.findings)
        self.details = {table: Detail(self._show_finding) for table in tables}
        self.detail, of_values, of_findings = self.details.values()
        self.values.put_beside(of_values)
        found = W.VBox([self.cards, beside(with_text(self.findings), of_findings)])
        self.tabs = W.Tab(
            [beside(self.key_table, self.detail), self.sizes, self.values, found],
            titles=("Keys", "Sizes", "Values", "Findings"),
            layout={"width": "auto"},
        )
        self.lines = lines_of(self, "checkpoint", to_inspect)
        super().__init__([self.tabs, self.lines])
        self.tabs.observe(self._fill, "selected_index")
        for table, detail in self.details.items():
            table.observe(partial(self._tell, table, detail), "chosen")
        self.findings.observe(self._follow, "opened")
        self.values.table.observe(self._follow_tensor, "opened")
        self.observe(self._new, "checkpoint")
        self.observe(self._hand_on, "mapping")
        self.blocked = "Read a checkpoint first."
        self.checkpoint = checkpoint

    @handler
    def _new(self, _: Any) -> None:
        self.stats, self.sizes.value = None, ""
        self.values.checkpoint = self.checkpoint
        self.tabs.layout.display = "none" if self.checkpoint is None else ""
        for detail in self.details.values():
            detail.tell(None)
        if self.checkpoint is None:
            self.blocked = "Read a checkpoint first."
            return
        self.blocked = ""
        self.key_table.frame = self._keys_frame
        self.findings.frame = findings_frame(self.checkpoint.findings)
        self.cards.tell(self.checkpoint.findings, self._can_show)
        self.tabs.set_title(FINDINGS, f"Findings ({len(self.checkpoint.findings):,})")
        self._fill()

    def _hand_on(self, _: Any) -> None:
        self.values.mapping = self.mapping

    def _keys_frame(self) -> pd.DataFrame:
        frame: pd.DataFrame = self.checkpoint.to_frame()
        warnings = {key: [each.code for each in found] for key, found in by_key(self.checkpoint.findings).items()}
        if self.stats is not None:
            for row in self.stats.itertuples():
                counts = [f"{n:,} {name}" for name, n in (("NaN", row.nan), ("Inf", row.inf)) if n]
                warnings.setdefault(row.key, []).extend(counts)
        frame["warning"] = [", ".join(warnings.get(key, ())) for key in frame["key"]]
        return frame

    def _leaves(self, frame: pd.DataFrame) -> Leaves:
        """Rows of the keys for the tree, in the order of the checkpoint: that of the model's own modules."""
        keys = (*self.checkpoint.tensors, *self.checkpoint.objects)
        stored = dict(zip(keys, range(len(keys)), strict=True))
        numbers = np.fromiter(map(stored.__getitem__, frame["key"]), np.intp, len(frame))
        rows = frame.take(np.argsort(numbers))
        shapes = [() if shape is None else shape for shape in rows["shape"]]
        dtypes = [dtype or "object" for dtype in rows["dtype"]]
        sizes = (rows[name].fillna(0).to_numpy(np.int64).tolist() for name in ("numel", "nbytes"))
        return rows.index.tolist(), rows["key"].tolist(), list(zip(shapes, dtypes, *sizes, strict=True))

    @handler
    def _fill(self, _: Any = None) -> None:
        """Draw the sizes when they are looked at; that takes a moment."""
        if self.checkpoint is not None and self.tabs.selected_index == SIZES and not self.sizes.value:
            figures = (plots.sizes(self.checkpoint, by=by) for by in ("root", "dtype", "module"))
            self.sizes.value = "<br>".join(map(figure_html, figures))

    def _with_stats(self, frame: pd.DataFrame) -> None:
        self.stats = frame
        self.key_table.frame = self._keys_frame

    @handler
    def _tell(self, table: Table, detail: Detail, _: Any) -> None:
        """Show the key of the chosen row; what is shown stays when the rows are new."""
        checkpoint: Checkpoint | None = self.checkpoint
        if table.chosen < 0 or checkpoint is None:
            return
        key = table.frame["key"].iloc[table.chosen]
        if key in checkpoint.tensors or key in checkpoint.objects:
            names, left_out = self._result_of(key)
            detail.tell(About(checkpoint, key, names, left_out, by_key(checkpoint.findings).get(key, [])))
        else:  # a finding about all of it
            detail.tell(None)

    def _result_of(self, key: str) -> tuple[list[str], str]:
        """What a key is called in the result, or why it is left out."""
        if self.mapping is None:
            return [], ""
        names = [o.name for o in self.mapping.outputs if any(view.key == key for view in o.sources)]
        return names, next((left.reason for left in self.mapping.leftovers if left.key == key), "")

    def _can_show(self, group: Group) -> bool:
        return any(key in self.checkpoint.tensors or key in self.checkpoint.objects for key in group.keys)

    @handler
    def _show_concerned(self, group: Group) -> None:
        """The keys that findings are about, and no others."""
        rows = np.flatnonzero(self.key_table.frame["key"].isin(group.keys)).tolist()
        self.tabs.selected_index = KEYS
        self.key_table.only(rows, f"{group.code}: {group.where}")

    @handler
    def _show_finding(self, finding: Finding) -> None:
        row = row_of(self.findings.frame, finding)
        if row >= 0:
            self.tabs.selected_index = FINDINGS
            self.findings.show(row)

    @handler
    def _follow(self, _: Any) -> None:
        self._show_key(self.findings)

    @handler
    def _follow_tensor(self, _: Any) -> None:
        self._show_key(self.values.table)

    def _show_key(self, table: Table) -> None:
        """From a row of another table to that of its key."""
        if table.opened >= 0:
            row = row_with(self.key_table.frame, key=table.frame["key"].iloc[table.opened])
            if row >= 0:
                self.tabs.selected_index = KEYS
                self.key_table.show(row)

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        if self.checkpoint is None:
            return "No checkpoint is open.", [], []
        frame = self.key_table.frame
        names = ["key", "dtype", "shape", "nbytes"]
        rows = [
            [key, dtype or "object", _shape(shape), format_bytes(0 if is_missing(nbytes) else nbytes)]
            for key, dtype, shape, nbytes in zip(*(frame[name].to_numpy(object) for name in names), strict=True)
        ]
        return f"{self.checkpoint.path}: {counted(len(frame), 'key')}", ["key", "dtype", "shape", "bytes"], rows
