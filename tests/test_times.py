"""Files that are newer than ``.metadata``: two saves in one directory are told from one save, and from a copy of it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from checkpoints import saved

import dcptools
from dcptools.checkpoint.times import about_times
from dcptools.findings import Finding
from dcptools.storage import FileState

MINUTE, HOUR = 60.0, 3600.0
GB = 1_000_000_000
RANKS = [f"__{rank}_0.distcp" for rank in range(8)]


def found(metadata: float, files: dict[str, float], nbytes: int = 5 * GB) -> list[Finding]:
    """What is said of times in seconds."""
    states = {name: FileState(nbytes, int(time * 1e9), "") for name, time in files.items()}
    return list(about_times(FileState(1000, int(metadata * 1e9), ""), states))


def test_a_file_that_was_written_by_a_later_save(tmp_path: Path) -> None:
    saved.save_chunks(tmp_path, {"model.w": [((0,), torch.ones(3)), ((3,), torch.ones(3))]}, files=2)
    assert dcptools.read(tmp_path).findings == ()
    written = (tmp_path / ".metadata").stat().st_mtime
    os.utime(tmp_path / "__1_0.distcp", (written, written + HOUR))
    assert [str(finding) for finding in dcptools.read(tmp_path).findings] == [
        "warning[newer-file]: written 60 minutes after .metadata, which a save writes last: __1_0.distcp "
        "(check whether files of two saves are mixed, or a save is still running)"
    ]
    mapping = dcptools.preview(tmp_path)
    assert "newer-file" in [finding.code for finding in mapping.findings]


def test_a_save_that_is_going_on_has_written_all_files_but_the_metadata() -> None:
    (finding,) = found(0.0, {name: HOUR + rank for rank, name in enumerate(RANKS)})
    assert finding.message.startswith("written 60 minutes after")


def test_a_trainer_that_saves_every_other_minute_and_was_stopped() -> None:
    """Only some of its files are those of the next step."""
    small = 10_000_000
    (finding,) = found(0.0, dict.fromkeys(RANKS, -5.0) | {RANKS[0]: 90.0, RANKS[3]: 91.0}, small)
    assert finding.message.startswith("written 2 minutes after")


def test_a_save_that_took_long_and_another() -> None:
    """An hour for one of them: what comes within an hour may be a file of it, by a clock that differs."""
    first = {name: rank * 8 * MINUTE for rank, name in enumerate(RANKS[:-1])}
    assert not found(48 * MINUTE, {**first, RANKS[-1]: 90 * MINUTE})
    assert found(48 * MINUTE, {**first, RANKS[-1]: 100 * MINUTE})


@pytest.mark.parametrize("seconds", [1, 30, 50])
def test_clocks_that_differ_a_little(seconds: int) -> None:
    assert not found(0, dict.fromkeys(RANKS, -1.0) | {RANKS[3]: float(seconds)})


def test_times_of_a_copy_in_any_order() -> None:
    """``cp -r``: each file is written after the one before it, at some rate, and the metadata file is anywhere."""
    for rate in (20e6, 200e6, 2e9):
        for nbytes in (1_000_000, GB, 50 * GB):
            for place in range(len(RANKS) + 1):
                times = [number * (nbytes / rate) for number in range(1, len(RANKS) + 1)]
                metadata = ([0.0, *times])[place]
                names = random.Random(place).sample(RANKS, len(RANKS))
                assert not found(metadata, dict(zip(names, times, strict=True)), nbytes)


def test_a_real_copy_of_an_old_checkpoint(tmp_path: Path) -> None:
    """With new times, and with the old ones."""
    saved.save_chunks(tmp_path / "a", {"model.w": [((i,), torch.ones(1)) for i in range(6)]}, files=6)
    for age, path in enumerate(sorted((tmp_path / "a").iterdir(), reverse=True)):
        os.utime(path, (10**9 + age, 10**9 + age))
    shutil.copytree(tmp_path / "a", tmp_path / "same")
    for name in ("same", "new"):
        subprocess.run(["cp", "-r", *["-p"] * (name == "same"), tmp_path / "a", tmp_path / f"{name}-cp"], check=True)
        assert dcptools.read(tmp_path / f"{name}-cp").findings == ()
    assert dcptools.read(tmp_path / "same").findings == ()


def test_files_that_are_not_there() -> None:
    assert not list(about_times(None, {}))
    assert not list(about_times(FileState(1, 0, ""), {"__0_0.distcp": None}))
