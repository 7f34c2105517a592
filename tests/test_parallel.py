"""Threads share streams of work: each keeps to one while there are enough, then helps with another."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest

from dcptools._parallel import run
from dcptools.errors import Cancelled

Piece = tuple[str, int]


def stream(name: str, count: int) -> Iterator[Piece]:
    return ((name, number) for number in range(count))


def nothing() -> None:
    pass


def work(streams: list[Iterator[Piece]], workers: int, do: Callable[[Piece], None]) -> dict[str, list[str]]:
    """Runs it; which threads did the pieces of each stream, in the order in which they were taken."""
    done: dict[str, list[str]] = defaultdict(list)
    lock = threading.Lock()

    def make_worker() -> Callable[[Piece], None]:
        def worker(piece: Piece) -> None:
            with lock:
                done[piece[0]].append(threading.current_thread().name)
            do(piece)

        return worker

    run(streams, make_worker, workers=workers, report=nothing, cancel=None)
    return done


def test_a_thread_keeps_to_its_stream() -> None:
    together = threading.Barrier(3, timeout=10)
    done = work([stream(name, 20) for name in "abc"], 3, lambda piece: together.wait() and None)
    assert [len(threads) for threads in done.values()] == [20] * 3
    assert all(len(set(threads)) == 1 for threads in done.values())


def test_threads_without_a_stream_help() -> None:
    together = threading.Barrier(4, timeout=10)  # passed only if all four are at work at once
    done = work([stream("a", 40)], 4, lambda piece: together.wait() and None)
    assert len(done["a"]) == 40
    assert len(set(done["a"])) == 4


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_piece_is_done_once(workers: int) -> None:
    pieces: list[Piece] = []
    sizes = {"a": 7, "b": 0, "c": 100, "d": 1}
    work([stream(name, count) for name, count in sizes.items()], workers, pieces.append)
    assert sorted(pieces) == [(name, number) for name, count in sizes.items() for number in range(count)]


def test_an_error_in_a_stream_ends_all() -> None:
    def failing() -> Iterator[Piece]:
        yield "a", 0
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        work([failing(), stream("b", 10**9)], 2, lambda piece: None)


def test_a_cancellation_ends_all() -> None:
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        run([stream("a", 10**9)], lambda: lambda piece: cancel.set(), workers=2, report=nothing, cancel=cancel)
