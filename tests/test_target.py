"""The output directory: what may be there, who may write to it, and what stays of a run that did not end well."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import saved
from nobody import as_nobody
from reference import read_files

import dcptools
from dcptools.errors import BrokenCheckpoint, NotACheckpoint, OutputExists, TargetError
from dcptools.shards import ShardPlan
from dcptools.storage import LocalSink
from dcptools.writer import lock
from dcptools.writer import target as target_module
from dcptools.writer.lock import LOCK, locked
from dcptools.writer.target import SPARE_BYTES, free_bytes

STATE = {f"model.{name}": torch.arange(8.0) for name in "abcd"}


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "config.json").write_text('{"model_type": "qwen3"}')
    return tmp_path / "assets"


@pytest.fixture
def plan(tmp_path: Path, assets: Path) -> ShardPlan:
    """Two shards, an index, and config.json."""
    mapping = dcptools.preview(saved.trained(tmp_path / "step_10", STATE, optimizer=False), model_assets_dir=assets)
    return dcptools.plan(mapping, shard_size=64, dtype="keep")


NAMES = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
NAMES += ["model.safetensors.index.json"]


def refusal(plan: ShardPlan, save_dir: Path, kind: type[TargetError] = TargetError, *, overwrite: bool = True) -> str:
    """The message of the error, after which everything is as it was."""
    before = sorted(save_dir.parent.rglob("*"))
    with pytest.raises(kind) as caught:
        dcptools.write(plan, save_dir, overwrite=overwrite)
    assert type(caught.value) is kind
    assert sorted(save_dir.parent.rglob("*")) == before
    return str(caught.value)


# What may be there


def test_a_new_directory_with_its_parents(plan: ShardPlan, tmp_path: Path) -> None:
    dcptools.write(plan, tmp_path / "new" / "deep" / "out")
    assert sorted(read_files(tmp_path / "new" / "deep" / "out")) == NAMES


def test_a_relative_directory(plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dcptools.write(plan, "new/out")
    assert sorted(read_files(tmp_path / "new" / "out")) == NAMES


def test_an_empty_directory_and_one_with_other_files(plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    dcptools.write(plan, tmp_path / "out")
    assert sorted(read_files(tmp_path / "out")) == ["README.md", *NAMES]


def test_files_of_the_same_names_as_assets_are_not_replaced_unasked(plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("mine")
    said = refusal(plan, tmp_path / "out", OutputExists, overwrite=False)
    assert said.startswith(f"{tmp_path / 'out'} already holds config.json.\nNothing was written.")
    assert read_files(tmp_path / "out") == {"config.json": b"mine"}
    dcptools.write(plan, tmp_path / "out", overwrite=True)
    assert sorted(read_files(tmp_path / "out")) == NAMES


def test_the_default_directory_below_the_checkpoint(plan: ShardPlan, tmp_path: Path) -> None:
    dcptools.write(plan, tmp_path / "step_10" / "hf_ckpt")
    assert sorted(read_files(tmp_path / "step_10" / "hf_ckpt")) == NAMES


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin",
     "pytorch_model.bin.index.json", "adapter_model.safetensors"],
)  # fmt: skip
def test_a_model_is_not_overwritten_unasked(name: str, plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"precious")
    assert refusal(plan, tmp_path / "out", OutputExists, overwrite=False) == (
        f"{tmp_path / 'out'} already holds {name}.\nNothing was written. Give another directory, or overwrite "
        "(overwrite=True): that replaces the model and keeps weights of anything else."
    )
    assert read_files(tmp_path / "out") == {name: b"precious"}


def test_the_checkpoint_itself(plan: ShardPlan, tmp_path: Path) -> None:
    assert refusal(plan, tmp_path / "step_10") == (
        f"The output {tmp_path / 'step_10'} is where the checkpoint's own files are.\nGive another directory."
    )


def test_the_checkpoint_by_another_name(plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "step_10")
    assert "is where the checkpoint's own files are" in refusal(plan, tmp_path / "link")
    assert "is where the checkpoint's own files are" in refusal(plan, tmp_path / "assets" / ".." / "step_10")


def test_the_assets_directory(plan: ShardPlan, assets: Path) -> None:
    assert refusal(plan, assets) == f"The output {assets} is the assets directory itself.\nGive another directory."


def test_a_file(plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    expected = f"The output {tmp_path / 'out'} is a file.\nGive a new directory, or one without a model."
    assert refusal(plan, tmp_path / "out") == expected


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("place", ["{}", "memory://{}"])
def test_a_directory_with_the_name_of_a_file(place: str, name: str, plan: ShardPlan, tmp_path: Path) -> None:
    output = place.format(tmp_path / "out" / name)
    with pytest.raises(TargetError, match=r"has the name of a file, and a model is written into a directory\.\n") as it:
        dcptools.write(plan, output)
    assert f"Give a directory, for example {os.path.splitext(output)[0]}: " in str(it.value)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / name).mkdir(parents=True)  # whoever made it wants it so
    dcptools.write(plan, tmp_path / "out" / name)


def test_a_url_that_lacks_a_slash(plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for output in ("s3:/bucket/out", Path("s3://bucket/out")):
        assert refusal(plan, Path(output)) == (
            "The output s3:/bucket/out is no URL, and there is no such directory.\nGive a URL: s3://bucket/out"
        )
    with pytest.raises(NotACheckpoint, match=r"\nGive a URL: gs://bucket/step_10$"):
        dcptools.read("gs:/bucket/step_10")


def test_below_a_file(plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path / 'file'} is a file" in refusal(plan, tmp_path / "file" / "out")


def test_a_read_only_file_system_is_said(plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module.os, "access", lambda *_: False)
    monkeypatch.setattr(target_module.os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert refusal(plan, tmp_path / "out") == (
        f"{tmp_path} is on a read-only file system.\nGive a directory elsewhere."
    )


@pytest.mark.skipif(os.getuid() != 0 or not os.path.ismount("/proc"), reason="others lack the permission already")
def test_where_nothing_can_be_written_is_no_full_disk(plan: ShardPlan) -> None:
    with pytest.raises(TargetError) as caught:
        dcptools.write(plan, Path("/proc/x"))
    assert str(caught.value) == "The file system of /proc has no room for files.\nGive a directory elsewhere."


def test_a_small_model_needs_little_more_than_itself(
    plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=plan.file_bytes + 100_000))
    dcptools.write(plan, tmp_path / "out")


def test_too_little_disk(plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = plan.file_bytes + len('{"model_type": "qwen3"}') + SPARE_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    assert refusal(plan, tmp_path / "new" / "out").splitlines() == [
        f"{tmp_path / 'new' / 'out'} has 66.02 kB free, but 66.02 kB is needed.",
        "Nothing was written. Free some space, or give a directory on another disk. (With overwrite=True, the old "
        "files are removed last.)",
    ]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    dcptools.write(plan, tmp_path / "new" / "out")


def test_what_a_killed_run_left_does_not_count_as_used(
    plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "out" / ".dcptools-0123-model.safetensors.tmp"
    stale.parent.mkdir()
    stale.write_bytes(bytes(1 << 16))
    needed = plan.file_bytes + len('{"model_type": "qwen3"}') + SPARE_BYTES
    monkeypatch.setattr(target_module, "free_bytes", lambda path: needed - (1 << 16) * stale.exists())
    dcptools.write(plan, tmp_path / "out")
    assert sorted(read_files(tmp_path / "out")) == NAMES


def test_free_bytes_of_a_directory_to_come(tmp_path: Path) -> None:
    assert abs(free_bytes(tmp_path / "a" / "b") - shutil.disk_usage(tmp_path).free) < 1 << 30


# Who may write to it


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody can get at; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory(prefix="dcptools-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_directory_of_somebody_else(public: Path) -> None:
    saved.trained(public / "step_10", STATE, optimizer=False)
    (public / "out").mkdir(mode=0o555)
    plan = dcptools.plan(public / "step_10", dtype="keep")
    for target in (public / "out", public / "out" / "new" / "deep"):
        assert as_nobody(lambda target=target: dcptools.write(plan, target)) == (
            f"TargetError: {public / 'out'} cannot be written to: permission denied.\n"
            "Give a directory that you may write to."
        )
    assert list((public / "out").iterdir()) == []


HOLDER = """
import sys
from pathlib import Path
from dcptools.writer.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_another_process_holds_the_lock(plan: ShardPlan, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        stranger = tmp_path / "out" / ".dcptools-0123-model.safetensors.tmp"
        stranger.write_text("of the other run")
        assert refusal(plan, tmp_path / "out") == (
            f"Another run is writing to {tmp_path / 'out'}.\nWait for it, or give another directory."
        )
        assert stranger.read_text() == "of the other run"
        holder.communicate(timeout=30)
    dcptools.write(plan, tmp_path / "out")
    assert sorted(read_files(tmp_path / "out")) == NAMES


def test_a_dead_process_holds_no_lock(plan: ShardPlan, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        holder.kill()
    assert list(read_files(tmp_path / "out")) == [LOCK]
    dcptools.write(plan, tmp_path / "out")
    assert sorted(read_files(tmp_path / "out")) == NAMES


def test_never_two_at_a_time(tmp_path: Path) -> None:
    """The lock file goes with each run, so one that waited for it may hold a file that is no longer there."""
    inside = threading.Lock()
    (tmp_path / "out").mkdir()

    def enter(_: int) -> bool:
        try:
            with locked(tmp_path / "out"):
                assert inside.acquire(blocking=False), "two runs in one directory"
                inside.release()
                return True
        except TargetError:
            return False

    with ThreadPoolExecutor(4) as pool:
        entered = list(pool.map(enter, range(400)))
    assert any(entered)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lock_file_that_is_removed_just_now_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it the other run may end, and remove it: that lock would keep nobody out."""
    lock, flock, calls = tmp_path / LOCK, fcntl.flock, iter(range(9))

    def too_late(descriptor: int, operation: int) -> None:
        if next(calls) == 0:
            lock.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with locked(tmp_path):
        assert lock.exists()
        with pytest.raises(TargetError, match="Another run"), locked(tmp_path):
            pass
    assert next(calls) == 3


def test_a_model_that_another_run_finished_meanwhile(
    plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen only once the lock is held."""
    acquire = lock._acquire

    def late(path: Path) -> int:
        (path.parent / "model.safetensors").write_bytes(b"of the other run")
        return acquire(path)

    monkeypatch.setattr(lock, "_acquire", late)
    with pytest.raises(OutputExists):
        dcptools.write(plan, tmp_path / "out")
    assert read_files(tmp_path / "out") == {"model.safetensors": b"of the other run"}


# What a failed run leaves


def test_directories_that_were_made_go_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(RuntimeError), locked(tmp_path / "there" / "a" / "b"):
        assert (tmp_path / "there" / "a" / "b").is_dir()
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_directories_with_something_in_them_stay(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "mine"]


def test_temporary_files_of_a_killed_run_go(plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in (".dcptools-0123-model.safetensors.tmp", ".dcptools-4567-config.json.tmp", LOCK, ".hidden", "a.tmp"):
        (tmp_path / "out" / name).write_text("old")
    dcptools.write(plan, tmp_path / "out")
    assert sorted(read_files(tmp_path / "out")) == [".hidden", "a.tmp", *NAMES]


# Links where our own files go


def test_a_lock_that_is_a_link_is_refused(plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "victim")
    assert refusal(plan, tmp_path / "out") == (
        f"{tmp_path / 'out' / LOCK} is a symlink where dcptools needs a file of its own.\nRemove it, or give another "
        "directory."
    )
    assert not (tmp_path / "victim").exists()


def test_a_lock_that_is_a_directory_is_refused(plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "out" / LOCK).mkdir(parents=True)
    assert refusal(plan, tmp_path / "out").startswith(f"{tmp_path / 'out' / LOCK} is a directory where dcptools needs ")


def test_a_temporary_file_that_is_a_link_is_not_written_through(plan: ShardPlan, tmp_path: Path) -> None:
    """One from before is removed; one that shows up after that is in the way."""
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("mine")
    out.mkdir()
    links = [out / f".dcptools-{plan.fingerprint[:12]}-{name}.tmp" for name in NAMES]
    links[1].symlink_to(victim)

    def progress(done: int, total: int, name: str) -> None:
        if not links[0].is_symlink():
            links[0].symlink_to(victim)

    with pytest.raises(TargetError, match=rf"failed: File exists: {links[0]}\.\nNothing was kept\.$"):
        dcptools.write(plan, out, progress=progress)
    assert victim.read_text() == "mine"
    assert os.listdir(out) == [links[0].name]
    dcptools.write(plan, out)
    assert victim.read_text() == "mine"
    assert sorted(os.listdir(out)) == NAMES
    assert not any(path.is_symlink() for path in out.iterdir())


def test_a_temporary_file_that_cannot_be_removed(
    plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    stale = tmp_path / "out" / ".dcptools-x.tmp"
    stale.touch()

    unlink = os.unlink

    def failing(path: Path) -> None:
        if path == stale:
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", failing)
        with pytest.raises(TargetError) as caught:
            dcptools.write(plan, tmp_path / "out")
    assert str(caught.value) == (
        f"{stale} of a run that was killed is in the way: Operation not permitted.\nRemove it, or give another "
        "directory."
    )


# A checkpoint that changes while it is converted


def in_place(path: Path) -> None:
    """Other values, as many bytes."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def by_another(path: Path) -> None:
    """The same content in another file, which says that it was written at the same time."""
    times = path.stat()
    shutil.copy(path, path.with_name("other"))
    path.with_name("other").replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("change", [in_place, by_another, shorter, Path.unlink])
def test_a_checkpoint_that_changes_meanwhile(
    change: Callable[[Path], None], name: str, plan: ShardPlan, tmp_path: Path
) -> None:
    checkpoint, out = tmp_path / "step_10", tmp_path / "out"
    dcptools.write(plan, out)
    before, changed = read_files(out), []

    def progress(done: int, total: int, tensor: str) -> None:
        if done == total and not changed:
            changed.append(change(checkpoint / name))

    with pytest.raises(BrokenCheckpoint) as caught:
        dcptools.write(plan, out, overwrite=True, progress=progress)
    assert changed
    assert str(caught.value) == (
        f"The checkpoint {checkpoint} changed while it was converted: {name} was written to, replaced or removed.\n"
        "Nothing was kept. Convert again when nothing is writing to it, or convert a copy."
    )
    assert read_files(out) == before


def test_a_step_that_is_saved_over_the_one_that_is_converted(plan: ShardPlan, tmp_path: Path) -> None:
    """What a trainer does that keeps one directory: other values in files of the same sizes."""
    saved.trained(tmp_path / "step_20", {name: tensor + 1 for name, tensor in STATE.items()}, optimizer=False)

    def progress(done: int, total: int, tensor: str) -> None:
        if done == total:
            shutil.copytree(tmp_path / "step_20", tmp_path / "step_10", dirs_exist_ok=True)

    with pytest.raises(BrokenCheckpoint, match=r"changed .* converted: \.metadata, __0_0\.distcp were written to"):
        dcptools.write(plan, tmp_path / "out", progress=progress)
    assert not (tmp_path / "out").exists()


def test_what_fails_because_the_checkpoint_changes_says_so(
    plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that the file is truncated, which copying would not mend."""
    create = LocalSink.create

    def late(self: LocalSink, name: str, nbytes: int) -> None:
        os.truncate(tmp_path / "step_10" / "__0_0.distcp", 100)
        create(self, name, nbytes)

    monkeypatch.setattr(LocalSink, "create", late)
    with pytest.raises(BrokenCheckpoint, match=r"changed while it was converted: __0_0\.distcp was written to"):
        dcptools.write(plan, tmp_path / "out")


def test_a_checkpoint_that_changed_after_it_was_read(plan: ShardPlan, tmp_path: Path) -> None:
    """Seen before hours are spent on it."""
    in_place(tmp_path / "step_10" / "__0_0.distcp")
    assert plan.mapping.checkpoint.changed_files() == ("__0_0.distcp",)
    with pytest.raises(BrokenCheckpoint) as caught:
        dcptools.write(plan, tmp_path / "out", progress=lambda *_: pytest.fail("it was begun"))
    assert str(caught.value) == (
        f"The checkpoint {tmp_path / 'step_10'} changed since it was read: __0_0.distcp was written to, replaced or "
        "removed.\nNothing was written. Read it again when nothing is writing to it."
    )
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_not_changed_by_being_read(plan: ShardPlan, tmp_path: Path) -> None:
    for path in (tmp_path / "step_10").iterdir():
        times = path.stat()
        os.utime(path, ns=(times.st_atime_ns + 10**12, times.st_mtime_ns))
        os.chmod(path, 0o444)
    (tmp_path / "step_10" / "notes.txt").write_text("beside it")
    dcptools.write(plan, tmp_path / "out")
