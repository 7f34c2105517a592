"""Regular expressions of an adapter's config, which may be hostile: tried within a time limit, or not at all."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

import regex

SECONDS = 2.0  # that a field's patterns may take for all names
MAX_SIZE = 50_000  # characters of a pattern, as often as they are repeated: regex makes a copy for each time
_COUNTS = re.compile(r"\{(\d*),?(\d*)\}")
# To which re and regex give another meaning: counts of another kind, and sets within sets
_ODD = re.compile(r"\{(?!\d+\}|\d*,\d*\})|\[\[|--|&&|~~|\|\|")
_SLOW = f"its patterns take more than {SECONDS:g} seconds"


class Unchecked(Exception):
    """Why something that a config names was not looked for."""


def first_matches(patterns: Iterable[str], names: Iterable[str]) -> dict[str, regex.Match[str]]:
    """For each name that one of the patterns matches as a whole, the first such match.

    >>> found = first_matches([r"layers\\.1\\..*", r".*\\.(q|k)"], ["layers.0.k", "layers.1.k", "head"])
    >>> {name: match.re.pattern for name, match in found.items()}
    {'layers.0.k': '.*\\\\.(q|k)', 'layers.1.k': 'layers\\\\.1\\\\..*'}

    Raises
    ------
    Unchecked
        One is not a pattern that is tried, or they take too long.
    """
    end = time.monotonic() + SECONDS
    compiled = [_compiled(pattern, end) for pattern in patterns]
    found = {}
    try:
        for name in names:
            for each in compiled:
                if match := each.fullmatch(name, timeout=_left(end)):
                    found[name] = match
                    break
    except TimeoutError:
        raise Unchecked(_SLOW) from None
    return found


def _left(end: float) -> float:
    """Seconds until a moment that is still to come."""
    left = end - time.monotonic()
    if left <= 0:
        raise Unchecked(_SLOW)
    return left


def _compiled(pattern: str, end: float) -> regex.Pattern[str]:
    _left(end)
    size = len(pattern) + 1
    for counts in _COUNTS.findall(pattern):
        size *= max([1, *(int(count[:9]) for count in counts if count)])
    try:
        if size <= MAX_SIZE and not _ODD.search(pattern):
            re.compile(pattern)  # as peft does
            return regex.compile(pattern)
    except (re.error, regex.error, OverflowError, RecursionError, MemoryError):
        pass
    raise Unchecked(f"{pattern[:100]!r} is not a pattern that is tried")
