"""A real checkpoint to try things on: a tiny Qwen3, trained for a few steps under FSDP2 in several processes.

``python -m dcptools.demo DIR`` makes one; the notebooks use :func:`default_demo`. Nothing is downloaded.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dcptools.demo._launch import train
from dcptools.demo._place import Stamp, put
from dcptools.errors import OutputExists, TargetError, UsageError

__all__ = ["Demo", "default_demo", "make_demo"]

DIRECTORY_VARIABLE = "DCPTOOLS_DEMO_DIR"


@dataclass(frozen=True)
class Demo:
    """A finished demo on disk.

    >>> demo = Demo(Path("demo"), processes=4, steps=3)
    >>> demo.checkpoint.as_posix(), demo.live.as_posix()
    ('demo/checkpoint', 'demo/live/model.safetensors')
    """

    directory: Path
    processes: int  # that trained, each of which wrote one .distcp file
    steps: int  # of the optimizer
    reused: bool = False  # it was there already

    @property
    def checkpoint(self) -> Path:
        """The distributed checkpoint: ``.metadata`` and ``__<rank>_0.distcp``."""
        return self.directory / "checkpoint"

    @property
    def assets(self) -> Path:
        """``config.json``, ``generation_config.json`` and the tokenizer."""
        return self.directory / "assets"

    @property
    def live(self) -> Path:
        """The float32 state dict as it was gathered from the live model, to compare with."""
        return self.directory / "live" / "model.safetensors"

    def __str__(self) -> str:
        state = "reused" if self.reused else "made"
        return (
            f"Demo ({state}): a tiny Qwen3 after {self.steps} steps on {self.processes} processes\n"
            f"  checkpoint  {self.checkpoint}\n"
            f"  assets      {self.assets}\n"
            f"  live        {self.live}"
        )


def make_demo(directory: str | os.PathLike[str], *, processes: int = 4, steps: int = 3, force: bool = False) -> Demo:
    """Train the tiny model and save its checkpoint, its assets and its live state into ``directory``.

    It is written beside ``directory`` and moved there when it is complete, so half a demo is never found. A demo with
    the same settings that is already there is reused; one that lost files is made again.

    Parameters
    ----------
    directory
        Where the demo goes: a new or an empty directory, or one with a demo in it.
    processes
        How many processes train and save.
    steps
        How many AdamW steps they take.
    force
        Make it again even if it is there. Results of ``--walk`` go with the old demo, other files stay.

    Returns
    -------
    Demo
        Its ``reused`` says whether it was there already.

    Raises
    ------
    UsageError
        ``processes`` or ``steps`` is less than 1.
    OutputExists
        ``directory`` holds something else, or a demo with other settings and ``force`` was not given.
    TargetError
        Something else changed ``directory`` in the meantime.
    DcptoolsError
        The training failed; the message ends with what the processes said.
    """
    if processes < 1 or steps < 1:
        raise UsageError(f"processes and steps must be at least 1, not {processes} and {steps}.")
    wanted = Demo(Path(directory).expanduser().resolve(), processes, steps)
    found = Stamp.read(wanted.directory)
    if found is None:
        _refuse_other_content(wanted.directory)
    elif not force:
        _refuse_other_settings(found, wanted)
        if found.is_whole(wanted.directory):
            return _reuse(found, wanted.directory)
    return _make(wanted, found)


def default_demo() -> Demo:
    """The demo of the notebooks: made on first use, in the user's cache directory, and reused from then on.

    The environment variable ``DCPTOOLS_DEMO_DIR`` names another directory; a demo there is used whatever its
    number of processes and steps.

    Raises
    ------
    OutputExists
        The directory that the variable names holds something else.
    DcptoolsError
        The training failed; the message ends with what the processes said.
    """
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    target = (Path(chosen).expanduser() if chosen else _cache_directory() / "dcptools" / "demo").resolve()
    found = Stamp.read(target)
    return _reuse(found, target) if found and found.is_whole(target) else make_demo(target, force=True)


def _make(wanted: Demo, before: Stamp | None) -> Demo:
    """Make the demo in a scratch directory on the same disk and move it to its place."""
    target = wanted.directory
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        train(new, Path(scratch, "logs"), processes=wanted.processes, steps=wanted.steps)
        Stamp.of(new, processes=wanted.processes, steps=wanted.steps).write(new)
        now = Stamp.read(target)
        if now and now != before and _same_settings(now, wanted) and now.is_whole(target):
            return _reuse(now, target)  # somebody was faster, and may be reading it already
        try:
            put(new, target, Path(scratch, "old"))
        except OSError as error:
            raise TargetError(f"{target} changed while the demo was made ({error}). Try again.") from error
    return wanted


def _reuse(found: Stamp, target: Path) -> Demo:
    return Demo(target, found.processes, found.steps, reused=True)


def _same_settings(found: Stamp, wanted: Demo) -> bool:
    return (found.processes, found.steps) == (wanted.processes, wanted.steps)


def _refuse_other_content(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputExists(f"{target} is neither a demo nor an empty directory.\nChoose another directory.")


def _refuse_other_settings(found: Stamp, wanted: Demo) -> None:
    if not _same_settings(found, wanted):
        raise OutputExists(
            f"{wanted.directory} holds a demo of {found.processes} processes and {found.steps} steps, "
            f"not of {wanted.processes} and {wanted.steps}.\nUse --force (force=True) to make it again."
        )


def _cache_directory() -> Path:
    """Where this system keeps a user's caches; ``XDG_CACHE_HOME`` counts on every system."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
