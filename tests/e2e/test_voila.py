"""``make app``: the wizard as a page of its own, on this machine only, and not without the token.

It is walked through by keyboard alone, and looked at in both themes and in narrow windows.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcptools.demo import Demo
from e2e.conftest import Opened, Traffic, expect
from e2e.keys import walk
from e2e.looking import Seen, dress_voila
from e2e.servers import ROOT, voila

pytestmark = pytest.mark.e2e


def app_command() -> list[str]:
    """What ``make app`` runs, with the Python that runs the tests."""
    make = ["make", "--dry-run", "app", f"VENV={sys.prefix}"]
    lines = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (line,) = [line for line in lines if "/voila " in line]
    return shlex.split(line)


def test_the_wizard_is_a_page_of_its_own_for_everybody(
    chromium: Any, pages: Callable[[], Any], demo: Demo, tmp_path: Path
) -> None:
    with voila(app_command(), tmp_path, tmp_path / "demo") as url:
        with urllib.request.urlopen(url.partition("?")[0], timeout=10) as answer:
            assert "/login" in answer.url  # no page without the token
        page = pages()
        page.goto(f"{url}&theme=dark")
        expect(page.get_by_role("heading", name="Step 1 of 7: Checkpoint")).to_be_visible(timeout=60_000)
        expect(page).to_have_title("dcptools")
        expect(page.locator("body")).to_have_css("background-color", "rgb(17, 17, 17)")
        expect(page.get_by_role("textbox", name="Path", exact=True)).to_have_value("")
        expect(page.get_by_role("button", name="Next", exact=True)).to_be_disabled()
        expect(page.get_by_text("next cell")).to_have_count(0)
        assert not (tmp_path / "demo").exists()  # nobody asked for one

        seen, target = Seen(page, dress_voila), tmp_path / "model"
        for state in walk(Opened(page, Traffic(page), 0.0), demo, target):
            seen.look(state)
            expect(page.get_by_text("widgets.Wizard(")).to_have_count(0)  # no source code
        assert seen.states == 7 and (target / "config.json").exists()
        assert seen.serious == []
        assert seen.faint == []
        assert seen.misfits == []
