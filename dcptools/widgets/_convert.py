"""The last two steps: write the model, and what was written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools._table import format_bytes
from dcptools.convert import DEFAULT_SAVE_DIR
from dcptools.mapping import preview
from dcptools.recipe import command_line, python_call
from dcptools.shards import ShardPlan, plan
from dcptools.widgets._base import Step, alert, escape, findings_html, handler, table_html
from dcptools.widgets._job import Job
from dcptools.writer import Report, write


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
            description="Assets", placeholder="directory with config.json and tokenizer", continuous_update=False,
            layout=field,
        )  # fmt: skip
        self.overwrite = W.Checkbox(description="Overwrite a model that is there", indent=False)
        self.found, self.recipe = W.HTML(), W.HTML()
        self.job = Job("Convert", self._run, self._done, self._failed)
        super().__init__([self.save_dir, self.assets, self.overwrite, self.found, self.recipe, self.job])
        T.link((self, "model_assets_dir"), (self.assets, "value"))
        self.observe(self._new, "plan")
        self.observe(self._other_assets, "model_assets_dir")
        for control in (self.save_dir, self.overwrite):
            control.observe(lambda _: self._describe(), "value")
        self.blocked = "Nothing was written yet."
        self.plan = plan
        self._describe()

    @handler
    def _new(self, _: Any) -> None:
        if self.plan is None:
            self._describe()
            return
        self.model_assets_dir = self.plan.mapping.options.model_assets_dir or ""
        if not self.save_dir.value:
            self.save_dir.value = str(Path(self.plan.mapping.checkpoint.path, DEFAULT_SAVE_DIR))
        self._describe()

    @handler
    def _other_assets(self, _: Any) -> None:
        """Plan again with another assets directory; all other options stay."""
        planned: ShardPlan | None = self.plan
        if planned is None or (planned.mapping.options.model_assets_dir or "") == self.model_assets_dir:
            return
        o = planned.mapping.options
        mapping = preview(
            planned.mapping.checkpoint,
            model_assets_dir=self.model_assets_dir or None,
            layout=o.layout,
            root=o.root,
            include=o.include,
            exclude=o.exclude,
            rename=o.rename,
        )
        self.plan = plan(mapping, planned.shard_size, planned.dtype, dtype_for=planned.dtype_for)

    @handler
    def _describe(self) -> None:
        planned: ShardPlan | None = self.plan
        self.job.start.disabled = planned is None or self.job.running
        if planned is None:
            self.found.value = alert("info", "Plan the files first.")
            self.recipe.value = ""
            return
        target, overwrite = self.save_dir.value.strip(), self.overwrite.value
        files = f"{len(planned.files):,} file{'' if len(planned.files) == 1 else 's'}"
        assets = planned.mapping.assets
        copied = f", and {len(assets.files)} files of {assets.directory}" if assets else ""
        self.found.value = alert(
            "info", f"Writes {files} with {format_bytes(planned.total_bytes)}{copied} to {target}."
        ) + (findings_html([f for f in planned.findings if f.severity == "warning"], most=2))
        self.recipe.value = (
            "<p>The same from a shell:</p><pre class='dcp' data-testid='command'>"
            f"{escape(command_line(planned, target, overwrite=overwrite))}</pre>"
            "<p>The same in Python:</p><pre class='dcp' data-testid='call'>"
            f"{escape(python_call(planned, target, overwrite=overwrite))}</pre>"
        )

    def _run(self, progress: Callable[[int, int, str], None], cancel: threading.Event) -> Report:
        self.message.value, self.report = "", None
        if not self.save_dir.value.strip():
            raise FileNotFoundError("Give the directory to save to.")
        return write(
            self.plan, self.save_dir.value.strip(), overwrite=self.overwrite.value, progress=progress, cancel=cancel
        )

    def _done(self, report: Report) -> None:
        self.message.value = alert("success", f"Wrote {format_bytes(report.total_bytes)} to {report.save_dir}.")
        self.blocked = ""
        self.report = report

    def _failed(self, error: BaseException) -> None:
        self.show_error(error)

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        return ("Nothing was written yet.", [], []) if self.report is None else _report_summary(self.report)


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
        self.blocked = "Nothing was written yet."
        self.report = report
        if report is None:
            self._show()

    @handler
    def _show(self, _: Any = None) -> None:
        report: Report | None = self.report
        if report is None:
            self.body.value = alert("info", "Nothing was written yet.")
            return
        self.blocked = ""
        headline, header, rows = _report_summary(report)
        own = [f for f in report.findings if f.code in ("cast-overflow", "no-checksum")]
        parts = [
            alert("success", f"{headline}\n{report.facts()}"),
            findings_html(own),
            table_html(header, rows, numeric=(1,)),
            f"<p>Load it:</p><pre class='dcp'>{_snippet(report)}</pre>",
        ]
        self.body.value = "".join(parts)

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        return ("Nothing was written yet.", [], []) if self.report is None else _report_summary(self.report)


def _report_summary(report: Report) -> tuple[str, list[str], list[list[str]]]:
    rows = [[name, format_bytes(nbytes)] for name, nbytes in report.files]
    rows += [[name, ""] for name in ((report.index,) if report.index else ()) + report.assets]
    return report.headline(), ["file", "bytes"], rows


def _snippet(report: Report) -> str:
    path = escape(repr(report.save_dir))
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({path}, dtype='auto')\n"
        f"tokenizer = AutoTokenizer.from_pretrained({path})"
    )
