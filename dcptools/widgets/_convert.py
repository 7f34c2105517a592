"""The step before the last: write the model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools._option import speaking
from dcptools._text import counted, format_bytes
from dcptools.assets import CONFIG, find_assets
from dcptools.errors import DcptoolsError, OutputExists
from dcptools.mapping import preview
from dcptools.recipe import Recipe, command_line, python_call
from dcptools.shards import ShardPlan, plan
from dcptools.storage import is_url
from dcptools.widgets._base import Step, alert, findings_html, handler, identity, typed_path
from dcptools.widgets._chooser import Chooser
from dcptools.widgets._job import Job
from dcptools.widgets._labels import LABELS, by_label
from dcptools.widgets._latest import Latest
from dcptools.widgets._lines import Lines
from dcptools.widgets._result import report_summary
from dcptools.writer import Report, check_target, default_save_dir, write


class Convert(Step):
    """Choose where to save, see the command that does the same, start, and cancel if necessary.

    Parameters
    ----------
    plan
        What :func:`dcptools.plan` returned; may be set later.
    save_dir
        The output directory; by default ``hf_ckpt`` in the checkpoint's directory.

    Attributes
    ----------
    report
        What :func:`dcptools.write` returned, or None.
    """

    title = "Convert"
    checkpoint = T.Any(None, allow_none=True)  # that of the plan; the wizard knows it earlier
    plan = T.Any(None, allow_none=True)
    report = T.Any(None, allow_none=True)
    model_assets_dir = T.Unicode("")

    def __init__(self, plan: ShardPlan | None = None, save_dir: str = "") -> None:
        self.place = Chooser("Save to", save_dir, marks=(), renames=True)
        self.assets_place = Chooser(
            LABELS["model_assets_dir"], hint="directory with config.json and tokenizer", marks=(CONFIG,)
        )
        self.save_dir, self.assets = self.place.field, self.assets_place.field
        self.overwrite, self.resume = (
            W.Checkbox(description=LABELS[name], indent=False, layout={"width": "auto"})
            for name in ("overwrite", "resume")
        )
        self.there, self.found, self.lines = W.HTML(), W.HTML(), Lines()
        self._identity: tuple[str, str] | None = None  # of the checkpoint for which the fields were filled
        self._writing: tuple[Any, ...] = ()  # what was started last, as _what says it
        self._written: tuple[Any, ...] = ()  # what was written last
        self.job = Job("Convert", self._run, self._done, self.show_error, self._ready)
        self._looking = Latest(self._look)
        options = (self.place, self.there, self.assets_place, self.overwrite, self.resume)
        super().__init__([*options, self.found, self.lines, self.job])
        self.job.observe(lambda change: setattr(self, "frozen", change["new"]), "running")
        self.observe(self._follow, "checkpoint")
        self.observe(self._new, "plan")
        self.observe(self._show_assets, "model_assets_dir")
        self.observe(lambda _: self._describe(), "pending")
        self.observe(lambda change: self._look_again() if change["new"] else None, "seen")
        self.assets.observe(self._take_assets, "value")
        for control in (self.save_dir, self.overwrite, self.resume):
            control.observe(lambda _: self._describe(), "value")
        self.blocked = "Nothing has been written yet."
        self.plan = plan
        self._describe()

    @handler
    def _new(self, _: Any) -> None:
        """Nothing is known about another plan: what was written before did not come from it."""
        self.report = None
        planned: ShardPlan | None = self.plan
        if planned is not None:
            self.model_assets_dir = planned.mapping.options.model_assets_dir or ""
            self.checkpoint = planned.checkpoint
        self._describe()

    @handler
    def _follow(self, _: Any) -> None:
        """Fill the fields for another checkpoint."""
        if self.checkpoint is None:
            return
        before, self._identity = self._identity, identity(self.checkpoint)
        other = before not in (None, self._identity)
        if other:  # what was typed for one model must not be where the next one goes, or what it replaces
            self.overwrite.value = False
        if other or not self.save_dir.value:
            self.save_dir.value = str(default_save_dir(self.checkpoint.path))

    def inputs(self) -> tuple[W.Widget, ...]:
        return *self.place.inputs(), *self.assets_place.inputs(), self.overwrite, self.resume

    def _freeze(self) -> None:
        super()._freeze()
        self.job.enable()
        self.blocked = self._why_not()
        self._look_again()

    def _why_not(self) -> str:
        if self.job.running:
            return "The model is being written; wait for it, or cancel."
        return "" if self._is_written() else "Nothing has been written yet."

    def _is_written(self) -> bool:
        """Whether the model that the fields describe was just written."""
        planned, target, *_ = self._what()
        return self.report is not None and self._written[0] is planned and self._written[1] == target

    def _look_again(self) -> None:
        """What is at the place to save to is shown before a click; a URL takes a while."""
        self._looking.ask(at_once=not is_url(typed_path(self.save_dir.value)))

    def _look(self) -> None:
        what = planned, target, overwrite, _ = self._what()
        unknown = planned is None or not target or self.job.running or self._is_written()
        with speaking(by_label):
            said = "" if unknown else _there(planned, target, overwrite)
        if what[1:] == self._what()[1:] and planned is self.plan:
            self.there.value = said

    def _show_assets(self, _: Any) -> None:
        self.assets.value = self.model_assets_dir

    @handler
    def _take_assets(self, _: Any) -> None:
        """Continue with the directory that was typed, if there is one; until then nothing can be started."""
        directory = typed_path(self.assets.value)
        self.job.enable()
        if directory:
            find_assets(directory)
        self.model_assets_dir = directory
        self._plan_again()
        self._describe()

    def _plan_again(self) -> None:
        """Plan with other assets; all other options stay. In the wizard, the step Mapping has already done that."""
        planned: ShardPlan | None = self.plan
        if planned is None or (planned.mapping.options.model_assets_dir or "") == self.model_assets_dir:
            return
        options = {**planned.mapping.options.arguments(), "model_assets_dir": self.model_assets_dir or None}
        mapping = preview(planned.checkpoint, **options)
        self.plan = plan(mapping, **planned.options.arguments())

    @handler
    def _describe(self) -> None:
        planned: ShardPlan | None = self.plan
        target = typed_path(self.save_dir.value)
        how = {"overwrite": self.overwrite.value, "resume": self.resume.value}
        self.blocked = self._why_not()
        if self._is_written():
            self.message.value = alert("success", _wrote(self.report))
        elif not self.job.running:
            self.job.forget()
        self.job.enable()
        self._look_again()
        if planned is None or not target:
            waits = "Give the directory to save to." if planned else "Plan the files first."
            pending = planned is None and self.pending
            self.found.value = alert("busy", self.pending) if pending else alert("info", waits)
            self.lines.tell(None)
            return
        files = counted(len(planned.files), "file")
        assets = planned.assets
        copied = (
            f", and copies {counted(len(assets.files), 'file')} from {assets.directory}"
            if assets and assets.directory
            else ""
        )
        text = f"Writes {files}, {format_bytes(planned.file_bytes)} in total, to {target}{copied}."
        self.found.value = alert("info", text) + findings_html(planned.warnings, most=2)
        self.lines.tell(Recipe(command_line(planned, target, **how), python_call(planned, target, **how)))

    def _what(self) -> tuple[Any, ...]:
        """What a click would start: a plan, where to, whether to overwrite, whether to continue with what is there."""
        return self.plan, typed_path(self.save_dir.value), self.overwrite.value, self.resume.value

    def _ready(self) -> bool:
        """What starts must be what the fields say, and not what was just written."""
        planned, target, *_ = what = self._what()
        typed = typed_path(self.assets.value)
        ready = planned is not None and target and (planned.mapping.options.model_assets_dir or "") == typed
        return bool(ready) and not (self.report is not None and what == self._written)

    def _run(self, progress: Callable[[int, int, str], None], cancel: threading.Event) -> Report:
        self.message.value, self.report = "", None
        planned, target, overwrite, resume = self._writing = self._what()
        return write(planned, target, overwrite=overwrite, resume=resume, progress=progress, cancel=cancel)

    def _done(self, report: Report) -> None:
        if self._writing[0] is not self.plan:
            about = "The plan has changed since: this is the result of the earlier one."
            self.message.value = alert("warning", f"{_wrote(report)}\n{about}")
            return
        self._written = self._writing
        self.report = report
        self.message.value = alert("success", _wrote(report))

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        return ("Nothing has been written yet.", [], []) if self.report is None else report_summary(self.report)


def _wrote(report: Report) -> str:
    return f"Wrote {format_bytes(report.file_bytes)} to {report.save_dir}."


def _there(planned: ShardPlan, target: str, overwrite: bool) -> str:
    """What is in the way at the place to save to, or would be replaced there; empty if nothing is."""
    said = ""
    try:
        try:
            check_target(planned, target, overwrite=False)
        except OutputExists as error:
            if not overwrite:
                raise
            said = alert("info", f"{str(error).splitlines()[0]}\nIt will be replaced.")
            check_target(planned, target, overwrite=True)
    except (DcptoolsError, OSError, ValueError) as error:  # ValueError: a zero byte in a path
        return alert("warning", str(error).replace("Nothing was written. ", ""))
    return said
