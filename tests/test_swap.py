"""The last step: a new model takes the place of an old one, whole or not at all, and nothing else goes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import models, saved
from reference import read_files
from safetensors.torch import load_file

import dcptools
from dcptools.errors import OutputExists, TargetError, notes_of
from dcptools.shards import INDEX, ShardPlan
from dcptools.storage import LocalSink
from dcptools.writer import Report
from dcptools.writer.swap import BEFORE

pytestmark = pytest.mark.usefixtures("no_sync")
STATE = {f"model.{name}": torch.arange(9.0) for name in "abcd"}
OLD = {f"model.{name}": -torch.arange(9.0) for name in "abc"}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    return models.assets(tmp_path / "assets", {"model_type": "qwen3"}, b"the new one")


@pytest.fixture
def plan(tmp_path: Path, assets: Path) -> ShardPlan:
    """Two shards, an index, and two assets."""
    return planned(tmp_path / "step_10", STATE, assets, 72)


def planned(directory: Path, state: dict[str, torch.Tensor], assets: Path | None, shard_size: int) -> ShardPlan:
    if not directory.exists():
        saved.trained(directory, state, optimizer=False)
    mapping = dcptools.preview(directory, model_assets_dir=assets)
    return dcptools.plan(mapping, shard_size=shard_size, dtype="keep")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A model of two shards whose names are those of the new ones, with a tokenizer and a file of its owner."""
    dcptools.write(planned(tmp_path / "step_5", OLD, None, 72), tmp_path / "out")
    for name, text in {"tokenizer.json": "the old one", "README.md": "mine"}.items():
        (tmp_path / "out" / name).write_text(text)
    return tmp_path / "out"


def loaded(directory: Path) -> dict[str, list[float]] | None:
    """What transformers would load, by what makes a model: the single file, or the files of the index."""
    if (directory / "model.safetensors").is_file():
        return values(load_file(directory / "model.safetensors"))
    if not (directory / INDEX).is_file():
        return None
    weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
    tensors = {}
    for file in set(weight_map.values()):
        tensors |= load_file(directory / file)
    assert tensors.keys() == weight_map.keys()
    return values(tensors)


def values(state: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in state.items()}


# What may go

OTHERS = [
    "adapter_model.safetensors", "optimizer.bin", "training_args.bin", "my-embeddings.bin", "model.fp16.safetensors",
    "model-00001-of-2.safetensors", "xmodel-00001-of-00002.safetensors", "model-00001-of-00002.safetensors.bak",
    "adapter_model.safetensors.index.json", "consolidated.safetensors", "pytorch_model-00001-of-00002.safetensors",
    "model-00001-of-00002.bin",
]  # fmt: skip


def test_overwriting_leaves_weights_of_something_else(plan: ShardPlan, out: Path) -> None:
    for name in OTHERS:
        (out / name).write_text(name)
    dcptools.write(plan, out, overwrite=True)
    left = read_files(out)
    assert {name: left[name].decode() for name in OTHERS if name in left} == {name: name for name in OTHERS}
    assert loaded(out) == values(STATE)


OLD_MODELS = [
    "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "model-00003-of-00009.safetensors",
    "pytorch_model-00001-of-00002.bin",
]  # fmt: skip


@pytest.mark.parametrize("shard_size", [72, 10_000])
def test_overwriting_removes_every_file_of_an_old_model(
    shard_size: int, tmp_path: Path, assets: Path, out: Path
) -> None:
    for name in OLD_MODELS:
        (out / name).write_text("{}")
    report = dcptools.write(planned(tmp_path / "step_10", STATE, assets, shard_size), out, overwrite=True)
    written = {name for name, _ in report.files} | ({report.index} - {""})
    assert set(read_files(out)) == {*written, "README.md", "config.json", "tokenizer.json"}
    assert report.found_while_writing == ()


def test_what_the_old_index_names_goes_whatever_it_is_called(plan: ShardPlan, out: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_text("not in the directory")
    (out / "sub").mkdir()
    (out / "sub" / "deep.safetensors").write_text("below it")
    (out / "link.safetensors").symlink_to(outside)
    (out / "folder.safetensors").mkdir()
    for name in ("consolidated-1.safetensors", "weights.bin", "unnamed.bin", ".hidden.bin"):
        (out / name).write_text("old")
    named = [
        "consolidated-1.safetensors", "weights.bin", "README.md", ".hidden.bin", "link.safetensors", "gone.bin", ".",
        "folder.safetensors", "sub/deep.safetensors", "../outside.safetensors", str(outside), "", "a\0b.bin", "x" * 300,
    ]  # fmt: skip
    (out / INDEX).write_text(json.dumps({"weight_map": {**dict(enumerate(named)), "n": 5, "l": ["unnamed.bin"]}}))
    before = set(os.listdir(out)) - set(SHARDS) - {"tokenizer.json", INDEX}
    dcptools.write(plan, out, overwrite=True)
    gone = before - set(os.listdir(out))
    assert gone == {"consolidated-1.safetensors", "weights.bin"}
    assert (outside.read_text(), (out / "sub" / "deep.safetensors").read_text()) == ("not in the directory", "below it")


@pytest.mark.parametrize(
    "content", ["", "not JSON", "[]", '{"weight_map": 5}', '{"weight_map": [1]}', "[" * 100_000, "\udcff"]
)
def test_an_old_index_that_cannot_be_read(content: str, plan: ShardPlan, out: Path) -> None:
    (out / INDEX).write_text(content, errors="surrogateescape")
    (out / "mine.bin").write_text("mine")
    dcptools.write(plan, out, overwrite=True)
    assert loaded(out) == values(STATE)
    assert (out / "mine.bin").read_text() == "mine"


def test_a_link_to_an_old_model_goes_and_not_what_it_leads_to(plan: ShardPlan, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("model.safetensors", SHARDS[0], "tokenizer.json"):
        (tmp_path / "cache" / name).write_text("of the cache")
        (tmp_path / "out" / name).symlink_to(Path("..", "cache", name))
    dcptools.write(plan, tmp_path / "out", overwrite=True)
    assert loaded(tmp_path / "out") == values(STATE)
    assert set(read_files(tmp_path / "cache").values()) == {b"of the cache"}


# What is in the way


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", SHARDS[1], INDEX])
def test_a_directory_in_the_way_is_seen_before_anything_is_written(name: str, plan: ShardPlan, out: Path) -> None:
    (out / name).unlink(missing_ok=True)
    (out / name).mkdir()
    before = sorted(out.rglob("*"))
    with pytest.raises(TargetError) as caught:
        dcptools.write(plan, out, overwrite=True, progress=lambda *_: pytest.fail("it was begun"))
    assert str(caught.value) == (
        f"{out / name} is a directory, but a file of that name has to be written.\nNothing was written. Remove it, or "
        "give another directory."
    )
    assert sorted(out.rglob("*")) == before


def test_a_link_to_a_directory_is_replaced(plan: ShardPlan, out: Path, tmp_path: Path) -> None:
    (out / "tokenizer.json").unlink()
    (out / "tokenizer.json").symlink_to(tmp_path)
    dcptools.write(plan, out, overwrite=True)
    assert (out / "tokenizer.json").read_text() == "the new one"


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.parent / "nothing")])
def test_directories_and_links_with_our_temporary_names(
    make: Callable[[Path], None], plan: ShardPlan, out: Path
) -> None:
    """They are not ours to empty; nothing is written through the links."""
    make(out / ".dcptools-x.tmp")
    dcptools.write(plan, out, overwrite=True)
    assert loaded(out) == values(STATE)
    assert not (out / "nothing").exists()


def test_a_link_in_place_of_what_is_put_aside(plan: ShardPlan, out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    (out / ".dcptools-before").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TargetError, match=r"\.dcptools-before is in the way.\nNothing was written. Remove it,"):
        dcptools.write(plan, out, overwrite=True)
    assert read_files(tmp_path / "elsewhere") == {"mine.txt": b"mine"}
    assert loaded(out) == values(OLD)


# What fails

STEPS = ("rename", "replace", "mkdir", "rmdir", "unlink")  # all that the last step does to the directory


def breaking(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None], times: int = 1) -> list[str]:
    """``act`` before the change number ``step`` of the directory, counted from where the files get their names, and
    before those that follow, so many times."""
    calls: list[str] = []

    def wrap(name: str) -> None:
        function = getattr(os, name)

        def wrapped(path: Any, *rest: Any, **options: Any) -> None:
            names = (Path(os.fspath(path)).name, *(Path(os.fspath(other)).name for other in rest[:1] if name[0] == "r"))
            if calls or any(part.startswith(".dcptools-before") for part in names):
                calls.append(name)
                if step < len(calls) <= step + times:
                    act()
            return function(path, *rest, **options)

        monkeypatch.setattr(os, name, wrapped)

    for name in STEPS:
        wrap(name)
    return calls


def io_error() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("shard_size", [72, 10_000])
@pytest.mark.parametrize("older", [True, False])
def test_whatever_fails_the_old_model_is_back_or_the_new_one_is_whole(
    older: bool, shard_size: int, tmp_path: Path, assets: Path, out: Path
) -> None:
    plan = planned(tmp_path / "step_10", STATE, assets, shard_size)
    original = tmp_path / "original"
    out.rename(original) if older else original.mkdir()
    step, failed = 0, 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(original, out)
        with pytest.MonkeyPatch.context() as monkeypatch:
            breaking(monkeypatch, step, io_error)
            try:
                report = dcptools.write(plan, out, overwrite=True)
            except TargetError as error:
                assert str(error) == f"Writing to {out} failed: Input/output error.\nNothing was kept."
                assert read_files(out) == read_files(original)
                step, failed = step + 1, failed + 1
                continue
        assert loaded(out) == values(STATE)
        if not any(finding.code == "stale-file" for finding in report.findings):
            break
        step += 1
    assert failed > 5
    assert step >= failed


@pytest.mark.parametrize("shard_size", [72, 10_000])
@pytest.mark.parametrize("older", [True, False])
def test_a_run_that_is_killed_is_undone_or_finished_by_the_next(
    older: bool, shard_size: int, tmp_path: Path, assets: Path, out: Path
) -> None:
    plan = planned(tmp_path / "step_10", STATE, assets, shard_size)
    if older:  # with two entry points, as some have
        (out / "pytorch_model.bin").write_text("old too")
    original = tmp_path / "original"
    out.rename(original) if older else original.mkdir()
    undone, step, status = 0, 0, 9
    while status:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(original, out)
        status = killed(step, plan, out)
        seen = loaded(out)
        assert seen in ((values(OLD) if older else None), None, values(STATE))
        if seen:  # nor a tokenizer or config of the other one
            assert (out / "tokenizer.json").read_text() == ("the new one" if seen == values(STATE) else "the old one")
            assert (out / "config.json").exists() == (seen == values(STATE))
        if older or seen:
            with pytest.raises(OutputExists):
                dcptools.write(plan, out)  # it wants no overwriting, and puts the directory right all the same
            assert BEFORE not in os.listdir(out)
        if seen == values(STATE):
            assert loaded(out) == values(STATE)
        else:
            if older:
                assert visible(out) == visible(original)
            undone += 1
        dcptools.write(plan, out, overwrite=older or bool(seen))
        assert loaded(out) == values(STATE)
        assert not any(name.startswith(".dcptools") for name in os.listdir(out))
        step += 1
    assert 5 < undone < step - 2


def visible(directory: Path) -> dict[str, bytes]:
    return {name: content for name, content in read_files(directory).items() if not name.startswith(".dcptools-")}


def killed(step: int, plan: ShardPlan, out: Path) -> int:
    """The exit status of a process that writes the model and dies at that step."""
    if not (child := os.fork()):
        with pytest.MonkeyPatch.context() as monkeypatch:
            breaking(monkeypatch, step, lambda: os._exit(9))
            try:
                dcptools.write(plan, out, overwrite=True)
            finally:
                os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_never_an_old_index_with_new_shards(plan: ShardPlan, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before each step, in a run that fails at the last one and goes all the way back."""
    seen = []
    commit = LocalSink.commit

    def failing(self: LocalSink, name: str) -> None:
        if name == INDEX:
            io_error()
        commit(self, name)

    monkeypatch.setattr(LocalSink, "commit", failing)

    def look_first(name: str, function: Callable[..., None]) -> None:
        def looking(*args: Any, **options: Any) -> None:
            seen.append(loaded(out))
            function(*args, **options)

        monkeypatch.setattr(os, name, looking)

    for name in STEPS:
        look_first(name, getattr(os, name))
    with pytest.raises(TargetError):
        dcptools.write(plan, out, overwrite=True)
    assert loaded(out) == values(OLD)
    assert None in seen
    assert all(model in (None, values(OLD)) for model in seen)


def test_files_that_cannot_be_put_back_are_named_and_the_next_run_puts_them_back(
    plan: ShardPlan, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = read_files(out), iter(range(100))
    replace_file = os.replace

    def failing(source: Any, target: Any) -> None:
        if next(calls) > 2:
            io_error()
        replace_file(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises(TargetError) as caught:
            dcptools.write(plan, out, overwrite=True)
    assert str(caught.value) == (
        f"Writing to {out} failed: Input/output error.\nThe old files are in {out / '.dcptools-before'}, and "
        "could not be restored: Input/output error.\nThe next run into this directory tries again."
    )
    assert loaded(out) is None
    with pytest.raises(OutputExists):
        dcptools.write(plan, out)
    assert read_files(out) == original


# Ctrl-C


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("shard_size", [72, 10_000])
def test_ctrl_c_at_every_step_says_what_is_true(
    again: bool, shard_size: int, tmp_path: Path, assets: Path, out: Path
) -> None:
    """Pressed once or, ``again``, once more a step later; the directory is as it says, also after the next run."""
    plan, original = planned(tmp_path / "step_10", STATE, assets, shard_size), tmp_path / "original"
    out.rename(original)
    said, step = [], 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(original, out)
        with pytest.MonkeyPatch.context() as monkeypatch:
            breaking(monkeypatch, step, interrupt, 1 + again)
            try:
                dcptools.write(plan, out, overwrite=True)
                break
            except KeyboardInterrupt as stop:
                said.append("\n".join(notes_of(stop)) or "removed")
        if said[-1] == "removed":
            assert read_files(out) == read_files(original)
        elif said[-1].startswith("The new model is complete in"):
            assert loaded(out) == values(STATE)
            assert said[-1].endswith(f"of the old one in {out / BEFORE}." if (out / BEFORE).exists() else f"in {out}.")
        elif said[-1].startswith("Hidden files"):
            assert said[-1] == f"Hidden files, .dcptools-…, are left in {out}; the next run there removes them."
            assert visible(out) == visible(original) != read_files(out)
        else:
            assert said[-1] == (f"The old files are in {out / BEFORE}; the next run into this directory restores them.")
            with pytest.raises(OutputExists):
                dcptools.write(plan, out)
            assert visible(out) == visible(original)
        step += 1
    kinds = {message.split()[1] for message in said if " " in message}
    assert kinds == ({"new", "old", "files,"} if again else {"new"})  # the new model, the old files, hidden files


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_old_file_that_cannot_be_removed_is_a_warning(
    plan: ShardPlan, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def failing(path: Any, **options: Any) -> None:
        if Path(path).name == SHARDS[1] and ".dcptools-before" in str(path):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", failing)
        report = dcptools.write(plan, out, overwrite=True)
    assert loaded(out) == values(STATE)
    place = f".dcptools-before/{SHARDS[1]}"
    assert [str(finding) for finding in report.found_while_writing] == [
        f"warning[stale-file] {place}: a file of the old model could not be removed: Operation not permitted "
        "(the new model is complete; remove the file by hand)"
    ]
    assert isinstance(report, Report)
    assert str(report).endswith(str(report.found_while_writing[0]))
    assert f"{place}" in {str(path.relative_to(out)) for path in out.rglob("*")}
    dcptools.write(plan, out, overwrite=True)
    assert not any(name.startswith(".dcptools") for name in os.listdir(out))
