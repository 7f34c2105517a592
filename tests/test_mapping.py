"""What ``preview`` says about whole checkpoints: every name, every leftover, every finding."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import broken, hostile, lookalikes, models, saved
from checkpoints.edit import editing
from hypothesis import given, settings
from hypothesis import strategies as st

from dcptools.checkpoint import read
from dcptools.dtypes import TABLE
from dcptools.errors import FindingsError, UnknownKey, UsageError
from dcptools.findings import Finding
from dcptools.layouts import strip_wrappers
from dcptools.mapping import KeyMapping, Output, Rename, preview
from dcptools.shards import plan
from dcptools.tensors import View

NAMES = sorted(saved.model_state())
NO_ASSETS = Finding(
    "assets-none",
    "",
    "no assets directory was given, so the result will have no config and no tokenizer",
    "give the directory of config.json: model_assets_dir=",
)


def keys(directory: Path, *names: str) -> Path:
    """``dcp.save({name: tensor})``: one-element paths, the names at the top."""
    return saved.save(directory, {name: torch.ones(2) for name in names})


def names(mapping: KeyMapping) -> dict[str, str]:
    """Output name by checkpoint key."""
    return {view.key: output.name for output in mapping.outputs for view in output.sources}


def found(mapping: KeyMapping, code: str) -> list[Finding]:
    return [finding for finding in mapping.findings if finding.code == code]


def reasons(mapping: KeyMapping) -> dict[str, str]:
    return {left.key: left.reason for left in mapping.leftovers}


# --- layouts, on checkpoints that torch wrote -------------------------------------------------------------------


def with_ema(directory: Path) -> Path:
    state = saved.model_state()
    return saved.save(directory, {"model": {"student.w": torch.ones(2)}, "ema": state})


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (saved.trained, {}),
        (saved.bare, {}),
        (saved.app_state, {}),
        (saved.one_element_paths, {}),
        (lambda d: saved.planner_data(d, None), {}),
        (lambda d: saved.planner_data(d, {}), {}),
        *((lambda d, w=wrapper: saved.wrapped(d, w), {}) for wrapper in saved.WRAPPERS),
        (with_ema, {"root": "ema"}),
        (saved.bare, {"layout": "bare"}),
        (saved.one_element_paths, {"layout": "container"}),
        (saved.app_state, {"root": "app.model"}),
    ],
    ids=[
        *("trained", "bare", "app_state", "one-element paths", "no planner_data", "empty planner_data"),
        *saved.WRAPPERS,
        *("ema", "bare asked for", "container asked for", "root asked for"),
    ],
)
def test_the_names_are_those_of_the_live_model(
    make: Callable[[Path], Path], options: dict[str, Any], tmp_path: Path
) -> None:
    mapping = preview(make(tmp_path / "c"), **options)
    assert [output.name for output in mapping.outputs] == NAMES
    assert not mapping.errors


def test_the_chosen_layout_is_a_finding(tmp_path: Path) -> None:
    mapping = preview(saved.bare(tmp_path / "c"))
    assert (mapping.layout, mapping.root) == ("bare", "")
    assert found(mapping, "layout") == [
        Finding(
            "layout",
            "",
            "layout 'bare': 'lm_head.weight' stands beside 'model.embed_tokens.weight', so the keys are HuggingFace "
            "names already",
            "layout= overrides it",
        )
    ]


def test_another_container_than_model_is_a_warning(tmp_path: Path) -> None:
    mapping = preview(saved.save(tmp_path / "c", {"ema": saved.model_state()}))
    assert (mapping.layout, mapping.root) == ("container", "ema")
    assert [str(f) for f in found(mapping, "container")] == [
        "warning[container]: the model is read from 'ema' (root= names another)"
    ]


def test_the_usual_container_is_no_warning(tmp_path: Path) -> None:
    assert preview(saved.trained(tmp_path / "c")).warnings == (NO_ASSETS,)


def test_every_unusual_key_is_warned_about(tmp_path: Path) -> None:
    state = {"model.norm.weight": torch.ones(2), "visual.w": torch.ones(2), "lm_head.bias": torch.ones(2)}
    mapping = preview(saved.save(tmp_path / "c", {"model": state}))
    assert names(mapping) == {
        "model.model.norm.weight": "model.norm.weight",
        "model.visual.w": "visual.w",
        "model.lm_head.bias": "lm_head.bias",
    }
    hint = "layout='bare' keeps it as it is, rename= gives another name"
    form = "is neither model.model.* nor model.lm_head.weight; it is named {!r}"
    assert found(mapping, "unusual-key") == [
        Finding("unusual-key", "model.visual.w", form.format("visual.w"), hint),
        Finding("unusual-key", "model.lm_head.bias", form.format("lm_head.bias"), hint),
    ]


def test_names_of_which_nothing_is_known_lose_their_prefix_with_a_warning_each(tmp_path: Path) -> None:
    mapping = preview(keys(tmp_path / "c", "model.foo", "model.norm.weight"))
    assert names(mapping) == {"model.foo": "foo", "model.norm.weight": "norm.weight"}
    assert {f.key for f in found(mapping, "unusual-key")} == set(names(mapping))


def test_training_state_beside_bare_names_is_left_out(tmp_path: Path) -> None:
    state = saved.model_state()
    mapping = preview(saved.save(tmp_path / "c", {**state, "optimizer": saved.optimizer_state(state), "step": 3}))
    assert sorted(names(mapping)) == NAMES
    assert Counter(reasons(mapping).values()) == {
        "training state (optimizer)": 3 * len(NAMES),
        "a pickled object, not a tensor": 4,
    }


def test_wrappers_are_findings_in_the_order_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = read(saved.wrapped(tmp_path / "c", "module."))
    mapping = preview(checkpoint)
    assert [f.key for f in found(mapping, "wrapper-removed")] == [
        key for key in checkpoint.tensors if key.startswith("model.")
    ]
    assert {str(f) for f in found(mapping, "wrapper-removed")} >= {
        "info[wrapper-removed] model.module.lm_head.weight: removed module",
        "info[wrapper-removed] model.module.model.layers.0.module.self_attn.q_proj.weight: removed module",
    }


# --- the models of transformers, wherever they stand ------------------------------------------------------------

BESIDE = {"lr_scheduler": {"last": torch.ones(1)}, "rng": torch.ones(2), "step": torch.tensor(3), "epoch": 1}


def without_paths(directory: Path) -> Path:
    with editing(directory) as metadata:
        metadata.planner_data = None
    return directory


def trained_with(directory: Path, state: dict[str, Any], parameters: saved.State) -> Path:
    return saved.save(directory, {**state, "optimizer": saved.optimizer_state(parameters), **BESIDE})


PLACES: dict[str, Callable[[Path, saved.State], Path]] = {
    "bare": saved.bare,
    "bare without paths": lambda d, s: without_paths(saved.bare(d, s)),
    "bare, with training state": lambda d, s: trained_with(d, s, s),
    "bare, with training state, without paths": lambda d, s: without_paths(trained_with(d, s, s)),
    "compiled": lambda d, s: trained_with(d, {f"_orig_mod.{name}": t for name, t in s.items()}, s),
    "in DDP, without paths": lambda d, s: without_paths(saved.bare(d, {f"module.{name}": t for name, t in s.items()})),
    "model": lambda d, s: trained_with(d, {"model": s}, s),
    "model, compiled": lambda d, s: trained_with(d, {"model": {f"_orig_mod.{name}": t for name, t in s.items()}}, s),
    "app.model": saved.app_state,
    "module": lambda d, s: trained_with(d, {"module": s}, s),
    "model.module": lambda d, s: saved.save(d, {"model": {"module": s}}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", models.MODELS)
def test_the_names_of_transformers_are_kept_wherever_the_model_stands(model: str, place: str, tmp_path: Path) -> None:
    state = models.huggingface_state(model)
    once = models.without_tied(state)
    for number, wanted in enumerate([state] if len(once) == len(state) else [state, once]):
        mapping = preview(PLACES[place](tmp_path / str(number), wanted))
        assert sorted(names(mapping).values()) == sorted(wanted)
        assert not mapping.errors
        assert not found(mapping, "left-out-tensor")


@pytest.mark.parametrize("paths", ["nested", "flat", "none"])
def test_an_average_beside_a_bare_model_is_left_out_with_a_warning(paths: str, tmp_path: Path) -> None:
    state = models.huggingface_state("qwen2.5-vl")
    average = {f"ema.{name}": tensor for name, tensor in state.items()} if paths == "flat" else {"ema": state}
    path = saved.save(tmp_path / "c", {**state, **average})
    mapping = preview(path if paths != "none" else without_paths(path))
    assert sorted(names(mapping).values()) == sorted(state)
    assert [(f.key, f.hint.partition(";")[0]) for f in found(mapping, "left-out-tensor")] == [
        ("ema", "root='ema' converts it instead")
    ]
    assert found(mapping, "left-out-tensor")[0].message.startswith(f"{len(state)} tensors of ")


@pytest.mark.parametrize("options", [{}, {"root": "module"}])
def test_a_container_may_be_called_module(options: dict[str, Any], tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in saved.model_state().items()}  # a wrapper in it, too
    mapping = preview(saved.save(tmp_path / "c", {"module": state, "step": 3}), **options)
    assert [output.name for output in mapping.outputs] == NAMES
    assert mapping.root == "module"
    assert {f.message for f in found(mapping, "wrapper-removed")} == {"removed module"}


# --- no model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "tops"),
    [
        (saved.empty_state, "none"),
        (saved.megatron_like, "decoder, embedding"),
    ],
    ids=["empty", "megatron"],
)
def test_no_model_weights_says_what_to_check(make: Callable[[Path], Path], tops: str, tmp_path: Path) -> None:
    mapping = preview(make(tmp_path / "c"))
    assert [error for error in mapping.errors if error.code != "foreign-names"] == [
        Finding(
            "no-model-weights",
            "",
            "No model weights found!",
            f"check that {tmp_path / 'c'} is the checkpoint of the model and that its keys start with 'model.'; "
            f"top-level keys here: {tops}; if the model is there, say where with layout= or root=",
        ),
    ]
    assert (mapping.outputs, mapping.layout) == ((), "")


def test_a_root_may_end_in_its_dot_and_is_not_empty(tmp_path: Path) -> None:
    path = saved.save(tmp_path / "c", {"ema": saved.model_state(layers=1)})
    assert preview(path, root="ema.") == preview(path, root="ema")
    for empty in ("", "."):
        with pytest.raises(UsageError, match=r"root= is empty\.\nName a container, or leave it out\."):
            preview(path, root=empty)


def test_a_layout_that_was_asked_for_and_finds_nothing_is_to_be_left_out(tmp_path: Path) -> None:
    (error,) = preview(saved.trained(tmp_path / "c"), layout="bare").errors
    assert error.hint == (
        "no key is the bare name of a weight; leave out layout='bare'; top-level keys here: model, optimizer, step"
    )


OPTIMIZER = {"state": {name: {"exp_avg": torch.ones(2), "step": torch.tensor(1.0)} for name in NAMES}}


@pytest.mark.parametrize(
    "state",
    [
        {"optimizer": OPTIMIZER, "step": 3},
        {**OPTIMIZER, "param_groups": [{"lr": torch.tensor(0.1)}]},
        {f"optim.{name}.momentum_buffer": torch.ones(2) for name in NAMES} | {"lr_scheduler.last": torch.ones(1)},
    ],
    ids=["in a container", "at the top", "by names alone"],
)
def test_a_checkpoint_of_an_optimizer_is_told_with_what_is_beside_it(state: Any, tmp_path: Path) -> None:
    path = saved.save(tmp_path / "step_10", state)
    said = f"{path} holds an optimizer's state, not a model: "
    said += "give the checkpoint of the model, whose keys start with 'model.'"
    keys = "; top-level keys here: "
    assert [error.hint.partition(keys)[0] for error in preview(path).errors] == [said]
    saved.trained(tmp_path / "weights")
    saved.save(tmp_path / "optimizer_1", state)
    (tmp_path / "logs").mkdir()
    assert [error.hint.partition(keys)[0] for error in preview(path).errors] == [
        f"{said}, such as {tmp_path / 'weights'} beside it"
    ]
    for number in range(3):
        saved.trained(tmp_path / f"step_{number}")
    assert [error.hint.partition(keys)[0] for error in preview(path).errors] == [said]


def test_a_directory_called_after_an_optimizer_is_told_whatever_its_keys_are(tmp_path: Path) -> None:
    path = saved.save(tmp_path / "optimizer", {"a": {"b.row": torch.ones(2)}, "c": torch.ones(1)})
    assert [error.hint.partition(":")[0] for error in preview(path).errors] == [
        f"{path} holds an optimizer's state, not a model"
    ]


@pytest.mark.parametrize("flat", [False, True], ids=["with paths", "by names alone"])
@pytest.mark.parametrize(
    ("first", "second"), [("actor.model", "critic.model"), ("train_state.model", "train_state.ema")]
)
def test_several_models_are_named_with_how_to_choose(first: str, second: str, flat: bool, tmp_path: Path) -> None:
    state = saved.model_state()
    models = {first: state, second: {**state, "v_head.weight": torch.ones(1, 8)}}
    path = tmp_path / "c"
    if flat:
        saved.save(path, {f"{root}.{name}": value for root, state in models.items() for name, value in state.items()})
    else:
        nested: dict[str, Any] = {}
        for root, weights in models.items():
            outer, inner = root.split(".")
            nested.setdefault(outer, {})[inner] = weights
        saved.save(path, {**nested, "optimizer": {"state": {name: {"exp_avg": state[name]} for name in state}}})
    (error,) = preview(path).errors
    assert (error.code, error.message) == ("no-model-weights", "No model weights found!")
    assert error.hint == (
        f"it is not clear which model is meant; containers with weights of one: {first} ({len(state)}), "
        f"{second} ({len(state) + 1}); choose with root={first!r} or root={second!r}"
    )
    assert names(preview(path, root=first)) == {f"{first}.{name}": name for name in state}


def test_leaving_out_every_weight_is_said_to_be_the_options_doing(tmp_path: Path) -> None:
    mapping = preview(saved.trained(tmp_path / "c"), include=["nothing*"])
    assert [(f.message, f.hint) for f in mapping.errors] == [
        (
            "No model weights found!",
            f"{len(NAMES)} keys of the model, but all are left out: check include= and exclude=",
        )
    ]


# --- leftovers --------------------------------------------------------------------------------------------------


def test_leftovers_have_reasons_and_are_counted(tmp_path: Path) -> None:
    mapping = preview(saved.trained(tmp_path / "c", {"model.w": torch.ones(2)}))
    assert reasons(mapping) == {
        "optimizer.state.model.w.exp_avg": "not under 'model.' (optimizer)",
        "optimizer.state.model.w.exp_avg_sq": "not under 'model.' (optimizer)",
        "optimizer.state.model.w.step": "not under 'model.' (optimizer)",
        "optimizer.param_groups.0.betas": "a pickled object, not a tensor",
        "optimizer.param_groups.0.lr": "a pickled object, not a tensor",
        "optimizer.param_groups.0.params": "a pickled object, not a tensor",
        "step": "a pickled object, not a tensor",
    }
    assert [(reason, count) for reason, count, _ in mapping.leftover_counts()] == [
        ("a pickled object, not a tensor", 4),
        ("not under 'model.' (optimizer)", 3),
    ]
    assert [f.message for f in found(mapping, "left-out")] == [
        "7 keys left out; reasons: a pickled object, not a tensor: 4; not under 'model.' (optimizer): 3"
    ]


def test_a_leftover_beside_a_model_inside_says_what_it_is_in(tmp_path: Path) -> None:
    state = {"app": {"model": saved.model_state(), "optim": {"lr": torch.ones(1)}}, "rng": torch.ones(3)}
    mapping = preview(saved.save(tmp_path / "c", state))
    assert mapping.root == "app.model"
    assert reasons(mapping) == {
        "app.optim.lr": "not under 'app.model.' (app.optim)",
        "rng": "not under 'app.model.' (rng)",
    }


def test_a_head_that_is_left_out_is_a_warning(tmp_path: Path) -> None:
    state = {"model": {"model.w": torch.ones(2)}, "v_head.weight": torch.ones(2, 3), "v_head.bias": torch.ones(2)}
    mapping = preview(saved.save(tmp_path / "c", state))
    assert [str(f) for f in found(mapping, "left-out-tensor")] == [
        "warning[left-out-tensor] v_head: 2 tensors of 32 B, not training state, are not converted: v_head.bias, "
        "v_head.weight (exclude='v_head*' leaves it out without this warning)"
    ]
    with pytest.raises(FindingsError, match="left-out-tensor"):
        plan(mapping, strict=True)


def test_a_head_beside_names_of_which_nothing_is_known_may_be_kept_by_another_layout(tmp_path: Path) -> None:
    mapping = preview(keys(tmp_path / "c", "model.foo", "v_head.weight"))
    assert names(mapping) == {"model.foo": "foo"}
    assert [f.hint for f in found(mapping, "left-out-tensor")] == [
        "layout='bare' keeps all keys as they are; exclude='v_head*' leaves it out without this warning"
    ]


def test_every_part_that_is_left_out_is_one_warning_that_names_the_root(tmp_path: Path) -> None:
    parts = {part: {f"w{n}": torch.ones(2) for n in range(9)} for part in ("ema", "teacher")}
    mapping = preview(
        saved.save(tmp_path / "c", {"app": {"model": {"model.w": torch.ones(2)}, **parts}, "disc": parts})
    )
    assert [(f.key, f.hint) for f in found(mapping, "left-out-tensor")] == [
        (key, f"root={key!r} converts it instead; exclude={key + '*'!r} leaves it out without this warning")
        for key in ("app.ema", "app.teacher", "disc")
    ]
    assert found(mapping, "left-out-tensor")[2].message.endswith("disc.ema.w3, disc.ema.w4 and 13 more")


@pytest.mark.parametrize("options", [{"exclude": ["v_head*", "ema.*"]}, {"include": ["model.*"]}])
def test_what_the_user_leaves_out_is_no_warning(options: dict[str, Any], tmp_path: Path) -> None:
    state = {"model": {"model.w": torch.ones(2)}, "v_head.weight": torch.ones(2), "ema": {"w": torch.ones(2)}}
    assert preview(saved.save(tmp_path / "c", state), **options).warnings == (NO_ASSETS,)


def test_what_trainers_keep_beside_the_model_is_no_warning(tmp_path: Path) -> None:
    weight, counter = {"w": torch.ones(2)}, torch.tensor(7)
    trainers: dict[str, dict[str, Any]] = {
        "torchtitan": {"train_state": {"step": counter, "ntokens_seen": counter}, "lr_scheduler": weight},
        "dataloader": {"dataloader": {"dp_rank_0": torch.ones(9, dtype=torch.uint8)}, "data_loader": weight},
        "lightning": {"optimizer_0": weight, "optimizer_1": weight, "callbacks": weight, "loops": weight},
        "veomni": {"extra_state": {"torch_rng_state": torch.ones(9, dtype=torch.uint8), "global_step": counter}},
        "torchtune": {"optim": weight, "steps_run": counter, "seed": counter, "rng": torch.ones(9, dtype=torch.uint8)},
        "accelerate": {"optimizer": {"state": weight}, "scheduler": weight, "scaler": weight},
    }
    for trainer, state in trainers.items():
        mapping = preview(saved.save(tmp_path / trainer, {"model": {"model.w": torch.ones(2)}, **state}))
        assert mapping.warnings == (NO_ASSETS,), trainer
    nested = {"state": {"model": {"model.w": torch.ones(2)}, "optimizers": {"AdamW": weight}}, "rng": weight}
    assert {f.code for f in preview(saved.save(tmp_path / "composer", nested)).warnings} == {"container", "assets-none"}


def test_objects_and_extra_states_under_the_model_are_left_out_and_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    state = {
        "model.w": torch.ones(2),
        "model.fp8._extra_state": torch.zeros(3, dtype=torch.uint8),
        "model.bytes._extra_state": io.BytesIO(hostile.system_pickle(marker)),
    }
    mapping = preview(saved.save(tmp_path / "c", {"model": state}))
    assert names(mapping) == {"model.model.w": "model.w"}
    assert reasons(mapping) == {
        "model.model.fp8._extra_state": "extra state of a module, not a weight",
        "model.model.bytes._extra_state": "a pickled object, not a tensor",
    }
    assert not marker.exists()


SEGMENTS = st.sampled_from(
    ["model", "lm_head", "layers", "0", "norm", "weight", "_orig_mod", "module", "_extra_state", "_flat_param", "step"]
)
LEAVES = st.one_of(st.just(1), st.builds(lambda: torch.ones(1)))
STATES = st.dictionaries(st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join), LEAVES, max_size=6)
CHECKPOINTS = st.dictionaries(
    st.sampled_from(["", "model", "optimizer", "app.model", "ema", "model.layers"]), STATES, max_size=3
)
GLOBS = st.lists(st.sampled_from(["*", "model.*", "*.weight", "nothing", "*norm*", "optimizer*"]), max_size=2)


def nested(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The state dict with each part in its container; dots are nested dicts, ``""`` is the top level.

    A part with nothing in it, or whose container is a leaf already, has no place in a state dict.
    """
    state: dict[str, Any] = {}
    for container, part in parts.items():
        at: Any = state
        for segment in filter(None, container.split(".") if part else ()):
            at = at.setdefault(segment, {}) if isinstance(at, dict) else None
        for name, leaf in part.items() if isinstance(at, dict) else ():
            at.setdefault(name, leaf)
    return state


def flat(value: object, prefix: tuple[str, ...] = ()) -> list[str]:
    if isinstance(value, dict):
        return [key for name, inner in value.items() for key in flat(inner, (*prefix, name))]
    return [".".join(prefix)]


@settings(max_examples=60, deadline=None)
@given(parts=CHECKPOINTS, include=GLOBS, exclude=GLOBS)
def test_every_key_is_once_a_source_or_a_leftover(
    parts: dict[str, Any], include: list[str], exclude: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = nested(parts)
    expected = flat(state)
    if len(set(expected)) != len(expected):
        return  # torch refuses to save two paths that give one key
    checkpoint = read(saved.save(tmp_path_factory.mktemp("law"), state))
    mapping = preview(checkpoint, include=include, exclude=exclude)
    sources = [view.key for output in mapping.outputs for view in output.sources]
    assert sorted([*sources, *(left.key for left in mapping.leftovers)]) == sorted(expected)
    for key, name in names(mapping).items():
        assert strip_wrappers(key)[0].endswith(name)
    repeated = {name for name, count in Counter(o.name for o in mapping.outputs).items() if count > 1}
    assert {f.key for f in found(mapping, "collision")} == repeated
    assert all(left.reason for left in mapping.leftovers)


# --- include, exclude, rename -----------------------------------------------------------------------------------


def test_include_and_exclude_are_globs_on_checkpoint_keys(tmp_path: Path) -> None:
    checkpoint = saved.wrapped(tmp_path / "c", "_orig_mod.", saved.model_state(layers=1))
    mapping = preview(checkpoint, include=["model.*.layers.*"], exclude=["*_proj*", "*._orig_mod.self_attn.k_norm.*"])
    assert sorted(names(mapping).values()) == [
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
    ]
    said = reasons(mapping)
    assert said["model._orig_mod.model.norm.weight"] == "not included by any glob"
    assert said["model._orig_mod.model.layers.0.mlp.up_proj.weight"] == "excluded by '*_proj*'"
    assert said["optimizer.state._orig_mod.model.norm.weight.step"] == "not under 'model.' (optimizer)"


def test_a_glob_is_not_a_regex_and_matches_whole_keys_with_their_case(tmp_path: Path) -> None:
    checkpoint = keys(tmp_path / "c", "model.model.w", "model.model.w2", "model.model.W", "xmodel.model.w")
    assert list(names(preview(checkpoint, include=["model.model.w"]))) == ["model.model.w"]
    assert list(names(preview(checkpoint, include=["model.model.[w]?"]))) == ["model.model.w2"]


def test_a_pattern_that_matches_nothing_is_a_warning(tmp_path: Path) -> None:
    mapping = preview(keys(tmp_path / "c", "model.model.w"), include=["model.*", "vision.*"], exclude=["*.bias"])
    assert [str(f) for f in found(mapping, "pattern-unused")] == [
        "warning[pattern-unused]: '*.bias' matched no tensor's key",
        "warning[pattern-unused]: 'vision.*' matched no tensor's key",
    ]


def renamed(checkpoint: Path, *rules: Any) -> dict[str, str]:
    return names(preview(checkpoint, rename=rules))


def test_the_first_rename_rule_that_matches_the_whole_name_wins(tmp_path: Path) -> None:
    checkpoint = keys(tmp_path / "c", "model.model.a.w", "model.model.b.w", "model.model.ab.w")
    rules = [r"model\.a=partial", r"model\.([ab])\.w=first.\1", r"model\.(.*)=second.\1"]
    assert renamed(checkpoint, *rules) == {
        "model.model.a.w": "first.a",
        "model.model.b.w": "first.b",
        "model.model.ab.w": "second.ab.w",
    }


def test_a_rename_applies_to_the_name_without_wrappers_and_container(tmp_path: Path) -> None:
    checkpoint = saved.save(tmp_path / "c", {"app": {"model": {"_orig_mod.w": torch.ones(2)}}})
    assert renamed(checkpoint, "w=weight") == {"app.model._orig_mod.w": "weight"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("a=b", Rename("a", "b")),
        (r"(?=model)model\.(.*)=\1", Rename(r"(?=model)model\.(.*)", r"\1")),  # at the last '='
        ("a=", Rename("a", "")),
        (("a=b", "c=d"), Rename("a=b", "c=d")),
        (Rename("a", "b"), Rename("a", "b")),
    ],
)
def test_rename_rules_are_split_at_the_last_equals_sign(rule: Any, expected: Rename) -> None:
    assert Rename.parse(rule) == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("model.w", "The rename rule 'model.w' has no '='.\nExpected REGEX=REPLACEMENT."),
        ("=x", "The rename rule '=x' has nothing before the '='.\nExpected REGEX=REPLACEMENT."),
        (
            "a(.*)=b$1",
            "The rename rule a(.*)=b$1 would put $1 itself into names.\nWrite \\1 for what a group matched.",
        ),
        (
            "(a=x",
            "The rename rule (a=x is not a valid regular expression: missing ), unterminated subpattern at position 0.",
        ),
        (
            r"(a)=\2",
            r"The rename rule (a)=\2 is not a valid regular expression: invalid group reference 2 at position 1.",
        ),
        (
            r"a=\g<x>",
            r"The rename rule a=\g<x> is not a valid regular expression: unknown group name 'x'.",
        ),
    ],
)
def test_a_bad_rename_rule_is_named_with_the_reason(rule: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Rename.parse(rule)
    assert str(caught.value) == message


@pytest.mark.parametrize("rule", ["x" * 9000, "(=" + "x" * 9000])
def test_what_is_said_of_a_long_rename_rule_is_short(rule: str) -> None:
    with pytest.raises(UsageError) as caught:
        Rename.parse(rule)
    assert len(str(caught.value)) < 500


def test_a_rename_rule_that_matches_nothing_is_a_warning(tmp_path: Path) -> None:
    checkpoint = keys(tmp_path / "c", "model.model.w")
    rules = [r"model\.w=x", r"model\.w=y", r"other=z"]
    assert [str(f) for f in found(preview(checkpoint, rename=rules), "rename-unused")] == [
        r"warning[rename-unused]: the rule model\.w=y matched no name",
        "warning[rename-unused]: the rule other=z matched no name",
    ]


def test_a_rename_settles_an_unusual_key(tmp_path: Path) -> None:
    mapping = preview(keys(tmp_path / "c", "model.vision.w"), rename=[r"vision\.(.*)=model.visual.\1"])
    assert names(mapping) == {"model.vision.w": "model.visual.w"}
    assert mapping.warnings == (NO_ASSETS,)


# --- what prevents a conversion ---------------------------------------------------------------------------------


def test_a_collision_names_all_the_keys(tmp_path: Path) -> None:
    mapping = preview(saved.colliding(tmp_path / "c"))
    assert [str(f) for f in mapping.errors] == [
        "error[collision] model.norm.weight: model.model.norm.weight, model._orig_mod.model.norm.weight would get "
        "the same name (rename or exclude one of them)"
    ]


def test_a_rename_makes_a_collision_and_ends_one(tmp_path: Path) -> None:
    two = keys(tmp_path / "two", "model.model.a", "model.model.b")
    assert [f.key for f in preview(two, rename=[r"model\..=same"]).errors] == ["same"]
    colliding = saved.colliding(tmp_path / "c")
    assert not preview(colliding, exclude=["model._orig_mod.*"]).errors


@pytest.mark.parametrize("key", ["model.__metadata__", "model."])
def test_a_name_that_safetensors_cannot_store_is_an_error_until_it_is_renamed(key: str, tmp_path: Path) -> None:
    checkpoint = saved.save_chunks(tmp_path / "c", {key: [((0,), torch.ones(2))]})
    assert [str(f) for f in preview(checkpoint).errors] == [
        f"error[reserved-name] {key}: would be named {key[6:]!r}, which safetensors cannot store (rename or exclude it)"
    ]
    assert not preview(checkpoint, rename=[f"{key[6:]}()=x"]).errors


def test_a_rename_to_a_reserved_name_is_an_error(tmp_path: Path) -> None:
    checkpoint = keys(tmp_path / "c", "model.model.w", "model.model.v")
    mapping = preview(checkpoint, rename=[r"model\.w=__metadata__", r"model\.v="])
    assert [(f.code, f.key) for f in mapping.errors] == [
        ("reserved-name", "model.model.v"),
        ("reserved-name", "model.model.w"),
    ]


def test_flat_parameters_are_errors_and_a_new_name_does_not_hide_them(tmp_path: Path) -> None:
    checkpoint = lookalikes.flat_parameters(tmp_path / "c")
    flat_keys = sorted(read(checkpoint).tensors)
    for rules in ([], [r"(.*)_flat_param=\1weight"]):
        mapping = preview(checkpoint, rename=rules)
        assert sorted(f.key for f in mapping.errors) == flat_keys
        assert {f.code for f in mapping.errors} == {"flat-parameter"}


def test_a_broken_key_that_is_converted_is_an_error_and_all_are_named_at_once(tmp_path: Path) -> None:
    broken.missing_file(tmp_path / "c")
    with editing(tmp_path / "c") as metadata:
        del metadata.state_dict_metadata[broken.B].chunks[0]
    with pytest.raises(FindingsError) as caught:
        plan(tmp_path / "c")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{len(lines) - 1} errors prevent the conversion:"
    assert {line.partition(":")[0] for line in lines[1:]} >= {
        f"error[missing-file] {broken.W}",
        f"error[hole] {broken.B}",
    }


def test_a_broken_key_that_is_not_converted_is_a_warning(tmp_path: Path) -> None:
    mapping = preview(broken.hole(tmp_path / "c"), exclude=[broken.W])
    assert [(f.severity, f.key, f.hint) for f in found(mapping, "hole")] == [
        ("warning", broken.W, "it is not converted")
    ]
    assert [file.filename for file in plan(mapping).files] == ["model.safetensors"]


# --- how a mapping shows itself ---------------------------------------------------------------------------------


def small(tmp_path: Path) -> KeyMapping:
    state = {"model": {"model.w": torch.ones(2, 3), "visual.s": torch.tensor(1)}, "step": 3}
    return preview(saved.save(tmp_path / "c", state))


def test_the_text_has_names_leftovers_and_findings(tmp_path: Path) -> None:
    mapping = small(tmp_path)
    nbytes = mapping.leftovers[0].nbytes / 1000  # of a pickle that torch made
    assert str(mapping) == "\n".join(
        [
            "2 outputs with 7 elements; 1 key left out",
            "key             name      shape    dtype    rule",
            "--------------  --------  -------  -------  ----------------",
            "model.model.w   model.w   [2, 3]   float32  without 'model.'",
            "model.visual.s  visual.s  []       int64    without 'model.'",
            "left out because                  keys    bytes",
            "------------------------------  ------  -------",
            f"a pickled object, not a tensor       1  {nbytes:.2f} kB",
            "warning[unusual-key] model.visual.s: is neither model.model.* nor model.lm_head.weight; it is named "
            "'visual.s' (layout='bare' keeps it as it is, rename= gives another name)",
            str(NO_ASSETS),
            "info[layout]: layout 'container': there is a key 'model.model.w' (layout= overrides it)",
            "info[left-out]: 1 key left out; reasons: a pickled object, not a tensor: 1",
        ]
    )


def test_the_frame_has_one_row_an_output_with_its_findings(tmp_path: Path) -> None:
    frame = small(tmp_path).to_frame()
    assert frame.to_dict("records") == [
        {
            "name": "model.w",
            "key": "model.model.w",
            "rule": "without 'model.'",
            "shape": (2, 3),
            "dtype": "float32",
            "numel": 6,
            "state": "",
            "expected_shape": None,
            "findings": "",
        },
        {
            "name": "visual.s",
            "key": "model.visual.s",
            "rule": "without 'model.'",
            "shape": (),
            "dtype": "int64",
            "numel": 1,
            "state": "",
            "expected_shape": None,
            "findings": "unusual-key",
        },
    ]


def test_the_leftovers_have_a_frame(tmp_path: Path) -> None:
    mapping = small(tmp_path)
    assert mapping.leftovers_frame().to_dict("records") == [
        {
            "key": "step",
            "kind": "object",
            "reason": "a pickled object, not a tensor",
            "nbytes": mapping.leftovers[0].nbytes,
        }
    ]


def test_the_json_is_plain_and_complete(tmp_path: Path) -> None:
    mapping = small(tmp_path)
    plain = json.loads(json.dumps(mapping.to_json()))
    assert (plain["layout"], plain["root"]) == ("container", "model")
    assert plain["outputs"][0] == {
        "name": "model.w",
        "keys": ["model.model.w"],
        "shape": [2, 3],
        "dtype": "float32",
        "rule": "without 'model.'",
    }
    assert plain["leftovers"] == [{"key": "step", "kind": "object", "reason": "a pickled object, not a tensor"}]
    assert plain["findings"] == [finding.to_json() for finding in mapping.findings]


def test_the_html_escapes_names(tmp_path: Path) -> None:
    html = preview(keys(tmp_path / "c", "model.model.<script>alert(1)</script>"))._repr_html_()
    assert "<script>" not in html
    assert "model.&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    text = str(preview(keys(tmp_path / "c", "model.evil\x1b[2J\r\nname")))
    assert "\x1b" not in text
    assert r"evil\x1b[2J\r\nname" in text


def test_a_long_mapping_is_cut_with_a_note(tmp_path: Path) -> None:
    text = str(preview(saved.trained(tmp_path / "c")))
    assert "... 5 more of 25 rows" in text.splitlines()


def test_outputs_are_sorted_as_strings(tmp_path: Path) -> None:
    mapping = preview(keys(tmp_path / "c", *(f"model.model.layers.{n}.w" for n in (2, 10, 1)), "model.model.Z"))
    assert [o.name for o in mapping.outputs] == ["model.Z", "model.layers.1.w", "model.layers.10.w", "model.layers.2.w"]


# Outputs that are made by hand


def test_an_output_has_the_elements_of_its_shape() -> None:
    half = View("a", (2, 3), (3, 1), 0)
    assert Output("b", (half, half), (4, 3), TABLE["float32"], "by hand").numel == 12
    with pytest.raises(
        UsageError, match=r"^The sources of the output 'b' have 6 elements\.\nExpected 12, those of its"
    ):
        Output("b", (half,), (4, 3), TABLE["float32"], "by hand")
    with pytest.raises(UsageError, match="have 0 elements"):
        Output("b", (), (0,), TABLE["float32"], "by hand")
    with pytest.raises(UsageError, match=r"those of its shape \(-2, -3\)"):
        Output("b", (half,), (-2, -3), TABLE["float32"], "by hand")


@pytest.mark.parametrize(
    ("view", "dtype", "message"),
    [
        (
            View("model.model.w", (2, 3), (3, 1), 1),
            "float32",
            "to element 7 of 'model.model.w'.\nExpected at most 6",
        ),
        (View("model.model.w", (3, 2), (1, 4), 0), "float32", "reaches to element 7 "),
        (View("model.model.w", (2, 3), (3, 1), 0), "float16", "is said to be stored as float16.\nExpected float32"),
    ],
)
def test_a_mapping_holds_only_what_the_checkpoint_has(view: View, dtype: str, message: str, tmp_path: Path) -> None:
    mapping = preview(saved.trained(tmp_path, {"model.w": torch.zeros(2, 3)}, optimizer=False))
    output = Output("model.w", (view,), view.shape, TABLE[dtype], "by hand")
    with pytest.raises(UsageError, match=message):
        replace(mapping, outputs=(output,))


def test_a_key_of_a_mapping_is_used_or_left_out(tmp_path: Path) -> None:
    mapping = preview(
        saved.save(tmp_path, {"model": {"model.w": torch.zeros(2), "model.v": torch.zeros(2)}, "step": 3})
    )
    one, other = mapping.outputs
    (left,) = mapping.leftovers
    also, unknown = replace(left, key=other.sources[0].key), replace(left, key="model.model.u")
    assert replace(mapping, outputs=(one,), leftovers=(left, also))
    for outputs, leftovers in [
        ((one,), (left,)),
        ((one, other), ()),
        ((one, other), (left, left)),
        ((one, other), (left, also)),
        ((one, other), (also,)),
        ((one, other), (unknown,)),
        ((one, other), (left, unknown)),
        ((one,), (left, left)),
        ((one,), (left, unknown)),
    ]:
        with pytest.raises(AssertionError, match="neither used nor left out"):
            replace(mapping, outputs=outputs, leftovers=leftovers)
    another = replace(one, sources=(replace(one.sources[0], key="model.model.u"),))
    with pytest.raises(UnknownKey, match="'model.model.u'"):
        replace(mapping, outputs=(one, other, another))
