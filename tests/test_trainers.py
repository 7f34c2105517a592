"""Checkpoints that trainers' own code wrote: they become what the trainer's own exporter makes of them, bit for bit.

``tests/data/trainers`` says how they were made.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import saved

import dcptools
from dcptools.errors import FindingsError
from dcptools.expected import Expected
from dcptools.expected.building import build, describe
from dcptools.mapping import KeyMapping
from dcptools.tensors import TensorReader, read_elements

DATA = Path(__file__).parent / "data" / "trainers"
# adapters are no models
MODELS = sorted(
    file.parent.name for file in DATA.glob("*/config.json") if not file.with_name("adapter_config.json").exists()
)
BELOW = ("", "model_and_optim", "pytorch_model_fsdp_0")  # where trainers keep the model of a checkpoint


@pytest.fixture(scope="module", autouse=True)
def asked_here() -> Iterator[None]:
    """transformers is asked in this process, where it is imported once, and not in a process of its own each time."""

    @functools.cache
    def expect(config: str) -> Expected:
        return Expected.from_json(json.loads(json.dumps(describe(build(json.loads(config))))))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dcptools.mapping.expectation.expect", expect)
        yield


def checkpoint_of(name: str) -> Path:
    places = [DATA / name / "checkpoint" / below for below in BELOW]
    return next((place for place in places if (place / ".metadata").exists()), places[0])


def preview(name: str, **options: Any) -> KeyMapping:
    return dcptools.preview(checkpoint_of(name), model_assets_dir=DATA / name, **options)


def exported(name: str) -> dict[str, Any]:
    tensors: dict[str, Any] = json.loads((DATA / name / "expected.json").read_text())["tensors"]
    return tensors


def written(mapping: KeyMapping) -> dict[str, Any]:
    """Shape, dtype and SHA-256 of the bytes of each output, as expected.json has them."""
    found = {}
    for output in mapping.outputs:
        digest = hashlib.sha256()
        for view in output.sources:
            reader = TensorReader(mapping.checkpoint[view.key])
            values = np.empty(view.numel, reader.bits)
            read_elements(reader, view, 0, view.numel, values)
            digest.update(values.tobytes())
        found[output.name] = {
            "shape": list(output.shape), "dtype": output.dtype.name, "sha256": digest.hexdigest(),
        }  # fmt: skip
    return found


@pytest.mark.parametrize("name", MODELS)
def test_it_becomes_what_the_trainers_own_exporter_writes(name: str) -> None:
    mapping = preview(name, names="published")
    assert mapping.errors == ()
    assert mapping.fit is not None and mapping.fit.complete
    assert {finding.code for finding in mapping.warnings} == {"assets-missing"}  # the tokenizer
    assert written(mapping) == exported(name)


@pytest.mark.parametrize("name", MODELS)
def test_the_converted_model_is_loaded_with_nothing_missing(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    dcptools.convert(checkpoint_of(name), tmp_path / "model", model_assets_dir=DATA / name, dtype="keep")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True, dtype="auto")
    assert type(loaded).__name__ in json.loads((DATA / name / "config.json").read_text())["architectures"]
    assert not any(info.values()), info


@pytest.mark.parametrize("name", ["lightning-llama", "composer-qwen2"])
def test_the_attribute_that_holds_the_model_is_found_without_a_config(name: str) -> None:
    mapping = dcptools.preview(checkpoint_of(name))
    assert {finding.code for finding in mapping.warnings} == {"container", "assets-none"}
    assert written(mapping) == exported(name)


def test_a_family_of_another_architecture_is_a_warning() -> None:
    """Names and shapes of Qwen3 without norms are those of Llama 3, and rows of q and k lie in another order."""
    files = Path(dcptools.__file__).parent / "layouts" / "families"
    mapping = preview("torchtitan-llama3", family=files / "torchtitan-qwen3.toml", names="published")
    (found,) = [each for each in mapping.warnings if each.code == "family-differs"]
    assert found.message.startswith("torchtitan, Qwen3 makes Qwen3ForCausalLM")
    assert found.message.endswith("and config.json names LlamaForCausalLM")
    own = preview("torchtitan-llama3", family=files / "torchtitan-llama3.toml", names="published")
    assert written(own) == exported("torchtitan-llama3") != written(mapping)
    assert {each.code for each in own.warnings} == {"assets-missing"}


# --- what is refused --------------------------------------------------------------------------------------------

FOREIGN = {
    "torchtitan-llama3": (
        "torchtitan, whose values are in another order than HuggingFace's",
        "give model_assets_dir= with the config.json of Llama 3, Qwen3, or convert it with torchtitan's "
        "own checkpoint.last_save_in_hf",
    ),
    "torchtune-qwen2": (
        "torchtune, whose values are in another order than HuggingFace's",
        "give model_assets_dir= with the config.json of Llama 3, Qwen2, or convert it with torchtune's own "
        "FullModelHFCheckpointer",
    ),
    "olmo-core-olmo2": (
        "OLMo-core, whose values are in another order than HuggingFace's",
        "give model_assets_dir= with the config.json of Llama and Qwen3, OLMo 2 and FlexOlmo, or convert it with "
        "OLMo-core's own olmo_core.nn.hf.convert_checkpoint",
    ),
    "megatron-core-gpt": (
        "Megatron-core, which keeps q, k and v in one matrix, in an order that its settings decide",
        "convert it with Megatron Bridge's AutoBridge.export_ckpt",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_trainers_own_names_are_refused_where_no_config_says_what_they_are(name: str) -> None:
    whose, hint = FOREIGN[name]
    message = f"these are names of {whose}", f"{hint}; layout='bare' keeps names and values as they are"
    mapping = dcptools.preview(checkpoint_of(name))
    assert [(each.message, each.hint) for each in mapping.errors if each.code == "foreign-names"] == [message]


def test_a_trainers_own_names_of_a_model_that_is_not_known_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((DATA / "composer-qwen2" / "config.json").read_text())
    mapping = dcptools.preview(checkpoint_of("olmo-core-llama"), model_assets_dir=tmp_path)
    assert {"model-mismatch", "foreign-names"} <= {each.code for each in mapping.errors}


def test_gemma_of_olmo_core_is_refused_for_its_norms(tmp_path: Path) -> None:
    keys = ("attention.w_q.weight", "attention_norm.weight", "post_feed_forward_norm.weight")
    saved.save(tmp_path / "c", {"model": {f"blocks.0.{key}": torch.ones(4) for key in keys}})
    (found,) = [each for each in dcptools.preview(tmp_path / "c").errors if each.code == "foreign-names"]
    assert found.message == (
        "these are names of OLMo-core, whose norms of Gemma 3 have other values than HuggingFace's: one more"
    )
    assert found.hint.startswith("convert it with OLMo-core's own olmo_core.nn.hf.convert_checkpoint")


def flex_olmo(directory: Path, w1: tuple[int, int], **sizes: int) -> KeyMapping:
    """FlexOlmo's checkpoint with other experts: ``w1`` is the shape of w1 and w3."""
    config = json.loads((DATA / "olmo-core-flex-olmo" / "config.json").read_text()) | sizes
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    checkpoint = dcptools.read(checkpoint_of("olmo-core-flex-olmo"))
    shapes = {key.removeprefix("model."): tensor.shape for key, tensor in checkpoint.tensors.items()}
    for key in shapes:
        if ".experts." in key:
            w2 = (4 * config["intermediate_size"], config["hidden_size"])
            shapes[key] = w2 if key.endswith("w2") else w1
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    return dcptools.preview(saved.save(directory / "c", {"model": state}), model_assets_dir=directory)


def test_experts_that_lie_in_one_of_two_ways_are_refused_where_the_shape_does_not_tell(tmp_path: Path) -> None:
    sound = flex_olmo(tmp_path / "sound", (4 * 32, 24))
    assert sound.errors == ()
    dropless = flex_olmo(tmp_path / "dropless", (4 * 24, 32))
    assert {each.code for each in dropless.errors} == {"model-mismatch", "weight-shape"}
    square = flex_olmo(tmp_path / "square", (4 * 32, 32), intermediate_size=32)
    assert {each.code for each in square.errors} == {"model-mismatch", "weight-missing"}
    (why,) = [each for each in square.warnings if each.code == "left-out-tensor"]
    assert why.message == (
        "4 tensors of OLMo-core, OLMo 2 and FlexOlmo cannot be rearranged: in and out have the same size, so nothing "
        "tells which of them runs first: "
        + ", ".join(f"model.blocks.{layer}.feed_forward_moe.experts.mlp.w{n}" for layer in (0, 1) for n in (1, 3))
    )


def test_names_of_another_model_that_only_resemble_a_trainers_are_none_of_its(tmp_path: Path) -> None:
    """InternLM2 comes with its own code, and HuggingFace has it under these names."""
    layer = ("attention.wqkv.weight", "attention.wo.weight", "feed_forward.w1.weight", "ffn_norm.weight")
    state = {f"model.layers.0.{key}": torch.ones(4) for key in layer} | {"model.tok_embeddings.weight": torch.ones(4)}
    mapping = dcptools.preview(saved.save(tmp_path, {"model": state}))
    assert "foreign-names" not in {each.code for each in mapping.findings}


# --- Megatron-core ----------------------------------------------------------------------------------------------


def test_megatron_core_is_inspected_and_its_common_file_is_not_touched(tmp_path: Path) -> None:
    shutil.copytree(checkpoint_of("megatron-core-gpt"), tmp_path / "c")
    (tmp_path / "c" / "common.pt").unlink()  # a pickle
    frame = dcptools.inspect(tmp_path / "c").set_index("key")
    tensors = frame[frame["kind"] == "tensor"]
    assert {key: list(shape) for key, shape in tensors["shape"].items()} == {
        key: tensor["shape"] for key, tensor in exported("megatron-core-gpt").items()
    }


def test_megatron_core_is_converted_under_its_own_names_only_when_asked(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("megatron-core-gpt")
    with pytest.raises(FindingsError, match="names of Megatron-core"):
        dcptools.convert(checkpoint, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    report = dcptools.convert(checkpoint, tmp_path / "model", layout="bare", dtype="keep")
    assert "foreign-names" in {each.code for each in report.warnings}
    assert written(dcptools.preview(checkpoint, layout="bare")) == exported("megatron-core-gpt")
