"""Families of trainers' names: files of one's own, what is wrong with them, and how values are rearranged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import saved
from safetensors.torch import load_file

import dcptools
from dcptools.errors import UsageError
from dcptools.layouts.family_files import families, parse_family
from dcptools.layouts.rearrange import MOST_PARTS, Rearrangement
from dcptools.mapping import KeyMapping
from dcptools.tensors import Composed, TensorReader, read_elements

OWN = """
trainer = "ours"
model = "Tiny"

[sizes]
heads = 2
two = 2

[weights]
"emb" = "model.embed_tokens.weight"
"blocks.{n}.q" = { name = "model.layers.{n}.q.weight", rearrange = "(heads half two) in -> (heads two half) in" }
"blocks.{n}.experts" = { name = "model.layers.{n}.experts.{e}.weight", rearrange = "e in out -> {e} out in" }

[left_out]
"blocks.{n}.bias" = "balances the load"
"""
EXPERTS = torch.arange(24.0).reshape(2, 3, 4)
STATE = {
    "emb": torch.arange(6.0).reshape(3, 2),
    "blocks.7.q": torch.arange(24.0).reshape(8, 3),
    "blocks.7.experts": EXPERTS,
    "blocks.7.bias": torch.zeros(2),
}


def with_family(directory: Path, text: str, state: dict[str, Any] | None = None, **options: Any) -> KeyMapping:
    (directory / "own.toml").write_text(text)
    checkpoint = saved.save(directory / "c", state or STATE)
    return dcptools.preview(checkpoint, family=directory / "own.toml", **options)


def values(mapping: KeyMapping, name: str) -> list[Any]:
    (output,) = [output for output in mapping.outputs if output.name == name]
    bits = np.empty(output.numel, "u4")
    done = 0
    for view in output.sources:
        read_elements(TensorReader(mapping.checkpoint[view.key]), view, 0, view.numel, bits[done : done + view.numel])
        done += view.numel
    found: list[Any] = bits.view("f4").reshape(output.shape).tolist()
    return found


def test_a_file_of_ones_own_says_what_keys_become(tmp_path: Path) -> None:
    mapping = with_family(tmp_path, OWN)
    assert (mapping.layout, mapping.root) == ("ours, Tiny", "")
    experts = [f"model.layers.7.experts.{expert}.weight" for expert in (0, 1)]
    q = "model.layers.7.q.weight"
    assert [output.name for output in mapping.outputs] == ["model.embed_tokens.weight", *experts, q]
    assert values(mapping, "model.embed_tokens.weight") == STATE["emb"].tolist()
    assert values(mapping, q) == STATE["blocks.7.q"].view(2, 2, 2, 3).transpose(1, 2).reshape(8, 3).tolist()
    assert [values(mapping, name) for name in experts] == [EXPERTS[0].T.tolist(), EXPERTS[1].T.tolist()]
    assert [(left.key, left.reason) for left in mapping.leftovers] == [("blocks.7.bias", "balances the load")]


def test_a_file_of_ones_own_is_used_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    saved.save(tmp_path / "c", STATE)
    options = ["--save-dir", str(tmp_path / "out"), "--dtype", "keep", "--family", str(tmp_path / "own.toml")]
    command = [sys.executable, "-m", "dcptools.convert", "--load-dir", str(tmp_path / "c"), *options]
    assert subprocess.run(command, capture_output=True).returncode == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.layers.7.experts.1.weight"], EXPERTS[1].T)


def test_its_keys_may_stand_in_a_container_and_in_wrappers(tmp_path: Path) -> None:
    state = {"app": {"net": {"blocks._checkpoint_wrapped_module.7.q": STATE["blocks.7.q"]}}}
    mapping = with_family(tmp_path, OWN, state, root="app.net")
    assert [output.name for output in mapping.outputs] == ["model.layers.7.q.weight"]


def test_what_cannot_be_rearranged_is_left_out_with_a_warning(tmp_path: Path) -> None:
    mapping = with_family(tmp_path, OWN, {**STATE, "blocks.7.q": torch.zeros(6, 3), "blocks.8.q": torch.zeros(6, 3)})
    (found,) = [each for each in mapping.warnings if each.code == "left-out-tensor"]
    assert found.message == (
        "2 tensors of ours, Tiny cannot be rearranged: a dimension of 6 is not (heads half two); known sizes: "
        "heads 2, two 2: blocks.7.q, blocks.8.q"
    )
    assert not any("q.weight" in output.name for output in mapping.outputs)


def test_a_size_that_nobody_told_is_named(tmp_path: Path) -> None:
    mapping = with_family(tmp_path, OWN.replace("heads = 2\n", 'heads = "num_heads"\n'))
    (found,) = [each for each in mapping.warnings if each.code == "left-out-tensor"]
    assert "a dimension of 8 is not (heads half two); known sizes: two 2: blocks.7.q" in found.message


def test_a_checkpoint_without_its_names_says_so(tmp_path: Path) -> None:
    (error,) = with_family(tmp_path, OWN, {"model": {"emb": torch.zeros(3, 2)}}, root="model.net").errors
    assert error.hint == (
        "no key has a name of ours, Tiny: leave out family=, or say with root= where such keys are; "
        "top-level keys here: model"
    )


# --- what is wrong with a file ----------------------------------------------------------------------------------

WEIGHT = 'Expected a name, or a name and how to rearrange: { name = "...{layer}...", rearrange = "a b -> b a" }.'
NOTATION = "Expected one like '(heads half two) in -> (heads two half) in'."
PLACES = "Expected a place in braces for each number."
FIELDS = "Expected trainer, model and weights; also architectures, sizes, left_out, signs, refused, exporter."
WRONG: dict[str, tuple[str, str, str]] = {
    'trainer = "t"\n': ("", "model: the field is missing.", FIELDS),
    'trainer = "t"\nmodel = "m"\nweight = {}\n': (", line 3", "weight: there is no field of that name.", FIELDS),
    'trainer = 1\nmodel = "m"\n': (", line 1", "trainer is int.", "Expected a string."),
    'trainer = "t"\nmodel = "m"\narchitectures = "A"\n': (
        *(", line 3", "architectures is not a list of strings.", 'Expected architectures = ["...", "..."].'),
    ),
    'trainer = "t"\nmodel = "m"\nweights = ["a"]\n': (
        *(", line 3", "weights is list.", "Expected a table: [weights]."),
    ),
    'trainer = "t"\nmodel = "m"\n[sizes]\ntwo = 0\n': (
        *(", line 4", "the size of the axis two is 0.", "Expected a number or a field of config.json."),
    ),
    'trainer = "t"\nmodel = "m"\n[weights]\n"a" = 1\n': (", line 4", "what 'a' becomes is not clear.", WEIGHT),
    'trainer = "t"\nmodel = "m"\n[weights]\n"a" = { name = "b", turn = "x" }\n': (
        *(", line 4", "what 'a' becomes is not clear.", WEIGHT),
    ),
    'trainer = "t"\nmodel = "m"\n[weights]\n"a.{n}" = "b.{m}"\n': (
        *(", line 4", "nothing says what {m} of the name is.", WEIGHT),
    ),
    'trainer = "t"\nmodel = "m"\n[weights]\n"a.0.b" = "b"\n': (
        *(", line 4", "'a.0.b' is not a template of keys.", PLACES),
    ),
    'trainer = "t"\nmodel = "m"\n[weights]\n"a.{n}.{n}" = "b.{n}"\n': (
        *(", line 4", "'a.{n}.{n}' is not a template of keys.", PLACES),
    ),
    'trainer = "t"\nmodel = "m"\n[weights]\n"a" = { name = "b", rearrange = "x y -> y" }\n': (
        *(", line 4", "'x y -> y' is not a rearrangement.", NOTATION),
    ),
    'trainer = "t"\nmodel = "m"\n[weights]\n"a" = { name = "b", rearrange = "x y -> y x", differ = ["z"] }\n': (
        *(", line 4", "differ names z, and the axes are x, y.", "Expected some of the axes."),
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_a_file_is_said_with_its_line(text: str, tmp_path: Path) -> None:
    where, problem, hint = WRONG[text]
    with pytest.raises(UsageError) as caught:
        with_family(tmp_path, text)
    assert str(caught.value) == f"The family file {tmp_path / 'own.toml'}{where}: {problem}\n{hint}"


def test_a_file_that_is_not_toml_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"own\.toml is not TOML: .*\(at line 2, column 5\)\.$"):
        with_family(tmp_path, 'trainer = "t"\nnot toml\n')
    with pytest.raises(UsageError, match=r"own\.toml is not TOML: Exceeds the limit"):
        with_family(tmp_path, f"trainer = {'1' * 5000}\n")
    with pytest.raises(UsageError, match="absent.toml cannot be read: No such file"):
        dcptools.preview(tmp_path / "c", family=tmp_path / "absent.toml")
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not text in UTF-8"):
        dcptools.preview(tmp_path / "c", family=tmp_path / "own.toml")


@pytest.mark.parametrize(
    "text", ["a b", "a -> b", "a a -> a a", "(a b -> a b", "a) b -> a b", "{a} b -> a b", "a b -> (a {b})", "a-b -> a"]
)
def test_what_is_no_notation(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rearrangement"):
        Rearrangement.parse(text)


def test_a_tensor_is_not_cut_into_more_than_any_model_has() -> None:
    turn = Rearrangement.parse("expert in -> {expert} in")
    with pytest.raises(ValueError, match="cut into 1,099,511,627,776 tensors"):
        list(turn.apply(Composed.whole("w", (1 << 40, 1)), {}))
    assert next(turn.apply(Composed.whole("w", (MOST_PARTS, 1)), {}))[0] == {"expert": 0}


def test_axes_that_must_differ() -> None:
    turn = Rearrangement.parse("(expert in) out -> {expert} out in")
    assert len(list(turn.apply(Composed.whole("w", (6, 4)), {"expert": 2}, ("in", "out")))) == 2
    with pytest.raises(ValueError, match="in and out have the same size"):
        list(turn.apply(Composed.whole("w", (8, 4)), {"expert": 2}, ("in", "out")))


# --- those that come with dcptools ------------------------------------------------------------------------------


def test_every_family_is_known_by_its_signs_and_names_another_way() -> None:
    for family in families():
        assert family.signs and family.exporter, family.title
        assert family.refused or family.weights, family.title
        assert not family.weights or family.weights.keys() & set(family.signs), family.title


def test_no_two_families_of_an_architecture_share_a_sign() -> None:
    taken: dict[tuple[str, str], str] = {}
    for family in families():
        for architecture in family.architectures:
            for sign in family.signs:
                assert taken.setdefault((architecture, sign), family.title) == family.title


def test_a_family_is_parsed_as_it_is_written() -> None:
    weight, numbers = parse_family(OWN, "it").find("blocks.12.experts") or (None, ())
    assert weight is not None
    assert (weight.places, weight.name, numbers) == (("n",), "model.layers.{n}.experts.{e}.weight", ("12",))
