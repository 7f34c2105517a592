"""Compares pairs of tensors a piece at a time, with several threads, in bounded memory.

What is looked for in a piece is up to the caller: any bit that differs, or sums for statistics.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from dcptools._parallel import Progress, default_workers, one_thread_each, run
from dcptools._progress import bar
from dcptools.comparing.pieces import Piece
from dcptools.comparing.sides import CutSide, Read, Side
from dcptools.dtypes import DType
from dcptools.errors import UsageError
from dcptools.storage import REQUEST_BYTES, Range, Source, announced, share_of_reads
from dcptools.tensors import BITS, Bits

# Of the wider of the two sides, at once. Smaller pieces cost more in Python than they save in the cache.
PIECE_BYTES = 4 << 20
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two tensors with as many elements, which are compared in row-major order."""

    name: str
    numel: int
    left: DType
    right: DType
    open: Callable[[], tuple[CutSide, Side]]  # left and right; the left one decides how both are cut

    @property
    def itemsize(self) -> int:
        """Bytes of an element, of both sides together."""
        return self.left.itemsize + self.right.itemsize


class Buffers:
    """Memory that one thread uses again and again."""

    def __init__(self) -> None:
        self._bytes: dict[str, Bits] = {}

    def bits(self, use: str, count: int, itemsize: int) -> Bits:
        """Room for that many values, as unsigned integers; the same memory for the same use."""
        wanted = count * itemsize
        if use not in self._bytes or len(self._bytes[use]) < wanted:
            self._bytes[use] = np.empty(max(wanted, PIECE_BYTES), np.uint8)
        return self._bytes[use][:wanted].view(BITS[itemsize])


Measure = Callable[[Pair, Piece, Bits, Bits, Buffers], Found | None]


class Streaming(Generic[Found]):
    """Compares pairs; ``run`` is called once, and ``found`` has what the measure gave, by name in order of places."""

    def __init__(self, streams: Iterable[Sequence[Pair]], measure: Measure[Found]) -> None:
        self._streams, self._measure = [list(stream) for stream in streams], measure
        self._parts: dict[str, list[tuple[int, Found]]] = {}
        self._lock = threading.Lock()
        self._done, self._current = 0, ""

    def run(
        self, doing: str, *, workers: int | None, progress: Progress | bool | None, cancel: threading.Event | None
    ) -> None:
        """Compare everything; a thread stays with one stream of pairs until it is used up.

        Raises
        ------
        Cancelled
            The event was set.
        UsageError
            There are no workers.
        """
        count = checked_workers(workers)
        total = sum(pair.numel * pair.itemsize for stream in self._streams for pair in stream)
        with bar(progress, doing) as shown, one_thread_each():

            def report() -> None:
                if shown is not None:
                    shown(self._done, total, self._current)

            most = share_of_reads(min(count, len(self._streams)))
            streams = (_work(pairs, most) for pairs in self._streams)
            run(streams, self._worker, workers=count, report=report, cancel=cancel)

    def found(self, name: str) -> list[Found]:
        """What was found in the pieces of a pair, in the order of their places."""
        return [part for _, part in sorted(self._parts.get(name, ()), key=lambda part: part[0])]

    def _worker(self) -> Callable[[_Work], None]:
        buffers = Buffers()

        def do(work: _Work) -> None:
            pair, piece, left, right, _ = work
            count = piece.numel
            part = self._measure(
                pair,
                piece,
                left(buffers.bits("left", count, pair.left.itemsize)),
                right(buffers.bits("right", count, pair.right.itemsize)),
                buffers,
            )
            with self._lock:
                self._done += count * pair.itemsize
                self._current = pair.name
                if part is not None:
                    self._parts.setdefault(pair.name, []).append((piece.offset, part))

        return do


class _Opened(NamedTuple):
    """A pair whose tensors are at hand."""

    pair: Pair
    left: CutSide
    right: Side


class _Work(NamedTuple):
    """A piece of a pair."""

    pair: Pair
    piece: Piece
    left: Read
    right: Read
    opened: _Opened


def checked_workers(workers: int | None) -> int:
    """The number of threads; raises UsageError."""
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers cannot read anything.\nGive 1 or more.")
    return workers or default_workers()


def _work(pairs: Iterable[Pair], most: int) -> Iterator[_Work]:
    """The pieces of all pairs; if reads take long, about ``most`` bytes are on their way before they are used."""
    opened = announced((_Opened(pair, *pair.open()) for pair in pairs), _frames, REQUEST_BYTES)
    return announced((piece for pair in opened for piece in _pieces(pair)), _places, most)


def _pieces(opened: _Opened) -> Iterator[_Work]:
    pair, left, right = opened
    for piece, read in left.cut(PIECE_BYTES // max(pair.left.itemsize, pair.right.itemsize)):
        yield _Work(pair, piece, read, right.reading(piece), opened)


def _frames(opened: _Opened) -> Iterator[tuple[Source, Iterable[Range]]]:
    return ((side.source, side.frames()) for side in (opened.left, opened.right))


def _places(work: _Work) -> Iterator[tuple[Source, Iterable[Range]]]:
    return ((side.source, side.places(work.piece)) for side in (work.opened.left, work.opened.right))
