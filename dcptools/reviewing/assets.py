"""The style and the script of the page, and the policy that lets nothing else run or be loaded."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; background: Canvas; color: CanvasText; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 1400px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15em; margin-top: 2em; }
nav a { display: inline-block; margin-right: 1em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid #8886; }
th { border-bottom-width: 2px; white-space: nowrap; } td { overflow-wrap: break-word; max-width: 48ch; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8882; padding: 10px; user-select: all; }
.found { border-left: 4px solid; padding: 4px 12px; margin: 4px 0; background: #8882; overflow-wrap: anywhere; }
.error { border-color: #d55e00; } .warning { border-color: #e69f00; } .info { border-color: #0072b2; }
.filters { display: flex; flex-wrap: wrap; gap: 12px; align-items: end; margin: 8px 0; }
.filters label { display: flex; flex-direction: column; font-size: 13px; }
input, select, button { font: inherit; padding: 3px 8px; height: 30px; box-sizing: border-box; }
input[type=search] { width: 24em; max-width: 90vw; }
svg { width: 100%; min-width: 680px; height: auto; } svg text { fill: currentColor; font-size: 12px; }
"""

# Rows come as JSON and are shown by textContent alone, so that no name becomes a part of the page.
SCRIPT = """
'use strict';
const PAGE = 200;
for (const part of document.querySelectorAll('section[data-rows]')) {
  const {columns, facets, rows} = JSON.parse(document.getElementById(part.dataset.rows).textContent);
  const make = (tag, text) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const labelled = (name, field) => { const made = make('label', name); made.append(field); return made; };
  const search = make('input');
  search.type = 'search';
  const filters = make('div');
  filters.className = 'filters';
  filters.append(labelled('Search', search));
  const selects = facets.map(column => {
    const select = make('select'), values = [...new Set(rows.map(row => row[column]))].filter(Boolean).sort();
    select.append(new Option('all', ''), ...values.map(value => new Option(value)));
    if (values.length) filters.append(labelled(columns[column], select));
    return [column, select];
  });
  const status = make('p');
  status.setAttribute('role', 'status');
  const table = make('table'), head = make('thead'), heading = make('tr'), body = make('tbody');
  for (const name of columns) { const cell = make('th', name); cell.scope = 'col'; heading.append(cell); }
  head.append(heading);
  table.append(head, body);
  const scroll = make('div');
  scroll.className = 'scroll';
  scroll.tabIndex = 0; // scrolled by keys where it is too wide
  scroll.setAttribute('role', 'group');
  scroll.setAttribute('aria-label', 'rows');
  scroll.append(table);
  const more = make('button', 'Show more');
  let found = [], shown = 0;
  const show = () => {
    for (const row of found.slice(shown, shown + PAGE)) {
      const line = make('tr');
      for (const value of row) line.append(make('td', value));
      body.append(line);
    }
    shown = Math.min(found.length, shown + PAGE);
    status.textContent = `${shown} of ${found.length} rows shown, ${rows.length} in all`;
    more.hidden = shown === found.length;
  };
  const filter = () => {
    const wanted = search.value.toLowerCase();
    found = rows.filter(row => selects.every(([column, select]) => !select.value || row[column] === select.value)
      && (!wanted || row.some(value => value.toLowerCase().includes(wanted))));
    body.replaceChildren();
    shown = 0;
    show();
  };
  search.addEventListener('input', filter);
  for (const [, select] of selects) select.addEventListener('change', filter);
  more.addEventListener('click', show);
  part.append(filters, status, scroll, more);
  filter();
}
"""


def policy() -> str:
    """What the browser is told to refuse: everything but this style and this script."""
    return (
        f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
