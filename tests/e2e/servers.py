"""A JupyterLab that knows nothing of this user's settings, and a Chromium; for the tests and the docs' pictures."""

from __future__ import annotations

import json
import os
import re
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

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 90
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
NO_CHROMIUM = "there is no chromium; on Debian: apt-get install chromium"

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


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(home: Path, demo: Path) -> dict[str, str]:
    """Nothing of this user's settings is read, and no file of the repository is changed."""
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "DCPTOOLS_DEMO_DIR": str(demo),
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **places}


@contextmanager
def serving(command: list[str], log: Path, env: dict[str, str], ready: Callable[[], Any]) -> Iterator[None]:
    """A server program, from when ``ready`` gives something true until the end of the block."""
    with log.open("w") as output:
        program = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready():
                if program.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-3000:]}")
                time.sleep(0.1)
            yield
        finally:
            program.terminate()
            try:
                program.wait(15)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


@dataclass(frozen=True)
class Server:
    """A running JupyterLab; ``url`` shows a notebook of ``root`` in a workspace of its own."""

    root: Path
    base: str
    token: str

    def url(self, notebook: str) -> str:
        return f"{self.base}/lab/workspaces/t{secrets.token_hex(4)}/tree/{notebook}?token={self.token}"


@contextmanager
def jupyterlab(home: Path, root: Path, demo: Path) -> Iterator[Server]:
    """Serve the notebooks of ``root``; all that Jupyter writes otherwise goes below ``home``."""
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


@contextmanager
def voila(command: list[str], home: Path, demo: Path) -> Iterator[str]:
    """Serve a notebook as a page of its own; its address, with the token."""
    port, log = free_port(), home / "voila.log"
    address = re.compile(rf"http://127\.0\.0\.1:{port}/\?token=\w+")

    def url() -> str:
        found = address.search(log.read_text())
        return found.group() if found else ""

    with serving([*command, f"--port={port}"], log, environment(home, demo), url):
        yield url()
