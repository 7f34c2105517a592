"""The command line as a user meets it: what it prints where, its exit status, and no traceback for any problem."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
from checkpoints import broken, hostile, lookalikes, saved
from checkpoints.edit import editing, indices
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import MetadataIndex

from dcptools.cli import convert_command, inspect_command, main_group, plan_command, preview_command, run
from dcptools.convert import default_save_dir

COMMANDS = ("inspect", "preview", "plan", "convert")
WARNED = (
    "warning[assets-none]: no assets directory was given, so config and tokenizer will be missing (give the directory "
    "that holds config.json: model_assets_dir=, --model-assets-dir)\n"
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
    before = signal.getsignal(signal.SIGTERM)

    def call(*words: object, command: click.Command = main_group) -> Result:
        monkeypatch.setattr(sys, "argv", ["dcptools", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(command, "dcptools")
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        assert "Traceback" not in captured.err
        return Result(caught.value.code, captured.out, captured.err)

    yield call
    signal.signal(signal.SIGTERM, before)


def tiny(directory: Path) -> Path:
    """Two tensors of a model, an object, a tensor of another container."""
    state = {"model.norm.weight": torch.ones(3), "model.w": torch.arange(4.0).reshape(2, 2)}
    return saved.save(directory, {"model": state, "optimizer": {"lr": torch.tensor(0.5)}, "step": 3})


def assets(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}')
    (directory / "tokenizer.json").write_text("{}")
    return directory


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
    "--list-leftovers", "--json", "--quiet", "--strict", "-h, --help",
)  # fmt: skip


def test_the_help_has_every_option_and_its_default(cli: Cli) -> None:
    status, out, err = cli("--help", command=convert_command)
    assert (status, err) == (0, "")
    for option in MISSION:
        assert f"  {option}" in out
    text = " ".join(out.split())
    for default in ("<load-dir>/hf_ckpt", "2000000000", "bfloat16", "auto"):
        assert f"[default: {default}]" in text


@pytest.mark.parametrize("command", [inspect_command, preview_command, plan_command, convert_command])
def test_every_option_says_what_it_is_for(command: click.Command) -> None:
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or (isinstance(parameter, click.Option) and parameter.help)
    assert command.help and not command.get_short_help_str(limit=80).endswith("...")


def test_the_group_lists_the_commands(cli: Cli) -> None:
    out = cli("--help").out
    assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()] == sorted(COMMANDS)
    assert re.fullmatch(r"dcptools, version \d+\.\d+\.\d+\n", cli("--version").out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert",), "Error: Missing option '--load-dir'.\n"),
        (("convert", "a", "--load-dir", "b"), "Error: Give only one of LOAD_DIR and --load-dir.\n"),
        (("convert", "a", "--dtype", "int8"), "'int8' is not one of 'bfloat16', 'float16', 'float32', 'keep'."),
        (("convert", "a", "--layout", "llama"), "'llama' is not one of 'auto', 'container', 'bare'."),
        (("convert", "a", "--workers", "0"), "0 is not in the range x>=1."),
        (("convert", "a", "--nothing"), "No such option"),
        (("convert", "a", "b"), "unexpected extra argument"),
        (("nothing",), "No such command 'nothing'."),
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
        (("--shard-size", "lots"), "Error: 'lots' is not a size in bytes.\n"),
        (("--dtype-for", "x"), "Error: 'x' is not an exception of the dtype.\n"),
        (("--rename", "x"), "Error: The rename rule 'x' has no '='.\n"),
        (("--rename", "(=x"), "Error: The rename rule (=x is not a valid regular expression: "),
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
    assert "... 11 more of 31 rows" in short and "more of" not in long


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


def test_plan(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("plan", tiny(tmp_path / "c"), "--shard-size", 8)
    assert status == 0
    assert out.splitlines()[0].startswith("2 files with 14 B (7 elements as bfloat16), at most 8 B each; about ")
    assert [line.split()[0] for line in out.splitlines()[3:5]] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert err.startswith(WARNED)


def test_convert(cli: Cli, tmp_path: Path) -> None:
    words = ("--load-dir", tiny(tmp_path / "c"), "--save-dir", tmp_path / "out", "--model-assets-dir")
    status, out, err = cli(*words, assets(tmp_path / "a"), command=convert_command)
    nbytes = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert status == 0
    first, *table, last = out.splitlines()
    assert re.fullmatch(
        rf"Wrote 2 tensors, 14 B in 1 file, to {tmp_path / 'out'} in \d+\.\d\d s \([\d.]+ k?B/s\)", first
    )
    assert table == [
        "file               bytes",
        "-----------------  -------",
        f"model.safetensors  {nbytes} B",
        "config.json",
        "tokenizer.json",
    ]
    assert last.startswith("checksums: 2 stored items right; peak memory ")
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
    many(tmp_path / "c", 25, "model.visual.{}.weight")
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
    for command in COMMANDS:
        status, out, err = cli(command, directory, "--json")
        assert status == 0
        assert json.loads(out).keys() >= keys[command]
        if command == "convert":
            assert err.startswith(WARNED)
            assert "writing" in err  # the progress


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
    assert (status, err) == (1, "Error: 1 error; this checkpoint cannot be converted so.\n")
    assert [f["code"] for f in json.loads(out)["findings"] if f["severity"] == "error"] == ["hole"]


@pytest.mark.parametrize("command", COMMANDS)
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
    monkeypatch.setattr("dcptools.writer._target.free_bytes", lambda save_dir: 1000)
    dry, real = cli("convert", tiny(tmp_path / "c"), "--dry-run"), cli("convert", tmp_path / "c")
    assert dry == real
    assert f"{tmp_path / 'c' / 'hf_ckpt'} has 1.00 kB free, and " in dry.err
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
            saved.no_model, saved.empty_state, saved.odd_names, saved.colliding, saved.hf_dcp,
            saved.safetensors_format, broken.missing_file, broken.truncated_file, broken.flipped_bit,
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
    assert err.splitlines() == [
        "warning[pattern-unused]: 'modle.*' matched no tensor's key",
        WARNED.strip(),
        "Error: No model weights found!",
        f"check the path {tmp_path / 'c'}, that it is the model's checkpoint, and that keys start with 'model.';",
        "top-level keys here: optimizer, step;",
        "if the model is there, say where with --layout or --root",
    ]


def test_all_errors_are_named_at_once(cli: Cli, tmp_path: Path) -> None:
    err = cli("convert", lookalikes.flat_parameters(tmp_path / "c")).err
    message = err[err.index("Error: ") :].splitlines()
    assert message[0] == "Error: 3 errors forbid to convert:"
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

    monkeypatch.setattr("dcptools.writer.verify", stop)
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
def test_help_is_quick(module: str) -> None:
    def cpu_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = cpu_seconds()
    done = shell("-m", module, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        f"Usage: {'python -m dcptools.convert' if module != 'dcptools' else module} [OPTIONS]"
    )
    assert cpu_seconds() - before < 0.5


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
