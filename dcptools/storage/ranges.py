"""Bytes of files, as few requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Range = tuple[str, int, int]  # name of a file, first byte, count

REQUEST_BYTES = 4 << 20  # of one request at most; longer ones keep the others waiting, shorter ones cost more per byte
# Two ranges are fetched together with what lies between them, if that is at most this fraction of both
GAP_PART = 1 / 64


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
