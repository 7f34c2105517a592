"""Threads that share one iterator of work, with progress and cancellation in the calling thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from dcptools.errors import Cancelled

Work = TypeVar("Work")
Progress = Callable[[int, int, str], None]  # done bytes, total bytes, current tensor
MAX_WORKERS = 8
TICK_SECONDS = 0.05  # how often progress is reported and a cancellation looked for


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


def run(
    work: Iterator[Work],
    make_worker: Callable[[], Callable[[Work], None]],
    *,
    workers: int,
    report: Callable[[], None],
    cancel: threading.Event | None,
    stop: threading.Event | None = None,
) -> None:
    """Do all the work; each of the threads makes a worker of its own and takes the next piece when it is free.

    ``report`` is called in the calling thread, every ``TICK_SECONDS`` and at the end. After an error, a
    cancellation or Ctrl-C ``stop`` is set, and no piece is begun any more; those under way are waited for.

    Raises
    ------
    Cancelled
        The event was set.
    """
    stopped, taking = stop or threading.Event(), threading.Lock()

    def take() -> Work | None:
        with taking:
            return None if stopped.is_set() else next(work, None)

    def loop() -> None:
        do = make_worker()
        while (piece := take()) is not None:
            do(piece)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="dcptools")
    try:
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
        _join(pool)


def _join(pool: ThreadPoolExecutor) -> None:
    """Wait for the workers, also when Ctrl-C is pressed again: they must not write into what is being removed."""
    try:
        pool.shutdown(wait=True, cancel_futures=True)
    except BaseException:
        pool.shutdown(wait=True)
        raise
