"""One JupyterLab and one Chromium for all browser tests; each test has a page and a workspace of its own."""

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
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# Run All before the kernel answers is dropped without a word, so wait for all that it needs.
READY = """async (path) => {
  const until = async (f) => { const t = Date.now(); for (;;) { const v = f(); if (v) return v;
    if (Date.now() - t > 90000) throw new Error('timeout waiting for ' + f);
    await new Promise(r => setTimeout(r, 50)); } };
  const app = await until(() => window.jupyterapp); await app.restored;
  const panel = await until(() => { const w = app.shell.currentWidget;
    return w && w.context && w.content && w.content.widgets && w.context.path === path ? w : null; });
  await panel.context.ready; await panel.sessionContext.ready; await panel.revealed;
  const kernel = await until(() => panel.sessionContext.session && panel.sessionContext.session.kernel);
  await kernel.info; window.__panel = panel; }"""
RUN_ALL = """async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells');
  return window.__panel.model.sharedModel.cells.filter(c => c.cell_type === 'code').map(c => {
    const e = c.outputs.map(o => o.toJSON ? o.toJSON() : o).find(o => o.output_type === 'error');
    return [c.execution_count, e ? e.ename + ': ' + e.evalue : null]; }); }"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(400):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"{url} did not answer: {log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def jupyter_home(tmp_path_factory: pytest.TempPathFactory, demo: Any) -> tuple[Path, dict[str, str]]:
    """A copy of the notebooks, and an environment that reads and writes nothing of the user's."""
    home = tmp_path_factory.mktemp("jupyter")
    shutil.copytree(NOTEBOOKS, home / "root")
    settings = home / "settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    news = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(news))
    places = {"JUPYTER_CONFIG_DIR": "c", "JUPYTER_DATA_DIR": "d", "JUPYTER_RUNTIME_DIR": "r", "IPYTHONDIR": "i"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "w"}
    env = {**os.environ, **{name: str(home / part) for name, part in places.items()}}
    return home, {**env, "DCPTOOLS_DEMO_DIR": str(demo.directory)}


@pytest.fixture(scope="session")
def lab(jupyter_home: tuple[Path, dict[str, str]]) -> Iterator[Callable[[str], str]]:
    """The URL of a notebook in a running JupyterLab."""
    home, env = jupyter_home
    port, token, log = free_port(), secrets.token_hex(16), home / "lab.log"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += [
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={home / 'root'}",
    ]
    command += [f"--ServerApp.allow_root={os.geteuid() == 0}", "--LabApp.expose_app_in_browser=True"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--LabApp.extension_manager=readonly"], env=env, stdout=out, stderr=out)
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{base}/api/status?token={token}", process, log)
        yield lambda name: f"{base}/lab/workspaces/t{uuid.uuid4().hex[:8]}/tree/{name}?token={token}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        if os.environ.get("DCPTOOLS_REQUIRE_BROWSER"):
            pytest.fail("there is no chromium, and DCPTOOLS_REQUIRE_BROWSER is set")
        pytest.skip("there is no chromium; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def run_notebook(
    jupyter_home: tuple[Path, dict[str, str]], lab: Callable[[str], str], chromium: Any
) -> Iterator[Callable[..., Any]]:
    """Open a notebook with parameters, run all its cells, and return the page."""
    root, pages = jupyter_home[0] / "root", []

    def run(name: str, **parameters: str) -> Any:
        notebook = json.loads((NOTEBOOKS / name).read_text())
        tagged = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", ()))
        tagged["source"] = [
            f"{key} = {value!r}\n" for key, value in {"load_dir": "", "save_dir": "", **parameters}.items()
        ]
        if "model_assets_dir" not in parameters:
            tagged["source"].append("model_assets_dir = ''\n")
        path = f"{uuid.uuid4().hex[:8]}.ipynb"
        (root / path).write_text(json.dumps(notebook))
        page = chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        pages.append(page)
        page.goto(lab(path))
        page.evaluate(READY, path)
        cells = page.evaluate(RUN_ALL)
        assert cells and all(count and not error for count, error in cells), cells
        return page

    yield run
    for page in pages:
        page.context.close()
