"""``make app``: the wizard as a page of its own, on this machine only, and not without the token."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcptools.demo import Demo
from e2e.conftest import expect
from e2e.servers import ROOT, environment, free_port, serving

pytestmark = pytest.mark.e2e


def app_command() -> list[str]:
    """What ``make app`` runs, with the Python that runs the tests."""
    make = ["make", "--dry-run", "app", f"VENV={sys.prefix}"]
    lines = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (line,) = [line for line in lines if "/voila " in line]
    return shlex.split(line)


def test_the_wizard_is_a_page_of_its_own(chromium: Any, pages: Callable[[], Any], demo: Demo, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "voila.log"
    address = re.compile(rf"http://127\.0\.0\.1:{port}/\?token=\w+")

    def url() -> str:
        found = address.search(log.read_text())
        return found.group() if found else ""

    with serving([*app_command(), f"--port={port}"], log, environment(tmp_path, tmp_path / "demo"), url):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            assert "/login" in answer.url  # no page without the token
        page = pages()
        page.goto(url())
        expect(page.get_by_role("heading", name="Step 1 of 7: Checkpoint")).to_be_visible(timeout=60_000)
        expect(page).to_have_title("dcptools")
        path = page.get_by_role("textbox", name="Path", exact=True)
        expect(path).to_have_value("")
        expect(page.get_by_role("button", name="Next", exact=True)).to_be_disabled()
        expect(page.get_by_text("next cell")).to_have_count(0)
        assert not (tmp_path / "demo").exists()  # nobody asked for one
        path.fill(str(demo.checkpoint))
        path.press("Enter")
        expect(page.get_by_role("status").filter(has_text="tensors (").first).to_be_visible()
        page.get_by_role("button", name="Next", exact=True).click()
        expect(page.get_by_role("heading", name="Step 2 of 7: Inspect")).to_be_visible()
        expect(page.get_by_role("gridcell", name="extra_state.loss", exact=True)).to_be_visible()
        expect(page.get_by_text("widgets.Wizard(")).to_have_count(0)  # no source code
