"""One class of files, in a process of its own: ``python -m tests.fuzz.child KIND SEED SECONDS INPUTS PLACE``.

More memory than a gigabyte is refused by the system, more processor time than some seconds for one file ends the
process, and ``report.json`` says how far it came. The file that is being read lies in ``current``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from dcptools.mapping import expectation

from .guard import Guard, Violation
from .lines import ROOT, Lines
from .mutate import mutated
from .targets import KINDS, Kind, not_asked, outcome

MOST_BYTES = 1 << 15  # of a file: "some kB"
SECONDS, MEMORY = 5, 1 << 30  # that one of them may take
FOLLOWED = 1.0 if sys.version_info >= (3, 12) else 0.3  # share of the files whose lines are, which may take long
REPORT, CURRENT = "report.json", "current"


class Fuzzing:
    """What was tried, and what came of it."""

    def __init__(self, name: str, kind: Kind, seed: int, place: Path) -> None:
        self.name, self.kind, self.random, self.place = name, kind, Random(seed), place
        seeds = place / "seeds"
        seeds.mkdir(parents=True)
        self.cases = list(kind.seeds(seeds))
        self.corpus = [(number, (case / file).read_bytes()) for number, (case, file) in enumerate(self.cases)]
        self.seeds = [data for _, data in self.corpus]
        self.lines, self.guard = Lines(), Guard(place)
        self.guard.also = kind.events
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self.found: dict[str, str] = {}  # by where it was raised: the message

    def run(self, seconds: float, inputs: int) -> None:
        for number, data in self.corpus:
            self._try(number, data, warm=True)  # what is imported when it is first used is imported now
        _bound_memory()
        self.outcomes.clear()
        end, reported = time.monotonic() + seconds, time.monotonic()
        while self.outcomes.total() < inputs and time.monotonic() < end:
            number, data = self._pick()
            data = mutated(data, self.seeds, self.kind.mutator, self.random)[:MOST_BYTES]
            before = self.lines.count
            self._try(number, data)
            if self.lines.count > before and not self.kind.slow:  # whose lines are seen by another process
                self.corpus.append((number, data))
            if time.monotonic() > reported + 1:
                self.report()
                reported = time.monotonic()

    def _pick(self) -> tuple[int, bytes]:
        """One of the last that reached something new, or any."""
        if self.random.random() < 0.3:
            return self.random.choice(self.corpus[-20:])
        return self.random.choice(self.corpus)

    def _try(self, number: int, data: bytes, *, warm: bool = False) -> None:
        directory, file = self.cases[number]
        _put(directory / file, data)
        _put(self.place / CURRENT, data)
        start = _used()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + 3 * SECONDS, resource.RLIM_INFINITY))
        try:
            if warm:
                self._count(outcome(self.kind.target, directory, file))
            followed = warm or self.random.random() < FOLLOWED
            with self.guard.watching(data), self.lines.watching() if followed else contextlib.nullcontext():
                self._count(outcome(self.kind.target, directory, file))
        except Exception as error:
            self._remember(error, data)
        used = _used() - start
        if used > SECONDS and not warm:
            self._remember(Violation(f"it took {used:.1f} s"), data)
        self.slowest = max(self.slowest, 0 if warm else used)

    def _count(self, what: str) -> None:
        self.outcomes[what] += 1

    def _remember(self, error: Exception, data: bytes) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if frame.filename.startswith(ROOT)] or list(frames)
        where = f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno}" if ours else ""
        self._count("VIOLATION")
        key = f"{type(error).__name__} {where} {str(error)[:30] if isinstance(error, Violation) else ''}"
        if key in self.found:
            return
        self.found[key] = f"{key}: {error}"
        name = f"{self.name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
        (self.place / f"{name}.bin").write_bytes(data)
        (self.place / f"{name}.txt").write_text("".join(traceback.format_exception(error)), errors="backslashreplace")

    def report(self) -> None:
        said: dict[str, Any] = {
            "inputs": self.outcomes.total(), "outcomes": dict(self.outcomes), "lines": self.lines.count,
            "kept": len(self.corpus), "slowest": self.slowest, "found": list(self.found.values()),
        }  # fmt: skip
        (self.place / "report.tmp").write_text(json.dumps(said))
        os.replace(self.place / "report.tmp", self.place / REPORT)


def _used() -> float:
    """Seconds of processor time of this process, and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _put(path: Path, data: bytes) -> None:
    """A file that is made empty before it is written is flushed to the disk by some file systems, which takes long."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    os.write(descriptor, data)
    os.ftruncate(descriptor, len(data))
    os.close(descriptor)


def _bound_memory() -> None:
    """What the libraries take does not count."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(arguments: Sequence[str]) -> None:
    name, seed, seconds, inputs, place = arguments
    warnings.simplefilter("ignore")  # of zipfile and torch, about what is wrong with a file
    expectation.expect = not_asked
    fuzzing = Fuzzing(name, KINDS[name], int(seed), Path(place))
    fuzzing.run(float(seconds), int(inputs))
    fuzzing.report()


if __name__ == "__main__":
    main(sys.argv[1:])
