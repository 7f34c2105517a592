"""How far a job is, and a slider, with the roles and names that screen readers need."""

from __future__ import annotations

import anywidget
import traitlets as T

from dcptools.widgets._sheets import HERE

SPOKEN = 10  # percent: this often it is announced how far a job is


class Bar(anywidget.AnyWidget):
    """A progress bar, and a live region that announces every ten percent.

    ``value`` is a share, from 0 to 1; ``bar_style`` says how it ended: success, warning, danger, or nothing yet.
    """

    _esm = HERE / "bar.js"
    _css = HERE / "bar.css"

    label = T.Unicode("").tag(sync=True)
    value = T.Float(0.0).tag(sync=True)
    bar_style = T.Unicode("").tag(sync=True)
    spoken = T.Unicode("").tag(sync=True)  # what was said last

    def say(self, text: str) -> None:
        """Announce it now: at the beginning and at the end."""
        self.spoken = text

    def go(self, share: float, text: str) -> None:
        """Show this share, and announce it if another ten percent are done."""
        passed = int(share * 100 / SPOKEN) > int(self.value * 100 / SPOKEN)
        self.value = share
        if passed:
            self.say(text)


class Slider(anywidget.AnyWidget):
    """A slider of powers of ten, with a name and its value in words."""

    _esm = HERE / "slider.js"
    _css = HERE / "bar.css"

    description = T.Unicode("").tag(sync=True)
    value = T.Float(1.0).tag(sync=True)
    words = T.Unicode("").tag(sync=True)  # the value as people say it
    low = T.Float(0.0).tag(sync=True)  # powers of ten
    high = T.Float(1.0).tag(sync=True)
    disabled = T.Bool(False).tag(sync=True)
