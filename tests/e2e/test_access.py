"""The wizard for everybody: axe-core in a light and a dark theme, narrow windows, and 200 % of zoom.

One page is walked through once, and looked at in each state; the tests say what was seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import nbformat
import pytest

from dcptools.demo import Demo
from e2e.conftest import Browser, Opened, Page, Traffic, expect
from e2e.servers import RUN_ALL, Server

pytestmark = pytest.mark.e2e
NOTEBOOK = "access.ipynb"
THEMES = ("JupyterLab Light", "JupyterLab Dark")
ZOOMED = 700  # CSS pixels that a window of 1400 has at 200 %
WIDTHS = (1400, 1000, ZOOMED)

# What axe-core is sure of, and what it could not decide but would be serious.
AUDIT = """async options => {
  const found = await axe.run({include: [['.dcptools']]}, {resultTypes: ['violations', 'incomplete'], ...options});
  return [...found.violations, ...found.incomplete]
    .filter(rule => ['serious', 'critical'].includes(rule.impact))
    .flatMap(rule => rule.nodes.map(node => `${rule.id}: ${node.html.slice(0, 200)}\n${node.failureSummary ?? ''}`));
}"""

# What does not fit: the page or the notebook scrolls sideways, a part sticks out, or its text is cut off. Tables scroll
# in themselves; there the second column, which says whether all is well, must be in sight.
MISFITS = """async () => {
  for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
  await new Promise(resolve => setTimeout(resolve, 120));
  const found = [], seen = element => element.getClientRects().length > 0;
  const name = element => `${element.tagName} ${element.className} ${element.textContent.slice(0, 40)}`;
  const pen = document.createElement('canvas').getContext('2d');
  for (const outer of [document.documentElement, document.querySelector('.jp-WindowedPanel-outer')]) {
    if (outer.scrollWidth > outer.clientWidth) found.push(`the page scrolls: ${outer.scrollWidth}`);
  }
  const root = [...document.querySelectorAll('.dcptools')].find(seen), right = root.getBoundingClientRect().right;
  for (const element of root.querySelectorAll('*')) {
    if (!seen(element) || element.closest('svg')) continue;
    const style = getComputedStyle(element);
    if (!element.closest('.dcp-rows, .dcp-scroll') && element.getBoundingClientRect().right > right + 1)
      found.push(`sticks out: ${name(element)}`);
    if (style.overflowX !== 'visible' && element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0
        && !element.matches('.dcp-rows, .dcp-scroll, .dcp-rows *, .dcp-scroll *, .dcp-voice, input'))
      found.push(`is cut off: ${name(element)}`);
    pen.font = style.font;
    const hint = element.tagName === 'INPUT' && !element.value ? element.placeholder : '';
    if (pen.measureText(hint).width > element.clientWidth) found.push(`is cut off: ${hint}`);
  }
  for (const rows of [...root.querySelectorAll('.dcp-rows')].filter(seen)) {
    const second = rows.querySelectorAll('th')[1].getBoundingClientRect();
    if (second.right > rows.getBoundingClientRect().right) found.push(`out of sight: ${name(rows)}`);
  }
  return found;
}"""


class Seen:
    """What is wrong in each state of the page."""

    def __init__(self, page: Page) -> None:
        self.page, self.states = page, 0
        self.serious: list[tuple[str, str, str]] = []  # state, theme, what axe says
        self.misfits: list[tuple[str, int, str]] = []  # state, width, what does not fit

    def look(self, state: str) -> None:
        self.states += 1
        for theme in THEMES:
            self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
            expect(self.page.locator(f"body[data-jp-theme-name='{theme}']")).to_have_count(1)
            only = {"runOnly": ["color-contrast"]} if theme != THEMES[0] else {}  # nothing else depends on it
            self.serious += [(state, theme, said) for said in self.page.evaluate(AUDIT, only)]
        for width in WIDTHS:
            self.page.set_viewport_size({"width": width, "height": 700})
            self.misfits += [(state, width, said) for said in self.page.evaluate(MISFITS)]


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
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
    page.add_style_tag(content="* { transition: none !important }")  # a colour on its way to another one is neither
    shown, look = Opened(page, Traffic(page), 0.0), Seen(page)
    for state in walk(shown, demo, target):
        look.look(state)
    compare(shown, demo, target)
    page.evaluate("() => document.querySelector('.dcptools').remove()")
    look.look("Compare")
    yield look
    page.evaluate("() => window.__panel?.sessionContext.shutdown()")
    context.close()


def test_axe_finds_nothing_serious_in_a_light_and_a_dark_theme(seen: Seen) -> None:
    assert seen.states == 16
    assert seen.serious == []


def test_everything_fits_at_1400_and_1000_pixels_and_at_200_percent_of_zoom(seen: Seen) -> None:
    assert seen.misfits == []
