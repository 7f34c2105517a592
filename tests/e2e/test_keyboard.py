"""From an empty path to a model without a mouse, in a real JupyterLab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from dcptools.demo import Demo
from e2e.conftest import Opened, Page, Traffic
from e2e.keys import walk
from e2e.servers import RUN_ALL, Server

pytestmark = pytest.mark.e2e


def test_from_an_empty_path_to_a_model(lab: Server, pages: Callable[[], Page], demo: Demo, tmp_path: Path) -> None:
    code = "from dcptools import widgets\nwidgets.Wizard()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, lab.root / "keys.ipynb")
    page, target = pages(), tmp_path / "model"
    page.goto(lab.url("keys.ipynb"))
    assert page.evaluate(RUN_ALL, "keys.ipynb") == [[1, None]]
    stops = list(walk(Opened(page, Traffic(page), 0.0), demo, target))
    assert stops[-1] == "Result" and (target / "config.json").exists()
    page.evaluate("() => window.__panel?.sessionContext.shutdown()")
