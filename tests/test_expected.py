"""What a model expects: asked of transformers in a process of its own, or read from another model's headers."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import models, saved
from safetensors.torch import save_file

from dcptools.errors import NotAModel, UsageError
from dcptools.expected import NotExpected, building, expect, expect_reference
from dcptools.expected.tracing import Traced
from dcptools.tensors import Composed, NotViews

SHAPES = {name: tuple(tensor.shape) for name, tensor in saved.model_state().items()}


def config(**changes: Any) -> str:
    return json.dumps({**models.QWEN3_CONFIG, **changes})


def test_the_names_and_shapes_of_an_architecture() -> None:
    expected = expect(config())
    assert expected.title == "Qwen3ForCausalLM"
    assert expected.stored.shapes == expected.published.shapes == SHAPES
    assert expected.stored.ties == ()
    assert not expected.differ
    assert "model.rotary_emb.inv_freq" in expected.unsaved
    assert expected.sizes["num_attention_heads"] == 2


def test_numbers_that_json_does_not_have_are_those_that_save_pretrained_wrote() -> None:
    """Some models have an infinite limit in their config."""
    said = json.loads(config(rms_norm_eps={"__float__": "Infinity"}))
    assert building.build(said).config.rms_norm_eps == float("inf")


def test_tied_weights_count_once_under_the_name_that_is_written() -> None:
    expected = expect(config(tie_word_embeddings=True))
    assert expected.stored.ties == (("model.embed_tokens.weight", "lm_head.weight"),)
    assert expected.published.ties == expected.stored.ties
    assert len(expected.stored.needed) == len(SHAPES) - 1
    assert expected.stored.written["lm_head.weight"] == "model.embed_tokens.weight"


def test_the_answer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first = expect(config())
    monkeypatch.setattr(subprocess, "run", None)
    assert expect(config()) is first


@pytest.mark.parametrize(
    ("changes", "why", "broken"),
    [
        (
            {"architectures": ["FooForCausalLM"]},
            r"transformers .* does not know the architecture 'FooForCausalLM'",
            False,
        ),
        ({"architectures": ["AutoConfig"]}, r"transformers .* does not know the architecture 'AutoConfig'", False),
        ({"architectures": None}, "config.json names no architecture", False),
        ({"architectures": "Qwen3ForCausalLM"}, "its architectures are not a list of names", True),
        ({"architectures": [5]}, "its architectures are not a list of names", True),
        ({"architectures": ["Qwen3PreTrainedModel"]}, "has no weights|does not know the architecture", None),
        ({"model_type": "qwen99"}, "does not know the model_type 'qwen99'", False),
        (
            {"model_type": "qwen99", "auto_map": {"AutoConfig": "a.B"}},
            "'qwen99' without the code that comes with it",
            False,
        ),
        ({"num_attention_heads": 0}, "ZeroDivisionError", True),
        ({"hidden_size": -3}, "Error", True),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is more than 1,000", True),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(changes: dict[str, Any], why: str, broken: bool) -> None:
    with pytest.raises(NotExpected, match=why) as caught:
        expect(config(**changes))
    assert broken in (None, caught.value.broken)
    assert "\n" not in str(caught.value)


def test_no_code_of_the_model_or_of_the_current_directory_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that came from somewhere may have a ``transformers.py``."""
    for name in ("transformers", "torch", "json", "modeling_mine"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    mine = {
        "auto_map": {"AutoConfig": "modeling_mine.C", "AutoModelForCausalLM": "modeling_mine.M"},
        "rms_norm_eps": 2e-6,
    }
    assert expect(config(**mine)).title == "Qwen3ForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_a_process_that_dies_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NotExpected, match="no process could build the model") as caught:
        expect(config(rms_norm_eps=3e-6))
    assert "\n" not in str(caught.value)


def test_a_published_part_does_not_hold_on_to_what_it_was_cut_from() -> None:
    """Of very many experts that would be more memory than building a model may take."""
    layers = {"num_hidden_layers": 1, "num_experts": 4, "moe_intermediate_size": 8, "decoder_sparse_step": 1}
    model = building.build(json.loads(config(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", **layers)))
    made = building._converted(model, {name: list(each.shape) for name, each in model.state_dict().items()})
    experts = [each for name, each in made.items() if ".experts." in name]
    assert len(experts) == 3 * 4
    assert all(each._base is None for each in experts)


# --- another model as the reference -----------------------------------------------------------------------------


def model_files(directory: Path, count: int) -> Path:
    """A HuggingFace model in so many files, with an index."""
    directory.mkdir()
    state = saved.model_state()
    weight_map = {}
    for number in range(count):
        part = dict(list(state.items())[number::count])
        save_file(part, directory / f"{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"{number}.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.mark.parametrize("part", ["", "model.safetensors.index.json"])
def test_a_reference_is_read_from_its_headers(part: str, tmp_path: Path) -> None:
    assert expect_reference(model_files(tmp_path / "m", 3) / part).stored.shapes == SHAPES


def test_a_single_file_is_a_reference(tmp_path: Path) -> None:
    save_file(saved.model_state(), tmp_path / "m.safetensors")
    assert expect_reference(tmp_path / "m.safetensors").stored.shapes == SHAPES


def test_an_index_without_its_files_gives_names_alone(tmp_path: Path) -> None:
    directory = model_files(tmp_path / "m", 2)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    expected = expect_reference(directory)
    assert expected.stored.shapes == dict.fromkeys(SHAPES)
    assert expected.numbers is None


def test_a_reference_tells_which_of_its_weights_are_numbers(tmp_path: Path) -> None:
    state = {**saved.model_state(), "model.steps": torch.ones(1, dtype=torch.int64)}
    save_file(state, tmp_path / "m.safetensors")
    assert expect_reference(tmp_path / "m.safetensors").numbers == frozenset(("model.steps",))


@pytest.mark.parametrize("kind", ["nothing", "empty", "no index", "half", "cut", "text"])
def test_what_is_no_reference_is_refused(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    if kind == "empty":
        directory.mkdir()
    elif kind != "nothing":
        model_files(directory, 2)
    if kind == "no index":
        (directory / "model.safetensors.index.json").write_text("[]")
    if kind == "half":
        (directory / "0.safetensors").unlink()
    if kind in ("cut", "text"):
        (directory / "0.safetensors").write_bytes(b"\x10" if kind == "cut" else b"hello" * 100)
    with pytest.raises((NotAModel, UsageError)) as caught:
        expect_reference(directory)
    assert 2 <= len(str(caught.value).splitlines()) <= 3
    assert "(reference=)" in str(caught.value).splitlines()[0]  # or --reference in a shell: which path it was


@pytest.mark.parametrize("there", [False, True])
def test_a_name_on_the_hub_is_told_apart_from_a_reference(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "Qwen" / "Qwen3-8B").mkdir(parents=True)
    with pytest.raises(NotAModel) as caught:
        expect_reference("Qwen/Qwen3-8B")
    assert str(caught.value).endswith("download it first: hf download Qwen/Qwen3-8B") is not there


# --- what a conversion does, without values ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode])
@pytest.mark.parametrize(
    "convert",
    [
        lambda t: t, lambda t: t.t(), lambda t: t.T.contiguous(), lambda t: t.clone().reshape(2, 2, -1).transpose(0, 1),
        lambda t: torch.chunk(t, 4)[2].squeeze(0), lambda t: t.split([1, 3], dim=1)[1], lambda t: t[1:3, 0],
        lambda t: torch.stack([t, t])[1], lambda t: torch.cat([t, t], dim=-1), lambda t: t.unbind(1)[-1],
        lambda t: t.unsqueeze(-1).permute(2, 1, 0).flatten(), lambda t: t.view(4, 2, 2)[..., 1].contiguous(),
        lambda t: t[None].squeeze(), lambda t: t.reshape(2, 8).narrow(1, 2, 4).detach(),
    ],
)  # fmt: skip
def test_operations_are_traced_to_the_elements_that_torch_gives(convert: Any, mode: Any) -> None:
    from test_composed import values

    real = torch.arange(16.0).reshape(4, 4)
    with mode():
        traced = convert(Traced(Composed.whole("w", (4, 4))))
    assert tuple(traced.shape) == traced.composed.shape == tuple(convert(real).shape)
    assert (values(traced.composed, {"w": real.numpy()}) == convert(real).numpy()).all()


@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode])
@pytest.mark.parametrize("convert", [lambda t: t + 1, lambda t: t @ t, lambda t: t[::2], lambda t: t.to(torch.float16)])
def test_what_makes_new_values_is_refused(convert: Any, mode: Any) -> None:
    with pytest.raises(NotViews), mode():
        convert(Traced(Composed.whole("w", (4, 4))))
