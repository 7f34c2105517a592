"""Scripts and style sheets that are beside this file."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def style_sheet(name: str) -> str:
    """A style sheet, with the colours that all have in common before it."""
    return "".join((HERE / each).read_text("utf-8") for each in ("colors.css", name))
