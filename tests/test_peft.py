"""Adapters that peft made, saved by DCP and converted, against what peft itself saves and computes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from checkpoints import adapters, saved
from checkpoints.adapters import adapted, base_model, logits
from safetensors.torch import load_file
from torch import Tensor

import dcptools
from dcptools.errors import FindingsError, UsageError
from dcptools.findings import Finding

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PLAIN: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the base model, and of the adapter
    "plain": ({}, PLAIN),
    "tied": ({"tied": True}, PLAIN),
    "dora": ({}, {**PLAIN, "use_dora": True}),
    "trained whole": ({}, {**PLAIN, "modules_to_save": ["lm_head"]}),
    "trained whole, tied": ({"tied": True}, {**PLAIN, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "embeddings": ({}, {**PLAIN, "target_modules": ["embed_tokens", "lm_head", "up_proj"]}),
    "embeddings, tied": ({"tied": True}, {**PLAIN, "target_modules": ["embed_tokens"]}),
    "embeddings, by their whole name": ({}, {**PLAIN, "target_modules": ["model.embed_tokens"]}),
    "embeddings, by a pattern": ({}, {**PLAIN, "target_modules": r".*\.(embed_tokens|down_proj)"}),
    "biases of the adapter": ({}, {**PLAIN, "lora_bias": True}),
    "biases of what is adapted": ({"attention_bias": True}, {**PLAIN, "bias": "lora_only"}),
    "all biases": ({"attention_bias": True}, {**PLAIN, "bias": "all"}),
    "some ranks": ({}, {**PLAIN, "rank_pattern": {"layers.1.self_attn.q_proj": 4}, "alpha_pattern": {"v_proj": 3}}),
    "some layers": ({}, {**PLAIN, "layers_to_transform": [1]}),
    "tokens": ({}, {**PLAIN, "trainable_token_indices": [1, 5]}),
    "tokens, tied": ({"tied": True}, {**PLAIN, "trainable_token_indices": [1, 5]}),
    "experts": ({"experts": 4}, {**PLAIN, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    "all linear": ({}, {**PLAIN, "target_modules": "all-linear", "use_rslora": True}),
}


class Made(NamedTuple):
    """A checkpoint, and what peft makes of the same model."""

    checkpoint: Path
    base: Path  # the model without adapters, as transformers saves it
    live: Path  # the adapter, as peft saves it
    model: Any


def make(directory: Path, config: Mapping[str, Any], options: Mapping[str, Any], name: str = "default") -> Made:
    base = base_model(**config)
    base.save_pretrained(directory / "base")
    model = adapted(base, {name: options})
    model.save_pretrained(directory / "saved")
    saved.save(directory / "checkpoint", {"model": model.state_dict(), "step": 3})
    live = directory / "saved" / ("" if name == "default" else name)
    return Made(directory / "checkpoint", directory / "base", live, model)


def load(base: Path, adapter: Path) -> Any:
    import transformers

    return peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter).eval()


@pytest.mark.parametrize("case", CASES)
def test_the_adapter_is_what_peft_saves(case: str, tmp_path: Path) -> None:
    """Name for name and bit for bit; and it computes what the live model does."""
    made = make(tmp_path, *CASES[case])
    out = tmp_path / "out"
    report = dcptools.convert(
        made.checkpoint, out, model_assets_dir=made.base, adapter_config_path=made.live / CONFIG, dtype="keep"
    )
    wanted, written = load_file(made.live / WEIGHTS), load_file(out / WEIGHTS)
    assert written.keys() == wanted.keys()
    assert (out / WEIGHTS).read_bytes() == (made.live / WEIGHTS).read_bytes()
    assert (out / CONFIG).read_bytes() == (made.live / CONFIG).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == [CONFIG, WEIGHTS]
    assert {finding.code for finding in report.warnings} == {"assets-missing", "base-left-out"}
    assert torch.equal(logits(load(made.base, out)), logits(made.model))


Q, K, UP = "q_proj", "k_proj", "mlp.up_proj"
TARGETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the base model, and of the adapter
    "ends of names": ({}, {"target_modules": [Q, UP]}),
    "whole names": ({}, {"target_modules": ["model.layers.0.self_attn.k_proj", "layers.1.mlp.down_proj"]}),
    "one layer": ({}, {"target_modules": [Q, K], "layers_to_transform": 1}),
    "a layer and a whole name": (
        {},
        {"target_modules": [Q, "model.layers.0.mlp.up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "layers called by patterns": (
        {},
        {"target_modules": [Q, UP], "layers_to_transform": [0], "layers_pattern": ["h|blocks", r"l[a-z]*?s"]},
    ),
    "without some": ({}, {"target_modules": [Q, K], "exclude_modules": ["layers.0.self_attn.q_proj"]}),
    "without a pattern": ({}, {"target_modules": [Q, K], "exclude_modules": r".*\.1\..*q_proj"}),
    "a pattern": ({}, {"target_modules": r"(?!.*mlp).*layers\.\d+\..*_attn\.(q|v)_proj"}),
    "a long pattern": (  # as trainers make them for models with towers
        {},
        {"target_modules": "".join([
            r"(?:.*?(?:text|language|decoder).*?(?:attn|attention|self_attn|mixer).*?(?:q|k|v|o|out|query)_?(?:proj)?.*?)|",
            r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|ffn|feed_forward)\.",
            rf"(?:{'|'.join(f'(?:{name})' for name in ('q_proj', 'down_proj', *(f'other_{n}' for n in range(9))))}))",
        ])},
    ),
    "all linear": ({}, {"target_modules": "all-linear"}),
    "all linear, a pattern": ({}, {"target_modules": "All-Linear", "exclude_modules": r".*(up|down)_proj"}),
    "trained whole": ({}, {"target_modules": [Q, "embed_tokens"], "modules_to_save": ["head", "embed_tokens"]}),
    "embeddings": ({"tied": True}, {"target_modules": [Q, "embed_tokens", "lm_head"]}),
    "experts": ({"experts": 4}, {"target_modules": [Q], "target_parameters": ["mlp.experts.gate_up_proj"]}),
}  # fmt: skip


@pytest.mark.usefixtures("expected_in_process")
@pytest.mark.parametrize("case", TARGETS)
def test_every_module_that_peft_adapts_is_missed(case: str, tmp_path: Path) -> None:
    base, options = TARGETS[case]
    options = {**options, "r": 2}
    made = adapted(base_model(**base), {"default": options})
    base_model(**base).save_pretrained(tmp_path / "base")
    (tmp_path / CONFIG).write_text(json.dumps({**options, "peft_type": "LORA"}))
    state = {name: t for name, t in made.state_dict().items() if "lora_" in name or "modules_to_save" in name}
    modules = {re.split(r"\.(?:base_layer\.)?(?:lora_|modules_to_save)", name)[0] for name in state}
    kept = min(module for module in modules if "self_attn" in module)
    only = {name: tensor for name, tensor in state.items() if name.startswith(f"{kept}.")}
    for number, there in enumerate((state, only)):
        mapping = dcptools.preview(
            saved.save(tmp_path / f"c{number}", {"model": there}),
            model_assets_dir=tmp_path / "base",
            adapter_config_path=tmp_path,
        )
        missed = {f"base_model.model.{error.key}" for error in mapping.errors if error.code == "weight-missing"}
        assert missed == (modules - {kept} if there is only else set())
        assert {error.code for error in mapping.errors} <= {"weight-missing"}


@pytest.mark.usefixtures("expected_in_process")
@pytest.mark.parametrize("case", ["biases of what is adapted", "all biases"])
def test_every_bias_that_peft_trains_is_missed(case: str, tmp_path: Path) -> None:
    made = make(tmp_path, *CASES[case])
    state = load_file(made.live / WEIGHTS)
    biases = {name for name in state if name.endswith(".bias")}
    assert biases

    def missed(kept: dict[str, Tensor], name: str, **model: Path) -> list[Finding]:
        checkpoint = saved.save(tmp_path / name, {"model": kept})
        mapping = dcptools.preview(checkpoint, adapter_config_path=made.live, **model)
        return [finding for finding in mapping.findings if finding.code == "weight-missing"]

    assert not missed(state, "whole", model_assets_dir=made.base)
    without = {name: tensor for name, tensor in state.items() if name not in biases}
    found = missed(without, "without", model_assets_dir=made.base)
    named = {name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in biases}
    assert {(each.severity, each.key) for each in found} == {("error", name) for name in named}
    (unknown,) = missed(without, "unknown")
    assert unknown.severity == "warning"
    assert unknown.message == f"bias in its config is {CASES[case][1]['bias']!r}, but the checkpoint has no bias"


@pytest.mark.parametrize("case", ["plain", "dora", "trained whole", "some ranks", "some layers", "embeddings"])
def test_a_config_that_is_made_lacks_only_what_no_tensor_tells(case: str, tmp_path: Path) -> None:
    """With the scale in it, which is asked for, it computes what the live model does."""
    made = make(tmp_path, CASES[case][0], {**CASES[case][1], "alpha_pattern": {}})
    report = dcptools.convert(made.checkpoint, tmp_path / "out", model_assets_dir=made.base, dtype="keep")
    assert "adapter-config" in {finding.code for finding in report.warnings}
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["lora_alpha"] is None
    with pytest.raises(TypeError):  # never with a scale that nobody gave
        load(made.base, tmp_path / "out")
    (tmp_path / "out" / CONFIG).write_text(json.dumps({**config, "lora_alpha": 6}))
    assert torch.equal(logits(load(made.base, tmp_path / "out")), logits(made.model))


def test_by_default_values_are_cast_as_of_any_model(tmp_path: Path) -> None:
    made = make(tmp_path, {}, PLAIN)
    dcptools.convert(made.checkpoint, tmp_path / "out", adapter_config_path=made.live)
    written = load_file(tmp_path / "out" / WEIGHTS)
    for name, tensor in load_file(made.live / WEIGHTS).items():
        assert torch.equal(written[name], tensor.to(torch.bfloat16)), name


@pytest.mark.parametrize("with_model", [True, False], ids=["with config.json", "by names alone"])
@pytest.mark.parametrize("where", ["model", "bare", "state.model", "app.model, compiled", "module", "app, wrapped"])
def test_wherever_the_model_is(where: str, with_model: bool, tmp_path: Path) -> None:
    made = make(tmp_path, {}, CASES["trained whole"][1])
    state = made.model.state_dict()
    nested: dict[str, Any] = {
        "model": {"model": state, "optimizer": {"state": {k: {"exp_avg": v} for k, v in state.items()}}},
        "bare": state,
        "state.model": {"state": {"model": state}},
        "app.model, compiled": {"app": {"model": {f"_orig_mod.{key}": value for key, value in state.items()}}},
        "module": {"module": state},
        "app, wrapped": {"app": {"module": state}},
    }[where]
    checkpoint = saved.save(tmp_path / "there", nested)
    options: dict[str, Any] = {"model_assets_dir": made.base} if with_model else {}
    if where == "app, wrapped":  # a container, as it was saved, but a wrapper of what is said to be the root
        options["root"] = "app"
    dcptools.convert(checkpoint, tmp_path / "out", adapter_config_path=made.live, dtype="keep", **options)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (made.live / WEIGHTS).read_bytes()


def test_config_json_tells_the_model_from_a_copy_beside_it(tmp_path: Path) -> None:
    made = make(tmp_path, {}, PLAIN)
    state = made.model.state_dict()
    copy = {key: value + 1 for key, value in state.items()}
    checkpoint = saved.save(tmp_path / "there", {"ema": copy, "module": state})
    (error,) = dcptools.preview(checkpoint).errors  # names alone do not
    assert error.hint.endswith(" choose with root='module' or root='ema'")
    report = dcptools.convert(
        checkpoint, tmp_path / "out", model_assets_dir=made.base, adapter_config_path=made.live, dtype="keep"
    )
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (made.live / WEIGHTS).read_bytes()
    assert [f.key for f in report.warnings if f.code == "left-out-tensor"] == ["ema"]


@pytest.mark.parametrize("case", ["plain", "trained whole", "all biases", "tokens"])
def test_only_what_was_trained_is_in_the_checkpoint(case: str, tmp_path: Path) -> None:
    """As VeOmni saves it."""
    made = make(tmp_path, *CASES[case])
    trained = {name for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    state = {name: tensor for name, tensor in made.model.state_dict().items() if name in trained}
    checkpoint = saved.save(tmp_path / "trained", {"model": state})
    for config in (made.live, None):
        out = tmp_path / f"out-{config is None}"
        report = dcptools.convert(checkpoint, out, adapter_config_path=config, dtype="keep")
        assert (out / WEIGHTS).read_bytes() == (made.live / WEIGHTS).read_bytes()
        assert {finding.code for finding in report.warnings} == {
            "adapter-config" if config is None else "adapter-unchecked"
        }


@pytest.mark.parametrize("case", ["trained whole", "embeddings", "dora"])
def test_the_state_dict_that_peft_gives_is_an_adapter_already(case: str, tmp_path: Path) -> None:
    made = make(tmp_path, *CASES[case])
    checkpoint = saved.save(tmp_path / "c", {"model": peft.get_peft_model_state_dict(made.model)})
    dcptools.convert(checkpoint, tmp_path / "out", adapter_config_path=made.live, dtype="keep")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (made.live / WEIGHTS).read_bytes()


class TestSeveralAdapters:
    @pytest.fixture
    def both(self, tmp_path: Path) -> Made:
        base = base_model()
        base.save_pretrained(tmp_path / "base")
        options = {"default": PLAIN, "other": {**CASES["dora"][1], "modules_to_save": ["lm_head"], "r": 5}}
        model = adapted(base, options)
        model.save_pretrained(tmp_path / "saved")
        saved.save(tmp_path / "checkpoint", {"model": model.state_dict()})
        return Made(tmp_path / "checkpoint", tmp_path / "base", tmp_path / "saved", model)

    def test_one_must_be_named(self, both: Made) -> None:
        with pytest.raises(UsageError, match="This checkpoint has several adapters: default, other.\nName one"):
            dcptools.preview(both.checkpoint)

    @pytest.mark.parametrize("name", ["default", "other"])
    def test_each_is_what_peft_saves(self, name: str, both: Made, tmp_path: Path) -> None:
        live = both.live / ("" if name == "default" else name)
        dcptools.convert(both.checkpoint, tmp_path / "out", adapter=name, adapter_config_path=live, dtype="keep")
        assert (tmp_path / "out" / WEIGHTS).read_bytes() == (live / WEIGHTS).read_bytes()
        both.model.set_adapter(name)
        assert torch.equal(logits(load(both.base, tmp_path / "out")), logits(both.model))

    def test_the_config_of_the_other_is_refused(self, both: Made) -> None:
        mapping = dcptools.preview(both.checkpoint, adapter="other", adapter_config_path=both.live / CONFIG)
        assert [error.code for error in mapping.errors] == ["adapter-config-differs"] * 3
        assert [error.message.partition(",")[0] for error in mapping.errors] == [
            "r is 2 for model.layers.0.self_attn.q_proj", "modules_to_save does not name lm_head", "use_dora is False",
        ]  # fmt: skip
        with pytest.raises(FindingsError):
            dcptools.plan(mapping)
        allowed = dcptools.preview(
            both.checkpoint, adapter="other", adapter_config_path=both.live / CONFIG, allow_mismatch=True
        )
        assert not allowed.errors

    def test_the_base_has_the_copy_of_the_only_one_that_trained_it(self, both: Made, tmp_path: Path) -> None:
        dcptools.convert(both.checkpoint, tmp_path / "out", model_assets_dir=both.base, mode="full", dtype="keep")
        written = load_file(tmp_path / "out" / "model.safetensors")
        copy = both.model.state_dict()["base_model.model.lm_head.modules_to_save.other.weight"]
        assert torch.equal(written["lm_head.weight"], copy)

    def test_an_adapter_without_a_copy_leaves_the_original(self, both: Made, tmp_path: Path) -> None:
        out = tmp_path / "out"
        dcptools.convert(
            both.checkpoint, out, model_assets_dir=both.base, mode="full", adapter="default", dtype="keep"
        )  # fmt: skip
        assert (out / "model.safetensors").read_bytes() == (both.base / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "case", ["plain", "tied", "embeddings, tied", "all biases", "tokens", "trained whole", "experts"]
)
def test_the_base_is_what_peft_unloads(case: str, tmp_path: Path) -> None:
    """Under its own names, held against the model as any other; ``unload`` takes copies that were trained whole."""
    made = make(tmp_path, *CASES[case])
    report = dcptools.convert(
        made.checkpoint, tmp_path / "out", model_assets_dir=made.base, mode="full", names="published", dtype="keep"
    )  # fmt: skip
    codes = [finding.code for finding in report.findings]
    assert "model-fits" in codes and "adapter-left-out" in codes
    assert [f.key for f in report.warnings if f.code == "trained-copy"] == (
        ["lm_head.weight"] if case == "trained whole" else []
    )
    made.model.unload().save_pretrained(tmp_path / "unloaded")
    written, wanted = (load_file(tmp_path / at / "model.safetensors") for at in ("out", "unloaded"))
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)


def test_an_adapter_of_transformers_own_integration(tmp_path: Path) -> None:
    """``add_adapter`` puts it into the model itself: no prefix in the keys, and one in what is saved."""
    model = base_model()
    model.save_pretrained(tmp_path / "base")
    model.add_adapter(peft.LoraConfig(**PLAIN), adapter_name="mine")
    adapters.randomise({name: p for name, p in model.named_parameters() if "lora_" in name})
    model.save_pretrained(tmp_path / "live")
    state = model.state_dict()
    assert "model.layers.0.self_attn.q_proj.lora_A.mine.weight" in state
    for number, nested in enumerate(({"model": state}, state)):
        checkpoint = saved.save(tmp_path / f"c{number}", nested)
        out = tmp_path / f"out{number}"
        dcptools.convert(
            checkpoint, out, model_assets_dir=tmp_path / "base", adapter_config_path=tmp_path / "live", dtype="keep"
        )
        written, wanted = load_file(out / WEIGHTS), load_file(tmp_path / "live" / WEIGHTS)
        assert written.keys() == wanted.keys()
        assert all(torch.equal(written[name], wanted[name]) for name in wanted)
        assert torch.equal(logits(load(tmp_path / "base", out)), logits(model.eval()))


def test_two_processes_shard_it(tmp_path: Path) -> None:
    checkpoint = adapters.save_sharded(tmp_path)
    assert dcptools.read(checkpoint).ranks == (0, 1)
    dcptools.convert(checkpoint, tmp_path / "out", adapter_config_path=tmp_path / "live", dtype="keep")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "live" / WEIGHTS).read_bytes()
