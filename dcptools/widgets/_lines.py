"""The shell line and the Python line that do what a step shows, each with a button to copy it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets as T

from dcptools.recipe import Recipe


class Lines(anywidget.AnyWidget):
    """Shows lines; at first there are none."""

    _esm = Path(__file__).parent / "lines.js"
    _css = """
.dcp-line { display: flex; align-items: flex-start; gap: 8px; margin: 4px 2px; color: var(--jp-ui-font-color1, inherit);
  font: 12px/1.45 var(--jp-ui-font-family, sans-serif); }
.dcp-line-name { flex: none; width: 84px; padding-top: 8px; text-align: right;
  color: color-mix(in srgb, currentColor 75%, transparent); }
.dcp-line pre { flex: 1 1 0; min-width: 0; margin: 0; }
.dcp-line button { flex: none; width: 64px; height: 28px; margin-top: 3px; font: inherit; color: inherit;
  cursor: pointer; background: transparent; border: 1px solid var(--jp-border-color2, #888); border-radius: 4px; }
.dcp-line button:hover { background: var(--jp-layout-color2, rgba(128,128,128,.18)); }
.dcp-line :focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
"""

    lines: Any = T.List().tag(sync=True)  # each with its text, where it belongs, and a name for tests

    def tell(self, recipe: Recipe | None) -> None:
        """Show these; None: nothing."""
        shell, python = recipe or ("", "")
        lines = (("shell-line", "Shell", shell), ("python-line", "Python", python))
        self.lines = [{"name": name, "where": where, "text": text} for name, where, text in lines if text]

    @property
    def texts(self) -> dict[str, str]:
        """The lines that are shown, by where they belong."""
        return {line["where"]: line["text"] for line in self.lines}


def lines_of(step: Any, trait: str, recipe: Callable[[Any], Recipe]) -> Lines:
    """The lines for the value of a step, as soon as it has one."""
    lines = Lines()

    def follow(_: Any = None) -> None:
        value = getattr(step, trait)
        lines.tell(None if value is None else recipe(value))

    step.observe(follow, trait)
    follow()
    return lines
