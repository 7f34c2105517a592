"""Whatever goes wrong: the checkpoint is untouched, nothing looks finished that is not, the next run puts all right."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.harness import COUNTS, SIGNALS, Ended, Fault, Job, Place, moments, state_of, visible

OLDER = ("none", "alike", "single")
LONG = pytest.mark.long
BEFORE_BYTES = ("", "before", "files made")  # stages in which no value is written yet


def one(place: Place, kind: str, job: Job, number: int, *, sources: bool = True) -> Ended:
    """A run in which something goes wrong, what must be true after it, and the next run; the ``number`` gives turns."""
    overwrite = place.prepare(OLDER[number % 3]) or bool(number & 4)
    ended = place.run(replace(job, overwrite=overwrite, resume=bool(number & 1)))
    stage = place.hit or place.stage()
    place.check(ended, sources=sources)
    COUNTS[kind, stage if ended.status else "the run went on"] += 1
    if sources:
        place.check_next(resume=bool(number & 2))
    return ended


# Signals


def test_a_signal_at_some_moments(place: Place) -> None:
    for number in SIGNALS:
        signals(place, number, wanted=2, seed=number)


@LONG
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_at_a_hundred_moments(place: Place, number: int) -> None:
    signals(place, number, wanted=100, seed=number)


def signals(place: Place, number: int, *, wanted: int, seed: int) -> None:
    """So many that hit a run which has written the weights in part; those that come later are looked at too."""
    place.prepare("none")
    taken = place.run(Job(signal=signal.SIGCONT, after=0.001)).seconds
    kind, hit, turns = f"{signal.Signals(number).name} at a random moment", 0, itertools.count(seed)
    for after in moments(30 * wanted, 1.1 * taken, seed):
        turn = next(turns)
        overwrite = place.prepare(OLDER[turn % 3]) or bool(turn & 4)
        ended = place.run(Job(overwrite=overwrite, resume=bool(turn & 1), signal=number, after=after))
        stage = place.hit
        if stage in (*BEFORE_BYTES, "done"):
            continue
        place.check(ended)
        assert ended.status in (-number, 128 + number), (stage, ended)
        place.check_next(resume=bool(turn & 2))
        COUNTS[kind, stage] += 1
        hit += stage == "files filled in part"
        if hit == wanted:
            return
    pytest.fail(f"only {hit} of {wanted} signals came while it filled the files")


STEPS = ("open", "truncate", "write", "sync", "rename", "mkdir", "unlink", "rmdir")


@pytest.mark.parametrize("kind", ["rename", "unlink"])
def test_a_signal_at_some_calls(place: Place, kind: str) -> None:
    for number, nth in zip(SIGNALS, (1, 4, 7), strict=True):
        one(place, f"signal at each {kind}", Job(fault=Fault(kind, nth, "signal", number)), nth)


@LONG
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
@pytest.mark.parametrize("kind", STEPS)
def test_a_signal_at_each_call(place: Place, kind: str, number: int) -> None:
    """Up to the last call of that kind; writes are many, so some of them."""
    for nth in itertools.count(0, 5 if kind == "write" else 1):
        name = signal.Signals(number).name
        if not one(place, f"{name} at each {kind}", Job(fault=Fault(kind, nth, "signal", number)), nth).fired:
            return


# Calls that fail

OUTPUT_FAILS = [
    ("write", errno.EIO), ("write", errno.ENOSPC), ("write", errno.EINTR), ("sync", errno.EIO), ("sync", errno.EINTR),
    ("rename", errno.EIO), ("rename", errno.EINTR), ("rename", errno.ENOSPC),
    ("open", errno.EACCES), ("open", errno.EROFS), ("open", errno.EMFILE),
    ("mkdir", errno.ENOSPC), ("unlink", errno.EIO), ("rmdir", errno.EBUSY),
    ("truncate", errno.EFBIG), ("reserve", errno.ENOSPC), ("reserve", errno.EINTR),
]  # fmt: skip
ID = {"ids": lambda value: errno.errorcode[value] if isinstance(value, int) else value}


def failing(place: Place, kind: str, number: int, nth: int, *, again: bool, below: str = "") -> bool:
    """Whether the call was reached; what is said must name the reason."""
    where = "the checkpoint" if below else "the output"
    what = f"{errno.errorcode[number]} in {kind}, {where}" + (", and ever after" if again else "")
    ended = one(place, what, Job(fault=Fault(kind, nth, "errno", number, again, below)), nth)
    assert ended.status in (0, 1), ended
    if ended.status:  # of one call to open that fails safetensors says only that the file is missing
        reasons = [os.strerror(number), *(["No such file"] if kind == "open" and not again else [])]
        assert any(reason in ended.said for reason in reasons), ended
    return ended.fired


@pytest.mark.parametrize(("kind", "number"), [("write", errno.EIO), ("rename", errno.EIO), ("sync", errno.EIO)], **ID)
def test_a_call_that_fails(place: Place, kind: str, number: int) -> None:
    assert failing(place, kind, number, 4, again=False)


@LONG
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("kind", "number"), OUTPUT_FAILS, **ID)
def test_each_call_that_can_fail(place: Place, kind: str, number: int, again: bool) -> None:
    if (number, again) == (errno.EINTR, True):
        pytest.skip("a call that is interrupted is made again, without end")
    for nth in itertools.count(0, 6 if kind == "write" else 1):
        if not failing(place, kind, number, nth, again=again):
            return


@LONG
@pytest.mark.parametrize(("kind", "number"), [("read", errno.EIO), ("read", errno.EINTR), ("open", errno.EACCES)], **ID)
def test_each_read_that_can_fail(place: Place, kind: str, number: int) -> None:
    for nth in itertools.count(0, 3):
        if not failing(place, kind, number, nth, again=False, below=str(place.source)):
            return


@pytest.mark.parametrize("again", [False, True])
def test_short_reads_and_writes(place: Place, again: bool) -> None:
    """They are gone on with, and change nothing."""
    for number, (kind, below) in enumerate([("read", str(place.source)), ("write", "")]):
        fault = Fault(kind, 5, "short", 0, again, below)
        ended = one(place, f"short {kind}s", Job(fault=fault), number)
        assert (ended.status, ended.fired, ended.said) == (0, True, "")


@LONG
@pytest.mark.parametrize("kind", ["read", "write"])
def test_each_short_call(place: Place, kind: str) -> None:
    for nth in itertools.count(0, 4):
        fault = Fault(kind, nth, "short", below=str(place.source) if kind == "read" else "")
        ended = one(place, f"short {kind}s", Job(fault=fault), nth)
        assert (ended.status, ended.said) == (0, "")
        if not ended.fired:
            return


# Too little of something


def test_a_file_size_limit(place: Place) -> None:
    file_size_limits(place, [2000, 100_000])


@LONG
def test_many_file_size_limits(place: Place) -> None:
    dice = random.Random(1)
    largest = max(map(len, place.new.values()))
    file_size_limits(place, [dice.randrange(1, largest) for _ in range(60)])


def file_size_limits(place: Place, limits: list[int]) -> None:
    for number, limit in enumerate(limits):
        ended = one(place, "a file size limit", Job(limits={"FSIZE": limit}), number)
        assert (ended.status, "File too large" in ended.said) == (1, True), ended


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[None]:
    """A file system of that size at a directory."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disks(place, monkeypatch, [200])


@LONG
def test_many_full_disks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disks(place, monkeypatch, list(range(8, 660, 12)))


def full_disks(place: Place, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    """Sizes in kB; the 16 MB that must be free otherwise are there at first, and gone when the run begins to write."""
    for number, kilobytes in enumerate(sizes):
        disk = place.directory / "disk"
        with small_disk(disk, 20_000), monkeypatch.context() as patched:
            patched.setattr(place, "out", disk / "out")
            place.prepare("none")
            stop = Fault("open", 1, "signal", signal.SIGSTOP)
            how = {"change": "the disk shrinks", "changed": f"{kilobytes}k {disk}"}
            ended = place.run(Job(resume=bool(number & 1), fault=stop, **how))
            place.check(ended)
            COUNTS["a full disk", place.stage() if ended.status else "the run went on"] += 1
            if ended.status:
                assert "No space left on device" in ended.said
            subprocess.run(["mount", "-o", "remount,size=20000k", str(disk)], check=True)
            place.check_next(resume=bool(number & 2))


def test_few_descriptors(place: Place) -> None:
    ended = one(place, "32 file descriptors", Job(limits={"NOFILE": 32}), 0)
    assert (ended.status, ended.said) == (0, "")
    for number in range(4, 16):
        one(place, "fewer file descriptors", Job(limits={"NOFILE": number}), number)


def test_a_small_address_space(place: Place) -> None:
    ended = one(place, "1 GB of address space", Job(limits={"AS": 1 << 30}), 0)
    assert (ended.status, ended.said) == (0, "")


@LONG
def test_smaller_and_smaller_address_spaces(place: Place) -> None:
    for number, megabytes in enumerate(range(100, 1000, 15)):
        one(place, "less address space", Job(limits={"AS": megabytes << 20}), number)


def test_too_little_address_space_to_load_the_libraries(place: Place) -> None:
    real_address_spaces(place, [50])
    status, said = place.command(350 << 20, "--overwrite", "--dtype", "bfloat16")
    assert (status, "A library cannot be loaded" in said, "Install it again" in said) == (1, True, True), said
    assert visible(place.out) == place.old


@LONG
def test_smaller_and_smaller_address_spaces_of_a_whole_command(place: Place) -> None:
    real_address_spaces(place, range(20, 800, 20))


def real_address_spaces(place: Place, sizes: Iterable[int]) -> None:
    """Sizes in MB, of a process that has to load all; what OpenBLAS says itself of a limit is not ours."""
    for megabytes in sizes:
        place.prepare("alike")
        status, said = place.command(megabytes << 20, "--overwrite", "--resume")
        place.check(Ended(status, said, fired=True, seconds=0))
        assert "memory" in said.lower() or "Interrupted" in said or status == 0, (megabytes, said)
        COUNTS["less address space for a whole command", place.stage() if status else "the run went on"] += 1


@pytest.mark.parametrize("again", [False, True])
def test_no_more_threads(place: Place, again: bool) -> None:
    """Whatever the run had begun, or had taken over from one that was killed."""
    for nth in itertools.count():
        place.prepare("alike")
        place.run(Job(overwrite=True, resume=True, fault=Fault("write", 14, "signal", signal.SIGKILL)))
        assert place.stage() == "files filled in part"
        no_thread = Fault("thread", nth, "errno", errno.EAGAIN, again)
        ended = place.run(Job(overwrite=True, resume=True, fault=no_thread))
        place.check(ended)
        assert ended.status == ended.fired, ended
        if ended.fired:
            assert ended.said.startswith("Error: No more threads can be started"), ended
            assert "kept: continue with --resume" in ended.said or "takes over what is finished" in ended.said, ended
            COUNTS["EAGAIN in starting a thread", place.stage()] += 1
        place.check_next(resume=True)
        if not ended.fired:
            return


# Permissions


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_an_output_that_cannot_be_written_to(place: Place, mode: int) -> None:
    place.prepare("alike")
    place.out.chmod(mode)
    try:
        ended = place.run(Job(overwrite=True, nobody=True))
    finally:
        place.out.chmod(0o755)
    place.check(ended)
    assert (ended.status, place.found()) == (1 + (mode == 0), "old"), ended  # 2: it cannot be read either
    assert "permission denied" in ended.said or "is not readable" in ended.said
    COUNTS["no permission", ""] += 1


@pytest.mark.parametrize("older", OLDER)
def test_a_read_only_file_system(place: Place, monkeypatch: pytest.MonkeyPatch, older: str) -> None:
    disk = place.directory / "read-only"
    with small_disk(disk, 20_000), monkeypatch.context() as patched:
        patched.setattr(place, "out", disk / "out")
        overwrite = place.prepare(older)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        ended = place.run(Job(overwrite=overwrite))
        place.check(ended)
        assert (ended.status, "is on a read-only file system" in ended.said) == (1, True), ended
    COUNTS["a read-only target", ""] += 1


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_checkpoint_that_cannot_be_read(place: Place, name: str) -> None:
    place.prepare("none")
    place.out.chmod(0o777)
    (place.source / name).chmod(0)
    try:
        ended = place.run(Job(nobody=True))
    finally:
        (place.source / name).chmod(0o644)
    place.check(ended)
    assert (ended.status, "Permission denied" in ended.said) == (1, True), ended
    COUNTS["no permission", ""] += 1


# A checkpoint that changes

CHANGES = ("shrinks", "disappears", "is overwritten", "is replaced")


@pytest.mark.parametrize("how", CHANGES)
def test_a_checkpoint_that_changes(place: Place, how: str) -> None:
    changes(place, how, [6])


@LONG
@pytest.mark.parametrize("how", CHANGES)
def test_a_checkpoint_that_changes_at_each_read(place: Place, how: str) -> None:
    changes(place, how, range(0, 90, 3))


def changes(place: Place, how: str, calls: list[int] | range) -> None:
    for nth in calls:
        with restored(place):
            fault = Fault("write", nth, "signal", signal.SIGSTOP)
            ended = one(place, f"the checkpoint {how}", Job(fault=fault, change=how), nth, sources=False)
        assert ended.fired == (ended.status == 1), ended
        place.check_next(resume=bool(nth & 2))
        if not ended.fired:
            return
        assert "changed while it was converted" in ended.said and "kept: go on" not in ended.said, ended


@contextmanager
def restored(place: Place) -> Iterator[None]:
    """The checkpoint is another one afterwards, with the same content."""
    kept = place.directory / "kept"
    shutil.copytree(place.source, kept)
    try:
        yield
    finally:
        shutil.rmtree(place.source)
        kept.rename(place.source)
        place.sources = state_of(place.source)


# Two at once


def test_two_runs_at_once(place: Place) -> None:
    two_at_once(place, 3)


@LONG
def test_two_runs_at_once_many_times(place: Place) -> None:
    two_at_once(place, 60)


def two_at_once(place: Place, times: int) -> None:
    for number in range(times):
        place.prepare(OLDER[number % 3])
        job = Job(overwrite=True, resume=bool(number & 1))
        both = place.run_all(job, job)
        for ended in both:
            assert ended.status == 0 or "Another run is writing to" in ended.said, ended
        assert 0 in [ended.status for ended in both]
        place.check(replace(both[0], status=0))
        place.check_next(resume=bool(number & 2))
        COUNTS["two runs at once", f"{sum(not ended.status for ended in both)} done"] += 1
