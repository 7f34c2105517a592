"""Bytes of files, as few requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

Value = TypeVar("Value")
Range = tuple[str, int, int]  # name of a file, first byte, count

REQUEST_BYTES = 4 << 20  # of one request at most; longer ones keep the others waiting, shorter ones cost more per byte
# Two ranges are fetched together with what lies between them, if that is at most this fraction of both
GAP_PART = 1 / 64
FIRST = 64  # of the ranges that are announced together, those that are looked at before


def spread(values: Sequence[Value]) -> list[Value]:
    """The same values, as many as are looked at first from all over them.

    >>> spread(range(256))[:4], len(spread(range(256)))
    ([0, 4, 8, 12], 256)
    """
    step = max(1, -(-len(values) // FIRST))
    return [value for first in range(step) for value in values[first::step]]


def requests(ranges: Iterable[Range]) -> Iterator[Range]:
    """The ranges as they are fetched: neighbours together, and none longer than a request.

    >>> list(requests([("f", 100, 50), ("f", 0, 100), ("f", 900, 10)]))
    [('f', 0, 150), ('f', 900, 10)]
    """
    merged: list[list[int]] = []
    last = ""
    for name, start, nbytes in sorted(ranges):
        if name != last:
            yield from _split(last, merged)
            merged, last = [], name
        stop = start + nbytes
        if merged and start - merged[-1][1] <= GAP_PART * min(nbytes, merged[-1][1] - merged[-1][0]):
            merged[-1][1] = max(merged[-1][1], stop)
        elif nbytes:
            merged.append([start, stop])
    yield from _split(last, merged)


def _split(name: str, merged: list[list[int]]) -> Iterator[Range]:
    for start, stop in merged:
        for at in range(start, stop, REQUEST_BYTES):
            yield name, at, min(REQUEST_BYTES, stop - at)
