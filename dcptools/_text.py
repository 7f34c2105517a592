"""Counts, sizes and untrusted names as people read them. Pure functions of strings and numbers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence


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


def printable(text: str) -> str:
    """The text with everything unprintable as a backslash escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines, which keeps its line ends."""
    return "\n".join(map(printable, text.split("\n")))


def natural(text: str) -> str:
    """A key to sort by, in which numbers count as numbers.

    >>> sorted(["layers.10.w", "layers.2.w", "layers.1.w"], key=natural)
    ['layers.1.w', 'layers.2.w', 'layers.10.w']
    """
    middle = text.find(".", len(text) // 2) + 1  # never within a number
    return _padded(text[:middle]) + _padded(text[middle:])


@functools.lru_cache(1 << 16)  # keys are made of few different halves
def _padded(part: str) -> str:
    return re.sub(r"\d+", lambda number: number[0].zfill(20), part)


def some(names: Iterable[str], most: int = 5) -> str:
    """A comma-separated list that stays short.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(printable(name) for name in listed[:most]) + rest
