"""What the page shows, as rows of text. Every text is printable; escaping is left to where it is put."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from dcptools._text import format_bytes, format_shape, printable
from dcptools.mapping import KeyMapping
from dcptools.shards import ShardPlan

MOST_FILES = 500  # in the table of files


def escape(text: object) -> str:
    """Text that shows itself in HTML, and does nothing else."""
    return html.escape(printable(str(text)))


def data_block(name: str, columns: Sequence[str], facets: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A section whose rows the script shows, with a search and a filter for each of the ``facets``."""
    listed = [[printable(cell) for cell in row] for row in rows]
    data = {"columns": columns, "facets": [columns.index(facet) for facet in facets], "rows": listed}
    text = json.dumps(data).replace("<", "\\u003c")  # nothing in it ends the script element or begins a comment
    return (
        f'<section data-rows="{name}"><noscript><p>These {len(listed):,} rows are shown by a script.</p></noscript>'
        f'</section><script type="application/json" id="{name}">{text}</script>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], most: int) -> str:
    """A table without a script, with at most that many rows."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[:most])
    note = f"<p>... {len(rows) - most:,} more of {len(rows):,} rows</p>" if len(rows) > most else ""
    return f"{scrolled(f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>', 'table')}{note}"


def scrolled(element: str, what: str) -> str:
    """A box in which something that is too wide for the page scrolls, also by keyboard."""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{what}">{element}</div>'


def outputs(mapping: KeyMapping, planned: ShardPlan | None) -> str:
    """Each output: key, name, rule, shape, stored and written dtype, file, state, findings."""
    written = planned.files if planned else ()
    placed = {t.output.name: (t.dtype.name, file.filename) for file in written for t in file.tensors}
    columns = ("key", "name", "rule", "shape", "dtype", "written as", "file", "state", "findings")
    taken = ["key", "name", "rule", "shape", "dtype", "state", "findings"]
    rows = (
        (key, name, rule, format_shape(shape), dtype, *placed.get(name, ("", "")), state, found)
        for key, name, rule, shape, dtype, state, found in mapping.to_frame()[taken].to_numpy().tolist()
    )
    return data_block("outputs", columns, ("dtype", "written as", "state", "findings"), rows)


def leftovers(mapping: KeyMapping) -> str:
    """Each key that is left out, with the reason."""
    rows = ((left.key, left.kind, left.reason, format_bytes(left.nbytes)) for left in mapping.leftovers)
    return data_block("leftovers", ("key", "kind", "reason", "bytes"), ("kind", "reason"), rows)


def files(planned: ShardPlan) -> str:
    """Each file of the result."""
    rows = [
        (file, f"{tensors:,}", format_bytes(nbytes), first, last)
        for file, tensors, nbytes, first, last in planned.files_frame().to_numpy().tolist()
    ]
    return table(("file", "tensors", "bytes", "first", "last"), rows, MOST_FILES)
