"""Figures in a real JupyterLab: on a light and a dark page, with the pointer on them, and where nothing is trusted."""

from __future__ import annotations

from collections.abc import Callable

import nbformat
import pytest

from dcptools import plots
from dcptools.demo import Demo
from e2e.conftest import Page, expect
from e2e.looking import COLOURS
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

# The contrast of each text of the figures with what is seen behind it: the page, or the parts of the figure below its
# middle.
CONTRASTS = f"""() => {{
  {COLOURS}
  const found = [];
  for (const figure of document.querySelectorAll('svg.dcp-figure')) {{
    for (const text of figure.querySelectorAll('text')) {{
      if (!text.textContent) continue;
      text.scrollIntoView({{block: 'center'}});
      const box = text.getBoundingClientRect();
      const at = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
      let behind = ground(figure.parentElement);
      for (const part of at.filter(e => figure.contains(e) && e.closest('.tip')).reverse()) {{
        const style = getComputedStyle(part);
        const [r, g, b, a] = bytes(style.fill);
        behind = over([r, g, b, a * style.fillOpacity * style.opacity], behind);
      }}
      const ink = over(bytes(getComputedStyle(text).fill), behind);
      found.push([text.textContent, contrast(ink, behind)]);
    }}
  }}
  return found;
}}"""

# The parts of the figures that are not seen on the page, neither by their colour nor by the line around them, or not
# apart from what is beside them. What is only there for the pointer, is thinner than a line, or has its value written
# in it is left out.
UNSEEN = f"""() => {{
  {COLOURS}
  const found = [];
  for (const figure of document.querySelectorAll('svg.dcp-figure')) {{
    const behind = ground(figure.parentElement);
    const inks = [...figure.querySelectorAll('text')].map(text => text.getBoundingClientRect());
    for (const part of figure.querySelectorAll('.tip > path')) {{
      const style = getComputedStyle(part), box = part.getBoundingClientRect();
      const solid = (colour, opacity) => {{
        const [r, g, b, a] = bytes(colour);
        return over([r, g, b, a * opacity * style.opacity], behind);
      }};
      const within = ink => ink.left >= box.left && ink.right <= box.right && ink.top >= box.top;
      const thin = Math.min(box.width, box.height) < 3;
      if (style.fill === 'none' || thin || inks.some(ink => within(ink) && ink.bottom <= box.bottom)) continue;
      const fill = solid(style.fill, style.fillOpacity);
      const line = style.stroke === 'none' ? behind : solid(style.stroke, style.strokeOpacity);
      const own = style.stroke === style.fill; // narrow, with a line around the whole bar
      const seen = Math.max(contrast(fill, behind), contrast(line, behind)) >= 3 || own;
      if (!seen || contrast(fill, line) < 3 && !own) found.push(`${{part.textContent}}: ${{style.fill}}`);
    }}
  }}
  return found;
}}"""

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
    assert [found for found in contrasts if found[1] < 4.5] == []
    assert page.evaluate(UNSEEN) == []

    segment = widget.locator(".tip > path").first
    segment.scroll_into_view_if_needed()
    segment.hover()
    pointed = page.evaluate(POINTED, segment.bounding_box())
    assert pointed == "lm_head.weight\n132 kB, outside the layers"


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
