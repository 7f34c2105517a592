"""The last two steps: write the model, and what was written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools._text import counted, format_bytes
from dcptools.assets import find_assets
from dcptools.mapping import preview
from dcptools.recipe import command_line, python_call
from dcptools.shards import ShardPlan, plan
from dcptools.widgets._base import Step, alert, escape, findings_html, handler, identity, table_html, typed_path
from dcptools.widgets._job import Job
from dcptools.widgets._labels import LABELS
from dcptools.writer import Report, default_save_dir, write


class Convert(Step):
    """Choose where to, see the command that does the same, start, and cancel if need be.

    Parameters
    ----------
    plan
        What :func:`dcptools.plan` returned; may be set later.
    save_dir
        The output directory; by default ``hf_ckpt`` in the checkpoint's.

    Attributes
    ----------
    report
        What :func:`dcptools.write` returned, or None.
    """

    title = "Convert"
    plan = T.Any(None, allow_none=True)
    report = T.Any(None, allow_none=True)
    model_assets_dir = T.Unicode("")

    def __init__(self, plan: ShardPlan | None = None, save_dir: str = "") -> None:
        field = {"width": "640px"}
        self.save_dir = W.Text(value=save_dir, description="Save to", continuous_update=False, layout=field)
        self.assets = W.Text(
            description=LABELS["model_assets_dir"], placeholder="directory with config.json and tokenizer",
            continuous_update=False, layout=field,
        )  # fmt: skip
        self.overwrite = W.Checkbox(description=LABELS["overwrite"], indent=False)
        self.resume = W.Checkbox(description=LABELS["resume"], indent=False)
        self.found, self.recipe = W.HTML(), W.HTML()
        self._identity: tuple[str, str] | None = None  # of the checkpoint that the fields were filled for
        self._writing: tuple[Any, ...] = ()  # what was started last, as _what says it
        self._written: tuple[Any, ...] = ()  # what was written last
        self.job = Job("Convert", self._run, self._done, self.show_error, self._ready)
        super().__init__([self.save_dir, self.assets, self.overwrite, self.resume, self.found, self.recipe, self.job])
        self.observe(self._new, "plan")
        self.observe(self._show_assets, "model_assets_dir")
        self.assets.observe(self._take_assets, "value")
        for control in (self.save_dir, self.overwrite, self.resume):
            control.observe(lambda _: self._describe(), "value")
        self.blocked = "Nothing has been written yet."
        self.plan = plan
        self._describe()

    @handler
    def _new(self, _: Any) -> None:
        """Nothing is known of another plan: what was written before was not it."""
        self.report, self.blocked = None, "Nothing has been written yet."
        if not self.job.running:
            self.job.forget()
        planned: ShardPlan | None = self.plan
        if planned is not None:
            self.model_assets_dir = planned.mapping.options.model_assets_dir or ""
            before, self._identity = self._identity, identity(planned.checkpoint)
            other = before not in (None, self._identity)
            if other:  # what was typed for one model must not be where the next one goes, or replace it
                self.overwrite.value = False
            if other or not self.save_dir.value:
                self.save_dir.value = str(default_save_dir(planned.checkpoint.path))
        self._describe()

    def _show_assets(self, _: Any) -> None:
        self.assets.value = self.model_assets_dir

    @handler
    def _take_assets(self, _: Any) -> None:
        """Go on with the directory that was typed, if there is one; until then nothing can be started."""
        directory = typed_path(self.assets.value)
        self.job.enable()
        if directory:
            find_assets(directory)
        self.model_assets_dir = directory
        self._plan_again()
        self._describe()

    def _plan_again(self) -> None:
        """Plan with other assets; all other options stay. In the wizard the step Mapping has done so already."""
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
        self.job.enable()
        if planned is None or not target:
            self.found.value = alert("info", "Give the directory to save to." if planned else "Plan the files first.")
            self.recipe.value = ""
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
        self.recipe.value = (
            "<p>The same from a shell:</p><pre class='dcp' data-testid='command'>"
            f"{escape(command_line(planned, target, **how))}</pre>"
            "<p>The same in Python:</p><pre class='dcp' data-testid='call'>"
            f"{escape(python_call(planned, target, **how))}</pre>"
        )

    def _what(self) -> tuple[Any, ...]:
        """What a click would start: a plan, where to, whether to overwrite, and whether to go on with what is there."""
        return self.plan, typed_path(self.save_dir.value), self.overwrite.value, self.resume.value

    def _ready(self) -> bool:
        """What starts must be what the fields say, and not what was written just now."""
        planned, target, *_ = what = self._what()
        typed = typed_path(self.assets.value)
        ready = planned is not None and target and (planned.mapping.options.model_assets_dir or "") == typed
        return bool(ready) and not (self.report is not None and what == self._written)

    def _run(self, progress: Callable[[int, int, str], None], cancel: threading.Event) -> Report:
        self.message.value, self.report = "", None
        self.blocked = "Nothing has been written yet."
        planned, target, overwrite, resume = self._writing = self._what()
        return write(planned, target, overwrite=overwrite, resume=resume, progress=progress, cancel=cancel)

    def _done(self, report: Report) -> None:
        wrote = f"Wrote {format_bytes(report.file_bytes)} to {report.save_dir}."
        if self._writing[0] is not self.plan:
            self.message.value = alert(
                "warning", f"{wrote}\nThe plan has changed since: this is the result of the earlier one."
            )
            return
        self.message.value = alert("success", wrote)
        self._written = self._writing
        self.blocked = ""
        self.report = report

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        return ("Nothing has been written yet.", [], []) if self.report is None else _report_summary(self.report)


class Result(Step):
    """What was written, and how to load it.

    Parameters
    ----------
    report
        What :func:`dcptools.write` returned; may be set later.
    """

    title = "Result"
    report = T.Any(None, allow_none=True)

    def __init__(self, report: Report | None = None) -> None:
        self.body = W.HTML()
        super().__init__([self.body])
        self.observe(self._show, "report")
        self.report = report
        if report is None:
            self._show()

    @handler
    def _show(self, _: Any = None) -> None:
        report: Report | None = self.report
        self.blocked = "" if report else "Nothing has been written yet."
        if report is None:
            self.body.value = alert("info", self.blocked)
            return
        headline, header, rows = _report_summary(report)
        parts = [
            alert("success", f"{headline}\n{report.facts()}"),
            findings_html(report.found_while_writing),
            table_html(header, rows, numeric=(1,)),
            f"<p>Load it:</p><pre class='dcp'>{_snippet(report)}</pre>",
        ]
        self.body.value = "".join(parts)

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        return ("Nothing has been written yet.", [], []) if self.report is None else _report_summary(self.report)


def _report_summary(report: Report) -> tuple[str, list[str], list[list[str]]]:
    rows = [[name, format_bytes(nbytes)] for name, nbytes in report.files + report.others]
    return report.headline(), ["file", "bytes"], rows


def _snippet(report: Report) -> str:
    path = escape(repr(report.save_dir))
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({path}, dtype='auto')\n"
        f"tokenizer = AutoTokenizer.from_pretrained({path})"
    )
