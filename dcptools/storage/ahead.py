"""Reads in flight: announced ranges of files, fetched by threads before somebody asks for them.

Neighbours are fetched in one request, long ranges in several. How many are in flight has nothing to do with the CPUs:
the threads only wait.
"""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import NamedTuple, TypeVar

from dcptools._parallel import starting_threads
from dcptools.storage.ranges import REQUEST_BYTES, Range, requests
from dcptools.storage.source import Source

IN_FLIGHT = 32  # requests
MOST_FETCHED_BYTES = 256 << 20  # fetched but not yet asked for; beyond that, what is hardly needed any more is dropped
SPENT = 1 / 16  # at most so much of a piece is left to ask for: perhaps nothing, as some bytes of items are not read
MOST_TOGETHER = 256  # pieces of work that are announced at once
Fetch = Callable[[str, int, int], bytes]  # name of a file, first and last byte
Work = TypeVar("Work")
Result = TypeVar("Result")
Places = Callable[[Work], Iterable[tuple[Source, Iterable[Range]]]]


class _Piece(NamedTuple):
    start: int  # bytes from the start of the file
    stop: int
    number: int  # in the order in which they were announced
    data: Future[bytes]


def announced(work: Iterable[Work], places: Places[Work], most: int) -> Iterator[Work]:
    """The same pieces of work, each some time after its sources were told what it reads.

    Parameters
    ----------
    work
        Pieces of it, in order.
    places
        What a piece will read from which sources; sources whose reads do not take long are not told.
    most
        About so many bytes are announced before a piece is handed out.
    """
    waiting: deque[tuple[list[Work], int]] = deque()
    total = 0
    for together, nbytes in _together(work, places):
        waiting.append((together, nbytes))
        total += nbytes
        while waiting and (total > most or not total):
            first, nbytes = waiting.popleft()
            total -= nbytes
            yield from first
    for first, _ in waiting:
        yield from first


def at_once(source: Source, do: Callable[[Work], Result], work: Iterable[Work]) -> list[Result]:
    """What ``do`` gives for each, in order; if each read of the source takes long, for many at the same time."""
    if not source.ahead:
        return [do(one) for one in work]
    with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="dcptools-read") as pool:
        with starting_threads():
            found = [pool.submit(copy_context().run, do, one) for one in work]
        return [one.result() for one in found]


def share_of_reads(count: int) -> int:
    """Bytes that each of that many threads announces, so that as many requests as possible are in flight."""
    return IN_FLIGHT * REQUEST_BYTES // max(1, count)


def _together(work: Iterable[Work], places: Places[Work]) -> Iterator[tuple[list[Work], int]]:
    """Pieces that are announced together, so that neighbours are one request, and the bytes they read."""
    pieces: list[Work] = []
    ranges: dict[Source, list[Range]] = {}
    total = 0
    for piece in work:
        pieces.append(piece)
        for source, wanted in places(piece):
            if source.ahead:
                ranges.setdefault(source, []).extend(found := list(wanted))
                total += sum(nbytes for _, _, nbytes in found)
        if not ranges or total >= REQUEST_BYTES or len(pieces) == MOST_TOGETHER:
            _announce(ranges)
            yield pieces, total
            pieces, ranges, total = [], {}, 0
    _announce(ranges)
    yield pieces, total


def _announce(ranges: dict[Source, list[Range]]) -> None:
    for source, wanted in ranges.items():
        source.will_read(wanted)


class Ahead:
    """What is being fetched, and what was fetched but is not used yet. Safe to use from several threads."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._pieces: dict[str, list[_Piece]] = {}  # by file, in order of their places; they do not overlap
        self._unused: dict[int, tuple[str, _Piece, int]] = {}  # by number: the piece, and bytes nobody has asked for
        self._spent: dict[int, None] = {}  # numbers of those of which hardly anything is left
        self._bytes = self._count = 0
        self._lock = threading.RLock()
        self._pool: ThreadPoolExecutor | None = None

    def announce(self, ranges: Iterable[Range]) -> None:
        """Start fetching what is not already being fetched."""
        with self._lock:
            wanted = [gap for one in ranges for gap in self._missing(*one)]
            if self._pool is None and wanted:
                self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="dcptools-read")
            for name, start, nbytes in requests(wanted):
                assert self._pool is not None
                with starting_threads():
                    data = self._pool.submit(self._fetch, name, start, start + nbytes)
                piece = _Piece(start, start + nbytes, self._count, data)
                insort(self._pieces.setdefault(name, []), piece)
                self._unused[self._count] = name, piece, nbytes
                self._count += 1
                self._bytes += nbytes
            while self._bytes > MOST_FETCHED_BYTES:
                self._drop(next(iter(self._spent or self._unused)))

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        """Fill ``out`` from what was fetched; returns how many bytes there are, fewer than wanted at the end of a file.

        What was not announced is fetched now.
        """
        done = 0
        while done < out.nbytes:
            at, left = start + done, out.nbytes - done
            piece, following = self._find(name, at)
            if piece is None:
                end = at + left if following is None else min(at + left, following)
                count = _copy(self._fetch(name, at, end), out[done : done + end - at])
            else:
                count = min(left, piece.stop - at)
                data = piece.data.result()
                have = _copy(memoryview(data)[at - piece.start :], out[done : done + count])
                self._used(piece.number, count)
                end, count = at + count, have
            done += count
            if count < end - at:
                break
        return done

    def close(self) -> None:
        """Forget everything, and let go of the threads."""
        with self._lock:
            pool, self._pool = self._pool, None
            for _, piece, _ in self._unused.values():
                piece.data.cancel()
            self._pieces.clear()
            self._unused.clear()
            self._spent.clear()
            self._bytes = 0
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _missing(self, name: str, start: int, nbytes: int) -> Iterator[Range]:
        """The parts of a range that are not being fetched."""
        at, stop = start, start + nbytes
        while at < stop:
            piece, following = self._find(name, at)
            end = piece.stop if piece is not None else min(stop, following if following is not None else stop)
            if piece is None:
                yield name, at, end - at
            at = end

    def _find(self, name: str, at: int) -> tuple[_Piece | None, int | None]:
        """The piece that has a byte, and where the next one begins."""
        with self._lock:
            pieces = self._pieces.get(name, [])
            number = bisect_right(pieces, at, key=lambda piece: piece.start)
            following = pieces[number].start if number < len(pieces) else None
            if number and pieces[number - 1].stop > at:
                return pieces[number - 1], following
            return None, following

    def _used(self, number: int, nbytes: int) -> None:
        """Count what was asked for; a piece that was completely asked for is no longer needed."""
        with self._lock:
            if number in self._unused:
                name, piece, left = self._unused[number]
                self._unused[number] = name, piece, left - nbytes
                if left <= nbytes:
                    self._drop(number)
                elif left - nbytes <= SPENT * (piece.stop - piece.start):
                    self._spent[number] = None

    def _drop(self, number: int) -> None:
        name, piece, _ = self._unused.pop(number)
        self._spent.pop(number, None)
        self._pieces[name].remove(piece)
        self._bytes -= piece.stop - piece.start


def _copy(data: bytes | memoryview, out: memoryview) -> int:
    count = min(len(data), out.nbytes)
    out[:count] = data[:count]
    return count
