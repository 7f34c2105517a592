"""A slider over powers of ten, which screen readers can name and read."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets as T


class Slider(anywidget.AnyWidget):
    """Chooses a number between two powers of ten; it is taken when the slider is let go.

    Parameters
    ----------
    description
        What is chosen.
    min, max
        Exponents of ten.
    """

    _esm = Path(__file__).parent / "slider.js"
    _css = (
        ".dcp-slider { width: 100%; align-items: center; }"
        ".dcp-range { flex: 1 1 0; min-width: 0; margin: 0 2px; accent-color: var(--jp-brand-color1); }"
    )

    description = T.Unicode("").tag(sync=True)
    min = T.Float(0.0).tag(sync=True)
    max = T.Float(1.0).tag(sync=True)
    step = T.Float(0.05).tag(sync=True)
    value = T.Float(1.0).tag(sync=True)  # the number itself
    words = T.Unicode("").tag(sync=True)  # what is said of the value
    disabled = T.Bool(False).tag(sync=True)

    def __init__(self, description: str, min: float, max: float) -> None:
        super().__init__(description=description, min=min, max=max, value=10**min)
