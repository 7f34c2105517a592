"""The button that writes the page for a colleague."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import ipywidgets as W

from dcptools._text import format_bytes
from dcptools.errors import UsageError
from dcptools.mapping import KeyMapping
from dcptools.recipe import to_review
from dcptools.reviewing import review
from dcptools.shards import PlanOptions
from dcptools.storage import is_url
from dcptools.widgets._base import alert, typed_path
from dcptools.widgets._job import Job
from dcptools.widgets._lines import Lines

FILE = "review.html"
Subject = tuple[KeyMapping, PlanOptions]


class Review(W.VBox):  # type: ignore[misc]
    """Writes the mapping and the plan as one HTML file, where a field says, and reports where it is.

    ``subject`` gives what it is about, or None while there is nothing; ``failed`` shows errors.
    """

    def __init__(self, subject: Callable[[], Subject | None], failed: Callable[[BaseException], None]) -> None:
        self._subject = subject
        self.path = W.Text(
            description="Review", placeholder="an HTML file",
            value=FILE, continuous_update=False, layout={"width": "420px"},
        )  # fmt: skip
        self.job = Job("Write a review", self._run, self._done, failed, lambda: subject() is not None)
        self.job.bar.layout.display = self.job.cancel.layout.display = self.job.text.layout.display = "none"
        self.job.start.button_style = ""  # it is beside the way, which goes on with Next
        self.job.start.add_class("dcp-quiet")
        self.said, self.lines = W.HTML(), Lines()
        row = W.HBox([self.path, self.job], layout={"flex_flow": "row wrap", "align_items": "center"})
        super().__init__([row, self.said, self.lines], layout={"margin": "8px 0 0"})

    def _run(self, progress: Callable[[int, int, str], None], cancel: threading.Event) -> Path:
        self.said.value = alert("info", "Writing …")
        typed, subject = typed_path(self.path.value) or FILE, self._subject()
        try:
            if subject is None:
                raise UsageError("Preview the mapping first.")
            if is_url(typed):
                raise UsageError(f"{typed} is a URL, and a review is written to a local file.\nGive a path.")
            mapping, options = subject
            self.lines.tell(to_review(mapping, typed, options))
            return review(mapping, typed, **options.arguments()).absolute()
        except BaseException:
            self.said.value = ""
            self.lines.tell(None)
            raise

    def _done(self, page: Path) -> None:
        self.said.value = alert(
            "success",
            f"Wrote {page} ({format_bytes(page.stat().st_size)}).\n"
            "One file, to send to somebody who has neither the checkpoint nor Jupyter.",
        )
