"""One JupyterLab and one Chromium for the whole session; a fresh workspace, page and kernel for each test.

Without a browser the tests are skipped with the reason, or fail where ``DCPTOOLS_REQUIRE_BROWSER=1`` is set.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from dcptools.demo import Demo
from e2e.servers import CHROMIUM_FLAGS, NO_CHROMIUM, ROOT, RUN_ALL, Server, find_chromium, jupyterlab

try:
    from playwright.sync_api import Browser, Page, expect, sync_playwright
except ImportError:
    sync_playwright = expect = None  # type: ignore[assignment]

WIZARD = ROOT / "notebooks" / "5-wizard.ipynb"
PATIENCE_MS = 30_000


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser, or the reason why there is none."""
    program = find_chromium()
    missing = "" if program else NO_CHROMIUM
    if sync_playwright is None:
        missing = "playwright is not installed"
    if missing:
        refuse = pytest.fail if os.environ.get("DCPTOOLS_REQUIRE_BROWSER") == "1" else pytest.skip
        refuse(f"browser tests: {missing}")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(chromium: Browser, demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("jupyter")
    root = shutil.copytree(ROOT / "notebooks", home / "root")
    with jupyterlab(home, root, demo.directory) as server:
        yield server


class Traffic:
    """Bytes that came over the page's websockets."""

    def __init__(self, page: Page) -> None:
        self.received = 0
        page.on("websocket", lambda socket: socket.on("framereceived", self._count))

    def _count(self, frame: str | bytes) -> None:
        self.received += len(frame)


@pytest.fixture
def pages(chromium: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Page]]:
    """Makes pages; when the test failed, what they showed is kept as pictures."""
    opened: list[Page] = []

    def new() -> Page:
        opened.append(chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page())
        return opened[-1]

    yield new
    for number, page in enumerate(opened):
        if request.node.stash.get(FAILED, False):
            path = tmp_path / f"page-{number}.png"
            page.screenshot(path=path)
            print(f"what the page showed: {path}")
        page.context.close()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@dataclass
class Opened:
    """A notebook that was run in JupyterLab, with the wizard at its first step."""

    page: Page
    traffic: Traffic
    seconds: float  # to run all cells

    def click(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def enter(self, label: str, text: str) -> None:
        """Type into a text field and press Enter."""
        field = self.page.get_by_role("textbox", name=label, exact=True)
        field.fill(text)
        field.press("Enter")

    def at(self, number: int, title: str) -> None:
        """Wait until this step is shown."""
        expect(self.page.get_by_role("heading", name=f"Step {number} of 7: {title}")).to_be_visible()


@pytest.fixture
def wizard(lab: Server, pages: Callable[[], Page]) -> Iterator[Callable[..., Opened]]:
    """Opens the wizard's notebook, runs it, and shuts its kernel down in the end."""
    opened: list[Page] = []

    def run(**parameters: str | os.PathLike[str]) -> Opened:
        """``parameters`` replace those of the notebook, as papermill would; without any it is as committed."""
        name = WIZARD.name
        if parameters:
            name = f"wizard-{secrets.token_hex(4)}.ipynb"
            notebook = nbformat.read(WIZARD, as_version=4)
            (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
            cell.source += "".join(f"\n{key} = {os.fspath(value)!r}" for key, value in parameters.items())
            nbformat.write(notebook, lab.root / name)
        page = pages()
        opened.append(page)
        traffic = Traffic(page)
        page.goto(lab.url(name))
        start = time.monotonic()
        cells = page.evaluate(RUN_ALL, name)
        assert cells and all(count and not error for count, error in cells), cells
        return Opened(page, traffic, time.monotonic() - start)

    yield run
    for page in opened:
        page.evaluate("() => window.__panel?.sessionContext.shutdown()")
