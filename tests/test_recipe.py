"""The command line and the call that the widgets show do what the plan says, to the byte."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import models, saved
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

import dcptools
from dcptools.cli import convert_command, main_group
from dcptools.demo import Demo
from dcptools.mapping import Rename, preview
from dcptools.recipe import command_line, python_call, to_inspect, to_plan, to_preview, to_review, to_try
from dcptools.shards import ShardPlan, plan
from dcptools.writer import write

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.trained(tmp_path_factory.mktemp("recipe") / "step 100's")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"model_type": "qwen3", "dtype": "float32"}
    return models.assets(tmp_path_factory.mktemp("recipe") / "assets", config)


def everything(checkpoint: Path, assets: Path) -> ShardPlan:
    """A plan in which no option is at its default."""
    mapping = preview(
        checkpoint,
        model_assets_dir=assets,
        layout="container",
        root="model",
        include=["model.*", "* *"],
        exclude=["*.layers.1.*", "$HOME"],
        rename=[(r"model\.(.*norm.*)", r"model.\1=x"), ("(lm)_(head).weight", r"\2.\1.w")],
    )
    return plan(mapping, 700, "float16", dtype_for=["*.norm.*=float32", "*=x=keep"])


def defaults(checkpoint: Path, assets: Path) -> ShardPlan:
    return plan(preview(checkpoint))


PLANS = pytest.mark.parametrize("make", [defaults, everything])


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def planned(make: Any, checkpoint: Path, assets: Path) -> ShardPlan:
    made: ShardPlan = make(checkpoint, assets)
    return made


@pytest.fixture
def expected(planned: ShardPlan, tmp_path: Path) -> dict[str, bytes]:
    write(planned, tmp_path / "expected", fsync=False)
    return content(tmp_path / "expected")


@PLANS
def test_the_command_writes_what_the_plan_writes(
    planned: ShardPlan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    line = command_line(planned, str(tmp_path / "it's here"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-c", line], env=environment, check=True, capture_output=True)
    assert content(tmp_path / "it's here") == expected


@PLANS
def test_the_call_writes_what_the_plan_writes(planned: ShardPlan, expected: dict[str, bytes], tmp_path: Path) -> None:
    exec(python_call(planned, str(tmp_path / "it's here")), {"dcptools": dcptools})
    assert content(tmp_path / "it's here") == expected


@PLANS
def test_with_overwrite_both_replace_a_model(planned: ShardPlan, expected: dict[str, bytes], tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"older")
    exec(python_call(planned, str(target), overwrite=True), {"dcptools": dcptools})
    assert content(target) == expected
    assert parsed(command_line(planned, str(target), overwrite=True))["overwrite"] is True


def test_options_at_their_defaults_are_left_out(checkpoint: Path, assets: Path) -> None:
    planned = defaults(checkpoint, assets)
    quoted = shlex.quote(str(checkpoint))
    assert command_line(planned, "out") == f"python -m dcptools.convert --load-dir {quoted} --save-dir out"
    assert python_call(planned, "out") == f"dcptools.convert({str(checkpoint)!r}, 'out')"


def test_every_option_is_said(checkpoint: Path, assets: Path) -> None:
    planned = everything(checkpoint, assets)
    words = shlex.split(command_line(planned, "out", overwrite=True))
    options = [
        "--model-assets-dir", str(assets), "--layout", "container", "--root", "model",
        "--include", "model.*", "--include", "* *", "--exclude", "*.layers.1.*", "--exclude", "$HOME",
        "--rename", r"model\.(.*norm.*)=model.\1\075x", "--rename", r"(lm)_(head).weight=\2.\1.w",
        "--shard-size", "700", "--dtype", "float16",
        "--dtype-for", "*.norm.*=float32", "--dtype-for", "*=x=keep", "--overwrite",
    ]  # fmt: skip
    before = ["python", "-m", "dcptools.convert", "--load-dir", str(checkpoint), "--save-dir", "out"]
    assert words == [*before, *options]


def parsed(line: str) -> dict[str, Any]:
    """The options as the command line understands them, nothing run."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "dcptools.convert"]
    return convert_command.make_context("convert", words[3:]).params


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=12)


@example(include=[], exclude=["*"], names=[], save_dir="0")
@example(include=[], exclude=[], names=[("0", "1")], save_dir="0")
@given(
    include=st.lists(texts, max_size=2),
    exclude=st.lists(texts, max_size=2),
    names=st.lists(st.tuples(texts, texts.filter(lambda text: "\\" not in text)), max_size=2),
    save_dir=texts,
)
def test_whatever_the_texts_the_command_line_understands_them(
    checkpoint: Path, include: list[str], exclude: list[str], names: list[tuple[str, str]], save_dir: str
) -> None:
    rules = [Rename(re.escape(old), new) for old, new in names]
    mapping = preview(checkpoint, include=["model.*", *include], exclude=exclude, rename=rules)
    # what is asked for may leave no tensor, or give two one name: no plan then, and the texts are the same
    planned = replace(plan(preview(checkpoint)), mapping=mapping)
    options = parsed(command_line(planned, save_dir))
    assert str(options["load_dir"]) == str(checkpoint)
    assert os.fspath(options["save_dir"]) == os.fspath(Path(save_dir))
    assert list(options["include"]) == ["model.*", *include]
    assert list(options["exclude"]) == exclude
    understood = [Rename.parse(rule) for rule in options["rename"]]
    assert [rule.apply(old) for rule, (old, _) in zip(understood, names, strict=True)] == [new for _, new in names]


def test_what_is_there_is_replaced_or_gone_on_with_only_if_that_is_said(checkpoint: Path) -> None:
    planned = plan(checkpoint)
    assert command_line(planned, "out", overwrite=True, resume=True).endswith(" --save-dir out --overwrite --resume")
    assert python_call(planned, "out", resume=True).endswith(", 'out', resume=True)")
    assert not re.search("overwrite|resume", command_line(planned, "out") + python_call(planned, "out"))


def typed(line: str) -> Any:
    """What a command of ``python -m dcptools`` prints for programs."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "dcptools"]
    done = CliRunner().invoke(main_group, [*words[3:], "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def called(line: str) -> Any:
    return eval(line, {"dcptools": dcptools})


@PLANS
def test_the_lines_of_the_steps_show_what_the_steps_show(planned: ShardPlan) -> None:
    mapping, checkpoint = planned.mapping, planned.checkpoint
    inspecting, previewing, planning = to_inspect(checkpoint), to_preview(mapping), to_plan(planned)
    assert typed(inspecting.shell) == plain(checkpoint.to_json())
    assert_frame_equal(called(inspecting.python), dcptools.inspect(checkpoint))
    assert {**plain(typed(previewing.shell)), "findings": []} == {**plain(mapping.to_json()), "findings": []}
    assert called(previewing.python).to_json() == mapping.to_json()
    assert typed(planning.shell)["fingerprint"] == planned.fingerprint
    assert called(planning.python).fingerprint == planned.fingerprint


def plain(value: Any) -> Any:
    """As it is after a way through JSON; what a rule says in a shell for an equals sign is one."""
    return json.loads(json.dumps(value).replace(r"\\075", "="))


@PLANS
def test_the_lines_for_a_review_write_the_same_page(planned: ShardPlan, tmp_path: Path) -> None:
    page = str(tmp_path / "it's a review.html")
    recipe = to_review(planned.mapping, page, planned.options)
    assert typed(recipe.shell) == {"html": page}
    in_shell = Path(page).read_text()
    Path(page).unlink()
    assert str(called(recipe.python)) == page
    assert without_times(Path(page).read_text()) == without_times(in_shell) and mapping_is_in(in_shell)


def without_times(page: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d[ T][\d:]+", "", page).replace(r"\\075", "=")


def mapping_is_in(page: str) -> bool:
    return "Content-Security-Policy" in page and "embed_tokens" in page


def test_the_line_to_try_loads_the_model_that_would_be_written(demo: Demo) -> None:
    planned = plan(preview(demo.checkpoint, model_assets_dir=demo.assets, tied="keep"), "400kB", "float16")
    model = called(to_try(planned).python)
    assert to_try(planned).shell == "" and str(model.dtype) == "torch.float16"
    weights = dcptools.load_state_dict(planned.mapping, "lm_head.weight", dtype="float16")
    assert torch.equal(model.state_dict()["lm_head.weight"], weights["lm_head.weight"])
