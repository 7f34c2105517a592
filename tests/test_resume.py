"""A run that was stopped goes on where it stood, and gives the same bytes as one that was not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import saved
from click.testing import CliRunner
from reference import read_files

import dcptools
from dcptools.cli import convert_command
from dcptools.errors import BrokenCheckpoint, Cancelled, FindingsError, NotEnoughMemory, OutputExists, TargetError
from dcptools.shards import ShardPlan
from dcptools.storage import LocalSink
from dcptools.writer.journal import JOURNAL
from dcptools.writer.target import remains

pytestmark = pytest.mark.usefixtures("no_sync")
ROOT = Path(__file__).parents[1]
STATE = {f"model.{name}": torch.arange(9.0) + number for number, name in enumerate("abcdef")}
SHARDS = [f"model-0000{number}-of-00006.safetensors" for number in range(1, 7)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved.trained(tmp_path / "step_10", STATE, optimizer=False)


@pytest.fixture
def plan(checkpoint: Path, tmp_path: Path) -> ShardPlan:
    """Six shards of one tensor each, an index, and config.json."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "config.json").write_text('{"model_type": "qwen3"}')
    return planned(checkpoint, tmp_path)


def planned(checkpoint: Path, tmp_path: Path, **options: Any) -> ShardPlan:
    mapping = dcptools.preview(checkpoint, model_assets_dir=tmp_path / "assets")
    return dcptools.plan(mapping, **{"dtype": "keep", "shard_size": 36, **options})


@pytest.fixture
def undisturbed(plan: ShardPlan, tmp_path: Path) -> dict[str, bytes]:
    dcptools.write(plan, tmp_path / "undisturbed")
    return read_files(tmp_path / "undisturbed")


@contextmanager
def stopped_at(number: int, act: Callable[[], Any]) -> Iterator[list[str]]:
    """``act`` before the weight file of that number, counted from 0, is begun; gives the names of those begun."""
    begun: list[str] = []
    create = LocalSink.create

    def stopping(self: LocalSink, name: str, nbytes: int) -> None:
        if name.startswith("model-") and not name.endswith(".json"):
            begun.append(name)
            if len(begun) == number + 1:
                act()
        create(self, name, nbytes)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(LocalSink, "create", stopping)
        yield begun


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(plan: ShardPlan, out: Path, number: int, **options: Any) -> None:
    """A process that dies when it begins the weight file of that number."""
    if not (child := os.fork()):
        try:
            with stopped_at(number, lambda: os._exit(9)):
                dcptools.write(plan, out, workers=1, **options)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def begun_by(plan: ShardPlan, out: Path, **options: Any) -> tuple[list[str], dcptools.Report]:
    """What a run writes anew, and its report."""
    with stopped_at(99, disk_full) as begun:
        report = dcptools.write(plan, out, **options)
    return begun, report


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_run_goes_on(
    overwrite: bool, number: int, plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Whether the run that was killed was told so or not."""
    out = tmp_path / "out"
    if overwrite:
        shutil.copytree(tmp_path / "undisturbed", out)
    killed(plan, out, number, overwrite=overwrite, resume=bool(number % 2))
    begun, report = begun_by(plan, out, overwrite=overwrite, resume=True)
    assert (begun, report.taken_over) == (SHARDS[number:], tuple(SHARDS[:number]))
    assert read_files(out) == undisturbed
    assert (f"{number} of 6 files taken over; " in str(report)) == (number > 0)


def test_without_it_a_run_starts_anew(plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    killed(plan, tmp_path / "out", 3, resume=True)
    begun, report = begun_by(plan, tmp_path / "out")
    assert (sorted(begun), report.taken_over) == (SHARDS, ())
    assert read_files(tmp_path / "out") == undisturbed


def test_killed_again_and_again(plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    for _ in range(5):
        killed(plan, tmp_path / "out", 1, resume=True)
    begun, report = begun_by(plan, tmp_path / "out", resume=True)
    assert (begun, report.taken_over) == (SHARDS[5:], tuple(SHARDS[:5]))
    assert read_files(tmp_path / "out") == undisturbed


def test_when_all_are_finished_only_their_names_are_missing(
    plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (child := os.fork()):
        monkeypatch.setattr("dcptools.writer.writing.publish", lambda *_, **__: os._exit(9))
        dcptools.write(plan, tmp_path / "out")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    begun, report = begun_by(plan, tmp_path / "out", resume=True)
    assert (begun, report.taken_over, report.bytes_per_second) == ([], tuple(SHARDS), 0)
    assert read_files(tmp_path / "out") == undisturbed


def test_nothing_to_go_on_with(plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    assert dcptools.write(plan, tmp_path / "out", resume=True).taken_over == ()
    assert read_files(tmp_path / "out") == undisturbed


# What stays when a run is stopped

STOPS: dict[str, tuple[Callable[[], Any], type[BaseException], str]] = {
    "disk full": (disk_full, TargetError, "Writing to {out} failed: No space left on device.\n{kept}"),
    "unreadable": (
        lambda: (_ for _ in ()).throw(BrokenCheckpoint("It cannot be read.")), BrokenCheckpoint,
        "It cannot be read.\n{kept}",
    ),
    "no memory": (
        lambda: (_ for _ in ()).throw(MemoryError), NotEnoughMemory,
        "There is too little memory.\nTake fewer workers (workers=), or give the process more memory "
        "(ulimit -a shows the limits of a shell).\n{kept}",
    ),
    "no library": (lambda: (_ for _ in ()).throw(ImportError("no libtorch")), ImportError, "no libtorch"),
    "Ctrl-C": (lambda: (_ for _ in ()).throw(KeyboardInterrupt), KeyboardInterrupt, ""),
}  # fmt: skip
KEPT = "2 of 6 files are finished and kept: continue with resume=True."


@pytest.mark.parametrize("stop", STOPS)
def test_what_is_finished_stays_when_the_run_is_to_be_gone_on_with(
    stop: str, plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    act, kind, text = STOPS[stop]
    out = tmp_path / "out"
    with stopped_at(2, act), pytest.raises(kind) as caught:
        dcptools.write(plan, out, workers=1, resume=True)
    assert str(caught.value) == text.format(out=out, kept=KEPT)
    assert getattr(caught.value, "__notes__", []) == ([KEPT] if stop in ("Ctrl-C", "no library") else [])
    staged = [f".dcptools-{plan.fingerprint[:12]}-{name}.tmp" for name in SHARDS[:2]]
    assert sorted(os.listdir(out)) == [*staged, JOURNAL]
    begun, _ = begun_by(plan, out, resume=True)
    assert begun == SHARDS[2:]
    assert read_files(out) == undisturbed


@pytest.mark.parametrize("stop", STOPS)
def test_nothing_stays_otherwise(stop: str, plan: ShardPlan, tmp_path: Path) -> None:
    act, kind, _ = STOPS[stop]
    with stopped_at(2, act), pytest.raises(kind) as caught:
        dcptools.write(plan, tmp_path / "out", workers=1)
    assert "kept: go on" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_cancelled_run_goes_on(plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    cancel = threading.Event()
    with stopped_at(3, cancel.set), pytest.raises(Cancelled) as caught:
        dcptools.write(plan, tmp_path / "out", workers=1, resume=True, cancel=cancel)
    said = str(caught.value).splitlines()
    assert said[0] == "Cancelled; what was half-written is removed."
    assert said[1].endswith("finished and kept: continue with resume=True.")
    begun, _ = begun_by(plan, tmp_path / "out", resume=True)
    assert begun == SHARDS[int(said[1][0]) :]
    assert read_files(tmp_path / "out") == undisturbed


def test_a_run_that_fails_after_taking_over_keeps_all_or_nothing(plan: ShardPlan, tmp_path: Path) -> None:
    killed(plan, tmp_path / "out", 3)
    with stopped_at(1, disk_full), pytest.raises(TargetError, match="4 of 6 files are finished and kept"):
        dcptools.write(plan, tmp_path / "out", workers=1, resume=True)
    with stopped_at(1, disk_full), pytest.raises(TargetError, match="Nothing was kept"):
        dcptools.write(plan, tmp_path / "out", workers=1)
    assert os.listdir(tmp_path / "out") == []


def test_a_checkpoint_that_changes_meanwhile_leaves_nothing(plan: ShardPlan, checkpoint: Path, tmp_path: Path) -> None:
    def change() -> None:
        os.utime(checkpoint / "__0_0.distcp")
        disk_full()

    with stopped_at(2, change), pytest.raises(TargetError, match="Nothing was kept"):
        dcptools.write(plan, tmp_path / "out", workers=1, resume=True)
    assert not (tmp_path / "out").exists()


def test_values_that_became_inf_in_what_was_taken_over_count(tmp_path: Path) -> None:
    """Also for a run that only the second time is strict."""
    saved.trained(tmp_path / "step_20", STATE | {"model.a": torch.full((9,), 1e9)}, optimizer=False)
    options = {"dtype": "float16", "shard_size": 18}
    plan = dcptools.plan(tmp_path / "step_20", **options)
    killed(plan, tmp_path / "out", 2)
    with stopped_at(2, disk_full), pytest.raises(TargetError):
        dcptools.write(plan, tmp_path / "out", workers=1, resume=True)
    with pytest.raises(FindingsError, match="9 finite values became Inf"):
        dcptools.write(replace(plan, options=replace(plan.options, strict=True)), tmp_path / "out", resume=True)
    assert os.listdir(tmp_path / "out") == []
    killed(plan, tmp_path / "out", 2)
    report = dcptools.write(plan, tmp_path / "out", resume=True)
    assert [finding.code for finding in report.found_while_writing] == ["cast-overflow"]


def test_nan_in_what_was_taken_over_is_still_told(tmp_path: Path) -> None:
    """Also for a run that only the second time is strict."""
    nan = torch.full((9,), float("nan"))
    saved.trained(tmp_path / "step_20", STATE | {"model.a": nan, "model.f": nan}, optimizer=False)
    plan = dcptools.plan(tmp_path / "step_20", dtype="keep", shard_size=36)
    strict = replace(plan, options=replace(plan.options, strict=True))
    killed(plan, tmp_path / "out", 2)
    report = dcptools.write(plan, tmp_path / "out", resume=True)
    assert report.taken_over == tuple(SHARDS[:2])
    assert [(f.code, f.key) for f in report.found_while_writing] == [("all-nan", "model.a"), ("all-nan", "model.f")]
    killed(plan, tmp_path / "again", 2)
    with pytest.raises(FindingsError, match="all-nan. model.a: every value is NaN"):
        dcptools.write(strict, tmp_path / "again", resume=True)
    assert os.listdir(tmp_path / "again") == []


# What is not taken over


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: os.truncate(path, 50), link])
def test_a_finished_file_that_is_not_as_it_was_is_written_anew(
    damage: Callable[[Path], None], plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    killed(plan, tmp_path / "out", 3)
    damage(tmp_path / "out" / f".dcptools-{plan.fingerprint[:12]}-{SHARDS[1]}.tmp")
    begun, report = begun_by(plan, tmp_path / "out", resume=True)
    assert sorted(begun) == [SHARDS[1], *SHARDS[3:]]
    assert report.taken_over == (SHARDS[0], SHARDS[2])
    assert read_files(tmp_path / "out") == undisturbed


def test_a_file_that_is_not_in_the_journal_is_written_anew(
    plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A file of the right name and size, and even of the right content, may be one that was half-written."""
    killed(plan, tmp_path / "out", 3)
    journal = tmp_path / "out" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:-1])  # cut off in its last line
    begun, _ = begun_by(plan, tmp_path / "out", resume=True)
    assert sorted(begun) == SHARDS[2:]
    assert read_files(tmp_path / "out") == undisturbed


JOURNALS = [
    "", "\n", "not JSON\n", "[]\n", "5\n", "null\n", '{"format": 2}\n', "[" * 100_000 + "\n", '{"format": 1}\n',
    '{"format": 1, "fingerprint": "../../x"}\n{"filename": "a", "nbytes": 1, "crc32": 1, "noticed": {}}\n',
    "\udcff\n",
]  # fmt: skip
LINES = [
    "{}", "5", "[]", "null", '{"filename": "../x", "nbytes": 4, "crc32": 1, "noticed": {}}',
    '{"filename": "a\\u0000", "nbytes": 4, "crc32": 1, "noticed": {}}',
    '{"filename": 5, "nbytes": 4, "crc32": 1, "noticed": {}}', '{"filename": "a", "nbytes": 4, "crc32": 1}',
    '{"filename": "a", "nbytes": "4", "crc32": 1, "noticed": {}}',
    '{"filename": "a", "nbytes": 4, "crc32": 1, "noticed": []}',
    '{"filename": "a", "nbytes": 4, "crc32": 1, "noticed": {"w": {"overflows": 1, "all_nan": 1}}}',
    '{"filename": "' + "x" * 300 + '", "nbytes": 4, "crc32": 1, "noticed": {}}',
]  # fmt: skip


@pytest.mark.parametrize("content", JOURNALS)
def test_a_journal_that_is_something_else(
    content: str, plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    killed(plan, tmp_path / "out", 3)
    (tmp_path / "out" / JOURNAL).write_text(content, errors="surrogateescape")
    begun, _ = begun_by(plan, tmp_path / "out", resume=True)
    assert sorted(begun) == SHARDS
    assert read_files(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_journal_that_is_something_else(
    line: str, plan: ShardPlan, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    killed(plan, tmp_path / "out", 3)
    with (tmp_path / "out" / JOURNAL).open("a") as journal:
        journal.write(line + "\n")
    begun, _ = begun_by(plan, tmp_path / "out", resume=True)
    assert sorted(begun) == SHARDS[3:]
    assert read_files(tmp_path / "out") == undisturbed


# What is refused


def refusal(plan: ShardPlan, out: Path) -> str:
    before = read_files(out)
    with pytest.raises(TargetError) as caught:
        dcptools.write(plan, out, resume=True)
    left = read_files(out)
    assert left == {name: content for name, content in before.items() if name != ".dcptools-lock"}
    return str(caught.value)


def test_another_plan_is_refused_with_what_differs(plan: ShardPlan, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed(plan, out, 3)
    other = planned(checkpoint, tmp_path, dtype="bfloat16", shard_size=72)
    assert refusal(other, out) == (
        f"The finished files in {out} belong to another conversion:\n"
        "  dtype: keep before, the default now\n"
        "  shard_size: 36 before, 72 now\n"
        "Give the same options to continue with them. Without resume=True the run starts afresh and removes them."
    )
    dcptools.write(other, out)
    assert remains(out) == []


def test_another_checkpoint_is_refused(plan: ShardPlan, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed(plan, out, 3)
    saved.trained(tmp_path / "step_20", STATE | {"model.g": torch.zeros(9)}, optimizer=False)
    said = refusal(planned(tmp_path / "step_20", tmp_path), out)
    assert said.splitlines()[1] == f"  checkpoint: {checkpoint} before, {tmp_path / 'step_20'} now"


def test_a_checkpoint_that_changed_in_between_is_refused(plan: ShardPlan, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed(plan, out, 3)
    content = (checkpoint / "__0_0.distcp").read_bytes()
    (checkpoint / "__0_0.distcp").write_bytes(content)
    assert refusal(planned(checkpoint, tmp_path), out) == (
        f"The checkpoint {checkpoint} has changed since the finished files in {out} were made: __0_0.distcp was "
        "written to or replaced.\nWithout resume=True the run starts afresh and removes them."
    )


def test_remains_of_another_plan_that_has_finished_nothing_are_in_nobodys_way(
    plan: ShardPlan, checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    killed(planned(checkpoint, tmp_path, dtype="bfloat16"), tmp_path / "out", 0)
    assert dcptools.write(plan, tmp_path / "out", resume=True).taken_over == ()
    assert read_files(tmp_path / "out") == undisturbed


# Everywhere


def test_convert_and_the_command_line(checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_size": 36, "dtype": "keep"}
    dcptools.convert(checkpoint, tmp_path / "alone", **options)
    plan = dcptools.plan(checkpoint, **options)
    killed(plan, tmp_path / "out", 3)
    assert dcptools.convert(checkpoint, tmp_path / "out", resume=True, **options).taken_over == tuple(SHARDS[:3])
    assert read_files(tmp_path / "out") == read_files(tmp_path / "alone")
    killed(plan, tmp_path / "out2", 3)
    command = [sys.executable, "-m", "dcptools.convert", "--load-dir", checkpoint, "--save-dir", tmp_path / "out2"]
    command += ["--shard-size", "36", "--dtype", "keep", "--resume", "--json"]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["taken_over"] == SHARDS[:3]
    assert read_files(tmp_path / "out2") == read_files(tmp_path / "alone")


RUN: dict[str, Any] = {"shard_size": 36, "dtype": "keep", "resume": True}


def test_a_run_that_was_finished_finds_its_model_complete(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "config.json").write_text('{"model_type": "qwen3"}')
    options, out = {**RUN, "model_assets_dir": tmp_path / "assets"}, tmp_path / "out"
    first = dcptools.convert(checkpoint, out, **options)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.iterdir()}
    again = dcptools.convert(checkpoint, out, report=tmp_path / "r.json", verify=True, **options)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.iterdir()} == before
    assert (first.was_complete, again.was_complete) == (False, True)
    assert (again.files, again.taken_over) == (first.files, tuple(SHARDS))
    assert again.headline() == f"The model in {out} is already complete, 6 tensors in 6 files: nothing was written"
    assert dcptools.verify(out, report=tmp_path / "r.json").ok
    with pytest.raises(OutputExists, match="already holds"):  # who does not resume may mean another directory
        dcptools.convert(checkpoint, out, **{**options, "resume": False})


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("value", "error[disk-values] model.c: 1 of 9 values differ, the first at [2]: "),
        ("checkpoint", "error[disk-values] "),
        ("dtype", "error[model-file] model-00001-of-00003.safetensors: "),
        ("config", "error[model-asset] config.json: "),
        ("shard", "error[model-file] model-00003-of-00006.safetensors: "),
    ],
)
def test_a_complete_model_that_is_another_one_stays_refused(
    what: str, said: str, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "config.json").write_text('{"model_type": "qwen3"}')
    options, out = {**RUN, "model_assets_dir": tmp_path / "assets"}, tmp_path / "out"
    dcptools.convert(checkpoint, out, **options)
    if what == "value":
        content = bytearray((out / SHARDS[2]).read_bytes())
        content[-25] ^= 1
        (out / SHARDS[2]).write_bytes(content)
    elif what == "checkpoint":  # the next step's, with the same names and shapes
        checkpoint = saved.trained(tmp_path / "step_20", {k: v + 1 for k, v in STATE.items()}, optimizer=False)
    elif what == "config":
        (tmp_path / "assets" / "config.json").write_text('{"model_type": "llama"}')
    elif what == "shard":
        (out / SHARDS[2]).unlink()
    before = read_files(out)
    with pytest.raises(OutputExists) as caught:
        dcptools.convert(checkpoint, out, **{**options, "dtype": "float16" if what == "dtype" else "keep"})
    assert f"\nIt is not what this run would write: {said}" in str(caught.value)
    assert read_files(out) == before


def test_a_job_that_is_submitted_again_ends_well(checkpoint: Path, tmp_path: Path) -> None:
    command = ["--load-dir", checkpoint, "--save-dir", tmp_path / "out", "--shard-size=36", "--resume", "--no-fsync"]
    words = [str(word) for word in command]
    assert CliRunner().invoke(convert_command, words).exit_code == 0
    again = CliRunner().invoke(convert_command, words)
    assert again.exit_code == 0
    assert again.stdout.startswith(f"The model in {tmp_path / 'out'} is already complete, 6 tensors in 3 files: ")
    assert "every value compared with the checkpoint in " in again.stdout
    quiet = CliRunner().invoke(convert_command, [*words, "--quiet"])
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_tiles_have_a_checksum_too(tmp_path: Path) -> None:
    """Values that are written in another order than they are read; their files are read again for it."""
    from dcptools.writer.cut import Sizes

    state = {f"model.{name}": torch.arange(4096.0).reshape(64, 64).t() for name in "ab"}
    plan = dcptools.plan(saved.trained(tmp_path / "a", state, optimizer=False), dtype="keep", shard_size=20_000)
    killed(plan, tmp_path / "out", 1, sizes=Sizes(slab_bytes=1024))
    assert len(dcptools.write(plan, tmp_path / "out", resume=True).taken_over) == 1
    dcptools.write(plan, tmp_path / "alone")
    assert read_files(tmp_path / "out") == read_files(tmp_path / "alone")
