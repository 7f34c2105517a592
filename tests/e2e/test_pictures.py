"""Figures in a real JupyterLab: on a light and a dark page, with the pointer on them, and where nothing is trusted."""

from __future__ import annotations

from collections.abc import Callable

import nbformat
import pytest

from dcptools import plots
from dcptools.demo import Demo
from e2e.conftest import Page, expect
from e2e.servers import RUN_ALL, Server

pytestmark = pytest.mark.e2e

CELLS = """import dcptools; from dcptools import plots, widgets; from dcptools.demo import default_demo
demo = default_demo(); checkpoint = dcptools.read(demo.checkpoint); key = "model.lm_head.weight"
table = dcptools.stats(checkpoint, "model.*")
norms = table["norm"].copy(); norms[::5] *= 6; norms[1::7] /= 9
nans = (table.index == 3).astype(int)
---
plots.sizes(checkpoint)
---
plots.values(table.assign(norm=norms, nan=nans))
---
plots.chunks(checkpoint, key)
---
plots.histogram(checkpoint, key)
---
plots.diff(dcptools.diff(checkpoint, checkpoint, keys="model.*"))
---
widgets.Shards(dcptools.preview(checkpoint), shard_size="400kB")"""
FIGURES = 6

# The contrast (WCAG 2) of each text of the figures with what is seen behind it: the page, or the parts of the figure
# below its middle. A canvas gives the bytes of any colour.
CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const bytes = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const luminance = colour => colour.map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = bytes(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const figure of document.querySelectorAll('svg.dcp-figure')) {
    for (const text of figure.querySelectorAll('text')) {
      if (!text.textContent) continue;
      text.scrollIntoView({block: 'center'});
      const box = text.getBoundingClientRect();
      const at = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
      let behind = ground(figure.parentElement);
      for (const part of at.filter(e => figure.contains(e) && e.closest('.tip')).reverse()) {
        const style = getComputedStyle(part);
        const [r, g, b, a] = bytes(style.fill);
        behind = over([r, g, b, a * style.fillOpacity * style.opacity], behind);
      }
      const ink = over(bytes(getComputedStyle(text).fill), behind);
      const [low, high] = [luminance(ink), luminance(behind)].sort((a, b) => a - b);
      found.push([text.textContent, Math.round((high + 0.05) / (low + 0.05) * 100) / 100]);
    }
  }
  return found;
}"""

POINTED = """box => document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2)
  .querySelector('title').textContent"""


def opened(lab: Server, page: Page, name: str, cells: list[nbformat.NotebookNode]) -> Page:
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}  # or it asks
    nbformat.write(notebook, lab.root / name)
    page.goto(lab.url(name))
    return page


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_figures_are_read_in_the_theme_of_the_page(lab: Server, pages: Callable[[], Page], theme: str) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.split("\n---\n")]
    page = opened(lab, pages(), "pictures.ipynb", cells)
    ended = page.evaluate(RUN_ALL, "pictures.ipynb")
    assert ended and all(number and not error for number, error in ended), ended
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    expect(page.locator(f"body[data-jp-theme-name='{theme}']")).to_have_count(1)
    for kind in ("Bar chart of the bytes", "Heat map of the norm", "Map of the chunks", "Histogram", "Heat map of A"):
        page.get_by_role("img", name=kind).scroll_into_view_if_needed()
    widget = page.locator(".dcptools").get_by_role("img", name="Bar chart of the output files")
    widget.scroll_into_view_if_needed()
    expect(widget).to_be_visible()
    expect(page.locator("svg.dcp-figure")).to_have_count(FIGURES)
    assert page.locator(".dcp-shown img:visible").count() == 0  # the picture for pages that are not trusted

    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 150
    assert [found for found in contrasts if found[1] < 3] == []
    faint = [found for found in contrasts if found[1] < 4.5]
    assert len(faint) < 0.1 * len(contrasts), faint

    segment = widget.locator(".tip > path").first
    segment.scroll_into_view_if_needed()
    segment.hover()
    pointed = page.evaluate(POINTED, segment.bounding_box())
    assert pointed == "lm_head.weight\n132 kB, outside of layers"


def test_a_notebook_that_is_not_trusted_shows_the_picture_and_none_of_the_texts(
    lab: Server, pages: Callable[[], Page], demo: Demo
) -> None:
    figure = plots.chunks(demo.checkpoint, "model.lm_head.weight")
    bundle = figure._repr_mimebundle_()  # type: ignore[attr-defined]
    output = nbformat.v4.new_output("display_data", data=bundle)
    cell = nbformat.v4.new_code_cell("figure", outputs=[output])
    page = opened(lab, pages(), "foreign.ipynb", [cell])
    shown = page.get_by_role("img", name="Map of the chunks of model.lm_head.weight")
    expect(shown).to_be_visible()
    assert shown.evaluate("image => image.tagName") == "IMG"
    assert page.locator("svg.dcp-figure").count() == 0
    expect(page.get_by_text("dimension 1 (columns)")).to_be_hidden()
