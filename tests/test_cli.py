"""The command line as a user meets it: what it prints where, its exit status, and no traceback for any problem."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
from checkpoints import broken, hostile, lookalikes, models, saved
from checkpoints.edit import data_pickle, editing, indices, item_bytes, item_parts, replace_item, zip_item
from checkpoints.models import assets
from nobody import as_nobody
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import MetadataIndex

import dcptools
from dcptools.cli.commands import (
    convert_command,
    diff_command,
    inspect_command,
    main_group,
    plan_command,
    preview_command,
    verify_command,
)
from dcptools.cli.running import run
from dcptools.errors import UsageError
from dcptools.writer import default_save_dir

STEPS = ("inspect", "preview", "plan", "convert")
COMMANDS = (*STEPS, "verify", "diff")
WARNED = (
    "warning[assets-none]: no assets directory was given, so the result will have no config and no tokenizer "
    "(give the directory of config.json: --model-assets-dir)\n"
)


class Result(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """``cli("plan", directory, "--json")`` as from a shell, in this process."""
    monkeypatch.setenv("COLUMNS", "100")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(*words: object, command: click.Command = main_group) -> Result:
        monkeypatch.setattr(sys, "argv", ["dcptools", *map(os.fsdecode, map(as_word, words))])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(command, "dcptools")
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        assert "Traceback" not in captured.err
        return Result(caught.value.code, captured.out, captured.err)

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def as_word(word: object) -> str | bytes:
    return word if isinstance(word, bytes) else str(word)


def tiny(directory: Path) -> Path:
    """Two tensors of a model, an object, a tensor of another container."""
    state = {"model.norm.weight": torch.ones(3), "model.w": torch.arange(4.0).reshape(2, 2)}
    return saved.save(directory, {"model": state, "optimizer": {"lr": torch.tensor(0.5)}, "step": 3})


def many(directory: Path, count: int, stem: str = "model.model.layers.{}.weight") -> Path:
    """``count`` keys of one stored tensor."""
    saved.save_chunks(directory, {"model.model.first": [((0,), torch.ones(2))]})
    with editing(directory) as metadata:
        (index,) = indices(metadata, "model.model.first")
        for n in range(count):
            key = stem.format(n)
            metadata.planner_data[key] = ("model", key.removeprefix("model."))
            metadata.state_dict_metadata[key] = metadata.state_dict_metadata["model.model.first"]
            metadata.storage_data[MetadataIndex(key, index.offset, 0)] = metadata.storage_data[index]
    return directory


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything below a directory."""
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
    }


# --- help and usage ---------------------------------------------------------------------------------------------

MISSION = (
    "--load-dir", "--save-dir", "--model-assets-dir", "--shard-size", "--dtype", "--dtype-for", "--layout", "--root",
    "--include", "--exclude", "--rename", "--rename-file", "--overwrite", "--no-fsync", "--workers", "--dry-run",
    "--list-leftovers", "--json", "--quiet", "--strict", "--verify", "--report", "-h, --help",
)  # fmt: skip


def test_the_help_has_every_option_and_its_default(cli: Cli) -> None:
    status, out, err = cli("--help", command=convert_command)
    assert (status, err) == (0, "")
    for option in MISSION:
        assert f"  {option}" in out
    text = " ".join(out.split())
    for default in ("<load-dir>/hf_ckpt", "2000000000", "bfloat16", "auto"):
        assert f"[default: {default}]" in text


@pytest.mark.parametrize(
    "command", [inspect_command, preview_command, plan_command, convert_command, verify_command, diff_command]
)
def test_every_option_says_what_it_is_for(command: click.Command) -> None:
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or (isinstance(parameter, click.Option) and parameter.help)
    assert command.help and not command.get_short_help_str(limit=80).endswith("...")


@pytest.mark.parametrize("name", ["preview", "plan", "review", "convert", "verify", "diff"])
def test_the_help_has_each_option_once_under_a_heading(name: str, cli: Cli) -> None:
    shown = cli(name, "--help").out
    options = [p for p in main_group.commands[name].params if isinstance(p, click.Option)]
    found = re.findall(r"^  (?:-h, )?(--[a-z-]+)", shown, re.MULTILINE)
    assert sorted(found) == sorted(["--help", *(option.opts[-1] for option in options)])
    headings = re.findall(r"^(?! )(.*):$", shown, re.MULTILINE)
    assert "Options" not in headings and {"What to read", "The model and its names", "LoRA adapters"} <= set(headings)


def test_the_help_with_few_options_is_one_list(cli: Cli) -> None:
    assert re.findall(r"^(?! )(.*):$", cli("inspect", "--help").out, re.MULTILINE) == ["Options"]


def test_the_group_lists_the_commands(cli: Cli) -> None:
    out = cli("--help").out
    assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()] == sorted((*COMMANDS, "review"))
    assert re.fullmatch(r"dcptools, version \d+\.\d+\.\d+\n", cli("--version").out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert",), "Error: Missing LOAD_DIR (or --load-dir): the directory or URL that holds .metadata.\n"),
        (("convert", "a", "--load-dir", "b"), "Error: Give LOAD_DIR or --load-dir, not both.\n"),
        (("convert", "a", "--dtype", "int8"), "'int8' is not one of 'bfloat16', 'float16', 'float32', 'keep'."),
        (("convert", "a", "--layout", "llama"), "'llama' is not one of 'auto', 'container', 'bare'."),
        (("convert", "a", "--workers", "0"), "0 is not in the range 1<=x<=1024."),
        (("convert", "a", "--workers", "many"), "'many' is not a valid whole number."),
        (("convert", "a", "--nothing"), "No such option"),
        (
            ("convert", "a", "my model"),
            "Error: dcptools convert takes 1 path without an option, and 2 were given: a 'my model'\n"
            "Name the directories: dcptools convert --load-dir a --save-dir 'my model'\n",
        ),
        (
            ("convert", "--load-dir", "a", "b"),
            "Error: Give LOAD_DIR or --load-dir, not both.\n"
            "Name the directories: dcptools convert --load-dir a --save-dir b\n",
        ),
        (
            ("convert", "step_1", "step_2", "step_3"),
            "Error: dcptools convert takes 1 path without an option, and 3 were given: step_1 step_2 step_3\n"
            "Name the others by their options: dcptools convert --help lists them.\n",
        ),
        (
            ("diff", "a", "b", "c"),
            "Error: dcptools diff takes 2 paths without an option, and 3 were given: a b c\n"
            "Name the others by their options: dcptools diff --help lists them.\n",
        ),
        (
            ("verify", "a"),
            "Error: There is nothing to compare the model with.\n"
            "Give the checkpoint, or a report that convert wrote (--report).\n",
        ),
        (("nothing",), "No such command 'nothing'."),
        (("inspect", ""), "Invalid value for '[LOAD_DIR]': The path is empty."),
        (("convert", "a", "--save-dir", ""), "Invalid value for '--save-dir': The path is empty."),
        (("convert", "a", "--workers", "100000"), "100000 is not in the range 1<=x<=1024."),
        (("convert", "a", "--rename", b".*=\xff"), r"Invalid value for '--rename': '.*=\udcff' is not UTF-8."),
        (("convert", "a", "--include", b"\xff"), r"Invalid value for '--include': '\udcff' is not UTF-8."),
        ((), "Usage: dcptools [OPTIONS] COMMAND [ARGS]..."),
    ],
)
def test_usage_errors_have_status_2(words: tuple[str, ...], message: str, cli: Cli) -> None:
    status, out, err = cli(*words)
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shard-size", "0"), "Error: '0' is not a size in bytes.\n"),
        (("--shard-size", "9" * 5000), f"Error: '{'9' * 5000}' is not a size in bytes.\n"),
        (("--shard-size", "lots"), "Error: 'lots' is not a size in bytes.\n"),
        (("--dtype-for", "x"), "Error: 'x' is not a rule for dtypes.\n"),
        (("--rename", "x"), "Error: The rename rule 'x' has no '='.\n"),
        (("--rename", "(=x"), "Error: The rename rule (=x is not a valid regular expression: "),
        (
            ("--rename", "a{99999999999}=x"),
            "Error: The rename rule a{99999999999}=x is not a valid regular expression: ",
        ),
        (("--rename-file", "nowhere"), "Error: The file of rename rules nowhere cannot be read: "),
        (("--model-assets-dir", "nowhere"), "Error: The assets directory nowhere does not exist.\n"),
        (("--root", "ema"), "Error: No tensor's key starts with 'ema.'.\n"),
    ],
)
def test_values_that_cannot_be_used_have_status_2(
    words: tuple[str, ...], message: str, cli: Cli, tmp_path: Path
) -> None:
    status, out, err = cli("convert", tiny(tmp_path / "c"), *words)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert not default_save_dir(tmp_path / "c").exists()


# --- what is printed --------------------------------------------------------------------------------------------


def test_inspect(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("inspect", tiny(tmp_path / "c"))
    size = f"{object_bytes(tmp_path / 'c') / 1000:.2f} kB"
    assert (status, err) == (0, "")
    assert out == "\n".join(
        [
            f"{tmp_path / 'c'}: 3 tensors with 8 elements in 32 B, 1 object, 3 chunks in 1 file",
            "root           keys    elements    bytes  dtypes",
            "-----------  ------  ----------  -------  --------",
            f"(top level)       1           0  {size}  object",
            "model             2           7     28 B  float32",
            "optimizer         1           1      4 B  float32",
            "",
            "key    shape    dtype      bytes    chunks",
            "-----  -------  -------  -------  --------",
            f"step            object   {size}         1",
            "",
            "key                      shape    dtype      bytes    chunks",
            "-----------------------  -------  -------  -------  --------",
            "model.model.norm.weight  [3]      float32     12 B         1",
            "model.model.w            [2, 2]   float32     16 B         1",
            "",
            "key           shape    dtype      bytes    chunks",
            "------------  -------  -------  -------  --------",
            "optimizer.lr  []       float32      4 B         1",
            "",
        ]
    )


def object_bytes(directory: Path) -> int:
    with editing(directory) as metadata:
        (index,) = indices(metadata, "step")
        return int(metadata.storage_data[index].length)


def test_inspect_shows_20_keys_of_a_container_or_all(cli: Cli, tmp_path: Path) -> None:
    many(tmp_path / "c", 30)
    short, long = cli("inspect", tmp_path / "c").out, cli("inspect", tmp_path / "c", "--all").out
    assert (short.count("model.model."), long.count("model.model.")) == (20, 31)
    assert "... 11 more of 31 rows (--all prints every row)" in short and "more of" not in long


def test_every_command_shows_20_rows_or_all_and_says_how(cli: Cli, tmp_path: Path) -> None:
    directory, other, out = many(tmp_path / "c", 30), tmp_path / "other", tmp_path / "out"
    saved.save(other, {"model": {f"model.layers.{n}.w": torch.ones(2) for n in range(30)}})
    dcptools.convert(directory, out, shard_size=8, fsync=False)  # another model than that of ``other``
    cut = {
        ("preview", directory): 31,
        ("plan", directory, "--shard-size=2"): 31,
        ("convert", directory, "--shard-size=2", "--dry-run"): 31,
        ("convert", directory, "--shard-size=2", "--overwrite", f"--save-dir={tmp_path / 'new'}"): 32,  # with the index
        ("verify", out, other): 61,
        ("diff", directory, other): 61,
    }
    for words, rows in cut.items():
        told = f"... {rows - 20} more of {rows} rows (--all prints every row)"
        short, long = cli(*words), cli(*words, "--all")
        assert told in short.out, short
        assert "more of" not in long.out and long.out.count("\n") >= rows and long.status == short.status, long
    assert "more of 31 rows\n" in str(dcptools.preview(directory))  # not a word of a shell's options in Python


def test_preview(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("preview", tiny(tmp_path / "c"), "--list-leftovers")
    assert (status, err) == (0, "")
    assert out.splitlines()[:5] == [
        "2 outputs with 7 elements; 2 keys left out",
        "key                      name               shape    dtype    rule",
        "-----------------------  -----------------  -------  -------  ----------------",
        "model.model.norm.weight  model.norm.weight  [3]      float32  without 'model.'",
        "model.model.w            model.w            [2, 2]   float32  without 'model.'",
    ]
    assert out.splitlines()[-2:] == [
        "left out: optimizer.lr (not under 'model.' (optimizer))",
        "left out: step (a pickled object, not a tensor)",
    ]


def test_messages_name_options_as_they_are_typed(cli: Cli, tmp_path: Path) -> None:
    directory = tiny(tmp_path / "c")
    out = cli("preview", directory)[1]
    assert "(--layout overrides it)" in out and "give the directory of config.json: --model-assets-dir" in out
    assert "(layout= overrides it)" in str(dcptools.preview(directory))


def test_plan(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("plan", tiny(tmp_path / "c"), "--shard-size", 8)
    assert status == 0
    total = re.match(
        r"2 files, (\d+) B in total \(7 elements as bfloat16\), at most 8 B of values per file; about ", out
    )
    assert total and int(total[1]) == sum(int(line.split()[2]) for line in out.splitlines()[3:5])
    assert [line.split()[0] for line in out.splitlines()[3:5]] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert err.startswith(WARNED)


def test_convert(cli: Cli, tmp_path: Path) -> None:
    words = ("--load-dir", tiny(tmp_path / "c"), "--save-dir", tmp_path / "out", "--model-assets-dir")
    status, out, err = cli(*words, assets(tmp_path / "a"), command=convert_command)
    names = ("model.safetensors", "config.json", "tokenizer.json")
    sizes = [(tmp_path / "out" / name).stat().st_size for name in names]
    assert status == 0
    first, *table, last = out.splitlines()
    assert re.fullmatch(
        rf"Wrote 2 tensors in 1 file, {sizes[0]} B in total, to {tmp_path / 'out'} in \d+\.\d\d s \([\d.]+ k?B/s\)",
        first,
    )
    assert [line.split() for line in table[2:]] == [
        [name, str(size), "B"] for name, size in zip(names, sizes, strict=True)
    ]
    assert last.startswith("checksums of 2 stored items verified; peak memory ")
    assert "warning" not in err


def test_the_load_dir_can_be_given_in_two_ways(cli: Cli, tmp_path: Path) -> None:
    tiny(tmp_path / "c")
    assert cli("plan", tmp_path / "c") == cli("plan", "--load-dir", tmp_path / "c")


def test_the_options_reach_the_conversion(cli: Cli, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("# the names of another library\n\n  model\\.w=weight  \n", encoding="utf-8")
    status, _, err = cli(
        "convert", saved.wrapped(tmp_path / "c", "_orig_mod.", {"w": torch.ones(2), "v": torch.ones(2)}),
        "--layout", "container", "--rename", "w=model.w2", "--rename-file", rules, "--exclude", "*.v",
        "--dtype", "float16", "--dtype-for", "model.w2=float32", "--workers", 1, "--no-fsync",
        "--save-dir", tmp_path / "o",
    )  # fmt: skip
    assert status == 0
    assert r"warning[rename-unused]: the rule model\.w=weight matched no name" in err
    assert {name: t.dtype for name, t in load_file(tmp_path / "o" / "model.safetensors").items()} == {
        "model.w2": torch.float32
    }


def test_rules_of_the_command_line_come_before_those_of_the_file(cli: Cli, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("# comment\n\n model\\.w=of.the.file\nmodel\\.norm\\.weight=norm\n#x=y\n")
    out = cli("preview", tiny(tmp_path / "c"), "--rename", r"model\.w=first", "--rename-file", rules, "--json").out
    assert [output["name"] for output in json.loads(out)["outputs"]] == ["first", "norm"]


def test_a_rules_file_that_is_no_text_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rules").write_bytes(b"\xff\xfe")
    status, _, err = cli("preview", tiny(tmp_path / "c"), "--rename-file", tmp_path / "rules")
    assert status == 2
    assert err.startswith(f"Error: The file of rename rules {tmp_path / 'rules'} cannot be read: ")


def test_at_most_20_findings_of_a_code_are_printed(cli: Cli, tmp_path: Path) -> None:
    many(tmp_path / "c", 25, "model.visual{}.weight")
    lines = cli("convert", tmp_path / "c", "--dry-run").err.splitlines()
    shown = [line for line in lines if line.startswith("warning[unusual-key]")]
    assert len(shown) == 21
    assert shown[-1] == "warning[unusual-key]: and 5 more"
    assert WARNED.strip() in lines  # of other codes nothing is lost


# --- json and quiet ---------------------------------------------------------------------------------------------


def test_json_is_one_object_on_stdout_and_the_rest_is_on_stderr(cli: Cli, tmp_path: Path) -> None:
    directory = tiny(tmp_path / "c")
    keys = {
        "inspect": {"path", "tensors", "objects", "files", "findings"},
        "preview": {"layout", "root", "outputs", "leftovers", "findings"},
        "plan": {"fingerprint", "files", "dtype", "shard_size", "total_bytes", "total_parameters", "findings"},
        "convert": {"save_dir", "files", "index", "assets", "fingerprint", "seconds", "peak_bytes", "findings"},
    }
    for command in STEPS:
        status, out, err = cli(command, directory, "--json")
        assert status == 0
        assert json.loads(out).keys() >= keys[command]
        if command == "convert":
            assert err.startswith(WARNED)


def test_a_dry_run_as_json_has_all_three(cli: Cli, tmp_path: Path) -> None:
    result = json.loads(cli("convert", tiny(tmp_path / "c"), "--dry-run", "--json").out)
    assert result.keys() == {"mapping", "plan", "save_dir"}
    assert result["save_dir"] == str(tmp_path / "c" / "hf_ckpt")
    assert result["mapping"] == json.loads(cli("preview", tmp_path / "c", "--json").out)


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_json_of_a_refusal_is_one_object_too(command: str, cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli(command, broken.hole(tmp_path / "c"), "--json")
    assert status == 1
    result = json.loads(out)
    assert result.keys() == {"error", "message", "findings"}
    assert result["error"] == "FindingsError"
    assert f"Error: {result['message']}" in err
    assert [f["code"] for f in result["findings"] if f["severity"] == "error"] == ["hole"]


def test_json_of_a_preview_with_errors_is_one_object_too(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("preview", broken.hole(tmp_path / "c"), "--json")
    assert (status, err) == (1, "Error: 1 error: this checkpoint cannot be converted with these options.\n")
    assert [f["code"] for f in json.loads(out)["findings"] if f["severity"] == "error"] == ["hole"]


@pytest.mark.parametrize("command", STEPS)
def test_quiet_prints_nothing_if_all_goes_well(command: str, cli: Cli, tmp_path: Path) -> None:
    assert cli(command, tiny(tmp_path / "c"), "--quiet") == (0, "", "")


def test_quiet_still_prints_errors(cli: Cli, tmp_path: Path) -> None:
    broken.hole(tmp_path / "c")
    line = "error[hole] model.model.w: "
    for command in ("preview", "plan", "convert"):
        status, out, err = cli(command, tmp_path / "c", "--quiet")
        assert (status, out) == (1, "")
        assert line in err and "warning" not in err


# --- dry run ----------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_mapping_and_plan_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    directory = tiny(tmp_path / "c")
    before = tree(tmp_path)
    status, out, err = cli("convert", directory, "--save-dir", tmp_path / "new" / "out", "--dry-run")
    assert (status, tree(tmp_path)) == (0, before)
    mapping, _, planned = out.partition("\n\n")
    assert cli("preview", directory).out.startswith(mapping)
    assert planned == f"{cli('plan', directory).out}\nDry run: nothing was written to {tmp_path / 'new' / 'out'}.\n"
    assert err == cli("plan", directory).err


def model_there(tmp_path: Path) -> tuple[object, ...]:
    lookalikes.huggingface(tmp_path / "out")
    return ("--save-dir", tmp_path / "out")


def file_there(tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "out").write_text("")
    return ("--save-dir", tmp_path / "out")


def file_above(tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "file").write_text("")
    return ("--save-dir", tmp_path / "file" / "out")


REFUSED: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "a model is there": model_there,
    "a file is there": file_there,
    "a file is above": file_above,
    "the checkpoint": lambda tmp_path: ("--save-dir", tmp_path / "c"),
    "the assets": lambda tmp_path: ("--save-dir", tmp_path / "a", "--model-assets-dir", assets(tmp_path / "a")),
    "strict": lambda tmp_path: ("--strict",),
    "nothing left": lambda tmp_path: ("--exclude", "*"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_dry_run_refuses_what_a_run_refuses_with_the_same_words(case: str, cli: Cli, tmp_path: Path) -> None:
    words = ("convert", tiny(tmp_path / "c"), *REFUSED[case](tmp_path))
    before = tree(tmp_path)
    dry, real = cli(*words, "--dry-run"), cli(*words)
    assert dry == real
    assert (dry.status, dry.out) == (1, "")
    assert tree(tmp_path) == before


def test_a_dry_run_refuses_a_disk_that_is_too_small(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcptools.writer.target.free_bytes", lambda save_dir: 1000)
    dry, real = cli("convert", tiny(tmp_path / "c"), "--dry-run"), cli("convert", tmp_path / "c")
    assert dry == real
    assert f"{tmp_path / 'c' / 'hf_ckpt'} has 1.00 kB free, but " in dry.err
    assert dry.status == 1


def test_a_dry_run_with_overwrite_accepts_a_model(cli: Cli, tmp_path: Path) -> None:
    lookalikes.huggingface(tmp_path / "out")
    words = ("convert", tiny(tmp_path / "c"), "--save-dir", tmp_path / "out", "--overwrite")
    before = tree(tmp_path)
    assert cli(*words, "--dry-run").status == 0
    assert tree(tmp_path) == before
    assert cli(*words).status == 0


# --- problems ---------------------------------------------------------------------------------------------------

PROBLEMS: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: path,
    **{
        maker.__name__: maker
        for maker in (
            lookalikes.empty, lookalikes.plain_file, lookalikes.interrupted, lookalikes.metadata_only,
            lookalikes.distcp_only, lookalikes.steps, lookalikes.accelerate, lookalikes.torchtitan,
            lookalikes.huggingface, lookalikes.pytorch_bin, lookalikes.verl, lookalikes.deepspeed,
            lookalikes.megatron_legacy, lookalikes.flat_parameters, lookalikes.consolidated,
            saved.no_model, saved.empty_state, saved.odd_names, saved.colliding,
            broken.missing_file, broken.truncated_file, broken.flipped_bit,
            broken.file_is_directory, broken.garbage_metadata, broken.truncated_metadata, broken.empty_metadata,
            broken.metadata_is_directory, broken.not_metadata, broken.hole, broken.overlap, broken.out_of_bounds,
            broken.no_storage, broken.wrong_shape, broken.huge_size, broken.escaping_path, broken.unknown_transform,
            broken.other_dtype, broken.not_a_zip, broken.deflated, broken.short_data, broken.item_runs_system,
        )
    },
    **{f"hostile {name}": lambda path, name=name: hostile.runner(path, name) for name in hostile.RUNNERS},
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_ends_in_a_message_and_status_1_and_writes_nothing(problem: str, cli: Cli, tmp_path: Path) -> None:
    PROBLEMS[problem](tmp_path / "c")
    before = tree(tmp_path)
    status, out, err = cli("convert", tmp_path / "c", "--save-dir", tmp_path / "new" / "out")
    assert (status, out) == (1, "")
    message = err[err.index("Error: ") :]
    assert "DCPTOOLS_TRACEBACK" not in message  # it is a problem that was foreseen
    assert 1 <= len(message.splitlines()) <= 6 + message.count("error[")
    assert tree(tmp_path) == before


def test_no_model_weights_says_what_to_check_and_which_patterns_matched_nothing(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("convert", saved.no_model(tmp_path / "c"), "--include", "modle.*")
    assert (status, out) == (1, "")
    lines, hint = err.splitlines()[:3], err.splitlines()[3:]
    assert lines == [
        "warning[pattern-unused]: 'modle.*' matched no tensor's key",
        WARNED.strip(),
        "Error: No model weights found!",
    ]
    assert " ".join(hint) == (
        f"{tmp_path / 'c'} holds an optimizer's state, not a model: "
        "give the checkpoint of the model, whose keys start with 'model.'; "
        "top-level keys here: optimizer, step; if the model is there, say where with --layout or --root"
    )


def test_all_errors_are_named_at_once(cli: Cli, tmp_path: Path) -> None:
    err = cli("convert", lookalikes.flat_parameters(tmp_path / "c")).err
    message = err[err.index("Error: ") :].splitlines()
    assert message[0] == "Error: 3 errors prevent the conversion:"
    assert [line.partition(":")[0] for line in message[1:]] == [
        f"error[flat-parameter] model._fsdp_wrapped_module.{rest}_flat_param"
        for rest in ("", *(f"model.layers.{n}._fsdp_wrapped_module." for n in range(2)))
    ]


def test_a_bug_is_one_line_and_a_hint(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("oh no")

    monkeypatch.setattr("dcptools.checkpoint.read", fail)
    assert cli("inspect", tmp_path) == (
        1,
        "",
        "Error: ZeroDivisionError: oh no\nDCPTOOLS_TRACEBACK=1 shows where this happened.\n",
    )
    monkeypatch.setenv("DCPTOOLS_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["dcptools", "inspect", str(tmp_path)])
    with pytest.raises(ZeroDivisionError):
        run(main_group, "dcptools")


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "Interrupted; what was half-written is removed."),
        (signal.SIGTERM, 143, "Stopped by a signal; what was half-written is removed."),
    ],
)
def test_a_signal_cleans_up(
    number: signal.Signals, status: int, message: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def stop(*args: object) -> None:  # all tensors are in temporary files now
        reached.append(sorted(path.name for path in (tmp_path / "out").iterdir()))
        signal.raise_signal(number)

    monkeypatch.setattr("dcptools.writer.writing.check_file", stop)
    tiny(tmp_path / "c")
    before = tree(tmp_path)
    try:
        result = cli("convert", tmp_path / "c", "--save-dir", tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert reached and len(reached[0]) >= 2
    assert (result.status, result.out) == (status, "")
    assert result.err.splitlines()[-1] == message
    assert tree(tmp_path) == before


LOST = """
import os, signal, time, weakref
import click
from dcptools.cli.running import run

class It:
    pass

@click.command()
def command():
    it = It()
    there = weakref.ref(it, lambda _: os.kill(os.getpid(), signal.{}))
    del it
    time.sleep(60)

run(command)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_where_no_error_gets_out_comes_again(number: signal.Signals, status: int) -> None:
    done = shell("-c", LOST.format(number.name), preexec_fn=hear_ctrl_c)
    assert done.returncode == status and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "Interrupted."), (signal.SIGTERM, "Stopped by a signal.")]
)
@pytest.mark.parametrize("where", ["swap.Swap.clean", "report", "verify_written"])
def test_a_signal_when_the_model_is_complete_says_so(
    where: str, number: signal.Signals, said: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    tiny(tmp_path / "c")
    words = ["convert", tmp_path / "c", "--save-dir", tmp_path / "out", "--verify", "--overwrite", "--json"]
    words += ["--report", tmp_path / "report.json"]
    assert cli(*words).status == 0
    places = {"swap.Swap.clean": "dcptools.writer.swap.Swap.clean", "report": "dcptools.verifying.write_receipt"}
    monkeypatch.setattr(places.get(where, f"dcptools.verifying.{where}"), lambda *_, **__: signal.raise_signal(number))
    try:
        result = cli(*words)
    finally:
        signal.signal(signal.SIGINT, handler)
    rest = {"swap.Swap.clean": f"; the next run there removes what is left of the old one in {tmp_path / 'out'}/"}
    assert result.status == 128 + number
    assert f"{said}\nThe {'new ' * (where in rest)}model is complete in {tmp_path / 'out'}" in result.err
    assert rest.get(where, ", but what follows (--verify, --report) was not finished.") in result.err
    assert "removed." not in result.err
    assert json.loads(result.out)["message"].startswith(said)
    assert (tmp_path / "out" / "model.safetensors").exists()


# --- real processes ---------------------------------------------------------------------------------------------


def shell(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)], capture_output=True, text=True, timeout=120, **options
    )


def test_the_module_converts_in_silence_and_into_the_checkpoint(tmp_path: Path) -> None:
    tiny(tmp_path / "c")
    done = shell("-m", "dcptools.convert", "--load-dir", "c", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    tensors = load_file(tmp_path / "c" / "hf_ckpt" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "model.norm.weight": torch.bfloat16,
        "model.w": torch.bfloat16,
    }


@pytest.mark.parametrize("module", ["dcptools.convert", "dcptools"])
def test_help_loads_nothing_that_takes_seconds(module: str) -> None:
    done = shell("-X", "importtime", "-m", module, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(
        f"Usage: {'python -m dcptools.convert' if module != 'dcptools' else module} [OPTIONS]"
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"click", "dcptools"} <= loaded
    assert loaded.isdisjoint(
        {"torch", "transformers", "safetensors", "pandas", "matplotlib", "IPython", "ipywidgets", "rich", "tqdm"}
    )


@pytest.mark.parametrize("words", [("inspect", "--all"), ("inspect", "--json")])
def test_a_reader_that_stops_early_is_no_problem(words: tuple[str, ...], tmp_path: Path) -> None:
    directory = many(tmp_path / "c", 1500, "model.model.layers.{}." + "x" * 80)  # more than a pipe holds
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "dcptools", *words, str(directory)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout and process.stderr
    assert len(os.read(process.stdout.fileno(), 10)) == 10
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()


# --- paths that the system refuses ------------------------------------------------------------------------------

LONG = "x" * 300  # characters; file systems take 255


def loop(directory: Path) -> Path:
    (directory / "loop").symlink_to("loop")
    return directory / "loop"


REFUSED_PATHS = {
    "a long name": (lambda tmp_path: tmp_path / LONG, "File name too long.\nCheck the path."),
    "a long name above": (lambda tmp_path: tmp_path / LONG / "x", "File name too long.\nCheck the path."),
    "a loop above": (
        lambda tmp_path: loop(tmp_path) / "x",
        "Too many levels of symbolic links.\nCheck the path: a symlink in it leads back to itself.",
    ),
}


@pytest.mark.parametrize("case", REFUSED_PATHS)
def test_a_path_that_the_system_refuses(case: str, cli: Cli, tmp_path: Path) -> None:
    maker, reason = REFUSED_PATHS[case]
    path, checkpoint = maker(tmp_path), tiny(tmp_path / "c")
    loaded = f"{path}/.metadata cannot be read: {reason}"
    assert cli("inspect", path) == (1, "", f"Error: {loaded}\n")
    assert json.loads(cli("preview", path, "--json").out)["message"] == loaded
    saved_to = f"The output {path} cannot be used: {reason}"
    for dry in ((), ("--dry-run",)):
        status, out, err = cli("convert", checkpoint, "--save-dir", path, "--quiet", *dry)
        assert (status, out, err) == (1, "", f"Error: {saved_to}\n")
    rules = f"The file of rename rules {path} cannot be read: {reason}"
    assert cli("preview", checkpoint, "--rename-file", path) == (2, "", f"Error: {rules}\n")
    if "loop" not in case:  # that is no directory
        assets_ = f"The assets directory {path} cannot be read: {reason}"
        assert cli("preview", checkpoint, "--model-assets-dir", path) == (2, "", f"Error: {assets_}\n")
    with pytest.raises(dcptools.DcptoolsError, match=re.escape(reason)):
        dcptools.read(path)
    with pytest.raises(dcptools.DcptoolsError, match=re.escape(reason)):
        dcptools.convert(checkpoint, path)


@pytest.mark.parametrize("name", [LONG, "loop"])
def test_a_file_name_in_the_metadata_that_the_system_refuses_is_that_of_a_missing_file(
    name: str, cli: Cli, tmp_path: Path
) -> None:
    checkpoint = broken.located(tiny_with_b(tmp_path / "c"), relative_path=name)
    loop(checkpoint)
    status, _, err = cli("convert", checkpoint)
    assert status == 1
    assert f"error[missing-file] model.model.b: there is no file {name} (copy the missing files)" in err


def tiny_with_b(directory: Path) -> Path:
    return saved.save(directory, {"model": {"model.b": torch.ones(4)}})


def test_an_asset_of_a_name_that_has_no_room_for_a_temporary_one(cli: Cli, tmp_path: Path) -> None:
    given = assets(tmp_path / "a")
    (given / f"{LONG[:245]}.json").touch()
    words = ("--save-dir", tmp_path / "out", "--model-assets-dir", given, "--quiet", "--dtype", "keep")
    status, out, err = cli("convert", tiny(tmp_path / "c"), *words)
    assert (status, out) == (1, "")
    assert err.startswith(f"Error: Writing to {tmp_path / 'out'} failed: File name too long: ")
    assert not (tmp_path / "out").exists()


def test_somebody_elses_directory_does_not_hide_what_is_beside_it(cli: Cli, tmp_path: Path) -> None:
    tiny(tmp_path / "run" / "checkpoints" / "step_1")
    loop(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / LONG[:200]).mkdir(mode=0o000)
    assert "Give that one: " in cli("inspect", tmp_path / "run").err


def test_what_may_not_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(0o755)
    checkpoint, given = tiny(tmp_path / "c"), assets(tmp_path / "a")
    (given / "config.json").chmod(0o000)
    assert as_nobody(lambda: dcptools.preview(checkpoint, model_assets_dir=given)) == (
        f"UsageError: The assets directory {given} cannot be read: Permission denied ({given}/config.json).\n"
        "Check the permissions."
    )
    given.chmod(0o000)
    assert as_nobody(lambda: dcptools.preview(checkpoint, model_assets_dir=given)) == (
        f"UsageError: The assets directory {given} cannot be read: Permission denied.\nCheck the permissions."
    )
    given.chmod(0o755)
    (checkpoint / ".metadata").chmod(0o000)
    denied = f"NotACheckpoint: {checkpoint}/.metadata cannot be read: Permission denied.\nCheck the permissions."
    assert as_nobody(lambda: dcptools.read(checkpoint)) == denied
    (checkpoint / ".metadata").chmod(0o644)
    checkpoint.chmod(0o600)
    assert as_nobody(lambda: dcptools.read(checkpoint)) == denied
    checkpoint.chmod(0o700)
    assert as_nobody(lambda: dcptools.read(checkpoint)) == denied if os.getuid() == 0 else True


# --- names that are no text, or drive a terminal ----------------------------------------------------------------

ESCAPES = "\x1b]0;owned\x07\x1b[31m\x9b2J\r"
SHOWN = r"\x1b]0;owned\x07\x1b[31m\x9b2J\r"


def class_with_escapes(directory: Path) -> Path:
    metadata = tiny(directory) / ".metadata"
    metadata.write_bytes(metadata.read_bytes().replace(b"BytesStorageMetadata", b"BytesStorage\x1b[31mata"))
    return directory


def entry_with_escapes(directory: Path) -> Path:
    """An item that asks for an entry of its archive that is not there; the message names it."""
    checkpoint = tiny_with_b(directory)
    parts = item_parts(item_bytes(checkpoint, "model.model.b"))
    name = data_pickle(parts)
    parts[name] = parts[name].replace(b"X\x01\x00\x00\x000", b"X\x06\x00\x00\x000\x1b[31m")
    replace_item(checkpoint, "model.model.b", zip_item(parts))
    return checkpoint


def steps_with_escapes(directory: Path) -> Path:
    tiny(directory / f"step{ESCAPES}" / "x")
    return directory


def file_with_escapes(directory: Path) -> Path:
    directory.mkdir()
    (directory / f"x{ESCAPES}.pt").touch()
    return directory


WITH_ESCAPES: dict[str, Callable[[Path], Path]] = {
    "a key": lambda path: saved.save(path, {"model": {f"model.{ESCAPES}w": torch.ones(2)}}),
    "a container": lambda path: saved.save(path, {ESCAPES: {"model.w": torch.ones(2)}}),
    "the directory": lambda path: tiny(path / ESCAPES),
    "a directory that is not there": lambda path: path / ESCAPES,
    "a directory below": steps_with_escapes,
    "a file": file_with_escapes,
    "a class": class_with_escapes,
    "an entry of an archive": entry_with_escapes,
    "a file in the metadata": lambda path: broken.located(tiny_with_b(path), relative_path=ESCAPES),
    "a transform": lambda path: broken.located(tiny_with_b(path), transform_descriptors=[ESCAPES]),
}


@pytest.mark.parametrize("case", WITH_ESCAPES)
def test_names_do_not_drive_a_terminal(case: str, cli: Cli, tmp_path: Path) -> None:
    directory = WITH_ESCAPES[case](tmp_path / "c")
    for words in (
        ("inspect", directory, "--tree"), ("inspect", directory, "--all"), ("preview", directory, "--list-leftovers"),
        ("plan", directory), ("convert", directory, "--dry-run", "--list-leftovers"),
        ("convert", directory, "--save-dir", tmp_path / ESCAPES),
        ("convert", directory, ESCAPES), ("convert", directory, f"--{ESCAPES}"), (ESCAPES,),
        ("convert", directory, "--rename", f"[{ESCAPES}=x"), ("convert", directory, "--root", ESCAPES),
    ):  # fmt: skip
        status, out, err = cli(*words)
        assert status in (0, 1, 2)
        shown = out + re.sub(r"\rwriting: .*", "", err)  # the bar is our own
        assert all(line.isprintable() for line in shown.split("\n")), words
        out = cli(*words, "--json").out
        assert all(line.isprintable() for line in out.split("\n")) and json.loads(out)


def test_errors_do_not_drive_a_terminal_from_python_either(tmp_path: Path) -> None:
    with pytest.raises(dcptools.DcptoolsError) as caught:
        dcptools.read(tmp_path / ESCAPES)
    assert str(caught.value).startswith(f"There is no directory {tmp_path}/{SHOWN}.\nA distributed checkpoint is ")


@pytest.mark.parametrize("rule", ["w=\ud800", ("model.w", "x\udcff")])
def test_a_name_that_is_no_text_is_a_finding(rule: Any, tmp_path: Path) -> None:
    found = dcptools.preview(tiny(tmp_path / "c"), rename=["model." + rule] if isinstance(rule, str) else [rule])
    (finding,) = found.errors
    assert finding.code == "reserved-name" and "which safetensors cannot store" in str(finding)
    assert str(finding).isprintable()


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def test_a_locale_without_umlauts(tmp_path: Path) -> None:
    saved.save(tmp_path / "ü", {"model": {"model.ö": torch.ones(2), "model.b": torch.ones(1)}})
    environment = {**os.environ, **ASCII}
    done = shell("-m", "dcptools", "preview", tmp_path / "ü", "--rename", "model.ö=ä", env=environment)
    assert done.returncode == 0
    assert r"model.model.\xf6  \xe4" in done.stdout
    done = shell(
        "-m", "dcptools", "convert", tmp_path / "ü", "--rename", "model.ö=ä", "--save-dir", tmp_path / "ß", "--json",
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0 and json.loads(done.stdout)["tensors"] == 2
    assert load_file(tmp_path / "ß" / "model.safetensors").keys() == {"ä", "model.b"}
    shutil.rmtree(tmp_path / "ß")


def test_a_name_that_the_locale_lacks_is_an_error_of_ours(tmp_path: Path) -> None:
    broken.located(tiny_with_b(tmp_path / "named"), relative_path="ü")
    tiny(tmp_path / "c")
    code = """
import dcptools, sys
for call in (
    lambda: dcptools.read("named"), lambda: dcptools.read("\\xfc"), lambda: dcptools.convert("c", "\\xfc"),
    lambda: dcptools.preview("c", model_assets_dir="\\xfc"),
):
    try:
        call()
    except dcptools.DcptoolsError as error:
        print(ascii(str(error)))
"""
    done = shell("-c", code, cwd=tmp_path, env={**os.environ, **ASCII})
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 4)
    lacking = "the encoding of this locale, ascii, has no such characters.\\nSet LC_ALL=C.UTF-8."
    assert done.stdout.splitlines()[0] == f"'The files that named/.metadata names cannot be read: {lacking}'"
    assert done.stdout.count(lacking) >= 3


# --- streams that cannot be written to --------------------------------------------------------------------------


def redirected(redirection: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable, "-W", "error", "-m", "dcptools", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, cwd=cwd)


@pytest.mark.parametrize(
    "redirection", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>&1 | head -c 1; exit ${PIPESTATUS[0]}"]
)
def test_a_stream_that_nobody_reads_is_no_reason_to_stop(redirection: str, tmp_path: Path) -> None:
    tiny(tmp_path / "c")
    done = redirected(redirection, "convert", "c", "--save-dir", "out", "--dtype", "keep", cwd=tmp_path)
    assert done.returncode == 0
    assert "Error" not in done.stderr and "Traceback" not in done.stderr
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == {"model.norm.weight", "model.w"}


def test_a_result_that_cannot_be_printed_is_an_error_and_the_model_is_there(tmp_path: Path) -> None:
    tiny(tmp_path / "c")
    lost = "Error: The result cannot be written to stdout: No space left on device.\n"
    for words in (("inspect", "c"), ("plan", "c", "--json")):
        done = redirected(">/dev/full", *words, cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.endswith(lost)
    done = redirected(">/dev/full", "convert", "c", "--save-dir", "out", "--dtype", "keep", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith(lost + "The model is complete in out; only this report is missing.\n")
    assert load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_a_problem_without_stderr_still_has_its_status_and_json(redirection: str, tmp_path: Path) -> None:
    for words, status in (
        (("inspect", "nowhere"), 1), (("inspect", "nowhere", "--nothing"), 2), (("plan", "c", "--shard-size", "x"), 2)
    ):  # fmt: skip
        tiny(tmp_path / "c")
        done = redirected(redirection, *words, "--json", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (status, "")
        assert json.loads(done.stdout).keys() == {"error", "message", "findings"}


def test_json_of_a_usage_error_is_one_object_too(cli: Cli) -> None:
    status, out, err = cli("convert", "a", "--workers", "0", "--json")
    result = json.loads(out)
    assert (status, result["error"], result["findings"]) == (2, "BadParameter", [])
    assert err.endswith(f"Error: {result['message']}\n")


# --- Ctrl-C while modules are imported --------------------------------------------------------------------------


def interrupted_by(module: str, directory: Path) -> dict[str, str]:
    """An environment in which importing ``module`` is when Ctrl-C comes."""
    (directory / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(Path(dcptools.__file__).parents[1])])}


def hear_ctrl_c() -> None:  # a shell's background jobs ignore it, and so do their children
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def console_script(directory: Path) -> Path:
    script = directory / "bin" / "dcptools"
    script.parent.mkdir()
    script.write_text("import sys\nfrom dcptools.__main__ import main\nsys.exit(main())\n")
    return script


@pytest.mark.parametrize("module", ["numpy", "click"])  # for the package, and for the command line
@pytest.mark.parametrize("start", ["-m dcptools", "-m dcptools.convert", "script"])
def test_ctrl_c_during_the_imports_is_one_line(module: str, start: str, tmp_path: Path) -> None:
    words = [console_script(tmp_path)] if start == "script" else start.split()
    environment = interrupted_by(module, tmp_path)
    done = shell(*words, "plan", "x", env=environment, preexec_fn=hear_ctrl_c)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted; nothing was written.\n")
    done = shell(*words, "plan", "x", "--json", env=environment, preexec_fn=hear_ctrl_c)
    assert (done.returncode, json.loads(done.stdout)["error"]) == (130, "Interrupted")


def test_ctrl_c_during_an_import_is_left_to_who_imports_the_package(tmp_path: Path) -> None:
    code = "try:\n    import dcptools\nexcept KeyboardInterrupt:\n    print('mine')"
    done = shell("-c", code, env=interrupted_by("numpy", tmp_path), preexec_fn=hear_ctrl_c)
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine\n", "")
    code = "import signal, dcptools; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert shell("-c", code, preexec_fn=hear_ctrl_c).returncode == 0


def test_ctrl_c_while_torch_is_imported_leaves_nothing(tmp_path: Path) -> None:
    tiny(tmp_path / "c")
    done = shell(
        "-m", "dcptools", "convert", tmp_path / "c", "--save-dir", tmp_path / "out", "--quiet", "--json",
        env=interrupted_by("torch", tmp_path), preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (130, "Interrupted; what was half-written is removed.")
    assert json.loads(done.stdout)["error"] == "Interrupted"
    assert not (tmp_path / "out").exists()


# --- verify -----------------------------------------------------------------------------------------------------


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_verify_says_whose_weights_a_model_has(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    source, target = tiny(tmp_path / "c"), tmp_path / "m"
    dcptools.convert(source, target, dtype="keep")
    status, out, err = cli("verify", target, source)
    assert status == 0 and "verifying: 100%" in err
    assert out.startswith(f"The 2 weights of {target} are those of {source}, uncast.\n28 B of weights compared in ")
    assert cli("verify", target, "--load-dir", source, "--quiet") == (0, "", "")
    assert cli("verify", target, source, "--dtype", "keep", "--quiet") == (0, "", "")
    assert cli("verify", target, source, "--dtype", "keep", "--shard-size", "1GB", "--quiet") == (0, "", "")


def test_verify_names_what_differs(cli: Cli, tmp_path: Path) -> None:
    source, target = tiny(tmp_path / "c"), tmp_path / "m"
    dcptools.convert(source, target)
    flip_last_byte(target / "model.safetensors")
    headline = f"{target} is not what {source} gives: of 2 weights, 1 with other values."
    status, out, err = cli("verify", target, source)
    assert (status, out.splitlines()[0]) == (1, headline)
    assert "error[disk-values] model.w: 1 of 4 values differ, the first at [1, 1]: " in err
    status, out, err = cli("verify", target, source, "--quiet")
    assert (status, out, err.splitlines()[-1]) == (1, "", f"Error: {headline}")
    status, out, err = cli("verify", target, source, "--json", "--quiet")
    said = json.loads(out)
    assert (status, said["ok"], said["sentence"]) == (1, False, headline)
    assert [weight["state"] for weight in said["weights"]] == ["same", "values"]


def test_verify_counts_warnings_only_if_it_is_strict(cli: Cli, tmp_path: Path) -> None:
    source, target = tiny(tmp_path / "c"), tmp_path / "m"
    dcptools.convert(source, target)
    shutil.copy(target / "model.safetensors", target / "more.safetensors")
    status, _, err = cli("verify", target, source)
    assert status == 0 and "warning[model-extra] more.safetensors: " in err
    assert cli("verify", target, source, "--strict").status == 1


def test_verify_of_what_is_no_model(cli: Cli, tmp_path: Path) -> None:
    source = tiny(tmp_path / "c")
    status, out, err = cli("verify", tmp_path / "nothing", source)
    assert (status, out) == (1, "")
    assert err.startswith(f"Error: {tmp_path}/nothing does not exist.\nGive the directory of a model")
    assert cli("verify", source, source).err.startswith(f"Error: {source} is a distributed checkpoint, not a")
    assert cli("verify", tmp_path).status == 2


def test_convert_can_verify_what_it_wrote(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tiny(tmp_path / "c"), tmp_path / "m"
    out = cli("convert", source, "--save-dir", target, "--verify").out
    assert out.splitlines()[-1] == (f"The 2 weights of {target} are those of {source}, cast to bfloat16.")
    out = cli("convert", source, "--save-dir", target, "--overwrite", "--verify", "--json").out
    assert json.loads(out)["verification"]["ok"] is True
    from dcptools.verifying import complete

    write = complete.write

    def lose_a_bit(plan: Any, save_dir: Path, **options: Any) -> Any:
        report = write(plan, save_dir, **options)
        flip_last_byte(save_dir / "model.safetensors")
        return report

    monkeypatch.setattr(complete, "write", lose_a_bit)
    status, out, err = cli("convert", source, "--save-dir", tmp_path / "bad", "--verify")
    assert (status, out) == (1, "")
    assert f"Error: {tmp_path}/bad is not what {source} gives: of 2 weights, 1 with other values.\n" in err
    assert "error[disk-values] model.w: " in err and err.endswith("and write it again.\n")


def test_a_copy_is_verified_with_the_report_of_its_conversion(cli: Cli, tmp_path: Path) -> None:
    source, report = tiny(tmp_path / "c"), tmp_path / "report.json"
    assert cli("convert", source, "--save-dir", tmp_path / "m", "--report", report, "--quiet") == (0, "", "")
    shutil.rmtree(source)
    copy = shutil.copytree(tmp_path / "m", tmp_path / "copy")
    status, out, _ = cli("verify", copy, "--report", report)
    assert (status, out.splitlines()[0]) == (0, f"The 2 weights of {copy} are those of {report}.")
    flip_last_byte(copy / "model.safetensors")
    status, out, err = cli("verify", copy, "--report", report)
    assert (status, out.splitlines()[0]) == (
        1,
        f"{copy} is not what {report} gives: of 2 weights, 1 with other values.",
    )
    assert re.search(
        r"error\[disk-values\] model\.w: its bytes in model\.safetensors have the CRC-32 [0-9a-f]{8}, ", err
    )
    status, _, err = cli("verify", copy, "--report", report, "--root", "ema")
    assert (status, err.splitlines()[0]) == (2, "Error: Names and dtypes are in the report.")


def test_a_report_that_cannot_be_written_stops_the_run_before_it_begins(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("convert", tiny(tmp_path / "c"), "--save-dir", tmp_path / "m", "--report", tmp_path)
    assert (status, err.splitlines()[-2]) == (2, f"Error: The report {tmp_path} is a directory.")
    lost = tmp_path / "no" / "r.json"
    status, _, err = cli("convert", tmp_path / "c", "--save-dir", tmp_path / "m", "--report", lost)
    said = f"Error: The report {lost} cannot be written: there is no directory {lost.parent}."
    assert (status, err.splitlines()[-2]) == (2, said)
    assert not (tmp_path / "m").exists()


FILES = [
    (("convert", "--load-dir", "nothing", "--report"), "The report"),
    (("review", "nothing", "--html"), "The review"),
    (("diff", "nothing", "nothing", "--csv"), "The table"),
]


@pytest.mark.parametrize(("words", "what"), FILES)
def test_a_file_that_cannot_be_written_is_told_before_any_work(
    words: tuple[str, ...], what: str, cli: Cli, tmp_path: Path
) -> None:
    """Before the checkpoint is read, which is not there."""
    file, lost = tmp_path / "file", tmp_path / "no" / "x"
    full, closed = "the file system of /proc has no room for files", "you may not write to the directory /proc"
    proc = full if os.getuid() == 0 else closed
    file.write_text("mine")
    for path, why in [
        (tmp_path, "is a directory"),
        (lost, f"cannot be written: there is no directory {lost.parent}"),
        (file / "x", f"cannot be written: {file} is a file"),
        (Path("/proc/x"), f"cannot be written: {proc}"),
    ]:
        status, out, err = cli(*words, path)
        assert (status, out) == (2, "")
        assert err.startswith(f"Error: {what} {path} {why}")
        assert err.endswith(".\nGive the name of a file in an existing directory.\n")
    assert list(tmp_path.iterdir()) == [file]


def test_a_review_is_written_into_a_pipe(cli: Cli, tmp_path: Path) -> None:
    """Which is not replaced by a file, as ``/dev/null`` must not be either."""
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    assert cli("review", tiny(tmp_path / "c"), "--html", pipe).status == 0
    reader.join(60)
    assert pipe.is_fifo() and "Content-Security-Policy" in read[0]


def test_a_model_and_a_checkpoint_that_are_swapped_are_told_apart(cli: Cli, tmp_path: Path) -> None:
    source, model = tiny(tmp_path / "my step"), tmp_path / "m"
    dcptools.convert(source, model)
    for words in ((source, model), (source, "--load-dir", model)):
        assert cli("verify", *words) == (
            2,
            "",
            f"Error: The model and the checkpoint are swapped: {source} is a checkpoint, and {model} is a model.\n"
            f"Give the model first, then the checkpoint: verify {model} '{source}'\n",
        )
    with pytest.raises(UsageError, match="The model and the checkpoint are swapped"):
        dcptools.verify(source, model)
    assert cli("verify", source).err == (
        f"Error: {source} is a checkpoint.\nGive the model that was made of it first, and then it.\n"
    )
    status, _, err = cli("verify", model, model)
    assert (status, err.splitlines()[-1]) == (2, "Compare two models with diff.")
    status, _, err = cli("verify", tmp_path / "nothing", model)
    assert (status, err.splitlines()[0].endswith("(it has model.safetensors).")) == (1, True)


def test_a_file_for_json_is_told_to_be_stdout(cli: Cli) -> None:
    status, out, err = cli("plan", "--json", "plan.json", "--quiet", "step")
    assert (status, json.loads(out)["error"]) == (2, "UsageError")
    assert err.endswith(
        "Error: --json takes no file (plan.json): it prints to stdout.\n"
        "Send that into the file: dcptools plan --json --quiet step > plan.json\n"
    )


# --- diff -------------------------------------------------------------------------------------------------------


def test_diff_says_equal_different_or_neither_by_its_status(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    one = tiny(tmp_path / "a")
    other = saved.save(tmp_path / "b", {"model": {"model.norm.weight": torch.ones(3), "model.w": torch.zeros(2, 2)}})
    status, out, err = cli("diff", one, one)
    assert (status, out.splitlines()[0]) == (0, "A and B are equal: 3 tensors, bit for bit.")
    assert "comparing: 100%" in err
    status, out, _ = cli("diff", one, other)
    assert (status, out.splitlines()[0]) == (
        1,
        "A and B differ: of 3 tensors, 1 equal, 1 with other values, 1 only in A. "
        "The largest relative difference, 1, is that of model.model.w.",
    )
    assert cli("diff", one, other, "--quiet") == (1, "", "")
    assert cli("diff", one, other, "--keys", "*norm*", "--quiet") == (0, "", "")
    status, out, err = cli("diff", one, tmp_path / "nothing", "--json")
    assert (status, json.loads(out)["error"]) == (2, "NotACheckpoint")
    assert cli("diff", one, broken.missing_file(tmp_path / "broken"), "--quiet").status == 2
    assert json.loads(cli("diff", one, other, "--json").out)["same"] is False


def test_diff_of_a_checkpoint_and_its_export(cli: Cli, tmp_path: Path) -> None:
    state = {"model.norm.weight": torch.rand(3), "lm_head.weight": torch.rand(2, 2)}
    source, table = saved.save(tmp_path / "c", {"ema": state, "model": {"model.x": torch.ones(1)}}), tmp_path / "t.csv"
    dcptools.convert(source, tmp_path / "m", root="ema")
    status, out, _ = cli("diff", source, tmp_path / "m", "--root", "ema", "--cast", "--csv", table)
    assert status == 0 and "2 tensors, bit for bit, after a cast to the dtypes of B." in out
    assert table.read_text().splitlines()[0].startswith("name,state,shape_a,shape_b,dtype_a,dtype_b,numel,equal,")
    assert cli("diff", source, tmp_path / "m", "--root", "ema", "--quiet").status == 1
    status, _, err = cli("diff", source, source, "--root", "ema")
    assert (status, err.splitlines()[0]) == (
        2,
        "Error: --root cannot be used here: no checkpoint is compared by names.",
    )
    status, _, err = cli("diff", tmp_path / "m", tmp_path / "m", "--root", "ema", "--tied", "drop")
    assert (status, err) == (
        2,
        "Error: --root, --tied cannot be used here: neither side is a checkpoint.\n"
        "These options say how one is read: leave them out.\n",
    )
    assert cli("diff", source, source, "--root", "ema", "--by", "names", "--quiet").status == 0
    status, _, err = cli("diff", source, source, "--csv", tmp_path)
    assert (status, err.splitlines()[0]) == (2, f"Error: The table {tmp_path} is a directory.")


def test_diff_with_options_knows_what_the_model_ties(cli: Cli, tmp_path: Path, expected_in_process: None) -> None:
    source = saved.trained(tmp_path / "c", saved.model_state(tied=True))
    assets = models.assets(tmp_path / "a", config=json.dumps({**models.QWEN3_CONFIG, "tie_word_embeddings": True}))
    dcptools.convert(source, tmp_path / "m", model_assets_dir=assets, fsync=False)
    for options in ((), ("--layout", "container"), ("--model-assets-dir", assets)):
        assert cli("diff", source, tmp_path / "m", "--cast", "--quiet", *options).status == 0
    assert cli("diff", source, tmp_path / "m", "--cast", "--quiet", "--tied", "keep").status == 1


@pytest.mark.parametrize("case", ["tied", "app", "score"])
def test_strict_lets_what_is_ordinary_through(case: str, cli: Cli, tmp_path: Path, expected_in_process: None) -> None:
    """A tied model, the layout of PyTorch's own tutorial, and a classifier, whether the model is known or not."""
    state = saved.model_state(tied=case == "tied", lm_head=case != "score")
    if case == "score":
        state["score.weight"] = torch.ones(2, 8)
    checkpoint = (saved.app_state if case == "app" else saved.trained)(tmp_path / "c", state)
    architecture = "Qwen3ForSequenceClassification" if case == "score" else "Qwen3ForCausalLM"
    for known in (True, False):
        config = {**models.QWEN3_CONFIG, "architectures": [architecture], "tie_word_embeddings": case == "tied"}
        unknown = {**json.loads(models.UNKNOWN_CONFIG), "tie_word_embeddings": case == "tied"}
        given = assets(tmp_path / f"assets-{known}", config if known else unknown)
        done = cli("plan", checkpoint, "--model-assets-dir", given, "--strict")
        assert done.status == 0, done.err
        assert "warning" not in done.out + done.err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("convert", "c", "--output", "out"), "--save-dir"),
        (("convert", "c", "-o", "out"), "--save-dir"),
        (("preview", "--checkpoint", "c"), "--load-dir"),
        (("plan", "c", "--max-shard-size=5GB"), "--shard-size"),
        (("convert", "c", "--force"), "--overwrite"),
        (("convert", "c", "--save_dir", "out"), "--save-dir"),
    ],
)
def test_an_option_of_other_programs_is_told_by_its_name_here(words: tuple[str, ...], meant: str, cli: Cli) -> None:
    status, _, err = cli(*words)
    assert (status, err.splitlines()[-1].partition(". ")[2]) == (2, f"Did you mean '{meant}'?")
    assert "Did you mean" not in cli("inspect", "c", "-o", "out").err  # it has no such thing
