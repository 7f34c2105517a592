"""Two checkpoints or models side by side, on a worker thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as W
import pandas as pd
import traitlets as T

from dcptools import plots
from dcptools._text import format_shape
from dcptools.comparing import BY, STATISTICS, Comparison, diff
from dcptools.widgets._base import Step, alert, figure_html, handler, typed_path
from dcptools.widgets._chooser import Chooser
from dcptools.widgets._job import Job
from dcptools.widgets._labels import LABELS
from dcptools.widgets._rows import Column
from dcptools.widgets._table import Table

NUMBERS = ("max_abs", "relative", "cosine")
SHOWN = ("equal", *NUMBERS)
COLUMNS = ["name", "state", "A", "B", *SHOWN]


def _share(share: float) -> str:
    """A share as a percentage, which says 100 % only for all values."""
    return f"{min(share, 0.9999):.2%}" if share < 1 else "100%"


TABLE = (
    Column("name", searched=True),
    Column("state", kinds=lambda state: [state]),
    Column("equal", _share, numeric=True),
    *(Column(name, "{:.4g}".format, name.replace("_", " "), numeric=True) for name in NUMBERS),
    Column("A"),
    Column("B"),
)


class Compare(Step):
    """Compare two sides, each a distributed checkpoint or a HuggingFace model, and see where they differ.

    Parameters
    ----------
    a, b
        Paths, to begin with.
    by, cast
        As in :func:`dcptools.diff`.

    Attributes
    ----------
    comparison
        What :func:`dcptools.diff` returned, or None.
    """

    title = "Compare"
    comparison = T.Any(None, allow_none=True)

    def __init__(
        self,
        a: str | os.PathLike[str] | None = None,
        b: str | os.PathLike[str] | None = None,
        by: str = "auto",
        cast: bool = False,
    ) -> None:
        self.sides = [
            Chooser(name, str(path or ""), "directory of a checkpoint or a model")
            for name, path in (("A", a), ("B", b))
        ]
        self.a, self.b = (side.field for side in self.sides)
        self.by = W.Dropdown(options=BY, value=by, description=LABELS["by"], layout={"width": "220px"})
        self.globs = W.Text(
            description="Only", placeholder="all; or globs, separated by spaces", layout={"width": "420px"}
        )
        self.cast = W.Checkbox(value=cast, description=LABELS["cast"], indent=False, layout={"width": "auto"})
        self.job = Job("Compare", self._run, self._done, self.show_error, self._ready)
        self.statistic = W.Dropdown(
            options=[(about, name) for name, about in STATISTICS.items()],
            description="Colour",
            layout={"width": "480px"},
        )
        self.found, self.figure = W.HTML(), W.HTML()
        self.table = Table(TABLE, noun="tensor", order="relative", descending=True)  # what differs most comes first
        options = W.HBox([self.by, self.globs, self.cast], layout=W.Layout(flex_flow="row wrap"))
        self.result = W.VBox([self.statistic, self.figure, self.table], layout={"display": "none"})
        super().__init__([*self.sides, options, self.job, self.found, self.result])
        for field in (self.a, self.b, self.by, self.globs, self.cast):
            field.observe(self._changed, "value")
        self.statistic.observe(lambda _: self._draw(), "value")
        self.job.observe(lambda change: setattr(self, "frozen", change["new"]), "running")
        self._changed()

    def inputs(self) -> tuple[W.Widget, ...]:
        return *(field for side in self.sides for field in side.inputs()), self.by, self.globs, self.cast

    def _ready(self) -> bool:
        return bool(self.a.value.strip() and self.b.value.strip())

    @handler
    def _changed(self, _: Any = None) -> None:
        """What is shown must be what the fields say."""
        self.comparison, self.found.value = None, ""
        self.result.layout.display = "none"
        self.job.forget()
        self.job.enable()
        self.blocked = "" if self._ready() else "Give two directories."

    def _run(self, progress: Callable[[int, int, str], None], cancel: threading.Event) -> tuple[Any, Comparison]:
        asked = self._asked()
        self.message.value = ""
        a, b, by, keys, cast = asked
        return asked, diff(a, b, by=by, keys=keys or None, cast=cast, progress=progress, cancel=cancel)

    def _asked(self) -> tuple[str, str, str, tuple[str, ...], bool]:
        """What a click would compare."""
        paths = typed_path(self.a.value), typed_path(self.b.value)
        return (*paths, self.by.value, tuple(self.globs.value.split()), self.cast.value)

    def _done(self, done: tuple[Any, Comparison]) -> None:
        asked, comparison = done
        if asked != self._asked():
            self.found.value = alert("warning", "The fields have changed since; compare again.")
            return
        self.found.value = alert("success" if comparison.same else "info", comparison.headline())
        self.table.frame = _frame(comparison)
        self.comparison = comparison
        self._draw()
        self.result.layout.display = ""

    @handler
    def _draw(self) -> None:
        if self.comparison is not None:
            self.figure.value = figure_html(plots.diff(self.comparison, self.statistic.value))

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        if self.comparison is None:
            return "Nothing has been compared yet.", [], []
        rows = [[t.name, t.state, f"{t.relative:.3g}"] for t in self.comparison.worst_first()]
        return self.comparison.headline(), ["tensor", "what differs", "relative"], rows


def _frame(comparison: Comparison) -> pd.DataFrame:
    rows = [
        (t.name, t.state, _what(t.dtype_a, t.shape_a), _what(t.dtype_b, t.shape_b), *(getattr(t, n) for n in SHOWN))
        for t in comparison.tensors
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _what(dtype: str, shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else f"{dtype} {format_shape(shape)}"
