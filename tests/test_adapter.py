"""LoRA adapters without peft: names, what is chosen and refused, configs, files. With peft: test_peft.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import lookalikes, models, saved
from checkpoints.models import QWEN3_CONFIG
from click.testing import CliRunner
from reference import read_files
from safetensors.torch import load_file, save_file
from torch import Tensor

import dcptools
from dcptools.cli import convert_command
from dcptools.errors import OutputExists, UsageError
from dcptools.findings import Finding
from dcptools.layouts import Role
from dcptools.mapping import KeyMapping, patterns
from dcptools.recipe import command_line, python_call

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
STEM = f"{PREFIX}model.layers.{{}}.self_attn.q_proj"
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def adapted(layers: int = 2, *, name: str = ".default", out: int = 8, base: bool = True) -> dict[str, Tensor]:
    """The state dict of the tiny model of ``saved`` with adapters of rank 2 on each q_proj."""
    state = {f"{PREFIX}{key}": tensor for key, tensor in saved.model_state().items()} if base else {}
    for layer in range(layers):
        stem = STEM.format(layer)
        if base:
            state[f"{stem}.base_layer.weight"] = state.pop(f"{stem}.weight")
        state[f"{stem}.lora_A{name}.weight"] = torch.randn(2, 8)
        state[f"{stem}.lora_B{name}.weight"] = torch.randn(out, 2)
    return state


def assets(directory: Path, adapter: dict[str, Any] | None = None, **config: Any) -> Path:
    models.assets(directory, {**QWEN3_CONFIG, **config})
    (directory / "generation_config.json").write_text("{}")
    if adapter is not None:
        (directory / CONFIG).write_text(json.dumps(adapter))
    return directory


def found(mapping: KeyMapping, code: str) -> list[Finding]:
    return [finding for finding in mapping.findings if finding.code == code]


def made_config(mapping: KeyMapping) -> dict[str, Any]:
    assert mapping.assets is not None
    (content,) = [asset.content for asset in mapping.assets.files if asset.name == CONFIG]
    config: dict[str, Any] = json.loads(content or b"")
    return config


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("base_model.model.a.q.lora_A.default.weight", ("lora", "default", "a.q.lora_A.weight", "a.q.weight")),
        ("a.q.lora_B.x.bias", ("lora", "x", "a.q.lora_B.bias", "a.q.weight")),
        ("a.q.lora_A.weight", ("lora", "", "a.q.lora_A.weight", "a.q.weight")),
        ("m.base_model.model.e.lora_embedding_A.x", ("lora", "x", "m.e.lora_embedding_A", "m.e.weight")),
        ("e.lora_embedding_B", ("lora", "", "e.lora_embedding_B", "e.weight")),
        ("a.q.lora_magnitude_vector.x.weight", ("lora", "x", "a.q.lora_magnitude_vector", "a.q.weight")),
        ("a.q.lora_magnitude_vector.x", ("lora", "x", "a.q.lora_magnitude_vector", "a.q.weight")),
        ("a.q.lora_magnitude_vector", ("lora", "", "a.q.lora_magnitude_vector", "a.q.weight")),
        ("e.base_layer.lora_A.x.weight", ("lora", "x", "e.base_layer.lora_A.weight", "e.weight")),
        ("a.q.base_layer.weight", ("base", "", "a.q.base_layer.weight", "a.q.weight")),
        ("h.modules_to_save.x.d.weight", ("copy", "x", "h.d.weight", "h.d.weight")),
        ("h.original_module.d.weight", ("base", "", "h.original_module.d.weight", "h.d.weight")),
        (
            "e.token_adapter.trainable_tokens_delta.x",
            ("tokens", "x", "e.token_adapter.trainable_tokens_delta", "e.weight"),
        ),
        ("a.norm.weight", ("base", "", "a.norm.weight", "a.norm.weight")),
        # a moment of an optimizer is no weight
        ("o.a.q.lora_A.x.weight.exp_avg", ("base", "", *["o.a.q.lora_A.x.weight.exp_avg"] * 2)),
    ],
)
def test_what_a_key_is(name: str, role: tuple[str, ...]) -> None:
    assert Role.of(name) == role


def test_every_key_is_written_or_left_out_with_a_reason(tmp_path: Path) -> None:
    state = adapted()
    checkpoint = saved.save(tmp_path / "c", {"model": state, "optimizer": {"state": dict(state)}, "step": 3})
    mapping = dcptools.preview(checkpoint)
    assert mapping.kind == mapping.to_json()["kind"] == "adapter"
    assert (mapping.layout, mapping.root) == ("container", "model")
    assert {output.name for output in mapping.outputs} == {
        f"{STEM.format(layer)}.lora_{side}.weight" for layer in (0, 1) for side in "AB"
    }
    reasons = {left.key: left.reason for left in mapping.leftovers}
    assert reasons.pop("step") == "a pickled object, not a tensor"
    in_model = {reason for key, reason in reasons.items() if key.startswith("model.")}
    assert in_model == {"of the frozen base model"}
    assert {finding.code for finding in mapping.warnings} == {"base-left-out", "adapter-config"}
    (base,) = found(mapping, "base-left-out")
    assert "mode='full'" in base.hint and f"{len(saved.model_state())} tensors" in base.message


def test_who_asks_for_the_adapter_is_not_warned_of_the_base(tmp_path: Path) -> None:
    (base,) = found(dcptools.preview(saved.save(tmp_path / "c", {"model": adapted()}), mode="lora"), "base-left-out")
    assert base.severity == "info"


def test_an_adapter_with_a_config_of_its_own_is_verified_without_it(tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": adapted()})
    (tmp_path / CONFIG).write_text(json.dumps({**PLAIN, "alpha_pattern": {}, "inference_mode": True}))
    dcptools.convert(checkpoint, tmp_path / "out", adapter_config_path=tmp_path)
    assert dcptools.verify(tmp_path / "out", checkpoint).ok
    assert dcptools.verify(tmp_path / "out", checkpoint, adapter_config_path=tmp_path).ok
    (tmp_path / "out" / CONFIG).write_text(json.dumps({**PLAIN, "r": 4}))
    assert not dcptools.verify(tmp_path / "out", checkpoint, adapter_config_path=tmp_path).ok


def test_the_old_key_alone_is_an_adapter(tmp_path: Path) -> None:
    mapping = dcptools.preview(lookalikes.lora_adapter(tmp_path / "c"))
    assert mapping.kind == "adapter"
    assert {finding.code for finding in mapping.warnings} == {"adapter-config"}


def test_full_is_the_base_model_and_names_what_is_left(tmp_path: Path) -> None:
    state = adapted()
    checkpoint = saved.save(tmp_path / "c", {"model": state})
    dcptools.convert(checkpoint, tmp_path / "out", mode="full", model_assets_dir=assets(tmp_path / "a"), dtype="keep")
    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), saved.model_state()
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    mapping = dcptools.preview(checkpoint, mode="full")
    (left,) = found(mapping, "adapter-left-out")
    assert left.message.startswith("4 tensors of the adapter 'default', ")
    assert "model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" in left.message


def test_full_of_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": adapted(base=False)})
    mapping = dcptools.preview(checkpoint, mode="full", model_assets_dir=assets(tmp_path / "a"))
    assert "no-model-weights" in {error.code for error in mapping.errors}
    (nothing,) = found(mapping, "no-model-weights")
    assert nothing.hint.startswith("this checkpoint has only adapters, not their base model")


def test_nothing_is_said_of_an_adapter_that_is_left_out(tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": adapted()})
    mapping = dcptools.preview(checkpoint, exclude=["*lora_*"], model_assets_dir=assets(tmp_path / "a", PLAIN))
    assert [error.code for error in mapping.errors] == ["no-model-weights"]
    assert not found(mapping, "adapter") and mapping.expected is None


@pytest.mark.parametrize("options", [{"mode": "lora"}, {"adapter": "default"}])
def test_an_adapter_that_is_not_there_is_refused(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="This checkpoint has no LoRA adapter"):
        dcptools.preview(saved.trained(tmp_path / "c"), **options)  # type: ignore[arg-type]


def test_an_adapter_of_another_name_is_refused(tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": adapted(name=".mine")})
    with pytest.raises(UsageError, match="no adapter 'default'.\nIts adapters: mine."):
        dcptools.preview(checkpoint, adapter="default")
    assert dcptools.preview(checkpoint, adapter="mine").outputs


def test_a_mode_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mode cannot be 'base'.\nExpected one of auto, full, lora."):
        dcptools.preview(saved.trained(tmp_path / "c"), mode="base")


def test_weights_that_the_model_itself_calls_so_are_no_adapter(tmp_path: Path) -> None:
    """Phi-4-multimodal is published with LoRA weights in it."""
    state = {f"model.{name}": tensor for name, tensor in adapted(name=".speech").items()}
    save_file(adapted(name=".speech"), tmp_path / "reference.safetensors")
    checkpoint = saved.save(tmp_path / "c", state)
    mapping = dcptools.preview(checkpoint, reference=tmp_path / "reference.safetensors")
    assert mapping.kind == "model" and not mapping.errors
    assert found(mapping, "model-fits")


@pytest.mark.parametrize("key", ["ia3_l.default", "lora_E.default"])
def test_other_methods_of_peft_are_warned_about(key: str, tmp_path: Path) -> None:
    state = adapted() if "lora" in key else {f"{PREFIX}{k}": t for k, t in saved.model_state().items()}
    state[f"{STEM.format(0)}.{key}"] = torch.ones(8)
    mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": state}))
    assert mapping.kind == "model"
    assert f"model.{STEM.format(0)}.{key}" in {finding.key for finding in found(mapping, "peft")}


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "lora_B.bias", "lora_magnitude_vector"])
def test_an_adapter_that_lacks_a_part_is_refused(part: str, tmp_path: Path) -> None:
    """peft would make the part anew, and say little."""
    state = adapted(base=False)
    for part_of_all in ("lora_magnitude_vector.default.weight", "lora_B.default.bias"):
        state |= {f"{STEM.format(layer)}.{part_of_all}": torch.ones(8) for layer in range(2)}
    del state[f"{STEM.format(1)}.{'lora_B.default.bias' if part == 'lora_B.bias' else f'{part}.default.weight'}"]
    checkpoint = saved.save(tmp_path / "c", {"model": state})
    (mismatch,) = dcptools.preview(checkpoint).errors
    assert (mismatch.code, mismatch.key) == ("adapter-mismatch", "model.layers.1.self_attn.q_proj")
    assert f"has no {part} of it" in mismatch.message
    assert not dcptools.preview(checkpoint, allow_mismatch=True).errors


def test_the_base_of_an_adapter_that_is_gone_is_warned_about(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.base_layer.weight"
    mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": {name: torch.ones(8, 8)}}))
    assert [finding.key for finding in found(mapping, "peft")] == [f"model.{name}"]


class TestModel:
    """What config.json says about the modules that are adapted."""

    def test_one_of_another_model_is_an_error(self, tmp_path: Path) -> None:
        directory = assets(tmp_path / "a", PLAIN)
        state = {name.replace("q_proj", "query"): tensor for name, tensor in adapted(base=False).items()}
        mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": state}), model_assets_dir=directory)
        (mismatch,) = [error for error in mapping.errors if error.code == "adapter-mismatch"]
        assert mismatch.message.startswith("Qwen3ForCausalLM has no model.layers.0.self_attn.query, ")
        allowed = dcptools.preview(mapping.checkpoint, model_assets_dir=directory, allow_mismatch=True)
        assert not allowed.errors

    def test_one_module_too_many_is_a_warning(self, tmp_path: Path) -> None:
        checkpoint = saved.save(tmp_path / "c", {"model": adapted(3, base=False)})
        mapping = dcptools.preview(checkpoint, model_assets_dir=assets(tmp_path / "a", PLAIN))
        (mismatch,) = found(mapping, "adapter-mismatch")
        assert mismatch.severity == "warning" and "1 of 3 modules" in mismatch.message

    def test_half_a_matrix_is_an_error(self, tmp_path: Path) -> None:
        """As one of two tensor-parallel ranks holds it."""
        mapping = dcptools.preview(
            saved.save(tmp_path / "c", {"model": adapted(1, base=False, out=4)}),
            model_assets_dir=assets(tmp_path / "a", {**PLAIN, "layers_to_transform": [0]}),
        )
        (mismatch,) = mapping.errors
        assert (mismatch.code, mismatch.key) == ("adapter-mismatch", "model.layers.0.self_attn.q_proj")
        assert mismatch.message == "it is [4, 8] here, and the model has [8, 8]"


class TestMissing:
    """Modules that the config names, and of which the checkpoint has nothing. What peft matches: test_peft.py."""

    ONE = "model.layers.1.self_attn.q_proj"

    @pytest.mark.parametrize("base", [True, False])
    def test_a_module_without_an_adapter_is_an_error(self, base: bool, tmp_path: Path) -> None:
        """The base model is in the checkpoint, or config.json says which modules it has."""
        state = {key: value for key, value in adapted(base=base).items() if f"{self.ONE}.lora_" not in key}
        checkpoint = saved.save(tmp_path / "c", {"model": state})
        (tmp_path / CONFIG).write_text(json.dumps(PLAIN))
        model = {} if base else {"model_assets_dir": assets(tmp_path / "a")}
        mapping = dcptools.preview(checkpoint, adapter_config_path=tmp_path, **model)
        (error,) = mapping.errors
        assert (error.code, error.key) == ("weight-missing", self.ONE)
        assert error.message == "target_modules of the adapter's config names it, but the checkpoint has nothing of it"
        assert "allow_mismatch=True" in error.hint
        allowed = dcptools.preview(checkpoint, adapter_config_path=tmp_path, allow_mismatch=True, **model)
        assert not allowed.errors and self.ONE in {warning.key for warning in allowed.warnings}

    @pytest.mark.parametrize("lost", ["weight", "bias"])
    def test_a_weight_of_a_module_that_was_trained_whole_is_an_error(self, lost: str, tmp_path: Path) -> None:
        said = {**PLAIN, "target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
        model = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "num_labels": 3}
        sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "config.json").write_text(json.dumps(model | sizes | {"vocab_size": 16}))
        (tmp_path / "a" / CONFIG).write_text(json.dumps(said))
        stem = f"{PREFIX}bert.encoder.layer.0.attention.self.query"
        state = {
            f"{stem}.lora_{side}.default.weight": torch.ones(shape) for side, shape in (("A", (2, 8)), ("B", (8, 2)))
        }
        whole = f"{PREFIX}classifier.modules_to_save.default"
        state |= {f"{whole}.weight": torch.ones(3, 8), f"{whole}.bias": torch.ones(3)}
        checkpoint = saved.save(tmp_path / "whole", {"model": state})
        assert not dcptools.preview(checkpoint, model_assets_dir=tmp_path / "a").errors
        del state[f"{whole}.{lost}"]
        checkpoint = saved.save(tmp_path / "c", {"model": state})
        (error,) = dcptools.preview(checkpoint, model_assets_dir=tmp_path / "a").errors
        assert (error.code, error.key) == ("weight-missing", f"classifier.{lost}")
        assert error.message == "modules_to_save of the adapter's config names it, but the checkpoint has nothing of it"

    def test_what_the_user_leaves_out_is_a_warning(self, tmp_path: Path) -> None:
        mapping = dcptools.preview(
            saved.save(tmp_path / "c", {"model": adapted(base=False)}),
            model_assets_dir=assets(tmp_path / "a", PLAIN),
            exclude="*.layers.1.*",
        )
        assert not mapping.errors
        assert [(f.key, f.message) for f in found(mapping, "weight-missing")] == [
            (self.ONE, "left out by include= or exclude=")
        ]

    def test_a_module_that_a_reference_has_is_a_warning(self, tmp_path: Path) -> None:
        """Its files may name modules otherwise than the live model does."""
        save_file(saved.model_state(), tmp_path / "reference.safetensors")
        (tmp_path / CONFIG).write_text(json.dumps(PLAIN))
        mapping = dcptools.preview(
            saved.save(tmp_path / "c", {"model": adapted(1, base=False)}),
            reference=tmp_path / "reference.safetensors",
            adapter_config_path=tmp_path,
        )
        assert not mapping.errors
        assert [finding.key for finding in found(mapping, "weight-missing")] == [self.ONE]

    def test_of_a_model_that_is_not_known_it_says_that_modules_were_not_looked_for(self, tmp_path: Path) -> None:
        (tmp_path / CONFIG).write_text(json.dumps(PLAIN))
        checkpoint = saved.save(tmp_path / "c", {"model": adapted(1, base=False)})
        (unchecked,) = found(dcptools.preview(checkpoint, adapter_config_path=tmp_path), "adapter-unchecked")
        assert "nothing is known about the model" in unchecked.message
        assert not found(dcptools.preview(checkpoint), "adapter-unchecked")  # no config says what should be there

    def test_without_a_config_a_module_among_its_like_that_has_no_adapter_is_a_warning(self, tmp_path: Path) -> None:
        whole = saved.save(tmp_path / "whole", {"model": adapted()})
        assert not found(dcptools.preview(whole), "adapter-unchecked")
        state = {key: value for key, value in adapted().items() if f"{self.ONE}.lora_" not in key}
        (unchecked,) = found(dcptools.preview(saved.save(tmp_path / "c", {"model": state})), "adapter-unchecked")
        assert unchecked.message == f"there is no adapter of {self.ONE}, but of others with the same last name"
        assert not found(dcptools.preview(whole, exclude="*layers.1.*"), "adapter-unchecked")  # the user knows

    def test_without_a_config_it_is_not_known_whether_biases_were_trained(self, tmp_path: Path) -> None:
        state = adapted() | {f"{STEM.format(0)}.base_layer.bias": torch.ones(8)}
        (made,) = found(dcptools.preview(saved.save(tmp_path / "c", {"model": state})), "adapter-config")
        assert "bias (whether those of the base model were trained; they are not written)" in made.message
        (made,) = found(dcptools.preview(saved.save(tmp_path / "d", {"model": adapted()})), "adapter-config")
        assert "bias" not in made.message

    def test_by_names_alone_a_target_without_any_module_is_a_warning(self, tmp_path: Path) -> None:
        said = {"target_modules": ["q_proj", "k_proj", "v_proj"], "modules_to_save": ["lm_head", "classifier", "score"]}
        (tmp_path / CONFIG).write_text(json.dumps({**PLAIN, **said}))
        state = {**adapted(base=False), f"{PREFIX}score.modules_to_save.default.weight": torch.ones(2, 8)}
        mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": state}), adapter_config_path=tmp_path)
        assert not mapping.errors
        assert [finding.message for finding in found(mapping, "weight-missing")] == [
            "target_modules in its config names k_proj, v_proj, but the checkpoint has nothing of such a module",
            "modules_to_save in its config names lm_head, but the checkpoint has nothing of such a module",
        ]

    def test_the_head_of_a_classifier_is_not_among_all_linear_modules(self, tmp_path: Path) -> None:
        said = {**PLAIN, "target_modules": "all-linear", "exclude_modules": r".*(mlp|attn)\..*", "task_type": "SEQ_CLS"}
        directory = assets(tmp_path / "a", said, architectures=["Qwen3ForSequenceClassification"], num_labels=2)
        state = adapted(base=False)
        mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": state}), model_assets_dir=directory)
        assert not found(mapping, "weight-missing")
        (directory / CONFIG).write_text(json.dumps({**said, "task_type": None}))
        mapping = dcptools.preview(mapping.checkpoint, model_assets_dir=directory)
        assert [finding.key for finding in found(mapping, "weight-missing")] == ["score"]

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            (
                {"target_modules": "(aa|a)" * 30},
                "target_modules of the adapter's config: its patterns take more than 2 seconds",
            ),
            ({"target_modules": "a{9999999}"}, "'a{9999999}' is not a pattern that is tried"),
            ({"target_modules": "(((q{99}){99}){99})?"}, "'(((q{99}){99}){99})?' is not a pattern that is tried"),
            ({"target_modules": "x|" * 40_000}, "is not a pattern that is tried"),
            ({"exclude_modules": "(" * 9}, "'(((((((((' is not a pattern that is tried"),
            ({"exclude_modules": "(?:" * 9999 + ")" * 9999}, "is not a pattern that is tried"),
            ({"exclude_modules": "[[a]&&[b]]"}, "is not a pattern that is tried"),
            ({"exclude_modules": "(q){e<=1}"}, "is not a pattern that is tried"),
            ({"layer_replication": [[0, 1]]}, "layer_replication makes layers that the model does not have"),
            ({"layers_to_transform": [0, 1], "layers_pattern": "("}, "is not a pattern that is tried"),
            ({"rank_pattern": {"(aa|a)" * 30: 4}}, "rank_pattern of the adapter's config: its patterns take"),
        ],
    )
    def test_what_could_not_be_looked_for_is_a_warning(
        self, said: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(patterns, "SECONDS", 0.1)
        state = adapted(base=False) | {
            f"{PREFIX}{'a' * 99}.lora_{side}.default.weight": torch.ones(2, 2) for side in "AB"
        }
        mapping = dcptools.preview(
            saved.save(tmp_path / "c", {"model": state}),
            model_assets_dir=assets(tmp_path / "a", {**PLAIN, **said}),
        )
        assert not found(mapping, "weight-missing")
        (unchecked,) = found(mapping, "adapter-unchecked")
        assert why in unchecked.message

    def test_which_modules_are_linear_a_config_of_the_model_tells(self, tmp_path: Path) -> None:
        (tmp_path / CONFIG).write_text(json.dumps({**PLAIN, "target_modules": "all-linear"}))
        checkpoint = saved.save(tmp_path / "c", {"model": adapted(1)})
        (unchecked,) = found(dcptools.preview(checkpoint, adapter_config_path=tmp_path), "adapter-unchecked")
        assert "which modules are linear" in unchecked.message
        model = assets(tmp_path / "a")
        mapping = dcptools.preview(checkpoint, adapter_config_path=tmp_path, model_assets_dir=model)
        assert not found(mapping, "adapter-unchecked") and found(mapping, "weight-missing")


class TestConfig:
    def test_that_of_the_assets_is_taken(self, tmp_path: Path) -> None:
        directory = assets(tmp_path / "a", PLAIN)
        checkpoint = saved.save(tmp_path / "c", {"model": adapted()})
        report = dcptools.convert(checkpoint, tmp_path / "out", model_assets_dir=directory)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [CONFIG, WEIGHTS, "tokenizer.json"]
        assert (tmp_path / "out" / CONFIG).read_bytes() == (directory / CONFIG).read_bytes()
        assert report.assets == (CONFIG, "tokenizer.json")
        assert {finding.code for finding in report.warnings} == {"base-left-out"}

    def test_the_one_that_is_named_comes_first(self, tmp_path: Path) -> None:
        directory = assets(tmp_path / "a", {"peft_type": "LORA", "r": 16})
        (tmp_path / "mine.json").write_text(json.dumps(PLAIN))
        checkpoint = saved.save(tmp_path / "c", {"model": adapted()})
        mapping = dcptools.preview(
            checkpoint, model_assets_dir=directory, adapter_config_path=tmp_path / "mine.json"
        )  # fmt: skip
        assert made_config(mapping) == PLAIN and not mapping.errors

    @pytest.mark.parametrize("content", ["[]", "{", "\xff"])
    def test_what_is_no_config_is_refused(self, content: str, tmp_path: Path) -> None:
        (tmp_path / CONFIG).write_bytes(content.encode("latin-1"))
        checkpoint = saved.save(tmp_path / "c", {"model": adapted()})
        with pytest.raises(UsageError, match="adapter_config.json is not a JSON object.\nGive the"):
            dcptools.preview(checkpoint, adapter_config_path=tmp_path)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"bias": {}}, "bias: expected a string, found a dict"),
            (
                {"target_modules": [["q_proj"]]},
                "target_modules: expected a string or a list of strings, found [['q_proj']]",
            ),
            ({"modules_to_save": 3}, "modules_to_save: expected a list of strings, found 3"),
            ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern: expected numbers by pattern, found a dict"),
            ({"lora_bias": "x" * 9000}, f"lora_bias: expected true or false, found '{'x' * 97}...{'x' * 98}'"),
        ],
    )
    def test_a_field_of_another_kind_is_named(self, wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
        (tmp_path / CONFIG).write_text(json.dumps({**PLAIN, **wrong}))
        checkpoint = saved.save(tmp_path / "c", {"model": adapted()})
        with pytest.raises(UsageError) as caught:
            dcptools.preview(checkpoint, adapter_config_path=tmp_path)
        assert str(caught.value).splitlines() == [
            f"{tmp_path / CONFIG}: {message}.", f"Give the {CONFIG} that peft wrote during the training."
        ]  # fmt: skip

    def test_one_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        checkpoint = saved.save(tmp_path / "c", {"model": adapted()})
        with pytest.raises(UsageError, match="nowhere.json cannot be read: No such file"):
            dcptools.preview(checkpoint, adapter_config_path=tmp_path / "nowhere.json")

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"peft_type": "LOHA"}, "peft_type is 'LOHA', but the keys are those of 'LORA'"),
            (
                {"r": 8},
                "r is 8 for model.layers.0.self_attn.q_proj, and its tensors have 2; so it is for 2 modules",
            ),
            (
                {"rank_pattern": {"layers.1.*": 4}},
                "r is 4 for model.layers.1.self_attn.q_proj, and its tensors have 2; so it is for 1 module",
            ),
            ({"target_modules": r".*\.k_proj"}, "target_modules does not name model.layers.0.self_attn.q_proj, "),
            ({"target_modules": ["k_proj"]}, "target_modules does not name model.layers.0.self_attn.q_proj, "),
            ({"use_dora": True}, "use_dora is True, and there are no lora_magnitude_vector"),
            (
                {"trainable_token_indices": [3]},
                "trainable_token_indices is [3], and there are no trainable_tokens_delta",
            ),
        ],
    )
    def test_one_of_another_adapter_is_an_error(self, wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
        directory = assets(tmp_path / "a", {**PLAIN, **wrong})
        checkpoint = saved.save(tmp_path / "c", {"model": adapted()})
        (error,) = found(dcptools.preview(checkpoint, model_assets_dir=directory), "adapter-config-differs")
        assert error.message.startswith(message)

    def test_modules_to_save_may_name_what_they_are_in_or_how_they_end(self, tmp_path: Path) -> None:
        """As a head of several modules; peft looks for ends of names, wherever they begin."""
        directory = assets(tmp_path / "a", {**PLAIN, "modules_to_save": ["classifier", "head"]})
        parts = ("classifier.modules_to_save.default.dense", "lm_head.modules_to_save.default")
        state = {**adapted(), **{f"{PREFIX}{part}.weight": torch.ones(16, 8) for part in parts}}
        mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": state}), model_assets_dir=directory)
        assert not mapping.errors

    def test_a_made_one_says_what_tensors_tell(self, tmp_path: Path) -> None:
        state = adapted()
        state[f"{STEM.format(0)}.lora_A.default.weight"] = torch.ones(3, 8)
        state[f"{STEM.format(0)}.lora_B.default.weight"] = torch.ones(8, 3)
        state[f"{PREFIX}model.layers.0.mlp.up_proj.lora_A.default.weight"] = torch.ones(2, 8)
        state[f"{PREFIX}lm_head.modules_to_save.default.weight"] = torch.ones(16, 8)
        mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": state}))
        assert made_config(mapping) == {
            "base_model_name_or_path": None,
            "bias": "none",
            "inference_mode": True,
            "lora_alpha": None,
            "lora_bias": False,
            "modules_to_save": ["lm_head"],
            "peft_type": "LORA",
            "r": 2,
            "rank_pattern": {"model.layers.0.self_attn.q_proj": 3},
            "target_modules": ["model.layers.0.mlp.up_proj", "q_proj"],  # not every up_proj is adapted
            "task_type": None,
            "use_dora": False,
        }
        (finding,) = found(mapping, "adapter-config")
        assert "lora_alpha is unknown" in finding.message and "adapter_config_path=" in finding.hint

    def test_without_the_model_modules_are_named_whole(self, tmp_path: Path) -> None:
        """For all that is known, there are other modules of that last name, which are not adapted."""
        mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": adapted(1, base=False)}))
        assert made_config(mapping)["target_modules"] == ["model.layers.0.self_attn.q_proj"]

    def test_the_name_of_the_base_comes_from_config_json(self, tmp_path: Path) -> None:
        directory = assets(tmp_path / "a", _name_or_path="org/base")
        mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": adapted()}), model_assets_dir=directory)
        assert made_config(mapping)["base_model_name_or_path"] == "org/base"

    def test_where_no_adapter_is_written_it_is_not_used(self, tmp_path: Path) -> None:
        (tmp_path / CONFIG).write_text("{}")
        mapping = dcptools.preview(saved.trained(tmp_path / "c"), adapter_config_path=tmp_path / CONFIG)
        assert found(mapping, "adapter-config")[0].message == "not used: no adapter is written"


class TestFiles:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        return saved.save(tmp_path / "c", {"model": adapted()})

    def test_it_is_never_cut(self, checkpoint: Path, tmp_path: Path) -> None:
        plan = dcptools.plan(checkpoint, shard_size=50)
        assert [file.filename for file in plan.files] == [WEIGHTS] and plan.index is None
        (finding,) = [finding for finding in plan.findings if finding.code == "adapter-not-cut"]
        assert finding.message == "128 B are more than the shard size of 50 B, but stay one file"
        assert not {"large-tensor"} & {finding.code for finding in plan.findings}
        dcptools.write(plan, tmp_path / "out")
        assert len(load_file(tmp_path / "out" / WEIGHTS)) == 4

    def test_a_model_that_is_there_stays(self, checkpoint: Path, tmp_path: Path) -> None:
        """Base and adapter can lie in one directory; what is replaced is the old adapter."""
        out = tmp_path / "out"
        out.mkdir()
        for name in ("model.safetensors", "adapter_model.bin", CONFIG, "config.json"):
            (out / name).write_text("old")
        with pytest.raises(OutputExists):
            dcptools.convert(checkpoint, out)
        dcptools.convert(checkpoint, out, overwrite=True)
        assert sorted(path.name for path in out.iterdir()) == [CONFIG, WEIGHTS, "config.json", "model.safetensors"]
        assert (out / "model.safetensors").read_text() == (out / "config.json").read_text() == "old"
        assert json.loads((out / CONFIG).read_text())["r"] == 2

    def test_an_adapter_that_is_there_stays_when_a_model_is_written(self, checkpoint: Path, tmp_path: Path) -> None:
        dcptools.convert(checkpoint, tmp_path / "out")
        dcptools.convert(checkpoint, tmp_path / "out", mode="full", overwrite=True)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [CONFIG, WEIGHTS, "model.safetensors"]

    def test_it_can_be_written_where_one_is(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No assets directory was given, and the current directory is not one."""
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        dcptools.convert(checkpoint, ".")
        assert sorted(path.name for path in Path().iterdir()) == [CONFIG, WEIGHTS]


def test_what_the_user_leaves_out_of_an_adapter_is_a_warning(tmp_path: Path) -> None:
    mapping = dcptools.preview(saved.save(tmp_path / "c", {"model": adapted(base=False)}), exclude="*.layers.1.*")
    assert [finding.key for finding in found(mapping, "weight-missing")] == [
        f"{STEM.format(1)}.lora_{half}.weight" for half in "AB"
    ]
    assert not mapping.errors


@pytest.mark.usefixtures("expected_in_process")
def test_adapters_of_two_layers_that_change_places_by_a_rename_are_a_warning(tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": adapted(base=False)})
    rules = [r"(.*layers)\.0\.(.*)=\1.1.\2", r"(.*layers)\.1\.(.*)=\1.0.\2"]
    mapping = dcptools.preview(checkpoint, model_assets_dir=assets(tmp_path / "a", PLAIN), rename=rules)
    assert [finding.code for finding in mapping.warnings] == ["renamed-away"]


@pytest.mark.parametrize("given", [True, False], ids=["its config given", "its config made"])
def test_an_adapter_is_verified_with_its_config(given: bool, tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": adapted()})
    (tmp_path / "mine.json").write_text(json.dumps(PLAIN))
    options = {"adapter_config_path": tmp_path / "mine.json"} if given else {}
    dcptools.convert(checkpoint, tmp_path / "out", verify=True, **options)
    (tmp_path / "out" / CONFIG).write_text(json.dumps({**PLAIN, "r": 9}))
    verified = dcptools.verify(tmp_path / "out", checkpoint, **options)
    assert [(finding.code, finding.key) for finding in verified.errors] == [("model-asset", CONFIG)]


def test_on_the_command_line(tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": {**adapted(), **adapted(name=".other")}})
    (tmp_path / "mine.json").write_text(json.dumps(PLAIN))
    base = ["--load-dir", str(checkpoint), "--save-dir", str(tmp_path / "out")]
    refused = CliRunner().invoke(convert_command, base)
    assert "This checkpoint has several adapters: default, other" in str(refused.exception)
    words = ["--mode", "lora", "--adapter", "other", "--adapter-config-path", str(tmp_path / "mine.json")]
    done = CliRunner().invoke(convert_command, [*base, *words])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / CONFIG).read_text()) == PLAIN


def test_the_recipe_does_the_same_again(tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": {**adapted(), **adapted(name=".other")}})
    (tmp_path / "mine.json").write_text(json.dumps(PLAIN))
    mapping = dcptools.preview(checkpoint, mode="lora", adapter="other", adapter_config_path=tmp_path / "mine.json")
    plan = dcptools.plan(mapping)
    assert command_line(plan, "out").endswith(
        f" --save-dir out --mode lora --adapter other --adapter-config-path {tmp_path / 'mine.json'}"
    )
    dcptools.write(plan, tmp_path / "written")
    exec(python_call(plan, str(tmp_path / "called")), {"dcptools": dcptools})
    assert read_files(tmp_path / "called") == read_files(tmp_path / "written")
