"""Sizes in bytes as people type them."""

from __future__ import annotations

import re
from decimal import Decimal

from dcptools.errors import UsageError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"\s*([0-9][0-9_]{0,30}(?:\.[0-9]{1,30})?(?:E\+?[0-9]{1,2})?)\s*([KMGT]?I?)B?\s*")


def parse_bytes(text: str | float) -> int:
    """A size in bytes from a number or from ``500MB``, ``5GB``, ``2GiB``, ``1e9``.

    Raises
    ------
    UsageError
        It is not a size, or not positive.

    >>> parse_bytes("5GB"), parse_bytes("1.5 MiB"), parse_bytes("1e9"), parse_bytes(100)
    (5000000000, 1572864, 1000000000, 100)
    """
    match = _SIZE.fullmatch(str(text).upper())
    unit = _UNITS.get(match.group(2)) if match else None
    size = int(Decimal(match.group(1)) * unit) if match and unit else 0
    if isinstance(text, bool) or not size:
        raise UsageError(
            f"{text!r} is not a size in bytes.\nExpected a positive number, or one like 500MB, 5GB, 2GiB, 1e9."
        )
    return size
