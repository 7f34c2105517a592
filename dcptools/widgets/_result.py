"""The last step: what was written, and how to load it."""

from __future__ import annotations

from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools._text import counted, format_bytes
from dcptools.widgets._base import Step, alert, escape, findings_html, handler, table_html
from dcptools.writer import Report


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
        headline, header, rows = report_summary(report)
        files = table_html(header, rows, numeric=(1,))
        parts = [
            alert("success", f"{headline}\n{report.facts()}"),
            findings_html(report.found_while_writing),
            f"<p>Load it:</p><pre class='dcp'>{_snippet(report)}</pre>",
            f"<details><summary>{counted(len(rows), 'file')}</summary>{files}</details>",
        ]
        self.body.value = "".join(parts)

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        return ("Nothing has been written yet.", [], []) if self.report is None else report_summary(self.report)


def report_summary(report: Report) -> tuple[str, list[str], list[list[str]]]:
    """Headline, and each file with its size, as a table."""
    rows = [[name, format_bytes(nbytes)] for name, nbytes in report.files + report.others]
    return report.headline(), ["file", "bytes"], rows


def _snippet(report: Report) -> str:
    path = escape(repr(report.save_dir))
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({path}, dtype='auto')\n"
        f"tokenizer = AutoTokenizer.from_pretrained({path})"
    )
