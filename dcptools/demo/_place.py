"""The demo on disk: the stamp that says what a directory holds, and the move of a new demo to its place."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

RECIPE = 1  # goes up when the demo's content changes, so that an older one in a cache is made again
STAMP = "demo.json"
PARTS = ("checkpoint", "assets", "live")
DERIVED = ("hf", "hf-keep")  # what ``--walk`` converts into; worthless once the demo is made again


@dataclass(frozen=True)
class Stamp:
    """What ``demo.json`` says: the settings, and each file with its size, so that a lost one is noticed."""

    processes: int
    steps: int
    files: Mapping[str, int]  # path below the directory -> bytes
    recipe: int = RECIPE
    made: int = field(default_factory=time.time_ns)  # ns since the epoch: tells two of the same settings apart

    @classmethod
    def of(cls, directory: Path, *, processes: int, steps: int) -> Stamp:
        """The stamp for the parts that lie in ``directory``."""
        paths = (path for part in PARTS for path in sorted((directory / part).rglob("*")) if path.is_file())
        files = {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths}
        return cls(processes, steps, files)

    @classmethod
    def read(cls, directory: Path) -> Stamp | None:
        """The stamp in ``directory``, or None if that is not a demo."""
        try:
            said = json.loads((directory / STAMP).read_text())
            return cls(**said)
        except (OSError, ValueError, TypeError):  # no such file, not JSON, not these fields
            return None

    def write(self, directory: Path) -> None:
        (directory / STAMP).write_text(json.dumps(asdict(self), indent=1) + "\n")

    def is_whole(self, directory: Path) -> bool:
        """Whether every file is there, and of today's recipe."""
        sizes = ((directory / name, size) for name, size in self.files.items())
        return self.recipe == RECIPE and all(path.is_file() and path.stat().st_size == size for path, size in sizes)


def put(new: Path, target: Path, old: Path) -> None:
    """Move the demo in ``new`` to ``target``; what was there goes to ``old``, except files that are not part of it.

    If there was no demo, this is one rename. Otherwise the new stamp comes before the new parts: whatever
    interrupts this, ``target`` is a demo with missing files, never a mixture that looks whole.
    """
    if Stamp.read(target) is None:
        new.rename(target)
        return
    old.mkdir()
    for part in PARTS + DERIVED:
        if (target / part).exists():
            (target / part).rename(old / part)
    (new / STAMP).replace(target / STAMP)
    for part in PARTS:
        (new / part).rename(target / part)
