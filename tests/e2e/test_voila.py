"""The wizard as a page of its own."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import free_port, wait_for

pytestmark = pytest.mark.e2e


def test_the_wizard_is_served(jupyter_home: tuple[Path, dict[str, str]], chromium: Any) -> None:
    from playwright.sync_api import expect

    home, env = jupyter_home
    port, token, log = free_port(), secrets.token_hex(16), home / "voila.log"
    command = [sys.executable, "-m", "voila", str(home / "root" / "5-wizard.ipynb"), "--no-browser", f"--port={port}"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--Voila.ip=127.0.0.1", f"--token={token}"], env=env, stdout=out, stderr=out
        )
    page = chromium.new_context().new_page()
    try:
        wait_for(f"http://127.0.0.1:{port}/voila/static/voila.js?token={token}", process, log)
        page.goto(f"http://127.0.0.1:{port}/?token={token}", timeout=90_000)
        expect(page.get_by_text("written by 4 ranks in 4 files")).to_be_visible(timeout=60_000)
        page.get_by_role("button", name="Next", exact=True).click()
        expect(page.get_by_role("heading", name="Step 2 of 6: Inspect")).to_be_visible(timeout=20_000)
    finally:
        page.context.close()
        process.terminate()
        process.wait(20)
