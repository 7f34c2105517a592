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
from dcptools.findings import Finding
from dcptools.mapping import KeyMapping
from dcptools.recipe import to_plan
from dcptools.shards import DEFAULT_SHARD_SIZE, PlanOptions, ShardPlan, plan
from dcptools.widgets._bar import Slider
from dcptools.widgets._base import Step, alert, figure_html, findings_html, handler
from dcptools.widgets._latest import MANY_KEYS, Latest
from dcptools.widgets._lines import lines_of
from dcptools.widgets._review import Review
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
        What :func:`dcptools.plan` returned for the current size, or None; also None while it is being made.
    """

    title = "Shards"
    mapping = T.Any(None, allow_none=True)
    plan = T.Any(None, allow_none=True)
    dtype = T.Unicode("bfloat16")
    shard_size = T.Int(DEFAULT_SHARD_SIZE)
    wanted = T.Bool(True)  # whether somebody needs the plan; until then it is not computed

    def __init__(self, mapping: KeyMapping | None = None, shard_size: float | str = DEFAULT_SHARD_SIZE) -> None:
        self.slider = Slider(description="Shard size", low=MIN_LOG, high=MAX_LOG)
        self.size = W.Text(description="Bytes", continuous_update=False, layout={"width": "220px"})
        self.color = W.Dropdown(options=("layer", "module"), description="Colour by", layout={"width": "200px"})
        self.found, self.figure = W.HTML(), W.HTML(layout={"min_height": "160px"})
        self.accept = W.Checkbox(description="I have read the warnings", indent=False, layout={"display": "none"})
        self.files = Table(FILES, noun="file")
        self._syncing = False
        self._due = False  # whether there is a plan to be computed
        self._drawn: tuple[ShardPlan | None, str] = (None, "")  # what the figure shows: the plan and the colouring
        self._read: list[Finding] = []  # the warnings that the tick is about
        self._later = Latest(self._work)
        self.review = Review(self._subject, self.show_error)
        self.lines = lines_of(self, "plan", to_plan)
        choices = W.HBox([self.slider, self.size, self.color])
        super().__init__([choices, self.found, self.accept, self.figure, self.files, self.review, self.lines])
        self.slider.observe(self._slid, "value")
        self.size.observe(self._typed, "value")
        self.color.observe(lambda _: self.compute(), "value")
        self.accept.observe(lambda _: self._decide(), "value")
        self.observe(lambda _: self._show_size(), "shard_size")
        for name in ("mapping", "dtype", "shard_size"):
            self.observe(self._refresh, name)
        for name in ("wanted", "seen"):
            self.observe(lambda change: self.compute() if change["new"] else None, name)
        self.observe(lambda _: self._wait(), "pending")
        self.blocked = "Review the mapping first."
        self.shard_size = parse_bytes(shard_size)
        self._show_size()
        self.mapping = mapping

    def _subject(self) -> tuple[KeyMapping, PlanOptions] | None:
        return None if self.plan is None else (self.plan.mapping, self.plan.options)

    @handler
    def _slid(self, _: Any) -> None:
        if not self._syncing:
            self._take(float(f"{self.slider.value:.2g}"))

    @handler
    def _typed(self, _: Any) -> None:
        if not self._syncing:
            self._forget()
            self._take(parse_bytes(self.size.value))

    def _take(self, size: float) -> None:
        before, self.shard_size = self.shard_size, int(size)
        if self.shard_size == before:
            self._show_size()
            self._refresh()

    def _show_size(self) -> None:
        self._syncing = True
        self.slider.value = min(max(self.shard_size, 10**MIN_LOG), 10**MAX_LOG)
        self.slider.words = format_bytes(self.shard_size)
        self.size.value = format_bytes(self.shard_size) if not _rounds(self.shard_size) else str(self.shard_size)
        self._syncing = False

    @handler
    def _refresh(self, _: Any = None) -> None:
        """What was planned is no longer of use; plan again as soon as that is needed."""
        self._forget()
        self._due = self.mapping is not None
        if self.wanted:
            self.compute()
        self._wait()

    def _forget(self) -> None:
        self.busy, self.plan, self.found.value, self.figure.value = "", None, "", ""
        self._due, self._drawn = False, (None, "")
        self.blocked = "There is no plan yet."
        self.files.layout.display = self.accept.layout.display = "none"

    def inputs(self) -> tuple[W.Widget, ...]:
        return self.slider, self.size

    def _wait(self) -> None:
        """Say what an earlier step computes, as long as there is no mapping."""
        if self.mapping is None:
            self.found.value = alert("busy", self.pending) if self.pending else ""

    def compute(self) -> None:
        """Plan and draw what is looked at, unless it is already there."""
        if self._due:
            self.busy = f"Planning the files of {len(self.mapping.outputs):,} tensors …"
            self.found.value, self.blocked = alert("busy", self.busy), "The files are being planned; wait a moment."
        elif not self._to_draw():
            return
        self._later.ask(at_once=len(self.mapping.outputs) < MANY_KEYS)

    def join(self, timeout: float | None = None) -> None:
        """Wait until everything that was requested is computed."""
        self._later.join(timeout)

    def _to_draw(self) -> bool:
        planned, color = self._drawn
        return self.seen and self.plan is not None and (planned is not self.plan or color != self.color.value)

    @handler
    def _work(self) -> None:
        if self._due:
            self._plan()
        if self._to_draw():
            self._draw()

    def _plan(self) -> None:
        self._due = False
        mapping, size, dtype = self.mapping, self.shard_size, self.dtype
        try:
            planned = plan(mapping, size, dtype)
        except BaseException:
            if not self._due:
                self._forget()
                raise
            return
        if self._due or mapping is not self.mapping or (size, dtype) != (self.shard_size, self.dtype):
            return  # another one was requested in the meantime
        self.found.value = _facts(planned)
        self.files.frame = planned.files_frame
        self.files.layout.display = ""
        self.busy, self.plan = "", planned
        self._ask(_to_look_at(planned))

    def _ask(self, warnings: list[Finding]) -> None:
        """Ask for the warnings that only the plan has to be read; those from before have been."""
        if warnings != self._read:
            self._read, self.accept.value = warnings, False
        self._decide()

    def _decide(self) -> None:
        if self.plan is not None:
            self.accept.layout.display = "" if self._read else "none"
            ticked = self.accept.value or not self._read
            self.blocked = "" if ticked else "There are warnings: tick that you have read them."

    def _draw(self) -> None:
        self._drawn = planned, color = self.plan, self.color.value
        if not self.figure.value:
            self.figure.value = alert("busy", f"Drawing {counted(len(planned.files), 'file')} …")
        drawn = figure_html(plots.shards(planned, color_by=color))
        if self.plan is planned:
            self.figure.value = drawn

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
    return alert(enough, text) + findings_html(_to_look_at(planned), most=3)


def _to_look_at(planned: ShardPlan) -> list[Finding]:
    return [finding for finding in planned.found_while_planning if finding.severity != "info"]
