"""The wizard for everybody: axe-core in a light and a dark theme, narrow windows, and 200 % of zoom.

One page is walked through once, and looked at in each state; the tests say what was seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from dcptools.demo import Demo
from e2e.conftest import Browser, Opened, Traffic, expect
from e2e.looking import WIDTHS, Seen, dress_lab
from e2e.servers import RUN_ALL, Server

pytestmark = pytest.mark.e2e
NOTEBOOK = "access.ipynb"


def walk(shown: Opened, demo: Demo, target: Path) -> Iterator[str]:
    """From an empty path to a model, and the two beside each other; stops at whatever looks different."""
    page = shown.page
    shown.enter("Path", "nowhere")
    expect(page.get_by_role("alert").filter(has_text="nowhere")).to_be_visible()
    page.get_by_text("Browse", exact=True).first.click()
    yield "an error, and the folders"
    page.get_by_text("Browse", exact=True).first.click()
    shown.enter("Path", str(demo.checkpoint))
    expect(page.get_by_role("status").filter(has_text="pickled objects, written by 4 ranks")).to_be_visible()
    yield "Checkpoint"

    shown.click("Next")
    shown.at(2, "Inspect")
    page.get_by_role("searchbox", name="Search keys").fill("layers.0.")
    page.get_by_role("gridcell", name="model.model.layers.0.mlp.up_proj.weight", exact=True).click()
    expect(page.get_by_text("First values")).to_be_visible()
    yield "Inspect, a key and its detail"
    shown.click("Tree")
    expect(page.get_by_role("treegrid")).to_be_visible()
    yield "Inspect, the tree"
    page.get_by_role("tab", name="Sizes").click()
    expect(page.get_by_role("img", name="by module").first).to_be_visible()
    yield "Inspect, sizes"
    page.get_by_role("tab", name="Values").click()
    shown.click("Check values")
    expect(page.get_by_role("status").filter(has_text="No NaN and no Inf")).to_be_visible()
    yield "Inspect, values"

    shown.click("Next")
    shown.at(3, "Mapping")
    page.get_by_role("textbox", name="Assets").filter(visible=True).fill(str(demo.assets))
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="every shape fits")).to_be_visible(timeout=120_000)
    page.get_by_text("Readings that were tried").click()
    yield "Mapping, the model"
    for tab in ("Outputs", "Left out", "Findings"):
        page.get_by_role("tab", name=tab).filter(visible=True).click()
        page.get_by_role("gridcell").filter(visible=True).first.click()
        if tab == "Outputs":
            expect(page.get_by_text("First values").filter(visible=True)).to_be_visible()
        yield f"Mapping, {tab}"

    shown.click("Next")
    shown.at(4, "Try it")
    shown.click("Try it")
    expect(page.get_by_test_id("said")).not_to_be_empty(timeout=120_000)
    yield "Try it"
    shown.click("Next")
    shown.at(5, "Shards")
    shown.enter("Bytes", "400kB")
    expect(page.get_by_role("gridcell", name="model-00001-of-00004.safetensors")).to_be_visible()
    yield "Shards"
    shown.click("Next")
    shown.at(6, "Convert")
    shown.enter("Save to", str(target))
    expect(page.get_by_test_id("shell-line").filter(visible=True)).to_contain_text(str(target))
    yield "Convert"
    shown.click("Convert")
    expect(page.get_by_role("status").filter(has_text="Wrote").first).to_be_visible()
    yield "after Convert"
    shown.click("Next")
    shown.at(7, "Result")
    yield "Result"


def compare(shown: Opened, demo: Demo, target: Path) -> None:
    shown.enter("A", str(demo.checkpoint))
    shown.enter("B", str(target))
    shown.click("Compare")
    expect(shown.page.get_by_role("img", name="Heat map of A and B")).to_be_visible()


@pytest.fixture(scope="module")
def seen(lab: Server, chromium: Browser, demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A page with the wizard and the comparison, after it was walked through."""
    target = tmp_path_factory.mktemp("access") / "model"
    cells = ["from dcptools import widgets", "widgets.Wizard()", "widgets.Compare()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, lab.root / NOTEBOOK)
    context = chromium.new_context(viewport={"width": WIDTHS[0], "height": 700})
    page = context.new_page()
    page.goto(lab.url(NOTEBOOK))
    assert not any(error for _, error in page.evaluate(RUN_ALL, NOTEBOOK))
    page.evaluate("() => jupyterapp.shell.collapseLeft()")
    shown, look = Opened(page, Traffic(page), 0.0), Seen(page, dress_lab)
    for state in walk(shown, demo, target):
        look.look(state)
    compare(shown, demo, target)
    page.evaluate("() => document.querySelector('.dcptools').remove()")
    look.look("Compare")
    yield look
    page.evaluate("() => window.__panel?.sessionContext.shutdown()")
    context.close()


def test_axe_finds_nothing_serious(seen: Seen) -> None:
    assert seen.states == 16
    assert seen.serious == []


def test_every_text_is_read_in_a_light_and_a_dark_theme(seen: Seen) -> None:
    assert seen.faint == []


def test_everything_fits_at_1400_and_1000_pixels_and_at_200_percent_of_zoom(seen: Seen) -> None:
    assert seen.misfits == []
