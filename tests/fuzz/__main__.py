"""``python -m tests.fuzz``: a process for each class of files, and what they tried, by class.

Exit status 1 if something was found; the files that did it, each with its traceback, are in ``--keep``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .child import CURRENT, REPORT
from .targets import KINDS

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds without any work: such a file would keep its reader for ever; who works too long ends itself
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "COLUMNS": "80",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of: {', '.join(KINDS)} (all)")
    parser.add_argument("--seconds", type=float, default=600, help="for all together (%(default)s)")
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="of each class at most (no limit)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "fuzz", help="a directory for what is found")
    options = parser.parse_args(arguments)
    kinds = options.kinds or list(KINDS)
    whole = sum(KINDS[name].share for name in kinds)
    reports = {}
    for name in kinds:
        seconds = options.seconds * KINDS[name].share / whole
        reports[name] = tried(name, seconds, options.inputs, options.seed, options.keep)
        print(line(name, reports[name]), flush=True)
    total = sum(report["inputs"] for report in reports.values())
    found = [f"{name}: {what}" for name, report in reports.items() for what in report["found"]]
    print(f"{total:,} files, {len(found)} of them found something")
    print("".join(f"{what}\n" for what in found), end="")
    return bool(found)


def line(name: str, report: dict[str, Any]) -> str:
    """One class: how many, what came of them, and how deep they reached."""
    outcomes = sorted(report["outcomes"].items(), key=lambda item: -item[1])
    said = ", ".join(f"{what} {count:,}" for what, count in outcomes)
    reached = f"{report['lines']:,} lines, slowest {report['slowest']:.2f} s"
    return f"{name}: {report['inputs']:,} ({said}); {reached}"


def tried(name: str, seconds: float, inputs: int, seed: int, keep: Path) -> dict[str, Any]:
    """The reports of as many processes as it takes: one ends early only if a file ends it."""
    whole: dict[str, Any] = {"inputs": 0, "outcomes": {}, "lines": 0, "slowest": 0.0, "found": []}
    end = time.monotonic() + seconds
    for number in range(20):
        left = end - time.monotonic()
        with tempfile.TemporaryDirectory(prefix="dcptools-fuzz-") as temporary:
            place = Path(temporary) / "place"
            report = _one(name, seed + number, left, inputs - whole["inputs"], place)
            for path in [*place.glob("*.bin"), *place.glob("*.txt")]:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, keep)
        whole["inputs"] += report["inputs"]
        for what, count in report["outcomes"].items():
            whole["outcomes"][what] = whole["outcomes"].get(what, 0) + count
        whole["lines"], whole["slowest"] = (
            max(whole["lines"], report["lines"]),
            max(whole["slowest"], report["slowest"]),
        )
        whole["found"] += report["found"]
        if whole["inputs"] >= inputs or end - time.monotonic() < 1:
            break
    return whole


def _one(name: str, seed: int, seconds: float, inputs: int, place: Path) -> dict[str, Any]:
    """What one process says, or was doing when it ended."""
    place.mkdir()
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths, "TMPDIR": str(place), "HOME": str(place)}
    command = [sys.executable, "-m", "tests.fuzz.child", name, str(seed), str(seconds), str(inputs), str(place)]
    with open(place / "stderr", "w+b") as stderr:
        process = subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr, cwd=ROOT)
        alive = all(_signs_of_life(process, place))
        stderr.seek(0)
        said = stderr.read().decode(errors="replace").strip()[-2000:]
    report = place / REPORT
    found = json.loads(report.read_text()) if report.exists() else dict.fromkeys(("inputs", "lines", "slowest"), 0)
    found = {"outcomes": {}, "found": [], **found}
    if process.returncode or not alive:
        what = f"the process ended with {process.returncode}" if alive else f"no sign of life for {PATIENCE} s"
        found["found"].append(f"{what}: {said}")
        if (place / CURRENT).exists():
            shutil.copy(place / CURRENT, place / f"{name.replace(' ', '-')}-{seed}-ended.bin")
    return found


def _signs_of_life(process: subprocess.Popen[bytes], place: Path) -> Iterator[bool]:
    """Waits for the end; False, and the process is ended, if it stays with one file and does nothing."""
    before, since = (0.0, 0.0), time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        current = place / CURRENT
        now = (current.stat().st_mtime if current.exists() else 0.0, _processor_time(process.pid))
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() > since + PATIENCE:
            process.kill()
            process.wait()
            yield False


def _processor_time(pid: int) -> float:
    """Clock ticks that a process has used: on a busy machine seconds go by in which it cannot work."""
    with contextlib.suppress(OSError):  # it has ended
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]))
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
