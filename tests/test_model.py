"""The model decides: which reading of a checkpoint is right, what is missing, and what is tied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import live_models, models, saved
from checkpoints.edit import torch_item
from torch import Tensor

import dcptools
from dcptools.errors import FindingsError
from dcptools.mapping import KeyMapping

pytestmark = pytest.mark.usefixtures("expected_in_process")

TIED = {"tie_word_embeddings": True}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def assets(directory: Path, **changes: Any) -> Path:
    """A config of the model that ``saved.model_state`` gives, but for some changes; and a tokenizer."""
    return models.assets(directory, {**models.QWEN3_CONFIG, **changes})


@pytest.fixture
def preview(tmp_path: Path) -> Any:
    """``preview(state, changes of the config, **options)``."""

    def previewed(state: Any, config: dict[str, Any] | None = None, **options: Any) -> KeyMapping:
        number = len(list(tmp_path.iterdir()))
        checkpoint = saved.save(tmp_path / f"c{number}", state)
        return dcptools.preview(
            checkpoint, model_assets_dir=assets(tmp_path / f"a{number}", **(config or {})), **options
        )

    return previewed


def names(mapping: KeyMapping) -> list[str]:
    return [output.name for output in mapping.outputs]


def told(mapping: KeyMapping, code: str) -> list[tuple[str, str]]:
    """Severity and text of the findings of a code."""
    return [(f.severity, f"{f.key}: {f.message} ({f.hint})") for f in mapping.findings if f.code == code]


# --- where the model is -----------------------------------------------------------------------------------------


def nest(path: str, state: Any) -> Any:
    for container in reversed(path.split(".") if path else []):
        state = {container: state}
    return state


@pytest.mark.parametrize("root", ["", "model", "module", "app.model", "state.model", "state_dict.net", "a.b.c.model"])
def test_the_model_is_found_in_any_container(root: str, preview: Any) -> None:
    state = saved.model_state()
    mapping = preview(nest(root, dict(state)) | {"step": torch.tensor(3)})
    assert names(mapping) == sorted(state)
    assert mapping.root == root
    assert not mapping.warnings
    assert mapping.fit and mapping.fit.sentence == (
        f"This is Qwen3ForCausalLM: {len(state)} of {len(state)} weights, every shape fits"
    )


@pytest.mark.parametrize("attribute", ["net.", "model.", "_orig_mod.", "model._orig_mod.model."])
def test_the_model_may_be_an_attribute_of_what_was_saved(attribute: str, preview: Any) -> None:
    """As in a LightningModule, or compiled: the names have more in front than the container."""
    state = saved.model_state()
    mapping = preview({"state": {f"{attribute}{name}": tensor for name, tensor in state.items()}})
    assert names(mapping) == sorted(state)
    assert not mapping.warnings


@pytest.mark.parametrize("root", ["", "model"])
def test_a_tied_model_without_its_head_is_whole(root: str, preview: Any) -> None:
    state = saved.model_state(lm_head=False)
    mapping = preview(nest(root, state), TIED)
    assert names(mapping) == sorted(state)
    assert not mapping.warnings


@pytest.mark.parametrize("root", ["", "model"])
def test_the_base_model_alone_gives_a_tied_model(root: str, preview: Any) -> None:
    """``AutoModel`` has the weights of all of it, under names without ``model.``."""
    state = {name.removeprefix("model."): t for name, t in saved.model_state(lm_head=False).items()}
    mapping = preview(nest(root, state), TIED)
    assert names(mapping) == sorted(f"model.{name}" for name in state)
    assert not mapping.warnings


def test_the_model_is_preferred_to_its_average(preview: Any) -> None:
    state = saved.model_state()
    average = {name: tensor + 1 for name, tensor in state.items()}
    mapping = preview({"ema": average, "model": state})
    assert mapping.root == "model"
    assert [f.code for f in mapping.warnings] == ["left-out-tensor"]
    assert len(mapping.readings) > 1
    assert preview({"ema": average, "model": state}, root="ema").root == "ema"


def test_moments_of_an_optimizer_are_never_the_model(preview: Any) -> None:
    """Some trainers keep them under whole names."""
    state = saved.model_state()
    mapping = preview({"optimizer": {"exp_avg": state}})
    assert mapping.root != "optimizer.exp_avg"
    assert mapping.errors


@pytest.mark.parametrize("beside", ["ref_model", "ema", "teacher"])
@pytest.mark.parametrize("root", ["model", "train_state.model", "extra_state.model"])
def test_the_model_is_preferred_to_what_is_only_like_it(root: str, beside: str, preview: Any) -> None:
    """Also where a trainer keeps it in its own state; and what is left out is not passed over."""
    mapping = preview(nest(root, saved.model_state()) | {beside: saved.model_state(seed=1)})
    assert mapping.root == root
    assert [(f.code, f.key) for f in mapping.warnings] == [("left-out-tensor", beside)]


@pytest.mark.parametrize(
    "root", ["ref_model", "teacher", "a.b", "ema.model", "ema_model.module", "critic.model", "app.teacher.module"]
)
def test_a_model_in_another_container_than_usual_is_a_warning(root: str, preview: Any) -> None:
    assert [f.code for f in preview(nest(root, saved.model_state())).warnings] == ["container"]


@pytest.mark.parametrize("beside", ["policy", "critic", "ema"])
def test_what_stands_beside_the_model_in_a_trainers_state_is_not_passed_over(beside: str, preview: Any) -> None:
    state = {"model": saved.model_state(), beside: saved.model_state(seed=1), "seen": torch.tensor(3)}
    mapping = preview({"train_state": {**state, "optimizer": {"lr": torch.tensor(0.1)}, "step": torch.tensor(1.0)}})
    assert mapping.root == "train_state.model"
    assert [(f.code, f.key) for f in mapping.warnings] == [("left-out-tensor", f"train_state.{beside}")]


def test_what_an_optimizer_keeps_does_not_stand_for_a_model_that_lacks_something(preview: Any) -> None:
    state = saved.model_state()
    broken = {name: tensor for name, tensor in state.items() if name != "model.norm.weight"}
    mapping = preview({"model": broken, "optimizer": {"state": state}})
    assert mapping.root == "model"
    assert told(mapping, "weight-missing")


@pytest.mark.parametrize(
    "root",
    [
        "exp_avg",
        "momentum_buffer",
        "optimizer.exp_avg_sq",
        "grads",
        "optimizer.state",
        "optim.model",
        "mu",
        "opt.nu.model",
    ],
)
def test_moments_are_never_the_model(root: str, preview: Any) -> None:
    assert preview(nest(root, saved.model_state())).errors


def test_a_whole_average_does_not_stand_for_a_model_that_lacks_something(preview: Any) -> None:
    state = saved.model_state()
    broken = {name: tensor for name, tensor in state.items() if name != "model.norm.weight"}
    mapping = preview({"model": broken, "ema": state})
    assert mapping.root == "model"
    assert told(mapping, "weight-missing")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64])
def test_numbers_where_the_model_has_floating_values_are_a_warning(dtype: torch.dtype, preview: Any) -> None:
    state = saved.model_state()
    name = "model.layers.0.mlp.up_proj.weight"
    mapping = preview({"model": {**state, name: state[name].to(dtype)}})
    assert [(f.code, f.key) for f in mapping.warnings] == [("weight-kind", name)]


# --- what does not fit ------------------------------------------------------------------------------------------


def test_a_weight_that_is_missing_is_an_error_unless_it_is_allowed(preview: Any) -> None:
    state = saved.model_state(lm_head=False)
    mapping = preview({"model": state})
    assert told(mapping, "weight-missing") == [
        ("error", "lm_head.weight: the checkpoint has no such weight of the shape [16, 8] ()")
    ]
    ((severity, text),) = told(mapping, "model-mismatch")
    assert severity == "error"
    assert "24 of 25 weights fit, 1 missing" in text
    assert "the base model without its head: lm_head.weight" in text
    with pytest.raises(FindingsError, match="model-mismatch"):
        dcptools.plan(mapping)
    allowed = preview({"model": state}, allow_mismatch=True)
    assert {severity for severity, _ in told(allowed, "weight-missing") + told(allowed, "model-mismatch")} == {
        "warning"
    }
    assert names(allowed) == sorted(state)


def changed(name: str, change: Any) -> dict[str, Tensor]:
    state = saved.model_state()
    return {**state, name: change(state[name])}


def padded(rows: int) -> dict[str, Tensor]:
    state = saved.model_state(vocab=16 + rows)
    return {name: tensor.contiguous() for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("state", "config", "code", "cause"),
    [
        (padded(8), {}, "weight-shape", "a vocabulary with 8 rows of padding: set vocab_size to 24 in config.json"),
        (saved.model_state(vocab=12), {}, "weight-shape", "a smaller vocabulary: set vocab_size to 12 in config.json"),
        (changed("model.layers.0.mlp.up_proj.weight", lambda t: t.T.contiguous()), {}, "weight-shape", "transposed"),
        (changed("model.norm.weight", lambda t: t[None]), {}, "weight-shape", "only dimensions of size 1 differ"),
        (changed("model.norm.weight", lambda t: t[:4].clone()), {}, "weight-shape", "one of 2 equal parts"),
        (saved.model_state(layers=1), {}, "model-mismatch", "model.layers ends before layer 1"),
        (saved.model_state(layers=3), {"num_hidden_layers": 1}, "weight-unexpected", "has no weight of this name"),
        (saved.model_state(layers=3, lm_head=False), {}, "model-mismatch", "model.layers goes on from layer 2"),
        ({"model.foo.weight": torch.ones(3)}, {}, "model-mismatch", "no weight fits"),
    ],
    ids=["padded", "smaller", "transposed", "size 1", "half", "fewer layers", "more layers", "and no head", "another"],
)  # fmt: skip
def test_the_likely_cause_is_told(state: Any, config: Any, code: str, cause: str, preview: Any) -> None:
    mapping = preview({"model": state}, config)
    assert any(cause in text for _, text in told(mapping, code)), told(mapping, code)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_norm.weight"])
def test_a_weight_that_differs_in_a_layer_is_no_other_number_of_layers(name: str, preview: Any) -> None:
    state = saved.model_state()
    for layer in "01":
        state[name.replace("1", layer, 1).replace("weight", "other")] = torch.ones(2)
    del state[name]
    ((_, text),) = told(preview({"model": state}), "model-mismatch")
    assert "1 missing, 2 unexpected" in text and "number of layers" not in text


def test_a_share_of_the_experts_is_recognised(preview: Any) -> None:
    moe = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 4,
    }  # fmt: skip
    state = {name: t for name, t in saved.model_state().items() if ".mlp." not in name}
    for layer in range(2):
        state[f"model.layers.{layer}.mlp.gate.weight"] = torch.ones(8, 8)
        state[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.ones(2, 8, 8)
        state[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.ones(2, 8, 4)
    causes = told(preview({"model": state}, moe), "weight-shape")
    assert len(causes) == 4
    assert all("2 of 8 experts: what one of 4 expert-parallel ranks holds" in text for _, text in causes)


def test_what_the_user_leaves_out_is_a_warning(preview: Any) -> None:
    mapping = preview({"model": saved.model_state()}, exclude=["*lm_head*"])
    assert told(mapping, "weight-missing") == [("warning", "lm_head.weight: left out by include= or exclude= ()")]
    ((_, text),) = told(mapping, "model-fits")
    assert "24 of 25 weights of Qwen3ForCausalLM are converted and fit" in text
    assert not mapping.errors


def test_a_rename_may_repair_a_name_or_change_one_knowingly(preview: Any) -> None:
    state = saved.model_state()
    state["model.final_norm.weight"] = state.pop("model.norm.weight")
    repaired = preview({"model": state}, rename=["model.final_norm.weight=model.norm.weight"])
    assert repaired.fit.complete
    assert names(repaired) == sorted(saved.model_state())
    moved = preview({"model": saved.model_state()}, rename=[r"model\.(.*)=language_model.\1"])
    assert moved.fit.complete
    assert not moved.errors
    ((severity, text),) = told(moved, "renamed-away")
    assert severity == "warning"
    assert "24 tensors of the model" in text
    assert "model.embed_tokens.weight to language_model.embed_tokens.weight" in text
    assert not told(repaired, "renamed-away")


@pytest.mark.parametrize("whole", [True, False])
def test_a_weight_that_transformers_does_not_miss_is_a_warning(whole: bool, tmp_path: Path) -> None:
    """It would make a new one; ``save_pretrained`` writes it, and any state dict has it."""
    sizes = {
        f"{part}_{size}": 1 for part in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")
    }
    config = {"architectures": ["BartForConditionalGeneration"], "model_type": "bart", "vocab_size": 8, "d_model": 4}
    state = live_models.build(config | sizes).state_dict()
    checkpoint = saved.save(tmp_path / "c", {k: t for k, t in state.items() if whole or k != "final_logits_bias"})
    mapping = dcptools.preview(checkpoint, model_assets_dir=models.assets(tmp_path / "a", config | sizes))
    missed = [(finding.code, finding.key) for finding in mapping.warnings]
    assert missed == [("weight-missing", "final_logits_bias")] * (not whole)


def test_weights_that_transformers_ignores_are_not_left_out_quietly(tmp_path: Path) -> None:
    """An encoder of T5 ignores all of the decoder."""
    config = live_models.config_of("t5")
    checkpoint = saved.save(tmp_path / "c", {"model": live_models.build(config).state_dict()})
    encoder = models.assets(tmp_path / "a", config | {"architectures": ["T5EncoderModel"]})
    mapping = dcptools.preview(checkpoint, model_assets_dir=encoder, exclude="*lm_head*")
    assert mapping.fit and mapping.fit.complete
    ((_, text),) = told(mapping, "left-out-tensor")
    assert "T5EncoderModel has no weight for 29 tensors of " in text and "decoder.block.0." in text
    assert [finding.code for finding in mapping.warnings] == ["left-out-tensor"]


def test_a_rename_decides_where_the_model_is(preview: Any) -> None:
    """All but the head is called as in the base model below ``net``, which lacks the head."""
    state = {name.replace("model.", "net."): tensor for name, tensor in saved.model_state().items()}
    mapping = preview({"model": state}, rename=r"net\.(.*)=model.\1")
    assert (mapping.root, names(mapping)) == ("model", sorted(saved.model_state()))
    assert not mapping.warnings
    swapped = preview(
        {"model": saved.model_state()}, rename=[r"(.*)q_norm(.*)=\1k_norm\2", r"(.*)k_norm(.*)=\1q_norm\2"]
    )
    assert swapped.readings[0].complete


def test_what_the_user_leaves_out_of_a_model_that_is_not_known_is_a_warning(tmp_path: Path) -> None:
    state = saved.model_state() | {"v_head.weight": torch.ones(1, 8)}
    checkpoint, unknown = saved.save(tmp_path / "c", {"model": state}), models.assets(tmp_path / "a")
    mapping = dcptools.preview(checkpoint, model_assets_dir=unknown, exclude=["*lm_head*", "*v_head*", "*.1.mlp.up*"])
    assert told(mapping, "weight-missing") == [
        ("warning", f"{name}: left out by include= or exclude= ()")
        for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight")
    ]
    assert {finding.code for finding in mapping.warnings} == {"weight-missing"}


@pytest.mark.parametrize(
    ("rules", "moved"),
    [
        ([r"(.*)gate_proj(.*)=\1up_proj\2", r"(.*)up_proj(.*)=\1gate_proj\2"], "4 tensors"),
        (["lm_head.weight=model.embed_tokens.weight", "model.embed_tokens.weight=lm_head.weight"], "2 tensors"),
        (["model.norm.weight=model.old.weight", "model.spare.weight=model.norm.weight"], "1 tensor"),
        (["model.spare.weight=spare.weight"], ""),
        ([r"(x)?(.*)=\1\2"], ""),
    ],
)
def test_weights_that_change_places_by_a_rename_are_a_warning(rules: list[str], moved: str, preview: Any) -> None:
    """Every name is there then, in its shape, and holds the values of another weight."""
    mapping = preview({"model": saved.model_state() | {"model.spare.weight": torch.ones(8)}}, rename=rules)
    assert not mapping.errors
    warned = told(mapping, "renamed-away")
    assert [text.partition(" of the model renamed")[0] for _, text in warned] == [f": {moved}"] * bool(moved)


@pytest.mark.parametrize("unexpected", ["keep", "drop"])
def test_a_tensor_that_the_model_does_not_have(unexpected: str, preview: Any) -> None:
    state = {**saved.model_state(), "v_head.weight": torch.ones(1, 8)}
    mapping = preview({"model": state}, unexpected=unexpected)
    assert ("v_head.weight" in names(mapping)) == (unexpected == "keep")
    assert len(told(mapping, "weight-unexpected")) == (unexpected == "keep")
    assert mapping.fit.complete


def test_a_layer_that_is_dropped_because_the_config_has_fewer_is_a_warning(preview: Any) -> None:
    mapping = preview({"model": saved.model_state()}, {"num_hidden_layers": 1}, unexpected="drop")
    assert mapping.fit.complete
    ((severity, text),) = told(mapping, "left-out-tensor")
    assert severity == "warning"
    assert "Qwen3ForCausalLM has no weight for 11 tensors of " in text and "left out: model.layers.1." in text
    assert not told(preview({"model": saved.model_state()}, unexpected="drop"), "left-out-tensor")


def test_buffers_that_the_model_does_not_save_are_left_out(preview: Any) -> None:
    state = {**saved.model_state(), "model.rotary_emb.inv_freq": torch.ones(2)}
    mapping = preview({"model": state})
    assert names(mapping) == sorted(saved.model_state())
    assert [left.reason for left in mapping.leftovers] == ["Qwen3ForCausalLM does not save it"]
    assert not mapping.warnings


# --- tied weights -----------------------------------------------------------------------------------------------


def with_head(head: Tensor | None = None) -> dict[str, Tensor]:
    state = saved.model_state(lm_head=False)
    return {**state, HEAD: state[EMBEDDING].clone() if head is None else head}


def test_tied_weights_of_the_same_values_are_written_once(preview: Any) -> None:
    mapping = preview({"model": with_head()}, TIED)
    assert HEAD not in names(mapping)
    assert told(mapping, "tied-weights") == [
        ("info", f"{EMBEDDING}: tied to {HEAD}, with the same values; written once ()")
    ]
    assert not mapping.warnings


def test_tied_weights_that_differ_are_both_written_with_a_warning(preview: Any) -> None:
    head = with_head()[HEAD]
    head[3, 2] += 1e-3
    mapping = preview({"model": with_head(head)}, TIED)
    assert HEAD in names(mapping)
    ((severity, text),) = told(mapping, "tied-differ")
    assert severity == "warning"
    assert "has other values there" in text
    dropped = preview({"model": with_head(head)}, TIED, tied="drop")
    assert HEAD not in names(dropped)
    assert told(dropped, "tied-dropped")[0][0] == "warning"
    kept = preview({"model": with_head()}, TIED, tied="keep")
    assert HEAD in names(kept)
    assert told(kept, "tied-kept")[0][0] == "warning"


@pytest.mark.parametrize("tied", ["auto", "keep"])
@pytest.mark.parametrize(("wrong", "right"), [(HEAD, EMBEDDING), (EMBEDDING, HEAD)])
def test_a_tied_copy_of_another_shape_is_an_error(wrong: str, right: str, tied: str, preview: Any) -> None:
    state = {**with_head(), wrong: torch.ones(20, 8)}
    mapping = preview({"model": state}, TIED, tied=tied)
    assert [(error.code, error.key) for error in mapping.errors] == [("model-mismatch", ""), ("weight-shape", wrong)]
    assert not told(mapping, "tied-differ")
    ((_, text),) = told(mapping, "weight-shape")
    assert text.startswith(f"{wrong}: [20, 8] is stored, but the model expects [16, 8] (a vocabulary with 4 rows")
    assert text.endswith(f"; {right}, which the model ties it to, fits: tied='drop' writes that)")
    rows = {weight.name: (weight.state, weight.shape) for weight in mapping.weights if weight.name in (wrong, right)}
    assert rows == {wrong: ("shape differs", (20, 8)), right: ("fits", (16, 8))}
    assert not preview({"model": state}, TIED, tied=tied, allow_mismatch=True).errors
    dropped = preview({"model": state}, TIED, tied="drop")
    assert not dropped.errors and HEAD not in names(dropped)
    (output,) = [output for output in dropped.outputs if output.name == EMBEDDING]
    assert output.sources[0].key == f"model.{right}"


def test_a_tied_copy_of_another_shape_differs_where_shapes_are_not_known(preview: Any) -> None:
    unknown = {**json.loads(models.UNKNOWN_CONFIG), **TIED}
    ((severity, text),) = told(preview({"model": with_head(torch.ones(20, 8))}, unknown), "tied-differ")
    assert severity == "warning" and "but the checkpoint has another shape there" in text


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("how", ["without checksums", "cut differently", "transposed"])
def test_tied_weights_are_compared_by_value_where_checksums_cannot_tell(
    how: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = with_head()
    if not same:
        state[HEAD][15, 7] += 1e-3
    chunks = {f"model.{name}": [((0,) * t.ndim, t)] for name, t in state.items()}
    if how == "cut differently":
        chunks[f"model.{HEAD}"] = [((0, 0), state[HEAD][:5].clone()), ((5, 0), state[HEAD][5:].clone())]
    if how == "transposed":
        chunks[f"model.{HEAD}"] = [((0, 0), state[HEAD].T.contiguous().T)]
    if how == "without checksums":
        monkeypatch.setattr(torch.serialization, "get_crc32_options", lambda: False)
        assert len(torch_item(state[HEAD]))
    checkpoint = saved.save_chunks(tmp_path / "c", chunks)
    mapping = dcptools.preview(checkpoint, model_assets_dir=assets(tmp_path / "a", **TIED))
    assert (HEAD in names(mapping)) != same
    assert bool(told(mapping, "tied-differ")) != same


def test_tied_weights_that_cannot_be_read_are_both_kept(tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": with_head()})
    (file,) = checkpoint.glob("*.distcp")
    file.write_bytes(b"\0" * file.stat().st_size)
    mapping = dcptools.preview(checkpoint, model_assets_dir=assets(tmp_path / "a", **TIED))
    ((severity, text),) = told(mapping, "tied-differ")
    assert severity == "warning"
    assert "is not known" in text and "it starts with b" in text
    assert HEAD in names(mapping)


def test_a_head_alone_is_written_under_the_name_of_the_embedding(preview: Any) -> None:
    state = with_head()
    del state[EMBEDDING]
    mapping = preview({"model": state}, TIED)
    assert {output.name: output.sources[0].key for output in mapping.outputs}[EMBEDDING] == f"model.{HEAD}"
    assert mapping.fit.complete


@pytest.mark.parametrize("other", ["_orig_mod.lm_head.weight", "module.lm_head.weight"])
def test_two_keys_of_one_tied_name_are_a_collision(other: str, preview: Any) -> None:
    mapping = preview({"model": {**with_head(), other: torch.full((16, 8), 7.0)}}, TIED)
    assert [f.key for f in mapping.errors if f.code == "collision"] == [HEAD]


# --- without a config, or with another model --------------------------------------------------------------------


def test_a_reference_decides_in_place_of_the_config(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = saved.model_state()
    save_file(state, tmp_path / "other.safetensors")
    checkpoint = saved.save(tmp_path / "c", {"a": {"b": state}})
    mapping = dcptools.preview(checkpoint, reference=tmp_path / "other.safetensors")
    assert names(mapping) == sorted(state)
    assert mapping.fit is not None
    assert mapping.fit.complete
    smaller = saved.save(tmp_path / "d", {"model": saved.model_state(vocab=12)})
    assert told(dcptools.preview(smaller, reference=tmp_path / "other.safetensors"), "weight-shape")


@pytest.mark.parametrize("given", ["beside the reference", "as assets"])
def test_the_config_of_a_reference_tells_ties_and_what_fused_experts_are_called(given: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    live = live_models.build({**live_models.config_of("qwen3-moe"), "tie_word_embeddings": True})
    live.save_pretrained(tmp_path / "hf")
    checkpoint = saved.save(tmp_path / "c", {"model": live.state_dict()})
    config = tmp_path / "hf" / "config.json"
    options = {"model_assets_dir": models.assets(tmp_path / "a", config.read_text())} if given == "as assets" else {}
    if options:
        config.unlink()
    for kind in ("stored", "published"):
        mapping = dcptools.preview(checkpoint, reference=tmp_path / "hf", names=kind, **options)
        assert not mapping.errors and not told(mapping, "weight-unexpected")
        assert mapping.fit is not None and mapping.fit.complete
    assert names(mapping) == sorted(load_file(tmp_path / "hf" / "model.safetensors"))


def test_a_reference_that_is_an_index_alone_says_nothing_of_shapes(tmp_path: Path) -> None:
    state = saved.model_state()
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    mapping = dcptools.preview(saved.trained(tmp_path / "a", state), reference=tmp_path)
    ((severity, text),) = told(mapping, "shapes-unknown")
    assert severity == "warning" and "is an index without its files, so shapes were not compared" in text
    assert "compared by name alone" in told(mapping, "model-fits")[0][1]


def test_numbers_where_the_reference_has_floating_values_are_a_warning(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = saved.model_state()
    save_file(state, tmp_path / "other.safetensors")
    checkpoint = saved.save(tmp_path / "c", {"model": {**state, HEAD: state[HEAD].to(torch.int8)}})
    mapping = dcptools.preview(checkpoint, reference=tmp_path / "other.safetensors")
    assert [f.key for f in mapping.warnings if f.code == "weight-kind"] == [HEAD]


@pytest.mark.parametrize("how", ["no config", "its own code", "an index alone"])
def test_integers_in_weights_of_a_model_that_is_not_known_are_a_warning(how: str, tmp_path: Path) -> None:
    """What a sound model counts, or looks up, is called otherwise."""
    quantized = {
        "model.layers.0.mlp.up_proj.weight": torch.ones(16, 8, dtype=torch.int8),
        "model.layers.0.mlp.experts.down_proj": torch.ones(2, 4, 8, dtype=torch.uint8),
        "model.layers.1.mlp.up_proj.qweight": torch.ones(2, 8, dtype=torch.int32),
    }
    sound = {
        "model.embeddings.position_ids": torch.arange(4).reshape(1, 4),
        "model.norm.num_batches_tracked": torch.tensor(3),
        "model.layers.0.self_attn.weight": torch.ones(3, dtype=torch.int64),
        "model.layers.0.self_attn.relative_position_index": torch.ones(2, 2, dtype=torch.int64),
        "model.layers.0.self_attn.mask_weight": torch.ones(2, 2, dtype=torch.bool),
    }
    state = {**saved.model_state(), **quantized, **sound}
    options: dict[str, Any] = {"model_assets_dir": assets(tmp_path / "a", **json.loads(models.UNKNOWN_CONFIG))}
    if how == "an index alone":
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        options = {"reference": tmp_path}
    checkpoint = saved.save(tmp_path / "c", {"model": state})
    mapping = dcptools.preview(checkpoint, **({} if how == "no config" else options))
    assert sorted(f.key for f in mapping.warnings if f.code == "weight-kind") == sorted(quantized)
    severity, text = told(mapping, "weight-kind")[0]
    assert severity == "warning" and "is stored: like quantized values, whose scale is elsewhere" in text


def test_integers_that_the_model_has_are_no_warning(tmp_path: Path) -> None:
    from transformers import BertConfig

    state = models.huggingface_state("bert")
    config = {**models.MODELS["bert"][2], "model_type": BertConfig.model_type, "architectures": ["BertForMaskedLM"]}
    state = {**state, "bert.embeddings.position_ids": torch.arange(8).reshape(1, 8)}
    mapping = dcptools.preview(
        saved.save(tmp_path / "c", {"model": state}), model_assets_dir=models.assets(tmp_path / "a", config)
    )
    assert not told(mapping, "weight-kind")


def test_a_config_of_another_model_than_the_reference_is_a_warning(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = saved.model_state(layers=1)
    save_file(state, tmp_path / "other.safetensors")
    checkpoint = saved.save(tmp_path / "c", {"model": state})
    for number, (layers, told_of) in enumerate([(1, False), (2, True)]):
        directory = assets(tmp_path / f"a{number}", num_hidden_layers=layers)
        mapping = dcptools.preview(checkpoint, model_assets_dir=directory, reference=tmp_path / "other.safetensors")
        assert bool(told(mapping, "config-differs")) == told_of


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("option", ["tied", "unexpected"])
def test_an_option_that_needs_the_model_says_so_where_it_is_not_known(option: str, known: bool, tmp_path: Path) -> None:
    given = {"model_assets_dir": assets(tmp_path / "a")} if known else {}
    checkpoint = saved.save(tmp_path / "c", {"model": saved.model_state()})
    assert bool(told(dcptools.preview(checkpoint, **{option: "drop"}, **given), "option-unused")) == (not known)
    assert not told(dcptools.preview(checkpoint, **{option: "keep"}, **given), "option-unused")


def test_a_model_that_needs_its_own_code_is_read_by_rules_and_said_so(tmp_path: Path) -> None:
    directory = assets(tmp_path / "a", **json.loads(models.UNKNOWN_CONFIG))
    mapping = dcptools.preview(saved.trained(tmp_path / "c"), model_assets_dir=directory)
    assert mapping.fit is None
    ((severity, text),) = told(mapping, "model-unknown")
    assert severity == "info"
    assert "without the code that comes with it" in text


@pytest.mark.parametrize("known", [True, False])
def test_published_names_that_nobody_knows_are_a_warning(known: bool, tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"model": saved.model_state()})
    config = assets(tmp_path / "a") if known else models.assets(tmp_path / "a")
    for asked in ("stored", "published"):
        mapping = dcptools.preview(checkpoint, model_assets_dir=config, names=asked)
        warned = [finding.code for finding in mapping.warnings]
        assert warned == ["names-unknown"] * (asked == "published" and not known)


def test_a_config_that_cannot_be_built_is_a_warning(preview: Any) -> None:
    pytest.importorskip("transformers")
    from dcptools.expected import NotExpected
    from dcptools.mapping import expectation

    def broken(config: str) -> Any:
        raise NotExpected("ZeroDivisionError: integer division or modulo by zero", broken=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expectation, "expect", broken)
        mapping = preview({"model": saved.model_state()})
    assert told(mapping, "model-not-built")[0][0] == "warning"
    assert names(mapping) == sorted(saved.model_state())


@pytest.mark.parametrize("option", ["names", "tied", "unexpected"])
def test_an_option_with_another_value_is_refused(option: str, preview: Any) -> None:
    with pytest.raises(dcptools.DcptoolsError, match=f"{option} cannot be 'foo'"):
        preview({"model": saved.model_state()}, **{option: "foo"})


def test_names_of_a_trainer_are_refused_without_the_config_that_says_how_values_lie(tmp_path: Path) -> None:
    from checkpoints import lookalikes

    mapping = dcptools.preview(lookalikes.torchtitan(tmp_path / "c"))
    ((severity, text),) = told(mapping, "foreign-names")
    assert severity == "error"
    assert "names of torchtitan" in text
    assert "Llama 3" in text
    asked = dcptools.preview(lookalikes.torchtitan(tmp_path / "d"), layout="bare")
    assert told(asked, "foreign-names")[0][0] == "warning"
    assert "layers.0.attention.wq.weight" in names(asked)
