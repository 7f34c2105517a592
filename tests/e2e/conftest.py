"""One JupyterLab and one Chromium for the whole session; a fresh workspace, page and kernel for each test.

Without a browser the tests are skipped with the reason, or fail where ``DCPTOOLS_REQUIRE_BROWSER=1`` is set.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from dcptools.demo import Demo

try:
    from playwright.sync_api import Browser, Page, expect, sync_playwright
except ImportError:
    sync_playwright = expect = None  # type: ignore[assignment]

ROOT = Path(__file__).parents[2]
WIZARD = ROOT / "notebooks" / "5-wizard.ipynb"
START_SECONDS, PATIENCE_MS = 90, 30_000
CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")

# Resolves when the notebook of that path is shown and its kernel answers: a click on Run before that is lost without
# a word. Then all cells are run, and what each one ended with is returned.
RUN_ALL = """async (path) => {
  const until = async (found) => {
    const deadline = Date.now() + 60000;
    for (;;) {
      const value = found();
      if (value) return value;
      if (Date.now() > deadline) throw new Error('timeout waiting for ' + found);
      await new Promise(resolve => setTimeout(resolve, 50));
    }
  };
  const app = await until(() => window.jupyterapp);
  await app.restored;
  const panel = await until(() => {
    const shown = app.shell.currentWidget;
    return shown?.context?.path === path && shown.content?.widgets ? shown : null;
  });
  await panel.context.ready;
  await panel.sessionContext.ready;
  const kernel = await until(() => panel.sessionContext.session?.kernel);
  await kernel.info;
  window.__panel = panel;
  await app.commands.execute('notebook:run-all-cells');
  return panel.model.sharedModel.cells.filter(cell => cell.cell_type === 'code').map(cell => {
    const error = cell.outputs.map(o => o.toJSON ? o.toJSON() : o).find(o => o.output_type === 'error');
    return [cell.execution_count, error ? `${error.ename}: ${error.evalue}` : null];
  });
}"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser, or the reason why there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    missing = "" if program else "there is no chromium; on Debian: apt-get install chromium"
    if sync_playwright is None:
        missing = "playwright is not installed"
    if missing:
        refuse = pytest.fail if os.environ.get("DCPTOOLS_REQUIRE_BROWSER") == "1" else pytest.skip
        refuse(f"browser tests: {missing}")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@dataclass(frozen=True)
class Server:
    """A running JupyterLab; ``url`` shows a notebook of ``root`` in a workspace of its own."""

    root: Path
    base: str
    token: str

    def url(self, notebook: str) -> str:
        return f"{self.base}/lab/workspaces/t{secrets.token_hex(4)}/tree/{notebook}?token={self.token}"


def environment(home: Path, demo: Demo) -> dict[str, str]:
    """Nothing of this user's settings is read, and no file of the repository is changed."""
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "DCPTOOLS_DEMO_DIR": str(demo.directory),
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **places}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(command: list[str], log: Path, env: dict[str, str], ready: Callable[[], Any]) -> Iterator[None]:
    """A server program, from when ``ready`` gives something true until the end of the block."""
    with log.open("w") as output:
        program = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready():
                if program.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{command[0]} did not start: {log.read_text()[-3000:]}")
                time.sleep(0.1)
            yield
        finally:
            program.terminate()
            try:
                program.wait(15)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


@pytest.fixture(scope="session")
def lab(chromium: Browser, demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("jupyter")
    root = shutil.copytree(ROOT / "notebooks", home / "root")
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}  # otherwise a toast covers a corner
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    server = Server(root, f"http://127.0.0.1:{free_port()}", secrets.token_hex(16))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={server.base.rpartition(':')[2]}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={server.token}", f"--ServerApp.root_dir={root}"]
    command += [f"--ServerApp.allow_root={os.geteuid() == 0}", "--LabApp.expose_app_in_browser=True"]
    command += ["--LabApp.extension_manager=readonly"]

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{server.base}/api/status?token={server.token}", timeout=2):
                return True
        except OSError:
            return False

    with serving(command, home / "lab.log", environment(home, demo), ready):
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
        expect(self.page.get_by_role("heading", name=f"Step {number} of 6: {title}")).to_be_visible()


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
