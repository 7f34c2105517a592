"""Threads that share streams of work, with progress and cancellation in the calling thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Generic, TypeVar

from dcptools._option import option
from dcptools.errors import MORE_MEMORY, Cancelled, NotEnoughMemory

Work = TypeVar("Work")
Progress = Callable[[int, int, str], None]  # done bytes, total bytes, current tensor
MAX_WORKERS = 8
TICK_SECONDS = 0.05  # how often progress is reported and cancellation is checked


def default_workers() -> int:
    """Threads that read, cast and write: the CPUs that this process may use, at least 2 and at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(MAX_WORKERS, usable))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep torch from starting threads inside the workers; its setting is restored."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fewer_workers() -> str:
    """What to do if threads do not get the memory that they need."""
    return f"Take fewer workers ({option('workers')}), or {MORE_MEMORY}"


@contextmanager
def starting_threads() -> Iterator[None]:
    """Within this context, threads are started and nothing else is done.

    Raises
    ------
    NotEnoughMemory
        The system starts no more threads; Python has no error type for that.
    """
    try:
        yield
    except RuntimeError as error:
        raise NotEnoughMemory(
            "No more threads can be started: there is too little memory, or a limit on processes is reached.\n"
            f"{fewer_workers()}"
        ) from error


class _Current(threading.local):
    stop: threading.Event | None = None  # of the run that this thread works for


_current = _Current()


def check_stopped() -> None:
    """To be called during long work, by whoever does it, however far it is from the call of ``run``.

    Raises
    ------
    Cancelled
        The run that this thread works for was stopped.
    """
    if _current.stop is not None and _current.stop.is_set():
        raise Cancelled("Cancelled.")


class _Stream(Generic[Work]):
    """Pieces of work that are taken one after another, by one thread at a time."""

    def __init__(self, work: Iterator[Work]) -> None:
        self._work, self._lock = work, threading.Lock()

    def next(self) -> Work | None:
        with self._lock:
            return next(self._work, None)


class _Streams(Generic[Work]):
    """Each thread has a stream of its own while there are enough; then threads help with those that are begun."""

    def __init__(self, streams: Iterable[Iterator[Work]]) -> None:
        self._waiting = iter(streams)
        self._begun: deque[_Stream[Work]] = deque()
        self._lock = threading.Lock()

    def pick(self) -> _Stream[Work] | None:
        """A stream that may have work left; None if there is none."""
        with self._lock:
            work = next(self._waiting, None)
            if work is not None:
                self._begun.append(_Stream(work))
                return self._begun[-1]
            self._begun.rotate()  # so that the helpers spread out
            return self._begun[0] if self._begun else None

    def drop(self, stream: _Stream[Work]) -> None:
        """Say that a stream has ended."""
        with self._lock:
            if stream in self._begun:
                self._begun.remove(stream)


def run(
    streams: Iterable[Iterator[Work]],
    make_worker: Callable[[], Callable[[Work], None]],
    *,
    workers: int,
    report: Callable[[], None],
    cancel: threading.Event | None,
) -> None:
    """Do all the work; each of the threads makes a worker of its own and takes the next piece when it is free.

    A thread stays with one of the ``streams``, whose pieces lie close together, until it is used up.

    ``report`` is called in the calling thread, every ``TICK_SECONDS`` and at the end. After an error, a
    cancellation or Ctrl-C no further piece is begun; those under way are waited for, and may end early with
    ``check_stopped``.

    Raises
    ------
    Cancelled
        The event was set.
    NotEnoughMemory
        No more threads can be started.
    """
    stopped, shared, inside = threading.Event(), _Streams(streams), _Inside()

    def loop() -> None:
        with inside:
            _current.stop = stopped
            do = make_worker()
            while not stopped.is_set() and (stream := shared.pick()) is not None:
                while not stopped.is_set() and (piece := stream.next()) is not None:
                    do(piece)
                    del piece  # what it holds goes before more is made
                shared.drop(stream)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="dcptools")
    try:
        with starting_threads():
            futures = [pool.submit(loop) for _ in range(workers)]
        while True:
            done, waiting = wait(futures, timeout=TICK_SECONDS, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if cancel is not None and cancel.is_set():
                raise Cancelled("Cancelled.")
            report()
            if not waiting:
                return
    finally:
        stopped.set()
        _join(pool, inside)


class _Inside:
    """How many threads are in a block, to wait until there are none."""

    def __init__(self) -> None:
        self._count, self._changed = 0, threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._count)


def _join(pool: ThreadPoolExecutor, inside: _Inside) -> None:
    """Wait for the workers, even if Ctrl-C is pressed again: they must not write into what is being removed.

    A signal that comes while a thread is being started leaves a thread that the pool does not know about.
    """
    try:
        pool.shutdown(wait=True, cancel_futures=True)
        inside.wait()
    except BaseException:
        pool.shutdown(wait=True)
        inside.wait()
        raise
