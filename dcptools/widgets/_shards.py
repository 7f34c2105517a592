"""The fourth step: how the result is cut into files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools import plots
from dcptools._parallel import default_workers
from dcptools._sizes import parse_bytes
from dcptools._text import counted, format_bytes
from dcptools.mapping import KeyMapping
from dcptools.shards import DEFAULT_SHARD_SIZE, ShardPlan, plan
from dcptools.widgets._base import Step, alert, figure_html, findings_html, handler
from dcptools.widgets._rows import Column
from dcptools.widgets._table import Table
from dcptools.writer import default_save_dir, free_bytes

MIN_LOG, MAX_LOG = 4.0, 11.0  # of the slider: 10 kB to 100 GB
FILES = (
    Column("file", searched=True),
    Column("tensors", "{:,}".format, numeric=True),
    Column("nbytes", format_bytes, "bytes", numeric=True),
    Column("first", label="first tensor", searched=True),
    Column("last", label="last tensor", searched=True),
)


class Shards(Step):
    """Choose the shard size and see every file of the result.

    Parameters
    ----------
    mapping
        What :func:`dcptools.preview` returned; may be set later.

    Attributes
    ----------
    plan
        What :func:`dcptools.plan` returned for the size as it stands, or None.
    """

    title = "Shards"
    mapping = T.Any(None, allow_none=True)
    plan = T.Any(None, allow_none=True)
    dtype = T.Unicode("bfloat16")
    shard_size = T.Int(DEFAULT_SHARD_SIZE)

    def __init__(self, mapping: KeyMapping | None = None, shard_size: float | str = DEFAULT_SHARD_SIZE) -> None:
        self.slider = W.FloatLogSlider(
            base=10, min=MIN_LOG, max=MAX_LOG, step=0.05, description="Shard size", readout=False,
            continuous_update=False, layout={"width": "420px"},
        )  # fmt: skip
        self.size = W.Text(description="Bytes", continuous_update=False, layout={"width": "220px"})
        self.color = W.Dropdown(options=("layer", "module"), description="Colour by", layout={"width": "200px"})
        self.found, self.figure = W.HTML(), W.HTML(layout={"min_height": "160px"})
        self.files = Table(FILES, noun="file")
        self._syncing = False
        super().__init__([W.HBox([self.slider, self.size, self.color]), self.found, self.figure, self.files])
        self.slider.observe(self._slid, "value")
        self.size.observe(self._typed, "value")
        self.color.observe(lambda _: self._draw(), "value")
        self.observe(lambda _: self._show_size(), "shard_size")
        for name in ("mapping", "dtype", "shard_size"):
            self.observe(self._refresh, name)
        self.blocked = "Review the mapping first."
        self.shard_size = parse_bytes(shard_size)
        self._show_size()
        self.mapping = mapping

    @handler
    def _slid(self, _: Any) -> None:
        if not self._syncing:
            self._take(float(f"{self.slider.value:.2g}"))

    @handler
    def _typed(self, _: Any) -> None:
        if not self._syncing:
            self.plan, self.blocked = None, "There is no plan yet."
            self._take(parse_bytes(self.size.value))

    def _take(self, size: float) -> None:
        before, self.shard_size = self.shard_size, int(size)
        if self.shard_size == before:
            self._show_size()
            self._refresh()

    def _show_size(self) -> None:
        self._syncing = True
        self.slider.value = min(max(self.shard_size, 10**MIN_LOG), 10**MAX_LOG)
        self.size.value = format_bytes(self.shard_size) if not _rounds(self.shard_size) else str(self.shard_size)
        self._syncing = False

    @handler
    def _refresh(self, _: Any = None) -> None:
        self.plan, self.found.value, self.figure.value = None, "", ""
        self.blocked = "There is no plan yet."
        self.files.layout.display = "none"
        if self.mapping is None:
            return
        planned = plan(self.mapping, self.shard_size, self.dtype)
        self.found.value = _facts(planned)
        self.files.frame = planned.files_frame()
        self.files.layout.display = ""
        self.blocked = ""
        self.plan = planned
        self._draw()

    @handler
    def _draw(self) -> None:
        if self.plan is not None:
            figure = plots.shards(self.plan, color_by=self.color.value)
            self.figure.value = figure_html(figure)

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        if self.plan is None:
            return "No plan yet.", [], []
        rows = [[f.filename, str(len(f.tensors)), format_bytes(f.nbytes)] for f in self.plan.files]
        return f"{counted(len(rows), 'file')}, {format_bytes(self.plan.file_bytes)}", ["file", "tensors", "bytes"], rows


def _rounds(size: int) -> bool:
    """Whether showing it in units would change it."""
    return parse_bytes(format_bytes(size)) != size


def _facts(planned: ShardPlan) -> str:
    target = default_save_dir(planned.checkpoint.path)
    free = free_bytes(target) if isinstance(target, Path) else None  # an object store has no such limit
    largest = max((file.nbytes for file in planned.files), default=0)
    files = f"{counted(len(planned.files), 'file')}, {format_bytes(planned.file_bytes)} in total"
    text = (
        f"{files}, the largest {format_bytes(largest)}.\n"
        f"Memory: about {format_bytes(planned.peak_bytes)} with {default_workers()} workers."
        + (f" Free beside the checkpoint: {format_bytes(free)}." if free is not None else "")
    )
    enough = "info" if free is None or planned.file_bytes < free else "warning"
    to_look_at = [finding for finding in planned.found_while_planning if finding.severity != "info"]
    return alert(enough, text) + findings_html(to_look_at, most=3)
