"""The demo is what the docs say: a trainer's real checkpoint, made whole or not at all; the walk proves the line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from transformers import AutoConfig, AutoTokenizer

from dcptools.demo import Demo, _launch, default_demo, make_demo
from dcptools.demo._place import Stamp, put
from dcptools.errors import DcptoolsError, OutputExists, UsageError

ROOT = Path(__file__).parents[1]


def run_demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dcptools.demo", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


# What a trainer leaves


@pytest.fixture(scope="module")
def metadata(demo: Demo) -> Metadata:
    return dcp.FileSystemReader(demo.checkpoint).read_metadata()


def test_paths_start_with_the_containers_of_a_trainer(metadata: Metadata) -> None:
    paths: dict[str, tuple[Any, ...]] = metadata.planner_data
    assert paths["model.model.layers.0.self_attn.q_proj.weight"] == ("model", "model.layers.0.self_attn.q_proj.weight")
    assert paths["model.lm_head.weight"] == ("model", "lm_head.weight")
    assert {path[0] for path in paths.values()} == {"model", "optimizer", "extra_state"}
    assert {path[1] for path in paths.values() if path[0] == "extra_state"} == {"step", "lr", "loss", "rng"}


def test_model_keys_are_the_live_names_below_the_container(demo: Demo, metadata: Metadata) -> None:
    stored = {key for key, path in metadata.planner_data.items() if path[0] == "model"}
    assert stored == {f"model.{name}" for name in load_file(demo.live)}


def test_every_process_wrote_its_part_and_parts_are_uneven(demo: Demo, metadata: Metadata) -> None:
    assert sorted(path.name for path in demo.checkpoint.iterdir()) == [".metadata"] + [
        f"__{n}_0.distcp" for n in range(4)
    ]
    embedding = metadata.state_dict_metadata["model.model.embed_tokens.weight"]
    assert isinstance(embedding, TensorStorageMetadata)
    assert [chunk.sizes[0] for chunk in embedding.chunks] == [129, 129, 129, 128]


def test_live_state_is_what_torch_loads_from_the_checkpoint(demo: Demo) -> None:
    live = load_file(demo.live)
    loaded = {name: torch.full_like(tensor, float("nan")) for name, tensor in live.items()}
    dcp.load({"model": loaded}, checkpoint_id=demo.checkpoint, no_dist=True)
    assert {tensor.dtype for tensor in live.values()} == {torch.float32}
    assert [name for name in live if not torch.equal(live[name], loaded[name])] == []


def test_training_has_moved_every_weight(demo: Demo) -> None:
    """Norm weights start as ones: a demo that was saved untrained would still have them."""
    live = load_file(demo.live)
    assert [
        name for name, tensor in live.items() if "norm" in name and torch.equal(tensor, torch.ones_like(tensor))
    ] == []


def test_config_is_as_a_trainer_saves_it(demo: Demo) -> None:
    config = AutoConfig.from_pretrained(demo.assets)
    assert (config.architectures, config.dtype) == (["Qwen3ForCausalLM"], torch.float32)
    assert not config.tie_word_embeddings
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.vocab_size == len(AutoTokenizer.from_pretrained(demo.assets))
    assert (demo.assets / "generation_config.json").is_file()


def test_tokenizer_round_trips_any_text_and_has_a_chat_template(demo: Demo) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo.assets)
    text = "Zwölf Boote, 12 boats,\n\n  and a snowman ☃"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


# Made whole or not at all; training is replaced here by a function that writes three small files


def fake_train(directory: Path, logs: Path, *, processes: int, steps: int) -> None:
    for part in ("checkpoint/.metadata", "assets/config.json", "live/model.safetensors"):
        path = directory / part
        path.parent.mkdir(parents=True)
        path.write_text(f"{processes} {steps}")


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories that (fake) trainings have written into."""
    seen: list[Path] = []

    def train(directory: Path, logs: Path, *, processes: int, steps: int) -> None:
        seen.append(directory)
        fake_train(directory, logs, processes=processes, steps=steps)

    monkeypatch.setattr("dcptools.demo.train", train)
    return seen


def test_a_demo_of_the_same_settings_is_reused(demo: Demo) -> None:
    before = (demo.directory / "demo.json").read_bytes()
    again = make_demo(demo.directory)
    assert again == Demo(demo.directory, processes=4, steps=3, reused=True)
    assert (demo.directory / "demo.json").read_bytes() == before


def test_str_says_where_things_are(demo: Demo) -> None:
    assert str(Demo(Path("d"), 4, 3, reused=True)) == (
        "Demo (reused): a tiny Qwen3 after 3 steps on 4 processes\n"
        "  checkpoint  d/checkpoint\n"
        "  assets      d/assets\n"
        "  live        d/live/model.safetensors"
    )


@pytest.mark.parametrize("exists", [False, True])
def test_new_or_empty_directory_is_filled_and_nothing_else_is_left(
    tmp_path: Path, trainings: list[Path], exists: bool
) -> None:
    target = tmp_path / "demo"
    if exists:
        target.mkdir()
    made = make_demo(target, processes=2, steps=1)
    assert made == Demo(target, 2, 1) and not made.reused
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert sorted(path.name for path in target.iterdir()) == ["assets", "checkpoint", "demo.json", "live"]


def test_force_replaces_the_demo_and_what_came_from_it_but_no_other_file(tmp_path: Path, trainings: list[Path]) -> None:
    make_demo(tmp_path / "demo")
    (tmp_path / "demo" / "hf").mkdir()
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    make_demo(tmp_path / "demo", steps=7, force=True)
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "assets", "checkpoint", "demo.json", "live", "notes.txt",
    ]  # fmt: skip
    assert (tmp_path / "demo" / "live" / "model.safetensors").read_text() == "4 7"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("cut")])
def test_a_demo_with_a_lost_or_cut_file_is_made_again(
    tmp_path: Path, trainings: list[Path], damage: Callable[[Path], object]
) -> None:
    make_demo(tmp_path / "demo", steps=1000)
    damage(tmp_path / "demo" / "live" / "model.safetensors")
    assert not make_demo(tmp_path / "demo", steps=1000).reused
    assert make_demo(tmp_path / "demo", steps=1000).reused
    assert len(trainings) == 2


def test_other_settings_are_refused_without_force(tmp_path: Path, trainings: list[Path]) -> None:
    make_demo(tmp_path / "demo")
    with pytest.raises(OutputExists) as caught:
        make_demo(tmp_path / "demo", processes=2)
    assert str(caught.value) == (
        f"{tmp_path}/demo holds a demo of 4 processes and 3 steps, not of 2 and 3.\n"
        "Use --force (force=True) to make it again."
    )


@pytest.mark.parametrize("stamp", [None, "[]", "{}", "not json"])
@pytest.mark.parametrize("force", [False, True])
def test_a_directory_of_something_else_is_never_touched(
    tmp_path: Path, trainings: list[Path], stamp: str | None, force: bool
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    if stamp is not None:
        (tmp_path / "demo.json").write_text(stamp)
    with pytest.raises(OutputExists) as caught:
        make_demo(tmp_path, force=force)
    assert str(caught.value) == f"{tmp_path} is neither a demo nor an empty directory.\nChoose another directory."
    assert (tmp_path / "thesis.tex").read_text() == "years of work" and trainings == []


def test_a_second_maker_takes_what_a_faster_one_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_train(directory: Path, logs: Path, *, processes: int, steps: int) -> None:
        fake_train(directory, logs, processes=processes, steps=steps)
        monkeypatch.setattr("dcptools.demo.train", fake_train)
        make_demo(tmp_path / "demo")

    monkeypatch.setattr("dcptools.demo.train", slow_train)
    assert make_demo(tmp_path / "demo", force=True).reused


@pytest.mark.parametrize("moves", range(7))
def test_an_interrupted_replacement_never_looks_whole(
    tmp_path: Path, trainings: list[Path], monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Seven renames replace a demo (three parts out, the stamp, three parts in); stop before each of them."""
    target, new = make_demo(tmp_path / "demo").directory, make_demo(tmp_path / "new").directory
    before, done, rename = Stamp.read(target), [], Path.rename

    def stopping(self: Path, to: Path) -> Path:
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(self)
        return rename(self, to)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stopping)
        patch.setattr(Path, "replace", stopping)
        put(new, target, tmp_path / "old")
    found = Stamp.read(target)
    assert found is not None
    assert found.is_whole(target) == (moves == 0 and found == before)
    assert make_demo(target).reused == (moves == 0)


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"steps": 0}, {"processes": -1}])
def test_settings_below_one_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="processes and steps must be at least 1, not"):
        make_demo(tmp_path / "demo", **wrong)
    assert list(tmp_path.iterdir()) == []


# Failures of the processes


@pytest.mark.parametrize(("processes", "failing"), [(1, 0), (2, 1)])
def test_a_failure_shows_what_the_process_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, failing: int
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        f"import os, time\nif os.environ['RANK'] == '{failing}': raise SystemExit('no room left')\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(_launch, "TRAIN", script)
    with pytest.raises(DcptoolsError) as caught:
        make_demo(tmp_path / "demos" / "demo", processes=processes)
    assert str(caught.value) == (
        f"Making the demo failed (torchrun exit status 1). Its processes said:\n[rank {failing}]\nno room left"
    )
    assert list((tmp_path / "demos").iterdir()) == []


def test_a_missing_package_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(DcptoolsError) as caught:
        make_demo(tmp_path / "demo")
    assert str(caught.value) == (
        "The demo trains a real model, and these packages are missing: no_such_package.\n"
        "Install them with: pip install 'dcptools[transformers]'"
    )


def test_an_endless_training_is_stopped_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, pid = tmp_path / "train.py", tmp_path / "pid"
    script.write_text(
        f"import os, time\nopen('new', 'w').write(str(os.getpid()))\nos.rename('new', {str(pid)!r})\ntime.sleep(600)\n"
    )

    class Impatient(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout is None:
                return super().wait()
            while not pid.exists():  # a fixed time would be too short on a busy machine
                assert self.poll() is None
                time.sleep(0.05)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_launch, "TRAIN", script)
    monkeypatch.setattr(subprocess, "Popen", Impatient)
    with pytest.raises(DcptoolsError) as caught:
        make_demo(tmp_path / "demo", processes=1)
    assert str(caught.value) == "Making the demo took more than 600 s and was stopped."
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# The notebooks' own demo


def test_default_demo_takes_any_demo_in_the_directory_of_the_variable(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCPTOOLS_DEMO_DIR", str(demo.directory))
    assert default_demo() == Demo(demo.directory, 4, 3, reused=True)


def test_default_demo_is_made_once_in_the_cache(
    tmp_path: Path, trainings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DCPTOOLS_DEMO_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not default_demo().reused
    assert default_demo().directory == tmp_path / "cache" / "dcptools" / "demo"
    assert len(trainings) == 1


def test_default_demo_of_an_older_recipe_is_made_again(
    tmp_path: Path, trainings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCPTOOLS_DEMO_DIR", str(tmp_path / "demo"))
    default_demo()
    stamp = tmp_path / "demo" / "demo.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"recipe": 0, "processes": 9}))
    assert not default_demo().reused
    assert default_demo() == Demo(tmp_path / "demo", 4, 3, reused=True)


# The command line and the walk


def test_help_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, dcptools.demo.__main__\nprint(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "--walk" in run_demo("--help").stdout


def test_command_line_reports_errors_in_words(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    done = run_demo(tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: {tmp_path} is neither a demo nor an empty directory.\nChoose another directory.\n",
    )


def test_walk_shows_the_line_and_finds_equal_logits(demo: Demo, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(demo.directory, tmp_path / "demo"))
    for _ in range(2):  # it can be run again
        done = run_demo(directory, "--walk")
        assert done.returncode == 0, done.stdout + done.stderr
    headings = [line.split()[1].strip(":") for line in done.stdout.splitlines() if line.startswith("== ")]
    assert headings == [
        "read", "inspect", "preview", "plan", "convert", "compare", "convert", "compare", "generate", "next",
    ]  # fmt: skip
    assert "Demo (reused)" in done.stdout
    compared = [line for line in done.stdout.splitlines() if line.startswith("logits (")]
    assert [line.rsplit(", ", 1)[1] for line in compared] == ["bfloat16): equal", "float32): equal"]
    assert "All logits are equal." in done.stdout
    assert len(list((directory / "hf").glob("model-*-of-*.safetensors"))) > 1


def test_compare_sees_a_single_changed_weight(demo: Demo, tmp_path: Path) -> None:
    """The comparison can fail: one element of one tensor is enough."""
    from dcptools.demo._walk import compare_logits

    converted = Path(shutil.copytree(demo.assets, tmp_path / "hf"))
    weights = load_file(demo.live)
    said: list[str] = []
    save_file(weights, converted / "model.safetensors", metadata={"format": "pt"})
    assert compare_logits(demo, converted, said.append)
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, converted / "model.safetensors", metadata={"format": "pt"})
    assert not compare_logits(demo, converted, said.append)
    assert [line.rsplit(": ", 1)[1] for line in said] == ["equal", "DIFFERENT"]
