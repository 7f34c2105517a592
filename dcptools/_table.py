"""Text and HTML tables, and sizes as people write them. Pure functions of strings."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dcptools.errors import UsageError

SHOWN_ROWS = 20
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def format_bytes(count: float) -> str:
    """Bytes in decimal units, as disks and the Hub count them.

    >>> format_bytes(999), format_bytes(2_000_000_000)
    ('999 B', '2.00 GB')
    """
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if abs(count) < 999.5 or unit == "TB":
            break
    return f"{count:.3g} {unit}" if count >= 100 else f"{count:.2f} {unit}"


def format_count(count: int) -> str:
    """A number of elements: 1,234 or 7.62 B.

    >>> format_count(7_620_000_000), format_count(1234)
    ('7.62 B', '1,234')
    """
    if count < 1_000_000:
        return f"{count:,}"
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def format_shape(shape: Sequence[int]) -> str:
    """A shape as torch prints it.

    >>> format_shape((2, 3)), format_shape(())
    ('[2, 3]', '[]')
    """
    return f"[{', '.join(map(str, shape))}]"


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "file"), counted(1200, "file")
    ('1 file', '1,200 files')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def parse_bytes(text: str | int) -> int:
    """A size in bytes from a number or from ``500MB``, ``5GB``, ``2GiB``.

    Raises
    ------
    UsageError
        It is not a size, or not positive.

    >>> parse_bytes("5GB"), parse_bytes("1.5 MiB"), parse_bytes(100)
    (5000000000, 1572864, 100)
    """
    match = re.fullmatch(r"\s*([0-9][0-9_]{0,30}(?:\.[0-9]{1,30})?)\s*([KMGT]?I?)B?\s*", str(text).upper())
    unit = _UNITS.get(match.group(2)) if match else None
    size = int(float(match.group(1)) * unit) if match and "." in match.group(1) and unit else None
    if match and unit and size is None:
        size = int(match.group(1)) * unit
    if isinstance(text, bool) or not size:
        raise UsageError(f"{text!r} is not a size in bytes.\nExpected a positive number, or one like 500MB, 5GB, 2GiB.")
    return size


def clip(rows: Sequence[Sequence[Any]], most: int, total: int | None) -> tuple[list[Sequence[Any]], str]:
    """The first rows, and a note on those left out (empty if none); ``total`` where ``rows`` are not all."""
    total = len(rows) if total is None else total
    shown = list(rows[:most])
    return shown, f"... {total - len(shown):,} more of {total:,} rows" if total > len(shown) else ""


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], *, most: int = SHOWN_ROWS, total: int | None = None
) -> str:
    """A plain table; control characters of untrusted names are escaped, so they cannot drive a terminal."""
    from tabulate import tabulate

    shown, note = clip(rows, most, total)
    cells = [[printable(str(cell)) for cell in row] for row in shown]
    right = [all(_numeric(row[i]) for row in shown) for i in range(len(header))] if shown else []
    align = ["right" if is_right else "left" for is_right in right] or None
    table = tabulate(cells, headers=list(header), colalign=align, disable_numparse=True)
    return table + (f"\n{note}" if note else "")


def html_table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    title: str = "",
    most: int = SHOWN_ROWS,
    total: int | None = None,
) -> str:
    """The same table as HTML; every cell is escaped, colours are the page's own (light and dark)."""
    shown, note = clip(rows, most, total)
    escape: Callable[[Any], str] = lambda cell: html.escape(printable(str(cell)))  # noqa: E731
    cells = (
        "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) + "</tr>" for row in shown
    )
    head = "".join(f"<th scope='col' style='text-align:left'>{escape(name)}</th>" for name in header)
    caption = f"<p><strong>{escape(title)}</strong></p>" if title else ""
    return f"{caption}<table><thead><tr>{head}</tr></thead><tbody>{''.join(cells)}</tbody></table>" + (
        f"<p>{escape(note)}</p>" if note else ""
    )


def printable(text: str) -> str:
    """The text with everything unprintable as a backslash escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines, whose line ends stay."""
    return "\n".join(map(printable, text.split("\n")))


def some(names: Iterable[str], most: int = 5) -> str:
    """A comma-separated list that stays short.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(printable(name) for name in listed[:most]) + rest


def _numeric(cell: Any) -> bool:
    return isinstance(cell, (int, float)) or bool(re.match(r"[-\d.,]+( [kMGT]?B)?$", str(cell)))
