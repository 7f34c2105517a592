"""What people type in Python and in a shell means what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import saved
from click.testing import CliRunner

import dcptools
from dcptools import _progress
from dcptools.cli import main_group
from dcptools.demo import Demo
from dcptools.errors import UsageError

EXCEPTION = {"*norm.weight": "float32"}


@pytest.fixture
def home(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with the demo in it; what is made beside it must not be called ``~``."""
    directory = tmp_path / "home"
    shutil.copytree(demo.checkpoint, directory / "step-100")
    shutil.copytree(demo.assets, directory / "assets")
    monkeypatch.setenv("HOME", str(directory))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return directory


@pytest.mark.parametrize("dtype", [torch.float16, "fp16", "FP16", "half", "torch.float16", "float16"])
def test_a_dtype_by_any_of_its_names(dtype: Any, demo: Demo) -> None:
    planned = dcptools.plan(demo.checkpoint, dtype=dtype)
    assert planned == dcptools.plan(demo.checkpoint, dtype="float16")
    state = dcptools.load_state_dict(demo.checkpoint, "lm_head.weight", dtype=dtype)
    assert state["lm_head.weight"].dtype == torch.float16


def test_what_is_kept_in_float32_is_so_by_any_name(tmp_path: Path, expected_in_process: None) -> None:
    """transformers keeps a part of T5 in float32, but only when the others are float16."""
    from checkpoints import live_models

    model = live_models.build(live_models.config_of("t5"))
    checkpoint = saved.save(tmp_path / "c", model.state_dict())
    (tmp_path / "assets").mkdir()
    model.config.architectures = ["T5ForConditionalGeneration"]
    model.config.save_pretrained(tmp_path / "assets")
    plans = [
        dcptools.plan(dcptools.preview(checkpoint, model_assets_dir=tmp_path / "assets"), dtype=dtype)
        for dtype in ("float16", torch.float16)
    ]
    assert plans[0].fingerprint == plans[1].fingerprint
    assert {t.dtype.name for file in plans[1].files for t in file.tensors} == {"float16", "float32"}


@pytest.mark.parametrize("dtype", [torch.int8, "int8", "bf17", None, torch.nn.Module])
def test_what_is_no_dtype_to_write(dtype: Any, demo: Demo) -> None:
    with pytest.raises(UsageError, match=r"is not a dtype that can be written\.\nExpected one of bfloat16, "):
        dcptools.plan(demo.checkpoint, dtype=dtype)


@pytest.mark.parametrize(
    "dtype_for",
    [
        EXCEPTION, {"*norm.weight": torch.float32}, "*norm.weight=float32", ["*norm.weight=fp32"],
        [("*norm.weight", torch.float32)], {"*norm.weight": "fp32"}.items(),
    ],
)  # fmt: skip
def test_an_exception_of_the_dtype_in_any_form(dtype_for: Any, demo: Demo, tmp_path: Path) -> None:
    planned = dcptools.plan(demo.checkpoint, dtype_for=dtype_for)
    assert planned.options.dtype_for == (("*norm.weight", "float32"),)
    dcptools.write(planned, tmp_path / "out", fsync=False)
    assert dcptools.verify(tmp_path / "out", demo.checkpoint, dtype="bf16", dtype_for=dtype_for).ok


@pytest.mark.parametrize("rename", [{r"lm_(.*)": r"x.\1"}, r"lm_(.*)=x.\1", [(r"lm_(.*)", r"x.\1")]])
def test_a_rename_in_any_form(rename: Any, demo: Demo) -> None:
    mapping = dcptools.preview(demo.checkpoint, rename=rename)
    assert "x.head.weight" in {output.name for output in mapping.outputs}
    assert mapping == dcptools.preview(demo.checkpoint, rename=[r"lm_(.*)=x.\1"])


def test_a_single_glob_is_one_glob(demo: Demo) -> None:
    mapping = dcptools.preview(demo.checkpoint, include="*norm.weight", exclude="*q_norm*")
    assert mapping == dcptools.preview(demo.checkpoint, include=["*norm.weight"], exclude=["*q_norm*"])
    assert mapping.outputs


def test_home_in_python(home: Path) -> None:
    mapping = dcptools.preview("~/step-100", model_assets_dir="~/assets")
    assert mapping.checkpoint.path == str(home / "step-100")
    assert mapping.options.model_assets_dir == str(home / "assets")
    dcptools.convert("~/step-100", "~/model", model_assets_dir="~/assets", report="~/report.json", fsync=False)
    assert (home / "model" / "model.safetensors").is_file()
    assert dcptools.verify("~/model", "~/step-100", report="~/report.json").ok
    assert dcptools.diff("~/step-100", "~/model", cast=True).same
    assert dcptools.preview("~/step-100", reference="~/model").fit is not None
    assert dcptools.load_tensor("~/step-100", "model.lm_head.weight").numel()
    assert list(Path.cwd().iterdir()) == []


def test_home_in_a_shell_that_leaves_it_in_place(home: Path) -> None:
    (home / "rules.txt").write_text("lm_head.weight=head.weight\n")
    paths = ("--load-dir=~/step-100", "--save-dir=~/model", "--model-assets-dir=~/assets", "--rename-file=~/rules.txt")
    done = CliRunner().invoke(main_group, ["convert", *paths, "--allow-mismatch", "--no-fsync", "--report=~/r.json"])
    assert done.exit_code == 0, done.output
    assert (home / "model" / "config.json").is_file() and (home / "r.json").is_file()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "words", [("diff", "c", "c", "--csv", "-"), ("review", "c", "--html", "-"), ("convert", "c", "--save-dir", "-")]
)
def test_a_dash_is_no_file_of_that_name(
    words: tuple[str, ...], demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c").symlink_to(demo.checkpoint)
    done = CliRunner().invoke(main_group, words)
    assert done.exit_code == 2
    assert f"Invalid value for '{words[-2]}': - is no file here: /dev/stdout is what stdout is called" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("dtype", ["FP16", "torch.float16", "Float16"])
def test_a_dtype_by_any_of_its_names_in_a_shell(dtype: str, demo: Demo) -> None:
    words = ["plan", str(demo.checkpoint), "--dtype", dtype, "--dtype-for", f"lm_head.*={dtype}"]
    done = CliRunner().invoke(main_group, words)
    assert done.exit_code == 0 and "elements as float16)" in done.output, done.output


@pytest.mark.parametrize("size", ["1e6", "1e3kB", "1MB", 1e6, 1_000_000])
def test_a_size_in_any_form(size: Any, demo: Demo) -> None:
    assert dcptools.plan(demo.checkpoint, size).options.shard_size == 1_000_000
    done = CliRunner().invoke(main_group, ["plan", str(demo.checkpoint), "--shard-size", str(size), "--dtype", "bf16"])
    assert done.exit_code == 0 and "2 files, 1.45 MB in total" in done.output, done.output


def test_a_byte_order_mark_in_a_file_of_rules_is_no_part_of_a_rule(demo: Demo, tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("lm_head.weight=head.weight\n", encoding="utf-8-sig")
    done = CliRunner().invoke(main_group, ["preview", str(demo.checkpoint), "--rename-file", str(rules)])
    assert done.exit_code == 0 and "rename-unused" not in done.output and " head.weight" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype_for": "*=float32"}, "elements as float32)"),
        ({"dtype_for": "lm_head.*=float32"}, "elements as bfloat16, float32)"),
        ({"dtype": "keep"}, "elements as float32)"),
    ],
)
def test_the_headline_says_what_is_written(options: Any, said: str, demo: Demo) -> None:
    assert said in dcptools.plan(demo.checkpoint, **options).headline()


def test_a_log_gets_whole_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_progress, "LOG_SECONDS", 0.0)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with _progress.bar(True, "writing") as report:
        assert report is not None
        report(25, 100, "a.weight")
        report(100, 100, "b.weight")
    lines = capsys.readouterr().err
    assert re.fullmatch(r"writing: 25%, 25 B of 100 B, .*/s\n", lines)


def test_a_short_run_leaves_nothing_of_its_progress_in_a_log(demo: Demo, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dcptools", "convert", demo.checkpoint, "--save-dir", tmp_path / "out"]
    done = subprocess.run([*words, "--no-fsync"], capture_output=True, text=True)
    assert done.returncode == 0 and "\r" not in done.stderr and "writing" not in done.stderr


WRONG_STAGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "write a path": (
        lambda at: dcptools.write(at.checkpoint, at.out),
        "A ShardPlan is expected here, and a PosixPath was given.\nMake one: plan(mapping).",
    ),
    "write a mapping": (
        lambda at: dcptools.write(dcptools.preview(at.checkpoint), at.out),
        "A ShardPlan is expected here, and a KeyMapping was given.\n"
        "Go on with the KeyMapping: plan(mapping). What it was made of is mapping.checkpoint.",
    ),
    "convert a mapping": (
        lambda at: dcptools.convert(dcptools.preview(at.checkpoint), at.out),
        "A Checkpoint or a path is expected here, and a KeyMapping was given.\n"
        "Go on with the KeyMapping: plan(mapping). What it was made of is mapping.checkpoint.",
    ),
    "plan a plan": (
        lambda at: dcptools.plan(dcptools.plan(at.checkpoint)),
        "A KeyMapping or a Checkpoint or a path is expected here, and a ShardPlan was given.\n"
        "Go on with the ShardPlan: write(plan, save_dir). What it was made of is plan.mapping.",
    ),
    "read a checkpoint": (
        lambda at: dcptools.read(dcptools.read(at.checkpoint)),
        "A path is expected here, and a Checkpoint was given.\nGo on with the Checkpoint: preview(checkpoint).",
    ),
    "read nothing": (
        lambda at: dcptools.convert(None, at.out),
        "A Checkpoint or a path is expected here, and None was given.\nMake one: read(load_dir).",
    ),
    "load a plan": (
        lambda at: dcptools.load_state_dict(dcptools.plan(at.checkpoint)),
        "A KeyMapping or a Checkpoint or a path is expected here, and a ShardPlan was given.\n"
        "Go on with the ShardPlan: write(plan, save_dir). What it was made of is plan.mapping.",
    ),
    "write into a plan": (
        lambda at: dcptools.convert(at.checkpoint, dcptools.plan(at.checkpoint)),
        "A path is expected here, and a ShardPlan was given.\n"
        "Go on with the ShardPlan: write(plan, save_dir). What it was made of is plan.mapping.",
    ),
    "a mapping as the reference": (
        lambda at: dcptools.convert(at.checkpoint, reference=dcptools.preview(at.checkpoint)),
        "A path is expected here, and a KeyMapping was given.\n"
        "Go on with the KeyMapping: plan(mapping). What it was made of is mapping.checkpoint.",
    ),
    "a shard size for verify": (
        lambda at: dcptools.verify(at.out, at.checkpoint, shard_size="5GB"),
        "A shard size is that of a plan.\n"
        "Give verify what plan(mapping, shard_size=...) returns, instead of the checkpoint.",
    ),
    "verify a mapping": (
        lambda at: dcptools.verify(dcptools.preview(at.checkpoint), at.checkpoint),
        "A Model or a path is expected here, and a KeyMapping was given.\n"
        "Go on with the KeyMapping: plan(mapping). What it was made of is mapping.checkpoint.",
    ),
    "diff a plan": (
        lambda at: dcptools.diff(at.checkpoint, dcptools.plan(at.checkpoint)),
        "A KeyMapping or a Checkpoint or a Model or a path is expected here, and a ShardPlan was given.\n"
        "Go on with the ShardPlan: write(plan, save_dir). What it was made of is plan.mapping.",
    ),
}


@pytest.mark.parametrize("what", WRONG_STAGES)
def test_a_value_of_another_stage_is_told_with_what_takes_it(what: str, demo: Demo, tmp_path: Path) -> None:
    call, message = WRONG_STAGES[what]
    with pytest.raises(UsageError) as caught:
        call(SimpleNamespace(checkpoint=demo.checkpoint, out=tmp_path / "out"))
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()
