"""Tables, as text, as HTML and as DataFrames. Pure functions of rows."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dcptools._text import printable

if TYPE_CHECKING:
    import pandas as pd

SHOWN_ROWS = 20
LONG = 24  # letters of a cell that may go on in another line
# Behind a dot of a name, where it may go on in another line; not within a number
_BEHIND_DOT = re.compile(r"(?<=\.)(?=[^\W\d])|(?<=[^\W\d]\.)(?=\d)")


def frame(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> pd.DataFrame:
    """Rows as a DataFrame; pandas takes long to import, so it is imported only here."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(columns))


def frame_of(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Columns as a DataFrame: of very many rows in half the time that the rows would take."""
    import pandas as pd

    return pd.DataFrame(columns)


def clip(rows: Sequence[Sequence[Any]], most: int | None, total: int | None) -> tuple[list[Sequence[Any]], str]:
    """The first rows, and a note on those left out (empty if none); ``total`` if ``rows`` are not all."""
    total = len(rows) if total is None else total
    shown = list(rows[:most])
    return shown, f"... {total - len(shown):,} more of {total:,} rows" if total > len(shown) else ""


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    most: int | None = SHOWN_ROWS,
    total: int | None = None,
    rest: str = "",
) -> str:
    """A plain table; control characters of untrusted names are escaped, so they cannot control a terminal.

    ``rest`` says how to see the rows that are left out, if there are any.
    """
    from tabulate import tabulate

    shown, note = clip(rows, most, total)
    cells = [[printable(str(cell)) for cell in row] for row in shown]
    right = [all(_numeric(row[i]) for row in shown) for i in range(len(header))] if shown else []
    align = ["right" if is_right else "left" for is_right in right] or None
    table = tabulate(cells, headers=list(header), colalign=align, disable_numparse=True)
    return table + (f"\n{note}{rest and f' ({rest})'}" if note else "")


def html_table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    title: str = "",
    most: int = SHOWN_ROWS,
    total: int | None = None,
) -> str:
    """The same table as HTML; every cell is escaped, colours are the page's own (light and dark).

    On a narrow page only long cells (names and sentences) wrap.
    """
    shown, note = clip(rows, most, total)
    escape: Callable[[Any], str] = lambda cell: html.escape(printable(str(cell)))  # noqa: E731
    cells = ("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in shown)
    head = "".join(f"<th scope='col' style='text-align:left'>{escape(name)}</th>" for name in header)
    caption = html_title(title) if title else ""
    return f"{caption}<table><thead><tr>{head}</tr></thead><tbody>{''.join(cells)}</tbody></table>" + (
        f"<p>{escape(note)}</p>" if note else ""
    )


def _html_cell(cell: Any) -> str:
    text = printable(str(cell))
    if len(text) <= LONG:
        return f"<td style='text-align:left;white-space:nowrap'>{html.escape(text)}</td>"
    shown = html.escape(text) if " " in text else html_name(text)  # a sentence goes on at its spaces
    return f"<td style='text-align:left;overflow-wrap:anywhere'>{shown}</td>"


def html_name(text: str) -> str:
    """A name, escaped, that goes on in another line behind one of its dots if it must."""
    return _BEHIND_DOT.sub("<wbr>", html.escape(printable(text)))


def html_title(text: str) -> str:
    """What is shown above a table, escaped."""
    return f"<p><strong>{html.escape(printable(text))}</strong></p>"


def _numeric(cell: Any) -> bool:
    """Whether a cell is a number, or reads like one with its unit."""
    return isinstance(cell, (int, float)) or bool(re.match(r"[-\d.,]+( [kMGT]?B)?$", str(cell)))
