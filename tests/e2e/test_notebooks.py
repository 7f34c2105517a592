"""The notebooks as pages of Voila, by keyboard alone, in both themes and in narrow windows.

All of them but the wizard, which ``test_voila`` drives, stand below each other on one page, so that one kernel runs
them and one browser page is looked at.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from dcptools.demo import Demo
from e2e.conftest import Page, expect
from e2e.keys import Keys
from e2e.looking import WIDTHS, Seen, dress_voila
from e2e.servers import ROOT, voila

if TYPE_CHECKING:
    from playwright.sync_api import Locator

pytestmark = pytest.mark.e2e
SLOW = re.compile(r"load_model\(|from_pretrained\(|generate\(|wrong\b")  # makes a model, to show a line of text

# What must be reached by keyboard; a tab stands for those beside it, which the arrow keys reach.
CONTROLS = """() => [...document.querySelectorAll(`.dcptools :is(button, input, select, textarea, summary, [role=tab],
  [tabindex="0"])`)].filter(element => element.checkVisibility() && !element.disabled
    && !element.matches('[tabindex="-1"], [role=tab][aria-selected=false]'))"""
NUMBERED = f"() => ({CONTROLS})().forEach((element, number) => {{ element.dataset.number = number; }})"
LEFT = """() => [...document.querySelectorAll('[data-number]')]
  .map(element => `${element.tagName} ${element.ariaLabel ?? ''} ${element.textContent.slice(0, 40)}`)"""
PASSED = "() => { delete document.activeElement.dataset.number; }"
OUTSIDE = "() => document.activeElement === document.body"

# What is wider than its place, so that its last columns are out of sight.
WIDE = """async where => {
  for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame); // tables follow the window
  return [...document.querySelectorAll(where)]
    .filter(element => element.scrollWidth > element.clientWidth)
    .map(element => `${element.scrollWidth} of ${element.clientWidth}: ${element.innerText.slice(0, 80)}`);
}"""


# When nothing has moved for some frames: what a step shows may push down what has the focus.
STILL = """async () => {
  for (let frames = 0, before = 0; frames < 10; frames += 1) {
    await new Promise(requestAnimationFrame);
    const now = [...document.querySelectorAll('.dcptools')].map(step => step.getBoundingClientRect().height).join();
    if (now !== before) [frames, before] = [0, now];
  }
}"""


def is_slow(cell: nbformat.NotebookNode) -> bool:
    return cell.cell_type == "code" and SLOW.search(cell.source) is not None


def on_one_page(directory: Path, demo: Demo) -> Path:
    """The cells of all notebooks, on the demo."""
    cells = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if path.stem != "5-wizard":
            cells += [cell for cell in nbformat.read(path, as_version=4).cells if not is_slow(cell)]
    for cell in cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source += f"\nload_dir, model_assets_dir = {str(demo.checkpoint)!r}, {str(demo.assets)!r}"
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    target = directory / "notebooks.ipynb"
    nbformat.write(notebook, target)
    return target


def stop_at_each(page: Page, keys: Keys) -> list[str]:
    """Press Tab from the top of the page to its end; the controls where it did not stop."""
    page.evaluate(NUMBERED)
    assert len(page.evaluate(LEFT)) > 80
    page.evaluate("() => { document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0); }")
    while True:
        keys.press("Tab")
        if page.evaluate(OUTSIDE):
            return page.evaluate(LEFT)
        keys.check()
        page.evaluate(PASSED)


def use(page: Page, keys: Keys, directory: Path) -> None:
    """Something of each step, from the top of the page to its end."""

    def see(there: Locator) -> None:
        expect(there).to_be_visible()
        page.evaluate(STILL)

    keys.to("Keys")
    keys.to("Search keys")
    page.keyboard.insert_text("layers.0.mlp")
    see(page.get_by_role("status").filter(has_text=" of 204 keys"))
    keys.press("ArrowDown")
    see(page.get_by_role("heading", name="model.model.layers.0.mlp.down_proj.weight"))
    keys.back_to("Keys")
    keys.press("ArrowRight", "ArrowRight", "Enter")
    keys.to("Check values")
    keys.press("Enter")
    see(page.get_by_role("status").filter(has_text="No NaN and no Inf"))

    keys.to("Exclude")
    page.keyboard.insert_text("*lm_head*")
    keys.press("Enter")
    see(page.get_by_role("alert").filter(has_text="1 missing").first)
    keys.press("Control+A", "Delete", "Enter")
    see(page.get_by_role("status").filter(has_text="47 outputs, 157 keys left out"))
    keys.to("Model")
    keys.press("ArrowRight", "ArrowRight", "Enter")
    see(page.get_by_role("gridcell", name="extra_state.loss", exact=True).filter(visible=True))
    keys.to("Table of keys")
    keys.press("ArrowDown")
    see(page.get_by_role("heading", name="extra_state.loss"))
    keys.fill("Review", str(directory / "review.html"))
    keys.to("Write a review")
    keys.press("Enter")
    see(page.get_by_role("status").filter(has_text="to send to somebody"))
    assert (directory / "review.html").exists()

    keys.fill("Bytes", "800kB")
    keys.press("Enter")
    see(page.get_by_role("status").filter(has_text="2 files, 1.45 MB in total"))
    keys.to("Colour by")
    keys.press("ArrowDown")
    see(page.get_by_role("img", name="coloured by module"))

    keys.fill("Save to", str(directory / "model"))
    keys.to("Convert")
    keys.press("Enter")
    see(page.get_by_role("status").filter(has_text=f"to {directory / 'model'}.").filter(has_text="Wrote"))
    assert (directory / "model" / "config.json").exists()
    keys.to("Cast A to the dtypes of B first")
    keys.press("Space")
    keys.to("Compare")
    keys.press("Enter")
    see(page.get_by_text("A and B differ").last)
    see(page.get_by_role("grid", name="Table of tensors").last.get_by_role("gridcell").first)  # rows come after that
    keys.to("Table of tensors")
    keys.press("ArrowDown")
    keys.leave()


def test_each_notebook_is_for_everybody(pages: Callable[[], Page], demo: Demo, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "voila", str(on_one_page(tmp_path, demo)), "--no-browser"]
    command += ["--Voila.ip=127.0.0.1", "--token"]
    with voila(command, tmp_path, demo.directory) as url:
        page = pages()
        page.goto(url, wait_until="commit")  # what comes then waits for the cells
        expect(page.get_by_role("button", name="Compare", exact=True)).to_be_visible(timeout=120_000)
        seen, keys = Seen(page, dress_voila, "body"), Keys(page)
        seen.look("as they are")
        for width in (1400, 1000):
            page.set_viewport_size({"width": width, "height": 700})
            assert page.evaluate(WIDE, ".dcp-rows") == [], width
        assert stop_at_each(page, keys) == []
        use(page, keys, tmp_path)
        seen.look("after each was used")
        assert seen.states == 2
        assert seen.serious == []
        assert seen.faint == []
        assert seen.misfits == []
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 700})
            assert page.evaluate(WIDE, ".jp-OutputArea-output") == [], width
