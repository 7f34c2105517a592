"""Long work on a thread of its own, with progress, time left, and a Cancel that works.

Callbacks of widgets may run on the thread that also runs cells, so they must return at once; only a worker thread
leaves room for the click on Cancel. The thread sets traits, at most ten times a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools._option import speaking
from dcptools._text import format_bytes
from dcptools.errors import Cancelled
from dcptools.widgets._bar import Bar
from dcptools.widgets._base import escape
from dcptools.widgets._labels import by_label

UPDATE_SECONDS = 0.1
Run = Callable[[Callable[[int, int, str], None], threading.Event], Any]


class Job(W.VBox):  # type: ignore[misc]
    """A start button, a cancel button, and the progress of ``run(progress, cancel)``.

    ``done`` is called on the worker thread with the result, ``failed`` with the exception. ``ready`` says whether there
    is something to start; a click that comes when there is not, because it was on its way, does nothing.
    """

    running = T.Bool(False)

    def __init__(
        self,
        label: str,
        run: Run,
        done: Callable[[Any], None],
        failed: Callable[[BaseException], None],
        ready: Callable[[], bool] = lambda: True,
        *,
        cancelled: str = "cancelled; nothing half-written is left",
    ) -> None:
        self._run, self._done, self._failed, self._ready = run, done, failed, ready
        self._cancelled = cancelled  # what is shown then
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        self.start = W.Button(description=label, button_style="primary", layout={"width": "160px"})
        self.cancel = W.Button(description="Cancel", disabled=True, layout={"width": "110px"})
        self.bar = Bar(label=f"{label}: progress")
        self.text = W.HTML(_status("not started"))
        row = W.Layout(flex_flow="row wrap", align_items="center")
        super().__init__([W.HBox([self.start, self.cancel, self.bar], layout=row), self.text])
        self.start.on_click(lambda _: self.begin())
        self.cancel.on_click(lambda _: self._cancel.set())

    def begin(self) -> None:
        """Start, unless it is running or there is nothing to start."""
        if self.running or not self._ready():
            return
        self._cancel.clear()
        self.running = True
        self._reset("starting")
        self._shown, self._since = 0.0, time.monotonic()
        self.start.disabled, self.cancel.disabled = True, False
        self._thread = threading.Thread(target=self._work, name="dcptools-job", daemon=True)
        self._thread.start()

    def enable(self) -> None:
        """Let the button show whether there is something to start."""
        self.start.disabled = self.running or not self._ready()

    def forget(self) -> None:
        """Stop showing the last run; one that is still running is cancelled."""
        if self.running:
            self._cancel.set()
        else:
            self._reset("not started")

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is over."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self) -> None:
        try:
            with speaking(by_label):
                result = self._run(self._progress, self._cancel)
            self.bar.value = 1.0
            self._end("success", f"done in {time.monotonic() - self._since:.1f} s")
            self._done(result)
        except Cancelled:
            self._end("warning", self._cancelled)
        except BaseException as error:
            self._end("danger", "failed")
            self._failed(error)
        finally:
            self.cancel.disabled, self.running = True, False
            self.enable()

    def _reset(self, text: str) -> None:
        self.bar.value, self.bar.bar_style, self.bar.spoken = 0.0, "", ""
        self._say(text)

    def _end(self, style: str, text: str) -> None:
        self.bar.bar_style = style
        self.bar.say(text)
        self._say(text)

    def _progress(self, done: int, total: int, current: str) -> None:
        now = time.monotonic()
        if now - self._shown < UPDATE_SECONDS:
            return
        self._shown, spent = now, max(now - self._since, 1e-9)
        share, rate = done / total if total else 1.0, done / spent
        left = f", about {(total - done) / rate:.0f} s left" if rate else ""
        self.bar.go(share, f"{share:.0%}{left}")
        self._say(f"{share:.0%}: {format_bytes(done)} of {format_bytes(total)}, {format_bytes(rate)}/s{left}", current)

    def _say(self, text: str, current: str = "") -> None:
        tail = f" <span class='dcp-soft'>{escape(current[-60:])}</span>" if current else ""
        self.text.value = f"{_status(text)}{tail}"


def _status(text: str) -> str:
    """For the eyes: it changes too often to be announced, which the bar's own region does."""
    return f"<span role='status' aria-live='off'>{escape(text)}</span>"
