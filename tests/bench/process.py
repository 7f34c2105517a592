"""Run programs one after the other in fresh processes, and measure them from outside.

Nothing here may import torch: on Linux a process begins with the peak memory of the one that started it
(``execve`` keeps it), so a large parent would show up in the peak of every small child.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]  # the project, from which `-m tests.bench...` and `dcptools` can be imported
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes
READ_SIZE = 8 << 20  # bytes


class Crashed(Exception):
    """A contender did not end with status 0; the message holds its stderr."""


@dataclass(frozen=True)
class Program:
    """Something to run: a command, and the output directory that it wants to be absent."""

    name: str
    argv: tuple[str, ...]
    output: Path | None = None


@dataclass(frozen=True)
class Run:
    """How one run of a program went."""

    seconds: float  # what the program says of itself (after its imports), else of the whole process
    peak_bytes: int  # resident memory at its peak: what the program says of itself, else of the whole process
    answer: Mapping[str, Any] = field(default_factory=dict)  # the JSON object that it printed, if any


def module(name: str, *arguments: object) -> tuple[str, ...]:
    """The command that runs a module of this package with this Python."""
    return (sys.executable, "-m", f"tests.bench.{name}", *map(str, arguments))


def run(argv: Sequence[str]) -> Run:
    """Run a command to its end.

    Raises
    ------
    Crashed
        The status was not 0.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)  # the one call that gives the peak of this very child
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode:
            raise Crashed(f"exit status {process.returncode}: {' '.join(argv)}\n{stderr.read() or stdout.read()}")
        answer = _last_json_object(stdout.read())
    peak_bytes = answer.get("peak_bytes", usage.ru_maxrss * MAXRSS_UNIT)
    return Run(float(answer.get("seconds", seconds)), int(peak_bytes), answer)


def run_in_turn(programs: Sequence[Program], rounds: int, *, warm: Path) -> dict[str, list[Run]]:
    """Run A B C, A B C, ...; before each run its output is removed, ``warm`` is read and the disks are synced."""
    runs: dict[str, list[Run]] = {program.name: [] for program in programs}
    for _ in range(rounds):
        for program in programs:
            _prepare(program, warm)
            runs[program.name].append(run(program.argv))
    return runs


def _prepare(program: Program, warm: Path) -> None:
    if program.output is not None:
        shutil.rmtree(program.output, ignore_errors=True)
        program.output.parent.mkdir(parents=True, exist_ok=True)
    buffer = bytearray(READ_SIZE)
    for path in sorted(warm.glob("*.distcp")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    os.sync()  # the pages that an earlier run left dirty must not be written at this run's expense


def _last_json_object(text: str) -> Mapping[str, Any]:
    line = text.strip().rpartition("\n")[2]
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
