"""The table in a real JupyterLab in a real Chromium, by mouse and by keyboard."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from checkpoints import broken, saved

from e2e.conftest import Page, expect
from e2e.servers import RUN_ALL, Server

pytestmark = pytest.mark.e2e
LAYERS = 120

# Of cells with names: the text, how many signs for what is left out, and the pixels that nothing stands in.
NAMES = """boxes => boxes.map(box => ({
  text: box.querySelector('.dcp-letters').textContent, whole: box.closest('td').getAttribute('aria-label'),
  signs: box.querySelectorAll('.dcp-out').length,
  unused: box.clientWidth - box.querySelector('.dcp-letters').getBoundingClientRect().width,
}))"""


@pytest.fixture
def inspect(lab: Server, pages: Callable[[], Page]) -> Callable[[Path], Page]:
    """A page with the step Inspect for a checkpoint, alone in a cell."""

    def run(directory: Path) -> Page:
        code = f"import dcptools\nfrom dcptools import widgets\nwidgets.Inspect(dcptools.read({str(directory)!r}))"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("1")])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, lab.root / "table.ipynb")
        page = pages()
        page.goto(lab.url("table.ipynb"))
        cells = page.evaluate(RUN_ALL, "table.ipynb")
        assert cells and not any(error for _, error in cells), cells
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        return page

    return run


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """Many layers with three tensors each, and a name that is long."""
    state = {
        f"layers.{n}.self_attn.{name}": torch.full((2, n % 3 + 1), float(n))
        for n in range(LAYERS)
        for name in ("q_proj.lora_A.weight", "q_proj.lora_B.weight", "norm.weight")
    }
    return saved.save(tmp_path / "layers", {"model": state, "step": 3})


def cell(page: Page, name: str) -> object:
    return page.get_by_role("gridcell", name=name, exact=True)


def status(page: Page, text: str) -> object:
    return page.locator(".dcp-status").filter(visible=True).filter(has_text=text)


def test_by_mouse(inspect: Callable[[Path], Page], layers: Path, tmp_path: Path) -> None:
    page = inspect(layers)
    total = 3 * LAYERS + 1
    expect(status(page, f"{total} keys")).to_be_visible()
    grid = page.get_by_role("grid")
    expect(grid).to_have_attribute("aria-rowcount", str(total + 1))
    assert page.get_by_role("row").count() < 60  # a screen of them, and not all

    # all rows by scrolling
    page.locator(".dcp-rows").first.evaluate("rows => { rows.scrollTop = rows.scrollHeight }")
    expect(cell(page, "model.layers.119.self_attn.q_proj.lora_B.weight")).to_be_visible()
    expect(cell(page, "step")).to_be_visible()

    expect(page.get_by_role("columnheader", name="finding")).to_have_count(0)  # nothing was found

    # sorted by a click, and the other way by another
    heading = page.get_by_role("columnheader", name="elements")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "descending")
    expect(page.get_by_role("row").nth(1)).to_contain_text("layers.2.")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    expect(page.get_by_role("row").nth(1)).to_contain_text("layers.0.")

    # filters
    page.get_by_role("button", name=re.compile("^float32 ")).click()
    expect(status(page, f"{total - 1} of {total} keys")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^float32 "))).to_have_attribute("aria-pressed", "true")

    # a search, with what matches marked and the ends of names in sight
    page.get_by_role("searchbox", name="Search keys").fill("7.self_attn.q_proj")
    expect(status(page, f"24 of {total} keys")).to_be_visible()
    first = page.get_by_role("row").nth(1)
    assert "".join(first.locator("mark").all_inner_texts()) == "7.self_attn.q_proj"
    tails = page.locator("tbody .dcp-letters > :last-child").all_inner_texts()
    assert {tail.split(".")[-2] for tail in tails} == {"lora_A", "lora_B"}

    # wider by dragging
    key = page.get_by_role("columnheader", name="key", exact=True)
    before, handle = key.bounding_box()["width"], key.locator(".dcp-handle").bounding_box()
    page.mouse.move(handle["x"] + 4, handle["y"] + 10)
    page.mouse.down()
    page.mouse.move(handle["x"] + 84, handle["y"] + 10, steps=4)
    page.mouse.up()
    assert key.bounding_box()["width"] == pytest.approx(before + 80, abs=3)

    # narrower by keys: one sign for what is left out of a name, without a gap; who copies the cell has it whole
    while key.bounding_box()["width"] > 300:
        key.get_by_role("button").press("Alt+ArrowLeft")
    names = page.locator("tbody .dcp-elide").filter(has_text="lora_A").evaluate_all(NAMES)
    assert len(names) == 12
    for name in names:
        assert name["text"] == name["whole"] and name["signs"] == 1 and 0 <= name["unused"] < 8, name

    # the rows that match, as a file
    with page.expect_download() as saving:
        page.get_by_role("button", name="Download as CSV").click()
    saving.value.save_as(tmp_path / "keys.csv")
    with (tmp_path / "keys.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and all("7.self_attn.q_proj" in row["key"] for row in rows)

    # a row, its detail beside it, and its key in the clipboard
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    wanted = "model.layers.7.self_attn.q_proj.lora_B.weight"
    cell(page, wanted).click()
    expect(page.get_by_role("heading", name=wanted)).to_be_visible()
    expect(page.get_by_text("First values")).to_be_visible()
    page.get_by_role("button", name=f"Copy {wanted}", exact=True).click()
    expect(status(page, f"Copied {wanted}")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == wanted
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.get_by_role("heading", name=wanted)).to_be_hidden()


def test_by_keyboard_alone(inspect: Callable[[Path], Page], layers: Path) -> None:
    page = inspect(layers)
    expect(status(page, "361 keys")).to_be_visible()
    page.get_by_role("searchbox", name="Search keys").focus()
    page.keyboard.type("self_attn")
    expect(status(page, "360 of 361 keys")).to_be_visible()
    page.keyboard.press("ArrowDown")  # from the search to the first row
    chosen = page.locator("tr[aria-selected=true]")
    expect(chosen).to_contain_text("layers.0.self_attn.norm")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    expect(chosen).to_contain_text("layers.1.self_attn.norm")
    expect(page.get_by_role("heading", name="model.layers.1.self_attn.norm.weight")).to_be_visible()
    grid = page.get_by_role("grid")
    assert grid.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    page.keyboard.press("End")
    expect(page.get_by_role("heading", name="model.layers.119.self_attn.q_proj.lora_B.weight")).to_be_visible()
    expect(chosen).to_be_in_viewport()
    page.keyboard.press("Home")
    expect(chosen).to_contain_text("layers.0.self_attn.norm")
    screen = int(page.locator(".dcp-rows").first.evaluate("rows => rows.clientHeight / 26")) - 1
    for key, row in (("PageDown", screen), ("PageDown", 2 * screen), ("PageUp", screen), ("Control+End", 359)):
        page.keyboard.press(key)
        at = int(chosen.get_attribute("data-index"))
        assert row - 2 <= at <= row and grid.get_attribute("aria-activedescendant") == chosen.get_attribute("id"), key
        expect(chosen).to_be_in_viewport()
    for _ in range(2):  # the second one stays where it is
        page.keyboard.press("PageDown")
        assert chosen.get_attribute("data-index") == "359"
    page.keyboard.press("Control+Home")
    assert chosen.get_attribute("data-index") == "0"
    expect(page.get_by_role("heading", name="model.layers.0.self_attn.norm.weight")).to_be_visible()

    page.get_by_role("button", name="Tree", exact=True).press("Enter")
    tree = page.get_by_role("treegrid")
    expect(tree).to_be_visible()
    tree.focus()
    page.keyboard.press("Home")
    top = page.get_by_role("row").filter(has=cell(page, "model.layers"))
    expect(top).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowLeft")
    expect(top).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("ArrowRight")
    expect(top).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowRight")  # into it
    expect(chosen).to_have_attribute("aria-level", "2")
    expect(chosen).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowLeft")
    expect(chosen).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("ArrowLeft")  # and out of it
    expect(chosen).to_have_attribute("aria-level", "1")


def test_a_finding_leads_to_its_row_and_back(inspect: Callable[[Path], Page], tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    page = inspect(tmp_path / "hole")
    page.get_by_role("tab", name=re.compile("^Findings")).click()
    page.get_by_text("Why?").press("Enter")  # by keyboard alone: read, show, take back
    expect(page.get_by_text("The stored chunks do not cover the whole tensor")).to_be_visible()
    page.get_by_role("button", name="Show", exact=True).press("Enter")
    only = page.get_by_role("button", name=re.compile("^Only hole: model.model.w"))
    expect(only).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("gridcell", name="model.model.w", exact=True)).to_be_visible()
    only.press("Enter")
    expect(only).to_have_count(0)

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the line for Shell").press("Enter")
    expect(page.get_by_text("Copied", exact=True)).to_be_visible()
    line = page.evaluate("() => navigator.clipboard.readText()")
    assert line == f"python -m dcptools inspect --load-dir {tmp_path / 'hole'}"

    page.get_by_role("tab", name=re.compile("^Findings")).click()
    cell(page, "model.model.w").dblclick()
    expect(page.get_by_role("heading", name="model.model.w")).to_be_visible()
    expect(page.locator("tr[aria-selected=true]").filter(visible=True)).to_contain_text("model.model.w")
    page.get_by_role("button", name=re.compile(r"error\[hole\]")).click()
    expect(page.get_by_role("tab", name=re.compile("^Findings"))).to_have_attribute("aria-selected", "true")
    expect(page.locator("tr[aria-selected=true]").filter(visible=True)).to_contain_text("nothing is stored")
