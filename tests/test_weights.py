"""The model beside the checkpoint: what the frames, the text and the JSON of a mapping say of each weight."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import models, saved
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from dcptools.cli import main_group
from dcptools.dtypes import TABLE
from dcptools.expected import Naming
from dcptools.layouts import STATES, Output, fit
from dcptools.mapping import KeyMapping, preview
from dcptools.mapping.weights import weights_of
from dcptools.tensors import View
from dcptools.tensors.geometry import row_major

HEAD, EMBEDDING, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"


def agrees(mapping: KeyMapping) -> None:
    """The law: both frames and the fit say the same of every weight and of every output."""
    fit, frame = mapping.fit, mapping.model_frame()
    assert fit is not None
    states = Counter(frame["state"])
    assert [states[state] for state in STATES[1:]] == [len(fit.missing), len(fit.unexpected), len(fit.misshapen)]
    assert states["fits"] == fit.fitting and states.total() - states["unexpected"] == fit.weights
    rows = {row.name: row for row in frame.itertuples()}
    for each in fit.differences:
        row = rows[each.name]
        assert (row.shape, row.expected_shape, row.state) == (each.found, each.expected, each.state)
    by_key = {key: row.state for row in rows.values() for key in row.key.split(", ") if key}
    for output in mapping.to_frame().itertuples():
        assert {by_key[key] for key in output.key.split(", ")} == {output.state}
        assert (output.state == "fits") == (output.expected_shape == output.shape)
    keys = {view.key for output in mapping.outputs for view in output.sources}
    assert keys <= by_key.keys()


def reference(directory: Path, state: saved.State) -> Path:
    """A HuggingFace model with these names and shapes."""
    directory.mkdir()
    save_file({name: tensor.clone() for name, tensor in state.items()}, directory / "model.safetensors")
    return directory


def held(directory: Path, state: saved.State, expected: saved.State, **options: Any) -> KeyMapping:
    """The mapping of a checkpoint of the state, held against the model that is expected."""
    path = saved.trained(directory / "step-100", state)
    return preview(path, reference=reference(directory / "reference", expected), **options)


@pytest.fixture
def three(tmp_path: Path) -> KeyMapping:
    """One weight that is missing, one of another shape, and a tensor that the model does not have."""
    state = {**saved.model_state(layers=1), "projector.weight": torch.ones(2), NORM: torch.ones(9)}
    del state[HEAD]
    return held(tmp_path, state, saved.model_state(layers=1))


def test_a_model_that_fits(tmp_path: Path) -> None:
    mapping = held(tmp_path, saved.model_state(), saved.model_state())
    agrees(mapping)
    assert set(mapping.to_frame()["state"]) == set(mapping.model_frame()["state"]) == {"fits"}
    assert mapping.model_frame().to_dict("records")[0] == {
        "name": HEAD, "key": f"model.{HEAD}", "shape": (16, 8), "expected_shape": (16, 8), "state": "fits",
    }  # fmt: skip


def test_each_state_has_its_rows(three: KeyMapping) -> None:
    agrees(three)
    frame = three.model_frame()
    assert list(frame["name"]) == sorted(frame["name"]) and len(frame) == 15
    assert frame[frame["state"] != "fits"].to_dict("records") == [
        {"name": HEAD, "key": "", "shape": None, "expected_shape": (16, 8), "state": "missing"},
        {"name": NORM, "key": f"model.{NORM}", "shape": (9,), "expected_shape": (8,), "state": "shape differs"},
        {
            "name": "projector.weight", "key": "model.projector.weight", "shape": (2,), "expected_shape": None,
            "state": "unexpected",
        },
    ]  # fmt: skip
    outputs = three.to_frame().set_index("name")
    assert outputs["state"][[NORM, "projector.weight", EMBEDDING]].tolist() == ["shape differs", "unexpected", "fits"]


def test_where_nothing_is_known_nothing_is_said(tmp_path: Path) -> None:
    mapping = preview(saved.trained(tmp_path / "c", saved.model_state(layers=1)))
    frame = mapping.to_frame()
    assert set(frame["state"]) == {""} and set(frame["expected_shape"]) == {None}
    assert list(mapping.model_frame()) == ["name", "key", "shape", "expected_shape", "state"]
    assert mapping.model_frame().empty and mapping.weights == ()
    assert mapping.to_json()["model"] is None and mapping.to_json()["readings"] == []
    assert mapping.readings_frame().empty


def test_what_was_held_against_no_model_says_nothing_though_one_is_known(tmp_path: Path) -> None:
    mapping = held(tmp_path, saved.model_state(layers=1), saved.model_state(layers=1))
    alone = replace(mapping, measured=None)
    assert set(alone.to_frame()["state"]) == {""} and set(alone.to_frame()["expected_shape"]) == {None}
    assert str(alone).startswith(f"{alone.counts()}\nkey ")


def test_a_container_that_is_in_the_names_of_the_model_is_not_said_to_be_removed(tmp_path: Path) -> None:
    state = {"layers.0.weight": torch.ones(2, 3), "norm.weight": torch.ones(3)}
    path = saved.save(tmp_path / "step-100", {"module": state})
    model = reference(tmp_path / "reference", {f"module.{name}": tensor for name, tensor in state.items()})
    mapping = preview(path, reference=model)
    assert [output.name for output in mapping.outputs] == ["module.layers.0.weight", "module.norm.weight"]
    assert "wrapper-removed" not in {finding.code for finding in mapping.findings}


def test_values_can_be_counted_in_a_set(three: KeyMapping) -> None:
    assert three.fit is not None
    again = pickle.loads(pickle.dumps(three.fit))
    assert {three.fit, again} == {three.fit} and hash(again) == hash(three.fit) and set(three.readings)


def test_weights_are_made_when_they_are_asked_for_and_are_the_same_elsewhere(three: KeyMapping) -> None:
    assert three.measured is not None and "weights" not in vars(three.measured)
    there = pickle.loads(pickle.dumps(three))
    assert there == three and there.weights == three.weights
    assert three.weights is three.weights and len(three.weights) == 15


def test_an_index_alone_knows_no_shapes(tmp_path: Path) -> None:
    state = saved.model_state(layers=1)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}))
    mapping = preview(saved.trained(tmp_path / "c", state), reference=index)
    frame = mapping.model_frame()
    assert set(frame["state"]) == {"fits"} and set(frame["expected_shape"]) == {None}


def test_a_rule_that_renames_a_weight_does_not_make_it_another_one(tmp_path: Path) -> None:
    state = saved.model_state(layers=1)
    mapping = held(tmp_path, state, state, rename=["model\\.(.*)=language_model.\\1"])
    agrees(mapping)
    assert mapping.model_frame()["name"].tolist() == sorted(state)
    assert set(mapping.to_frame()["state"]) == {"fits"}


def test_tied_weights_that_are_all_written_are_one_weight(tmp_path: Path) -> None:
    config = {**models.QWEN3_CONFIG, "num_hidden_layers": 1, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = saved.trained(tmp_path / "c", saved.model_state(layers=1, tied=True))
    kept = preview(path, model_assets_dir=tmp_path, tied="keep")
    agrees(kept)
    rows = kept.model_frame().set_index("name")
    assert HEAD not in rows.index and set(rows["key"][EMBEDDING].split(", ")) == {f"model.{HEAD}", f"model.{EMBEDDING}"}
    agrees(preview(path, model_assets_dir=tmp_path))


@pytest.fixture(scope="module")
def moe() -> tuple[dict[str, Any], saved.State]:
    """The config and the state dict of a tiny model whose experts are fused."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {name: models.QWEN3_CONFIG[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "moe_intermediate_size": 4}
    config = Qwen3MoeConfig(**sizes, **heads, num_experts=4, num_experts_per_tok=2)
    model = Qwen3MoeForCausalLM(config)
    return {**config.to_dict(), "architectures": ["Qwen3MoeForCausalLM"]}, dict(model.state_dict())


@pytest.mark.parametrize("left_out", ["", NORM, "experts.down_proj"])
def test_published_names_are_parts_of_the_weights(
    left_out: str, moe: tuple[dict[str, Any], saved.State], tmp_path: Path
) -> None:
    config, state = moe
    (tmp_path / "config.json").write_text(json.dumps(config))
    kept = {name: tensor for name, tensor in state.items() if not left_out or left_out not in name}
    mapping = preview(saved.trained(tmp_path / "c", kept), model_assets_dir=tmp_path, names="published")
    agrees(mapping)
    states = mapping.model_frame().set_index("name")["state"]
    assert sum(states == "missing") == bool(left_out)
    experts = [name for name in mapping.to_frame()["name"] if ".experts." in name]
    assert len(experts) == (8 if left_out == "experts.down_proj" else 12)  # gate, up and down of four experts


# Names that a model and a checkpoint may have, and the size of each.
sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3))


@given(sizes, sizes, st.lists(st.sampled_from("abcdef"), unique=True, max_size=3))
def test_any_outputs_and_any_model_agree(found: dict[str, int], wanted: dict[str, int], tied: Sequence[str]) -> None:
    tie = tuple(name for name in tied if name in wanted)
    shapes = {name: (wanted[tie[0] if name in tie else name],) for name in wanted}
    naming = Naming(shapes, (tie,) if tie else ())
    outputs = [
        Output(name, (View(f"key.{name}", (size,), row_major((size,)), 0),), (size,), TABLE["float32"], "")
        for name, size in found.items()
    ]
    measured = fit("Model", "", {output.name: output.shape for output in outputs}, naming)
    weights = weights_of(outputs, measured, naming)
    states = Counter(weight.state for weight in weights)
    others = (measured.missing, measured.unexpected, measured.misshapen)
    assert [states[state] for state in STATES] == [measured.fitting, *map(len, others)]
    used = [key for weight in weights for key in weight.key.split(", ") if key]
    assert sorted(used) == sorted(f"key.{name}" for name in found)
    assert all((weight.shape is None) == (weight.state == "missing") for weight in weights)


# --- how it is shown --------------------------------------------------------------------------------------------


def test_the_text_leads_with_the_verdict_and_the_readings(tmp_path: Path) -> None:
    mapping = held(tmp_path, saved.model_state(layers=1), saved.model_state(layers=1))
    assert mapping.fit is not None
    head, title, line, first, *_ = str(mapping).splitlines()
    assert head == mapping.fit.sentence == f"This is {tmp_path / 'reference'}: 14 of 14 weights, every shape fits"
    assert title.split("  ")[0] == "reading" and set(line) == {"-", " "}
    assert re.split("  +", first) == ["below 'model.', with the names of the live model", "14 of 14", "0", "0"]
    counts = mapping.counts()
    assert counts == "14 outputs with 864 elements; 46 keys left out"
    assert str(mapping).splitlines().count(counts) == 1
    html = mapping._repr_html_()
    assert html.startswith(f"<p><strong>{mapping.fit.sentence}</strong></p><table>") and counts in html


def test_a_mapping_without_outputs_says_so(tmp_path: Path) -> None:
    mapping = held(tmp_path, saved.model_state(layers=1), saved.model_state(layers=1), include=["nothing"])
    assert mapping.fit is not None and not mapping.outputs
    assert str(mapping).startswith(f"{mapping.fit.sentence}\n") and mapping.counts() in mapping._repr_html_()


def test_at_most_five_readings_are_shown(three: KeyMapping) -> None:
    (reading,) = three.readings
    many = replace(three, readings=(reading, *(replace(reading, reading=f"reading {n}") for n in range(2, 9))))
    shown = [line.partition("  ")[0] for line in str(many).splitlines()]
    assert shown[3:9] == [reading.reading, "reading 2", "reading 3", "reading 4", "reading 5", "... 3 more of 8 rows"]
    assert many.readings_frame()["reading"].tolist() == [each.reading for each in many.readings]


def test_the_json_has_the_model_and_the_scores_of_the_readings(three: KeyMapping) -> None:
    assert three.fit is not None
    plain = json.loads(json.dumps(three.to_json()))
    assert plain["model"] == json.loads(json.dumps(three.fit.to_json()))
    assert [each["state"] for each in plain["model"]["differences"]] == ["missing", "shape differs", "unexpected"]
    assert plain["readings"] == [
        {
            "reading": "below 'model.', with the names of the live model", "weights": 14, "fitting": 12, "missing": 1,
            "misshapen": 1, "complete": False,
        }
    ]  # fmt: skip
    assert three.readings_frame().to_dict("records") == plain["readings"]


@pytest.mark.parametrize("command", [["preview"], ["convert", "--dry-run"]])
def test_the_command_line_leads_with_the_verdict(command: list[str], tmp_path: Path) -> None:
    mapping = held(tmp_path, saved.model_state(layers=1), saved.model_state(layers=1))
    options = [mapping.checkpoint.path, "--reference", str(tmp_path / "reference")]
    result = CliRunner().invoke(main_group, [*command, *options])
    assert mapping.fit is not None and result.exit_code == 0
    assert result.stdout.startswith(f"{mapping.fit.sentence}\nreading ") and mapping.counts() in result.stdout
