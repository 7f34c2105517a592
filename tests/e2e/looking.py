"""What is wrong with a page for somebody: axe-core in a light and a dark theme, narrow windows, and 200 % of zoom."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from e2e.conftest import Page, expect

AXE = files("axe_playwright_python").joinpath("axe.min.js")
THEMES = ("Light", "Dark")
ZOOMED = 700  # CSS pixels that a window of 1400 has at 200 %
WIDTHS = (1400, 1000, ZOOMED)
CALM = """* { transition: none !important } /* a colour on its way to another one is neither */
body { height: 100vh !important } /* JupyterLab's has no height: for axe-core nothing in it is to be seen */"""

# What axe-core is sure of, and what it could not decide but would be serious; contrasts are computed below.
AUDIT = """async where => {
  const found = await axe.run({include: [[where]]}, {resultTypes: ['violations', 'incomplete']});
  return [...found.violations, ...found.incomplete.filter(rule => rule.id !== 'color-contrast')]
    .filter(rule => ['serious', 'critical'].includes(rule.impact))
    .flatMap(rule => rule.nodes.map(node => `${rule.id}: ${node.html.slice(0, 200)}\n${node.failureSummary ?? ''}`));
}"""

# The contrast of WCAG 2. A canvas gives the bytes of any colour.
COLOURS = """
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
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.unshift(bytes(getComputedStyle(e).backgroundColor));
      if (layers[0][3] === 1) break;
    }
    return layers.reduce((behind, layer) => over(layer, behind), [255, 255, 255]);
  };
"""

# Texts that are too faint, but for those of figures, which are looked at alone, and of what is disabled.
FAINT = f"""where => {{
  {COLOURS}
  const found = new Set();
  const look = (element, style, text) => {{
    const behind = ground(element), ratio = contrast(over(bytes(style.color), behind), behind);
    const least = element.closest('[aria-hidden=true]') ? 3 : 4.5; // a sign that stands for what is said otherwise
    if (ratio < least) found.add(`${{ratio.toFixed(2)}}: ${{element.className}} ${{text.slice(0, 40)}}`);
  }};
  for (const element of document.querySelectorAll(`${{where}} *`)) {{
    const style = getComputedStyle(element);
    if (!element.getClientRects().length || style.visibility !== 'visible' || style.opacity === '0') continue;
    if (element.closest('svg, style, :disabled, [aria-disabled=true]')) continue;
    const field = element.matches('input:not([type=checkbox], [type=range]), textarea, select');
    const text = field ? element.value : [...element.childNodes].map(n => n.nodeType === 3 ? n.data : '').join('');
    if (text.trim()) look(element, style, text);
    else if (element.placeholder) look(element, getComputedStyle(element, '::placeholder'), element.placeholder);
  }}
  return [...found];
}}"""

# What does not fit: the page or the notebook scrolls sideways, a part sticks out, or its text is cut off. Tables scroll
# in themselves; there the second column, which says whether all is well, must be in sight.
MISFITS = """async () => {
  for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
  await new Promise(resolve => setTimeout(resolve, 120));
  const found = [], seen = element => element.getClientRects().length > 0;
  const name = element => `${element.tagName} ${element.className} ${element.textContent.slice(0, 40)}`;
  const pen = document.createElement('canvas').getContext('2d');
  for (const outer of document.querySelectorAll('html, body, .jp-WindowedPanel-outer')) {
    if (outer.scrollWidth > outer.clientWidth) found.push(`the page scrolls: ${outer.scrollWidth}`);
  }
  const all = [...document.querySelectorAll('.dcptools')];
  for (const root of all.filter(element => seen(element) && !element.parentElement.closest('.dcptools'))) {
    const right = root.getBoundingClientRect().right;
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
  }
  return found;
}"""

# Voila writes the colours of a theme into the page; these are the ones of the other theme.
DRESS = """([colours, theme]) => {
  document.querySelector('#dressed')?.remove();
  document.head.append(Object.assign(document.createElement('style'), {id: 'dressed', textContent: colours}));
  document.body.dataset.jpThemeName = `JupyterLab ${theme}`;
  document.body.dataset.jpThemeLight = theme === 'Light';
}"""


def dress_lab(page: Page, theme: str) -> None:
    page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", f"JupyterLab {theme}")
    expect(page.locator(f"body[data-jp-theme-name='JupyterLab {theme}']")).to_have_count(1)


def dress_voila(page: Page, theme: str) -> None:
    colours = Path(sys.prefix, "share/jupyter/nbconvert/templates/lab/static", f"theme-{theme.lower()}.css")
    page.evaluate(DRESS, [colours.read_text("utf-8"), theme])


class Seen:
    """What is wrong in each state of the page; ``dress`` puts it into a theme."""

    def __init__(self, page: Page, dress: Callable[[Page, str], None], where: str = ".dcptools") -> None:
        self.page, self.dress, self.where, self.states = page, dress, where, 0
        self.faint: list[tuple[str, str, str]] = []  # state, theme, contrast and text
        self.serious: list[tuple[str, str]] = []  # state, what axe says
        self.misfits: list[tuple[str, int, str]] = []  # state, width, what does not fit
        page.evaluate(AXE.read_text("utf-8"))
        page.add_style_tag(content=CALM)

    def look(self, state: str) -> None:
        self.states += 1
        for theme in THEMES:
            self.dress(self.page, theme)
            self.faint += [(state, theme, said) for said in self.page.evaluate(FAINT, self.where)]
        self.serious += [(state, said) for said in self.page.evaluate(AUDIT, self.where)]
        for width in WIDTHS:
            self.page.set_viewport_size({"width": width, "height": 700})
            self.misfits += [(state, width, said) for said in self.page.evaluate(MISFITS)]
