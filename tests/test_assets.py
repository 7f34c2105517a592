"""Which files go with the model, what is noticed about them, and the config that is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import models, saved

from dcptools.assets import find_assets
from dcptools.convert import convert
from dcptools.errors import UsageError
from dcptools.mapping import preview
from dcptools.shards import plan

CONFIG = {**json.loads(models.UNKNOWN_CONFIG), "torch_dtype": "float32"}

COPIED = (
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken", "tekken.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "feature_extractor.json",
    "chat_template.jinja", "chat_template.json",
    "modeling_mine.py", "configuration_mine.py", "tokenization_mine.py", "optimization.py", "scheduler_config.json",
    "LICENSE", "readme_template.jinja", "catalog", "layout", "modeling_log.py", "params.json",
    "optimum.json", "latest.txt", "model.safetensors.md", "binary_head.py",
)  # fmt: skip
NOT_COPIED = (
    # weights, in every format that the Hub has seen, and their indices
    "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
    "adapter_model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5",
    "flax_model.msgpack", "rust_model.ot", "model.onnx", "model.onnx_data", "model-q4.gguf", "ggml-model.ggml",
    "consolidated.00.pth", "model.pt", "last.ckpt", "weights.npz", "weights.npy", "__0_0.distcp", ".metadata",
    # optimizer and training state
    "optimizer.pt", "optimizer.bin", "optimizer_0.pkl", "optim.pkl", "scheduler.pt", "scheduler_0.bin",
    "lr_scheduler.pkl", "rng_state.pth", "rng_state_0.pkl", "random_states_0.pkl", "scaler.pt", "scaler_0.pkl",
    "trainer_state.json", "training_args.bin", "training_args.json", "zero_to_fp32.py", "latest",
    "events.out.tfevents.1700000000.host",
    # what would make transformers look for other weights
    "adapter_config.json",
    # leftovers of other programs
    ".gitattributes", ".cache", "tokenizer.json.lock", "model.tmp", "blob.incomplete",
    "PYTORCH_MODEL.BIN", "Optimizer.pt",
    # backups and logs, and what is about another copy of the model
    "config.json.bak", "notes.txt~", "tokenizer.json.orig", "train.log", "train.log.1", "slurm.out",
    "README.md", "README",
)  # fmt: skip


def make(directory: Path, config: Any = CONFIG, tokenizer: bool = True) -> Path:
    directory.mkdir()
    if config is not None:
        (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if tokenizer:
        (directory / "tokenizer.json").write_text("{}")
    return directory


def lines(directory: Path) -> list[str]:
    return [str(finding) for finding in find_assets(directory).findings]


def test_which_names_are_copied(tmp_path: Path) -> None:
    for name in (*COPIED, *NOT_COPIED):
        (tmp_path / name).write_text("{}")
    assert [file.name for file in find_assets(tmp_path).files] == sorted(COPIED)


def test_directories_and_dangling_links_are_not_copied(tmp_path: Path) -> None:
    directory = make(tmp_path / "a")
    (directory / "original").mkdir()
    (directory / "onnx.json").mkdir()
    (directory / "vocab.json").symlink_to("nowhere")
    assert [file.name for file in find_assets(directory).files] == ["config.json", "tokenizer.json"]
    assert lines(directory) == ["warning[assets-missing] vocab.json: is a symlink to nothing (download the file again)"]


@pytest.mark.parametrize(
    "target", ["/dev/zero", "/proc/kmsg", "/proc/self/status", "/sys/kernel/uevent_seqnum", "pipe"]
)
@pytest.mark.parametrize("name", ["config.json", "merges.txt"])
def test_what_is_not_an_ordinary_file_is_not_read(name: str, target: str, tmp_path: Path) -> None:
    """It may have no end, or wait for somebody who writes into it."""
    if target.startswith("/") and not Path(target).exists():
        pytest.skip(f"there is no {target} here")
    os.mkfifo(tmp_path / "pipe")
    directory = make(tmp_path / "a")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(tmp_path / target)
    convert(saved.trained(tmp_path / "c", optimizer=False), tmp_path / "out", model_assets_dir=directory)
    assert not (tmp_path / "out" / name).exists()
    assert (
        f"warning[assets-missing] {name}: is not an ordinary file, and is not copied (put the file itself there)"
        in lines(directory)
    )


def test_a_config_that_is_no_unicode_is_copied_all_the_same(tmp_path: Path) -> None:
    text = json.dumps({**CONFIG, "pad_token": "\ud800"})
    written = find_assets(make(tmp_path / "a", text)).config_for("bfloat16")
    assert written is not None and json.loads(written)["pad_token"] == "\ud800"


def test_links_are_followed_and_their_content_is_copied(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, (name, text) in enumerate({"config.json": json.dumps(CONFIG), "tokenizer.json": "[1]"}.items()):
        (blobs / str(number)).write_text(text)
        (snapshot / name).symlink_to(Path("..", "blobs", str(number)))
    convert(saved.trained(tmp_path / "c", optimizer=False), tmp_path / "out", model_assets_dir=snapshot)
    copied = tmp_path / "out" / "tokenizer.json"
    assert copied.read_text() == "[1]"
    assert not copied.is_symlink()


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    directory = make(tmp_path / "a")
    assert {f.name: f.nbytes for f in find_assets(directory).files} == {
        name: os.path.getsize(directory / name) for name in ("config.json", "tokenizer.json")
    }


def test_remote_code_is_copied_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    config = {**CONFIG, "model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.Mine"}}
    directory = make(tmp_path / "a", config)
    code = f"open({str(marker)!r}, 'w')"
    (directory / "configuration_mine.py").write_text(code)
    convert(saved.trained(tmp_path / "c", optimizer=False), tmp_path / "out", model_assets_dir=directory)
    assert (tmp_path / "out" / "configuration_mine.py").read_text() == code
    assert not marker.exists()


# --- findings ---------------------------------------------------------------------------------------------------


def test_a_whole_directory_has_no_findings(tmp_path: Path) -> None:
    assert lines(make(tmp_path / "a")) == []


def test_what_is_expected_and_missing_is_a_warning(tmp_path: Path) -> None:
    directory = make(tmp_path / "a", None, tokenizer=False)
    assert lines(directory) == [
        f"warning[assets-missing] config.json: {directory} has no config.json (transformers cannot load the result "
        "without it)",
        f"warning[assets-missing] tokenizer: {directory} has none of tokenizer.json, tokenizer.model, "
        "tokenizer_config.json and 3 more (copy the tokenizer's files there now, or beside the result later)",
    ]


@pytest.mark.parametrize("config", ["", "{", "[1]", "null", "\x00"], ids=repr)
def test_a_config_that_is_no_json_object_is_a_warning(config: str, tmp_path: Path) -> None:
    assert lines(make(tmp_path / "a", config)) == [
        "warning[config-unreadable] config.json: it is not a JSON object in UTF-8; it is copied as it is"
    ]


def test_a_config_that_nests_deeply_is_a_warning(tmp_path: Path) -> None:
    assert [f.code for f in find_assets(make(tmp_path / "a", "[" * 100_000)).findings] == ["config-unreadable"]


def test_a_config_that_is_no_json_object_is_copied_byte_for_byte(tmp_path: Path) -> None:
    directory = make(tmp_path / "a")
    (directory / "config.json").write_bytes(b"\xff {\r\n")
    convert(saved.trained(tmp_path / "c", optimizer=False), tmp_path / "out", model_assets_dir=directory)
    assert (tmp_path / "out" / "config.json").read_bytes() == b"\xff {\r\n"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_a_config_in_another_encoding_is_a_warning_and_copied_byte_for_byte(encoding: str, tmp_path: Path) -> None:
    directory = make(tmp_path / "a")
    (directory / "config.json").write_bytes('{"architectures": ["Größe"], "model_type": "qwen3"}'.encode(encoding))
    checkpoint = saved.trained(tmp_path / "c", optimizer=False)
    report = convert(checkpoint, tmp_path / "out", model_assets_dir=directory, dtype="keep")
    assert [finding.code for finding in report.warnings] == ["config-unreadable"]
    assert (tmp_path / "out" / "config.json").read_bytes() == (directory / "config.json").read_bytes()


def test_a_config_that_is_a_directory_is_none(tmp_path: Path) -> None:
    directory = make(tmp_path / "a", None)
    (directory / "config.json").mkdir()
    assert [line.partition(":")[0] for line in lines(directory)] == ["warning[assets-missing] config.json"]


def test_a_config_without_architectures_is_a_warning(tmp_path: Path) -> None:
    assert lines(make(tmp_path / "a", {"model_type": "qwen3"})) == [
        "warning[config-no-architectures] config.json: it names no architectures (AutoModelForCausalLM goes by "
        "model_type; serving programs often need architectures)"
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": None}, "it has no model_type (AutoConfig cannot load it)"),
        (
            {"model_type": "qwen99"},
            "the installed transformers has no model_type 'qwen99' (load it with a version that has it)",
        ),
        ({"model_type": "qwen99", "auto_map": {"AutoConfig": "x.Y"}}, None),
        ({"model_type": "llama"}, None),
    ],
)
def test_a_model_type_that_nobody_knows_is_a_warning(
    changes: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    text = f"warning[config-unknown-model-type] config.json: {expected}"
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **changes}
    assert lines(make(tmp_path / "a", config)) == ([text] if expected else [])


def test_what_is_said_of_a_long_config_is_short(tmp_path: Path) -> None:
    (line,) = lines(make(tmp_path / "a", {"architectures": ["Qwen3ForCausalLM"], "model_type": "x" * 9000}))
    assert len(line) < 400


@pytest.mark.parametrize("what", ["does not exist", "is not a directory"])
def test_a_wrong_assets_directory_is_a_usage_error(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if what == "is not a directory":
        path.write_text("")
    with pytest.raises(UsageError) as caught:
        find_assets(path)
    assert str(caught.value) == (
        f"The assets directory {path} {what}.\nGive the directory that holds config.json and the tokenizer."
    )


@pytest.mark.parametrize(("name", "told"), [("Qwen/Qwen3-0.6B", True), ("a/b/c", False), ("/a/b", False)])
def test_a_name_on_the_hub_is_told_apart_from_a_directory(
    name: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        find_assets(name)
    hint = f" If that is a name on the Hub, download it first: hf download {name}"
    assert str(caught.value).endswith(f"and the tokenizer.{hint if told else ''}")


def test_another_dtype_in_the_config_is_an_info(tmp_path: Path) -> None:
    checkpoint = saved.trained(tmp_path / "c", optimizer=False)
    mapping = preview(checkpoint, model_assets_dir=make(tmp_path / "a"))
    found = [str(f) for f in plan(mapping).findings if f.code == "config-dtype"]
    assert found == [
        "info[config-dtype] config.json: says float32, and bfloat16 is written (the copy gets the written dtype)"
    ]
    assert not [f for f in plan(mapping, dtype="keep").findings if f.code == "config-dtype"]


def test_a_config_of_quantized_weights_is_a_warning_where_others_are_written(tmp_path: Path) -> None:
    """transformers would look for scales, and not load the model."""
    directory = make(tmp_path / "a", {**CONFIG, "quantization_config": {"quant_method": "fp8"}})
    mapping = preview(saved.trained(tmp_path / "c"), model_assets_dir=directory)
    (found,) = [f for f in plan(mapping).warnings if f.code == "config-quantized"]
    assert found.message == "says that the weights are quantized (fp8), but these are not"
    fp8 = saved.save(tmp_path / "d", {"model": {"model.w": torch.zeros(4).to(torch.float8_e4m3fn)}})
    codes = {f.code for f in plan(preview(fp8, model_assets_dir=directory)).findings}
    assert "config-quantized" not in codes


@pytest.mark.parametrize(
    ("ties", "tied", "option", "code", "written"),
    [
        (True, True, "auto", "tied-weights", 1), (True, False, "auto", "tied-differ", 2), (False, True, "auto", "", 2),
        (True, True, "keep", "tied-kept", 2), (True, False, "drop", "tied-dropped", 1),
    ],
)  # fmt: skip
def test_a_config_of_no_known_model_says_whether_embedding_and_head_are_one_weight(
    ties: bool, tied: bool, option: str, code: str, written: int, tmp_path: Path
) -> None:
    directory = make(tmp_path / "a", {**CONFIG, "tie_word_embeddings": ties})
    checkpoint = saved.trained(tmp_path / "c", saved.model_state(tied=tied), optimizer=False)
    mapping = preview(checkpoint, model_assets_dir=directory, tied=option)
    assert mapping.fit is None
    assert [f.code for f in mapping.findings if f.code.startswith("tied")] == ([code] if code else [])
    both = {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(both & {output.name for output in mapping.outputs}) == written


# --- the config that is written ---------------------------------------------------------------------------------


def rewritten(config: Any, directory: Path, dtype: str = "bfloat16") -> Any:
    return json.loads(find_assets(make(directory, config)).config_for(dtype) or b"")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32", "dtype": "auto"}, {"torch_dtype": "bfloat16", "dtype": "bfloat16"}),
        ({}, {"dtype": "bfloat16"}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32", "x": 1}, "vision_config": {"x": 2}},
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "x": 1}, "vision_config": {"x": 2}},
        ),
        (
            {"torch_dtype": "float32", "text_config": {"torch_dtype": "float32"}},
            {"torch_dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16"}},
        ),
        ({"dtype": "float32", "text_config": {"dtype": None}}, {"dtype": "bfloat16", "text_config": {"dtype": None}}),
    ],
)
def test_the_config_gets_the_written_dtype(config: Any, expected: Any, tmp_path: Path) -> None:
    assert rewritten(config, tmp_path / "a") == expected


def test_the_config_keeps_every_other_field_and_their_order(tmp_path: Path) -> None:
    config = {"z": [1, {"a": None}], "größe": "重み", "torch_dtype": "float32", "pi": 3.14, "big": 10**30, "a": True}
    text = (find_assets(make(tmp_path / "a", config)).config_for("float16") or b"").decode()
    assert text == (
        '{\n  "z": [\n    1,\n    {\n      "a": null\n    }\n  ],\n  "größe": "重み",\n  "torch_dtype": "float16",\n'
        '  "pi": 3.14,\n  "big": 1000000000000000000000000000000,\n  "a": true\n}\n'
    )


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "bfloat16"), ("keep", "float32"), ("float16", "float16")])
def test_the_copy_says_what_was_written(dtype: str, expected: str, tmp_path: Path) -> None:
    state = {
        "model.a": torch.ones(64),
        "model.b": torch.ones(8, dtype=torch.bfloat16),
        "model.n": torch.ones(999).long(),
    }
    directory = make(tmp_path / "a", {**CONFIG, "torch_dtype": "float64"})
    convert(saved.save(tmp_path / "c", {"model": state}), tmp_path / "out", model_assets_dir=directory, dtype=dtype)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {**CONFIG, "torch_dtype": expected}


def test_the_assets_directory_is_left_alone(tmp_path: Path) -> None:
    directory = make(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    convert(saved.trained(tmp_path / "c", optimizer=False), tmp_path / "out", model_assets_dir=directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
