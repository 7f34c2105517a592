"""What every rank says about itself, a few times per second, to all others.

One collective call after another, in a thread and a process group of its own: so each rank knows how far all are, all
of them see the same at the same beat, and one that is gone is noticed at once, whatever the others are doing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BEAT_SECONDS = 0.1
TICK_SECONDS = 0.05  # how often a waiting rank looks after its own progress


class State(NamedTuple):
    """What a rank says about itself."""

    given: int = 0  # number of the last order that rank 0 gave, or that another rank was given
    finished: int = 0  # number of the last order that this rank is done with, successfully or not
    stop: int = 0  # 1: the run has failed here, and the others need not go on
    leaving: int = 0  # 1: this was the last beat
    done: int = 0  # bytes of the current order


class Pulse:
    """The states of all ranks; ``stopped`` is set when one of them says stop, or is gone.

    Parameters
    ----------
    group
        A process group that nothing else uses.
    size
        Its ranks.
    """

    def __init__(self, group: ProcessGroup, size: int) -> None:
        self.states = (State(),) * size
        self.lost = ""  # why the ranks no longer hear from each other
        self.stopped = threading.Event()
        self._mine, self._news = State(), threading.Condition()
        self._thread = threading.Thread(target=self._beat, args=(group,), name="dcptools-pulse", daemon=True)
        self._thread.start()

    @property
    def done(self) -> int:
        """Bytes of the current order that all have done."""
        return sum(state.done for state in self.states if state.given == self.states[0].given)

    def say(self, **news: int) -> None:
        """Change what the others hear from this rank from the next beat on."""
        with self._news:
            self._mine = self._mine._replace(**news)

    def wait(self, until: Callable[[tuple[State, ...]], bool], tick: Callable[[], None] | None = None) -> bool:
        """Wait until the states satisfy it; False if a rank is gone. ``tick`` is called all the while."""
        while True:
            with self._news:
                if until(self.states):
                    return True
                if self.lost:
                    return False
                self._news.wait(TICK_SECONDS)
            if tick is not None:
                tick()

    def leave(self) -> None:
        """Stop together with all others."""
        self.say(leaving=1)
        self._thread.join()

    def _beat(self, group: ProcessGroup) -> None:
        import torch
        import torch.distributed as dist

        heard = [torch.zeros(len(State()), dtype=torch.int64) for _ in self.states]
        while True:
            with self._news:
                said = torch.tensor(self._mine)
            try:
                dist.all_gather(heard, said, group=group)
            except RuntimeError as error:
                with self._news:
                    self.lost = str(error).partition("\n")[0] or "unknown"
                    self._news.notify_all()
                self.stopped.set()
                dist.destroy_process_group(group)  # so that those who only wait for this rank notice it now too
                return
            with self._news:
                self.states = tuple(State(*map(int, row)) for row in heard)
                self._news.notify_all()
            if any(state.stop for state in self.states):
                self.stopped.set()
            if all(state.leaving for state in self.states):
                return
            time.sleep(BEAT_SECONDS)
