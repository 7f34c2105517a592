"""The models, a server of runs that go wrong, and what must be true of whatever they leave."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from checkpoints import saved
from reference import read_files

ROOT = Path(__file__).parents[2]
SHIM = Path(__file__).with_name("shim.c")
INDEX = "model.safetensors.index.json"
MOST_LINES = 12  # of what a run says, warnings included
COUNTS: Counter[tuple[str, str]] = Counter()  # by class of fault, and by the stage that it hit


@dataclass(frozen=True)
class Fault:
    """The call number ``nth`` of that kind, of what is below a directory."""

    kind: str  # write, read, sync, truncate, reserve, rename, unlink, rmdir, mkdir, open, thread, or any of them
    nth: int  # from 0
    action: str  # errno, short, signal
    value: int = 0  # the errno, or the signal
    again: bool = False  # each call from that on
    below: str = ""  # a directory; the output


@dataclass(frozen=True)
class Job:
    """A run of the command line, and what goes wrong with it."""

    resume: bool = False
    overwrite: bool = False
    fault: Fault | None = None
    signal: int = 0
    after: float = 0.0  # seconds
    limits: dict[str, int] = field(default_factory=dict)  # by name, as RLIMIT_... has it
    change: str = ""  # of a file of the checkpoint, or of the disk, when the run stops itself
    changed: str = ""  # which; "": the values
    nobody: bool = False  # as a user without rights
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ended:
    """What became of a run."""

    status: int  # of the process; negative: the signal that killed it
    said: str  # on stderr
    fired: bool  # whether the fault happened
    seconds: float


class Place:
    """A checkpoint, what it gives, and an output directory with an older model in it or without."""

    def __init__(self, directory: Path, library: Path | None) -> None:
        self.directory, self.out, self.source = directory, directory / "out", directory / "step-20"
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._environment = {**os.environ, "PYTHONPATH": paths}
        shim = {"LD_PRELOAD": str(library)} if library is not None else {}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"], cwd=ROOT, env=self._environment | shim,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._numbers = itertools.count()
        self.hit = ""  # the stage that the last run was in when its signal came; "" if it had ended
        checkpoint(self.source, 1.0)
        checkpoint(directory / "step-10", -1.0)
        (directory / "assets").mkdir()
        (directory / "assets" / "config.json").write_text('{"model_type": "unknown-to-transformers"}')
        self.sources = state_of(self.source)
        self.old: dict[str, bytes] = {}
        mine = {"README.md": b"mine"}
        self.new = self._undisturbed(self.source) | mine
        self.older = {
            "none": mine,
            "alike": self._undisturbed(directory / "step-10") | mine,
            "single": self._undisturbed(directory / "step-10", "1GB") | mine,
        }

    def _undisturbed(self, source: Path, shard_size: str = "") -> dict[str, bytes]:
        shutil.rmtree(self.out, ignore_errors=True)
        kept, self.source = self.source, source
        ended = self.run(Job(options=("--shard-size", shard_size) if shard_size else ()))
        self.source = kept
        assert ended.status == 0, ended.said
        return read_files(self.out)

    def close(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        assert self._server.wait(60) == 0

    def prepare(self, older: str) -> bool:
        """Put a model there, or nothing but a file of its owner; whether it must be overwritten."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.old = self.older[older]
        for name, content in self.old.items():
            (self.out / name).write_bytes(content)
        return older != "none"

    def run(self, *jobs: Job) -> Ended:
        """Run at once; what became of the first."""
        return self.run_all(*jobs)[0]

    def run_all(self, *jobs: Job) -> list[Ended]:
        described = [self._described(job) for job in jobs]
        if any(job.nobody for job in jobs):  # each time: another pytest that begins closes its directories again
            for parent in (self.directory, *self.directory.parents[:3]):
                parent.chmod(0o755)
        assert self._server.stdin and self._server.stdout
        print(json.dumps(described), file=self._server.stdin, flush=True)
        answer = json.loads(self._server.stdout.readline())
        self.hit = ""
        if "stopped" in answer:
            self.hit = self.stage()
            print(file=self._server.stdin, flush=True)
            answer = json.loads(self._server.stdout.readline())
        return [
            Ended(one["status"], Path(job["err"]).read_text(), bool(answer["fired"]), answer["seconds"])
            for job, one in zip(described, answer["answers"], strict=True)
        ]

    def command(self, address_space: int, *options: str) -> tuple[int, str]:
        """Run the command line in a process of its own, which loads all libraries; its status, and what it said."""
        command = [sys.executable, "-m", "dcptools.convert", *map(str, self._words()), *options]
        limit = partial(resource.setrlimit, resource.RLIMIT_AS, (address_space, address_space))
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, preexec_fn=limit, capture_output=True, text=True
        )
        return done.returncode, done.stderr

    def _words(self) -> list[str | Path]:
        words = ["--load-dir", self.source, "--save-dir", self.out, "--dtype", "keep", "--shard-size", "150000"]
        return [*words, "--model-assets-dir", self.directory / "assets", "--workers", "2", "--quiet"]

    def _described(self, job: Job) -> dict[str, Any]:
        words = [*self._words(), *["--overwrite"] * job.overwrite, *["--resume"] * job.resume, *job.options]
        fault = None
        if job.fault is not None:
            fault = vars(replace(job.fault, below=job.fault.below or str(self.out)))
        number = next(self._numbers) % 2
        return {
            "words": [str(word) for word in words], "fault": fault, "signal": job.signal, "after": job.after,
            "limits": job.limits, "change": job.change, "changed": job.changed or str(self.source / "__0_0.distcp"),
            "nobody": job.nobody, "out": str(self.directory / f"stdout-{number}"),
            "err": str(self.directory / f"stderr-{number}"),
        }  # fmt: skip

    # What must be true

    def found(self) -> str:
        """What a program finds that loads the model: "old", "new" or "none"; fails if it is a mixture."""
        there = {path.name: path.read_bytes() for path in self.out.iterdir() if path.is_file()}
        entry = next((name for name in ("model.safetensors", INDEX) if name in there), None)
        if entry is None:
            return "none"
        models = {"new": self.new, "old": self.old}
        found = [which for which, model in models.items() if all(there.get(name) == model[name] for name in model)]
        assert found, f"a mixture: {sorted(there)}"
        return found[0]

    def stage(self) -> str:
        """How far a run came that was killed, by what is there."""
        if (self.out / ".dcptools-before").is_dir():
            return "files get their names" if self.found() == "none" else "old files are removed"
        staged = {path.name[23:-4]: path.read_bytes() for path in self.out.glob(".dcptools-????????????-*.tmp")}
        weights = {name: content for name, content in staged.items() if name.endswith(".safetensors")}
        if not weights:
            return "done" if self.found() == "new" else "before"
        if all(self.new.get(name) == weights.get(name) for name in self.new if name.endswith(".safetensors")):
            return "all files filled"
        whole = sum(self.new[name] == content for name, content in weights.items())
        begun = any(any(content[1000:]) for name, content in weights.items() if self.new[name] != content)
        return "files filled in part" if whole or begun else "files made"

    def check(self, ended: Ended, *, sources: bool = True) -> str:
        """Look at what a run left, whatever went wrong; what a loader finds."""
        assert "Traceback" not in ended.said, ended.said
        assert len(ended.said.splitlines()) <= MOST_LINES, ended.said
        assert not sources or state_of(self.source) == self.sources
        which = self.found()
        if ended.status == 0:
            assert which == "new"
        if ended.status >= 0 and not ended.said.count("could not be restored"):
            assert which == "new" or visible(self.out) == self.old, ended.said
            hidden = [name for name in os.listdir(self.out) if name.startswith(".dcptools-")]
            told = "finished and kept" in ended.said or ".dcptools-" in ended.said
            assert not hidden or told or (ended.status == 0 and ended.fired), (hidden, ended)  # it could not be removed
        return which

    def check_next(self, *, resume: bool) -> None:
        """The next run gives the model, whatever there was before, and leaves nothing else."""
        ended = self.run(Job(overwrite=True, resume=resume))
        assert (ended.status, ended.said) == (0, "")
        assert read_files(self.out) == self.new


def visible(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file() and not p.name.startswith(".dcptools-")}


def checkpoint(directory: Path, sign: float) -> None:
    """About 600 kB in two files."""
    torch.manual_seed(0)
    state = {f"model.layers.{number}.w": sign * torch.rand(64, 97 + number) for number in range(20)}
    saved.save(directory, {"model": state})


def state_of(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, time and inode of all files."""
    found = {path: path.stat() for path in sorted(directory.iterdir())}
    return {path.name: (path.read_bytes(), stat.st_mtime_ns, stat.st_ino) for path, stat in found.items()}


def moments(count: int, seconds: float, seed: int) -> Iterator[float]:
    """Random moments of a run that takes so long."""
    dice = random.Random(seed)
    return (dice.uniform(0, seconds) for _ in range(count))


def compiled(directory: Path) -> Path | None:
    """The shim, or None where there is no compiler or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = directory / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], check=True)
    return library


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
