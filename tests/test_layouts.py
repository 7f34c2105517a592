"""Which layout is chosen for which keys, in which order, and the name that follows."""

from __future__ import annotations

import pytest

from dcptools.errors import UsageError
from dcptools.layouts import Key, Layout, choose, strip_wrappers, top_level
from dcptools.layouts.bare import Bare
from dcptools.layouts.container import Container, _is_usual
from dcptools.layouts.keys import WRAPPERS, names_below
from dcptools.layouts.training import TRAINING_STATE, is_training_state
from dcptools.layouts.unknown import Unknown


def top(*names: str) -> list[Key]:
    """Keys as ``dcp.save({name: tensor})`` leaves them: paths of one element."""
    return [Key.of(name, (name,)) for name in names]


def inside(container: str, *names: str) -> list[Key]:
    """Keys as ``dcp.save({container: {name: tensor}})`` leaves them; dots in the container are nested dicts."""
    return [Key.of(f"{container}.{name}", (*container.split("."), name)) for name in names]


def unknown(*names: str) -> list[Key]:
    """Keys of a checkpoint without ``planner_data``."""
    return [Key.of(name, ()) for name in names]


MODEL = ("model.layers.0.w", "model.norm.weight", "lm_head.weight")

BY_NAMES = "there is a key {!r}"
BY_CONTAINER = "the saved state dict has a container 'model'"
ALONE = "{!r} is a name that HuggingFace models have, so the keys are HuggingFace names already"
BARE = "'lm_head.weight' stands beside 'model.layers.0.w', so the keys are HuggingFace names already"

CHOSEN: dict[str, tuple[list[Key], Layout]] = {
    # 1: names that only a container gives, whatever the paths say
    "model.model, nested": (
        inside("model", "model.w"),
        Container("model", BY_NAMES.format("model.model.w")),
    ),
    "model.model, one-element paths": (
        top("model.model.w"),
        Container("model", BY_NAMES.format("model.model.w")),
    ),
    "model.model, no planner_data": (
        unknown("model.model.w"),
        Container("model", BY_NAMES.format("model.model.w")),
    ),
    "model.lm_head.weight": (
        top("model.lm_head.weight"),
        Container("model", BY_NAMES.format("model.lm_head.weight")),
    ),
    "model.base_model": (
        top("model.base_model.w"),
        Container("model", BY_NAMES.format("model.base_model.w")),
    ),
    "1 before 3": (
        [*top(*MODEL), *top("model.model.w")],
        Container("model", BY_NAMES.format("model.model.w")),
    ),
    "1 before another container": (
        [*inside("app.model", *MODEL), *top("model.model.w")],
        Container("model", BY_NAMES.format("model.model.w")),
    ),
    # 2: the paths of planner_data
    "a container model": (inside("model", "visual.w"), Container("model", BY_CONTAINER)),
    "a container model with layers": (inside("model", "layers.0.w"), Container("model", BY_CONTAINER)),
    "2 before 3": (
        [*top("lm_head.weight", "model.layers.0.w"), *inside("model", "visual.w")],
        Container("model", BY_CONTAINER),
    ),
    "model before another container": (
        [*inside("ema.model", *MODEL), *inside("model", "visual.w")],
        Container("model", BY_CONTAINER),
    ),
    "app.model": (
        [*inside("app.model", "visual.w"), *inside("app.optim.state", "model.layers.0.w")],
        Container("app.model", "the saved state dict has a model in the container 'app.model'"),
    ),
    "a container of another name with a model's keys": (
        inside("state_dict", "model.embed_tokens.weight"),
        Container("state_dict", "the saved state dict has a model in the container 'state_dict'", True),
    ),
    "a bare model before another container beside it": (
        [*inside("ema", *MODEL), *top(*MODEL)],
        Bare(BARE),
    ),
    # the container holds a module of the trainer's, which holds the model
    "Lightning's attribute": (
        inside("model", *(f"net.{name}" for name in MODEL)),
        Container(
            "model.net",
            f"{BY_CONTAINER}, and all of it is in an attribute 'net', with names of HuggingFace models",
            True,
        ),
    ),
    "Composer's attribute, which is called as the base model is": (
        inside("state.model", *(f"model.{name}" for name in MODEL)),
        Container(
            "state.model.model",
            "the saved state dict has a model in the container 'state.model', "
            "and all of it is in an attribute 'model', with names of HuggingFace models",
            True,
        ),
    ),
    "an attribute beside others": (
        inside("model", *(f"net.{name}" for name in MODEL), "metric.total"),
        Container("model", BY_CONTAINER),
    ),
    "an attribute without names of HuggingFace": (
        inside("model", "net.0.weight", "net.2.weight"),
        Container("model", BY_CONTAINER),
    ),
    # 3: bare names, with a head at the top
    "bare": (top(*MODEL), Bare(BARE)),
    "bare without planner_data": (unknown(*MODEL), Bare(BARE)),
    "bare with score and embeddings": (
        top("score.weight", "model.embed_tokens.weight"),
        Bare(
            "'score.weight' stands beside 'model.embed_tokens.weight', so the keys are HuggingFace names already",
        ),
    ),
    "a head beside anything of a model": (
        top("lm_head.weight", "model.norm.weight"),
        Bare("'lm_head.weight' stands beside 'model.norm.weight', so the keys are HuggingFace names already"),
    ),
    "a tied model has no head": (
        top("model.layers.0.w", "model.norm.weight"),
        Bare(ALONE.format("model.layers.0.w")),
    ),
    "a wrapped model": (
        unknown("_orig_mod.model.layers.0.w", "module.model.norm.weight"),
        Bare(ALONE.format("model.layers.0.w")),
    ),
    "a base model of another name": (
        top("bert.encoder.layer.10.w", "cls.predictions.bias"),
        Bare(ALONE.format("bert.encoder.layer.10.w")),
    ),
    "a bare model and copies of it without planner_data": (
        unknown(*MODEL, *(f"average.{name}" for name in MODEL), "ema.w"),
        Bare(BARE, copies=frozenset(("average", "ema"))),
    ),
    # the container may be called as a wrapper is
    "a container module": (
        inside("module", "_orig_mod.some.w"),
        Container("module", "the saved state dict has a model in the container 'module'", True),
    ),
    # 4: any other model.*
    "model.foo": (
        top("model.foo"),
        Container("model", "there is a key 'model.foo', and no other sign"),
    ),
    "model.layers is no number, and below model. all else may be in a container": (
        top("model.layers.w", "model.encoder.block.0.w", "model.h.0.w", "model.embeddings.word_embeddings.weight"),
        Container("model", "there is a key 'model.layers.w', and no other sign"),
    ),
    "model.lm_head.bias is not the sign of 1": (
        top("model.lm_head.bias"),
        Container("model", "there is a key 'model.lm_head.bias', and no other sign"),
    ),
    "model.models is not the sign of 1": (
        top("model.models.w"),
        Container("model", "there is a key 'model.models.w', and no other sign"),
    ),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_the_layout_and_the_reason(case: str) -> None:
    keys, expected = CHOSEN[case]
    assert choose(keys) == expected


@pytest.mark.parametrize(
    "keys",
    [
        [],
        top("model"),
        top("models.layers.0.w", "xmodel.model.w"),
        top("lm_head.weight"),
        top("mybert", "bert.embeddings", "xembed_tokens.w", "embed_tokensx.w", "layers.x.self_attn.w"),
        top("tok_embeddings.weight", "layers.0.attention.wq.weight", "output.weight"),
        inside("optimizer.state", *MODEL),
        inside("optimizer", *MODEL),
        inside("optim.model", *MODEL),
        inside("app.optim.model", *MODEL),
        [*inside("student", *MODEL), *inside("teacher", *MODEL)],  # which of them is the model is not ours to guess
    ],
    ids=lambda keys: ", ".join(top_level(keys)) or "nothing",
)
def test_no_rule_finds_a_model(keys: list[Key]) -> None:
    assert isinstance(choose(keys), Unknown)


def test_the_order_of_the_keys_does_not_matter_for_the_choice() -> None:
    for keys, expected in CHOSEN.values():
        choice = choose(keys[::-1])
        assert (choice.name, choice.root) == (expected.name, expected.root)


def test_a_layout_overrules_what_auto_would_choose() -> None:
    assert choose(top(*MODEL), "container") == Container("model", "as requested")
    assert choose(inside("model", *MODEL), "bare") == Bare("as requested")


@pytest.mark.parametrize("layout", ["auto", "container"])
def test_a_root_overrules_the_container(layout: str) -> None:
    keys = [*inside("model", *MODEL), *inside("ema", *MODEL)]
    assert choose(keys, layout, "ema") == Container("ema", "the root 'ema', as requested")


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        choose(top(*MODEL), "llama")
    assert str(caught.value) == "Unknown layout 'llama'.\nKnown layouts: auto, container, bare."


def test_a_root_without_keys_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        choose([*inside("model", "w"), *inside("ema_old", "w")], root="ema")
    assert str(caught.value) == "No tensor's key starts with 'ema.'.\nTop-level keys: ema_old, model."


def test_a_root_is_refused_for_bare_names() -> None:
    with pytest.raises(UsageError, match="Bare names have no root"):
        choose(top(*MODEL), "bare", "model")


def name_below(root: str, key: Key) -> str | None:
    (name,) = names_below([key], root)
    return name


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.model.norm.weight", ("model.norm.weight", True)),
        ("model.lm_head.weight", ("lm_head.weight", True)),
        ("model.model.model.w", ("model.model.w", True)),  # the prefix goes once
        ("model.lm_head.bias", ("lm_head.bias", False)),
        ("model.visual.w", ("visual.w", False)),
        ("model.models.w", ("models.w", False)),
        ("model.", ("", False)),
        ("model", (None, True)),
        ("models.w", (None, True)),
        ("optimizer.state.model.norm.weight.exp_avg", (None, True)),
        ("Model.model.w", (None, True)),
    ],
)
def test_the_name_under_a_container(key: str, expected: tuple[str | None, bool]) -> None:
    name = name_below("model", Key.of(key, ()))
    assert (name, name is None or _is_usual(name)) == expected


def test_the_name_under_a_deeper_container() -> None:
    keys = [Key.of("app.model.model.w", ()), Key.of("app.optim.model.w", ())]
    assert list(names_below(keys, "app.model")) == ["model.w", None]


@pytest.mark.parametrize(
    ("key", "root", "expected"),
    [
        (inside("module", "model.w"), "module", ()),
        (inside("module", "module.model.w"), "module", ("module",)),
        (inside("app.module", "model.w"), "app.module", ()),
        (inside("model.module", "model.w"), "model", ("module",)),
        (inside("model", "_orig_mod.model.w"), "model", ("_orig_mod",)),
        (unknown("module.model.w"), "module", ()),
        (unknown("module.model.model.w"), "model", ("module",)),
    ],
)
def test_wrappers_are_taken_out_below_the_container(key: list[Key], root: str, expected: tuple[str, ...]) -> None:
    assert choose(key, root=root) == Container(root, f"the root {root!r}, as requested")
    assert name_below(root, key[0]) == "model.w"
    assert Container(root, "").wrappers_in(key[0]) == expected


def test_what_is_called_like_a_wrapper_but_ends_a_key_stays() -> None:
    (key,) = inside("app.module", "model.w.module")
    assert name_below("app.module", key) == "model.w.module"
    assert Container("app.module", "").wrappers_in(key) == ()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        *((key, key) for key in [*top(*MODEL), *top("visual.blocks.0.w", "score.weight", "optimizers_net.w")]),
        *((key, None) for key in top("optimizer.state.w", "step", "rng_state", "extra_state.x")),
        *((key, None) for key in inside("ema", "model.layers.0.w")),  # another container
    ],
    ids=str,
)
def test_bare_names_are_kept_and_training_state_is_not(key: Key, expected: Key | None) -> None:
    assert Bare("").is_model(key) == (expected is not None)


STATE = [
    *("optimizer", "optimizers", "optim", "optimizer_0", "optimizer_state", "optimizer_states", "optim_state_dict"),
    *("lr_scheduler", "lr_schedulers", "scheduler", "opt_param_scheduler", "dataloader", "train_dataloader", "sampler"),
    *("rng", "rng_state", "rng_states", "cuda_rng_state", "train_state", "trainer_state", "extra_state", "scaler"),
    *("client_state", "callbacks", "loops", "step", "global_step", "iteration", "epoch"),
]


def test_training_state_is_known_by_whole_segments() -> None:
    assert [name for name in STATE if not TRAINING_STATE.fullmatch(name)] == []
    others = [
        "model",
        "ema",
        "optimizers_net",
        "lm_head",
        "score",
        "v_head",
        "stepper",
        "loss",
        "train",
        "extra",
        "opt",
    ]
    assert [name for name in others if TRAINING_STATE.fullmatch(name)] == []


def test_training_state_is_looked_for_beside_the_model() -> None:
    choice = Container("app.model", "")
    keys = [*inside("app.optim", "w"), *inside("app.ema", "w"), *unknown("app.optim.w", "app.ema.optim.w", "rng.w")]
    assert [is_training_state(key, choice.beside(key)) for key in keys] == [True, False, True, False, True]
    assert [choice.beside(key) for key in keys] == ["app.optim", "app.ema", "app.optim", "app.ema", "rng"]


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
@pytest.mark.parametrize("place", ["{}.model.model.w", "model.{}.model.w", "model.model.{}.w", "model.{0}.model.{0}.w"])
def test_wrapper_segments_go_wherever_they_stand(wrapper: str, place: str) -> None:
    name, removed = strip_wrappers(place.format(wrapper))
    assert (name, set(removed)) == ("model.model.w", {wrapper})


@pytest.mark.parametrize(
    "key",
    [
        "model.model.modules.w", "model.my_orig_mod.w", "model._orig_modules.w", "model.Module.w", "modules",
        "model.w.module", "model.w._orig_mod", "module",
    ],
)  # fmt: skip
def test_segments_that_only_resemble_a_wrapper_stay(key: str) -> None:
    assert strip_wrappers(key) == (key, ())
