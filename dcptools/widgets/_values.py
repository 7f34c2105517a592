"""Statistics of the values of many tensors."""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as W
import pandas as pd
import traitlets as T

from dcptools import plots
from dcptools._text import counted, some
from dcptools.checkpoint import Checkpoint
from dcptools.errors import UsageError
from dcptools.mapping import KeyMapping, preview
from dcptools.values import STATISTICS, stats
from dcptools.widgets._base import alert, beside, figure_html
from dcptools.widgets._job import Job
from dcptools.widgets._rows import Column
from dcptools.widgets._table import Table

COLUMNS = ["key", "dtype", "numel", *STATISTICS]
NUMBER = "{:.4g}".format
COUNT = "{:,}".format
TABLE = (
    Column("key", searched=True),
    Column("nan", COUNT, "NaN", numeric=True, kinds=lambda count: ["some"] if count else []),
    Column("inf", COUNT, "Inf", numeric=True, kinds=lambda count: ["some"] if count else []),
    *(Column(name, NUMBER, numeric=True) for name in ("min", "max", "mean", "std", "norm")),
    Column("zeros", COUNT, numeric=True),
    Column("dtype"),
    Column("numel", COUNT, "elements", numeric=True),
)
DRAWN = [
    ("norm", "norm"),
    ("standard deviation", "std"),
    ("largest magnitude", "max_abs"),
    ("share of zeros", "zeros"),
    ("share of NaN", "nan"),
    ("share of Inf", "inf"),
]


class Values(W.VBox):  # type: ignore[misc]
    """Statistics of the values of many tensors, as a table and as a picture, on a worker thread."""

    checkpoint = T.Any(None, allow_none=True)
    mapping = T.Any(None, allow_none=True)  # what is converted; None: what a conversion without options does

    def __init__(self, done: Callable[[pd.DataFrame], None], failed: Callable[[BaseException], None]) -> None:
        self._tell = done
        self.globs = W.Text(
            description="Keys", placeholder="all that is converted; or globs, with spaces",
            layout={"width": "480px"},
        )  # fmt: skip
        self.job = Job("Check values", self._run, self._done, failed)
        self.note = W.HTML()
        self.drawn = W.Dropdown(options=DRAWN, description="Picture", layout={"display": "none"})
        self.figure = W.HTML()
        self.table = Table(TABLE, noun="tensor", order="key")
        self.rows = W.VBox([self.table])
        about = W.HTML(
            "<p>Reads the stored values and looks for NaN and Inf. Uses little memory, and can be cancelled.</p>"
        )
        super().__init__([about, self.globs, self.job, self.note, self.drawn, self.figure, self.rows])
        self._reading: Checkpoint | None = None
        self._failed = failed
        self._frame: pd.DataFrame | None = None
        self.drawn.observe(lambda _: self._draw(), "value")
        self.observe(self._new, "checkpoint")

    def put_beside(self, detail: W.Widget) -> None:
        """Where to show what is said about the chosen row."""
        self.rows.children = [beside(self.table, detail)]

    def _new(self, _: Any) -> None:
        self.job.forget()
        self._frame, self.note.value, self.table.frame = None, "", pd.DataFrame(columns=COLUMNS)
        self._draw()

    def _run(self, progress: Callable[[int, int, str], None], cancel: threading.Event) -> pd.DataFrame:
        self._reading = self.checkpoint
        if self._reading is None:
            raise UsageError("Read a checkpoint first.")
        keys = self.globs.value.split() or self._converted(self._reading)
        return stats(self._reading, keys, progress=progress, cancel=cancel)

    def _converted(self, checkpoint: Checkpoint) -> list[str] | None:
        """The keys that are converted; None, which is all, if there are none."""
        mapping: KeyMapping = self.mapping if self.mapping is not None else preview(checkpoint)
        keys = {view.key for output in mapping.outputs for view in output.sources}
        return [glob.escape(key) for key in sorted(keys)] or None

    def _done(self, frame: pd.DataFrame) -> None:
        if self._reading is None or self._reading is not self.checkpoint:
            return
        bad = frame[(frame["nan"] > 0) | (frame["inf"] > 0)]
        if len(bad):
            have = "has" if len(bad) == 1 else "have"
            found = f"{len(bad):,} of {counted(len(frame), 'tensor')} {have} NaN or Inf: {some(bad['key'])}."
        else:
            found = f"No NaN and no Inf in {counted(len(frame), 'tensor')}."
        looked_at = f"Checked {len(frame):,} of the checkpoint's {counted(len(self._reading.tensors), 'tensor')}."
        self.note.value = alert("warning" if len(bad) else "success", f"{found} {looked_at}")
        self._frame = self.table.frame = frame
        self._tell(frame)
        self._draw()

    def _draw(self) -> None:
        self.drawn.layout.display = "none" if self._frame is None else ""
        try:
            self.figure.value = "" if self._frame is None else figure_html(plots.values(self._frame, self.drawn.value))
        except Exception as error:
            self._failed(error)
