"""Gives every rank its part of a piece of work, and gathers what came out."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from dcptools._parallel import MAX_WORKERS, Progress
from dcptools.errors import Cancelled, DcptoolsError
from dcptools.ranks.pulse import Pulse, State
from dcptools.shards import ShardPlan
from dcptools.storage import OutputSink

TELL_SECONDS = 2.0  # for this long the other ranks leave it to rank 0 to say that a rank is gone
SETTLE_SECONDS = 5.0  # the longest that an interrupted rank waits for the others to stop
# What a rank does with its part of the work: it is given its team, its part, and what to call with its progress.
Job = Callable[["Team", Any, Progress], Any]
LOST = (
    "A process of this run ended before it was done, or its machine no longer answers.\n"
    "No model was written. The output of torchrun shows which process, and why; then start the run again.\n"
    "What is finished is kept if both runs have --resume."
)


@dataclass(frozen=True)
class _Failed:
    """How a rank's part ended."""

    error: Exception


class Team:
    """All ranks of a run, as one of them sees it. Rank 0 calls ``each`` and ``end``, the others ``follow``."""

    def __init__(self, rank: int, size: int, pulse: Pulse, store: Any) -> None:
        self.rank, self.size, self.pulse, self._store = rank, size, pulse, store
        self.plan: ShardPlan | None = None  # that rank 0 has sent
        self.sink: OutputSink | None = None  # with files that nobody else can commit
        self.broken = False  # whether a rank has left in the middle of the work; it may be this one
        self._number = 0  # of the last order
        self._told, self._heard, self._telling = 0, [0] * size, threading.Lock()  # what ``tell`` sent, ``heard`` took

    @property
    def workers(self) -> int:
        """Threads of a rank: its part of the CPUs that it may use, at least 2 and at most 8."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(2, min(MAX_WORKERS, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))

    def tell(self, news: Any) -> None:
        """Let rank 0 know something in the middle of an order; from any thread."""
        with self._telling:
            self._store.set(f"news/{self.rank}/{self._told}", pickle.dumps(news))
            self._told += 1

    def heard(self) -> Iterator[Any]:
        """What the other ranks have reported since this was last called."""
        with suppress(RuntimeError):  # the store is gone, and a rank with it
            for rank in range(1, self.size):
                while self._store.check([key := f"news/{rank}/{self._heard[rank]}"]):
                    self._heard[rank] += 1
                    yield pickle.loads(self._store.get(key))

    def each(
        self, job: Job, parts: Sequence[Any], own: Callable[[Progress], Any], progress: Progress | None = None
    ) -> list[Any]:
        """Let all other ranks do ``job``, and rank 0 its ``own``; returns what each gave, by rank.

        Parameters
        ----------
        job
            A function at the top of a module, which the others import.
        parts
            What each rank does it with; they are pickled. Rank 0's is not used.
        own
            What rank 0 does.
        progress
            Called with the bytes that all ranks have done, not only rank 0.

        Raises
        ------
        DcptoolsError
            A rank is gone.
        Exception
            What the part of a rank failed with; then the others have stopped.
        """
        import torch.distributed as dist

        def report(done: int, total: int, current: str) -> None:
            self.pulse.say(done=done)
            if progress is not None:
                progress(self.pulse.done, total, current)

        self._number += 1
        self.pulse.say(given=self._number, done=0)
        found: list[Any] = [None] * self.size
        with self._unbroken():
            dist.broadcast_object_list([(pickle.dumps((job, list(parts))), 0)], src=0)
            mine = self._do(functools.partial(own, report))
            self._wait_for_all(mine, lambda: progress(self.pulse.done, 0, "") if progress else None)
            dist.gather_object(mine, found, dst=0)
        failed = [one.error for one in found if isinstance(one, _Failed)]
        for error in sorted(failed, key=lambda error: isinstance(error, Cancelled)):  # the others were only stopped
            raise error
        return found

    def end(self, status: int) -> None:
        """Let the others end with that exit status."""
        import torch.distributed as dist

        if self.broken:
            return
        self._number += 1
        self.pulse.say(given=self._number)
        with self._unbroken():
            dist.broadcast_object_list([(b"", status)], src=0)
        self.pulse.leave()

    def follow(self) -> int:
        """Do what rank 0 says, until it says which exit status to end with.

        Raises
        ------
        DcptoolsError
            A rank is gone.
        """
        try:
            with self._unbroken():
                while (status := self._follow_order()) is None:
                    continue
        finally:
            if self.sink is not None:
                self.sink.discard()  # what was not committed
        self.pulse.leave()
        return status

    def _follow_order(self) -> int | None:
        """Do the next thing that rank 0 says; the exit status, if that was the last."""
        import torch.distributed as dist

        if not self.pulse.wait(lambda states: states[0].given > self._number):
            raise self._lost()
        self._number += 1
        given: list[Any] = [None]
        dist.broadcast_object_list(given, src=0)
        order, status = given[0]
        if not order:
            return int(status)
        self.pulse.say(given=self._number, done=0)
        mine = self._do(functools.partial(self._obey, order))
        self._wait_for_all(mine)
        dist.gather_object(mine, None, dst=0)
        return None

    def _obey(self, order: bytes) -> Any:
        job, parts = pickle.loads(order)  # here, where it can fail: another version may not have what it names
        return job(self, parts[self.rank], lambda done, total, current: self.pulse.say(done=done))

    def _do(self, work: Callable[[], Any]) -> Any:
        """What the work gives, or what it failed with; the others hear about a failure at once."""
        try:
            found = work()
        except Exception as error:
            if os.environ.get("DCPTOOLS_TRACEBACK") and self.rank:
                traceback.print_exc()
            self.pulse.say(stop=1)
            found = _Failed(_sendable(self._signed(error)))
        self.pulse.say(finished=self._number)
        return found

    def _signed(self, error: Exception) -> Exception:
        """The same error; if a rank other than 0 met it, it says which."""
        if self.rank and not isinstance(error, Cancelled) and isinstance(error, DcptoolsError) and error.args:
            error.args = (f"{error.args[0]}\n({self.name} found this.)", *error.args[1:])
        return error

    @property
    def name(self) -> str:
        """What a person calls this rank."""
        return f"Rank {self.rank} on {socket.gethostname()}"

    def _all_finished(self, states: tuple[State, ...]) -> bool:
        return all(state.finished == self._number for state in states)

    def _wait_for_all(self, mine: Any, tick: Callable[[], None] | None = None) -> None:
        if not self.pulse.wait(self._all_finished, tick):
            lost = self._lost()
            raise mine.error if isinstance(mine, _Failed) and not isinstance(mine.error, Cancelled) else lost

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Work in which all ranks take part to its end. An interrupted rank waits until the others have stopped."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, DcptoolsError):  # some of ours are RuntimeErrors too
                raise
            raise self._lost() from None
        except (KeyboardInterrupt, SystemExit) as stop:
            self._break()
            self.pulse.say(stop=1, finished=self._number)
            until = time.monotonic() + SETTLE_SECONDS
            together = self.pulse.wait(lambda states: self._all_finished(states) or time.monotonic() > until)
            if isinstance(stop, SystemExit) and not together:  # torchrun stops all when one of them is gone
                raise self._lost() from None
            raise

    def _lost(self) -> DcptoolsError:
        ignore_signals()
        self._break()
        return DcptoolsError(LOST)

    def _break(self) -> None:
        """The ranks can no longer do anything together; it is up to rank 0 to say why, if it is there."""
        self.broken = True
        if self.rank == 0:
            with suppress(RuntimeError):
                self._store.add("told", 1)

    def should_tell(self) -> bool:
        """Whether it is up to this rank to say that one is gone: rank 0 does not, and no other rank has."""
        try:
            until = time.monotonic() + TELL_SECONDS
            while time.monotonic() < until:
                if self._store.check(["told"]):
                    return False
                time.sleep(TELL_SECONDS / 20)
            return int(self._store.add("told", 1)) == 1
        except RuntimeError:  # the store is gone too
            return True


def _sendable(error: Exception) -> Exception:
    """The error itself, or what it says if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return DcptoolsError(f"{type(error).__name__}: {error}")
    return error


def ignore_signals() -> None:
    """How this ends is decided, and torchrun stops all others as soon as one process has failed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
