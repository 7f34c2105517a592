"""The tree of modules: what is alike becomes one row, and nothing is lost or counted twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from checkpoints import saved
from hypothesis import given
from hypothesis import strategies as st

from dcptools.checkpoint import Checkpoint, read
from dcptools.errors import NotACheckpoint
from dcptools.tree import MAX_DEPTH, Node, Tree, _Module, tree, tree_of


def of(directory: Path, shapes: dict[str, tuple[int, ...]]) -> Tree:
    """The tree of a checkpoint with tensors of these keys and shapes."""
    chunks = {key: [((0,) * len(shape), torch.zeros(shape))] for key, shape in shapes.items()}
    return tree(saved.save_chunks(directory, chunks))


def rows(shown: Tree) -> list[tuple[str, str]]:
    return [(node.label, node.describe()) for node in shown.rows()]


TRAINED = """\
model                                  25 keys, 1,464 elements, 5.86 kB
  model                                24 keys, 1,336 elements, 5.34 kB
    embed_tokens.weight                [16, 8] float32
    layers.{0..1}                      22 keys, 1,200 elements, 4.80 kB
      self_attn                        12 keys, 400 elements, 1.60 kB
        q_proj.weight                  2 x [8, 8] float32
        k_proj.weight                  2 x [4, 8] float32
        v_proj.weight                  2 x [4, 8] float32
        o_proj.weight                  2 x [8, 8] float32
        q_norm.weight                  2 x [4] float32
        k_norm.weight                  2 x [4] float32
      mlp                              6 keys, 768 elements, 3.07 kB
        gate_proj.weight               2 x [16, 8] float32
        up_proj.weight                 2 x [16, 8] float32
        down_proj.weight               2 x [8, 16] float32
      input_layernorm.weight           2 x [8] float32
      post_attention_layernorm.weight  2 x [8] float32
    norm.weight                        [8] float32
  lm_head.weight                       [16, 8] float32"""


def test_a_trained_model(tmp_path: Path) -> None:
    shown = tree(saved.trained(tmp_path / "step-100", optimizer=False))
    assert str(shown) == TRAINED


def test_what_differs_in_shape_stays_apart(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"layers.{n}.w": (2,) for n in range(12)}
    shown = of(tmp_path, {**shapes, "layers.3.w": (3,), "layers.7.w": (3,)})
    assert rows(shown) == [
        ("layers", "12 keys, 26 elements, 104 B"),
        ("{0..2,4..6,8..11}.w", "10 x [2] float32"),
        ("{3,7}.w", "2 x [3] float32"),
    ]


def test_groups_of_layers_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"layers.{n}.w": (n % 2 + 1,) for n in (10, 11, 2, 3, 9)}
    shapes |= {"layers.1.w": (7,), "layers.12.w": (8,)}
    labels = [label for label, _ in rows(of(tmp_path, shapes))[1:]]
    assert labels == ["1.w", "{2,10}.w", "{3,9,11}.w", "12.w"]


def test_modules_stand_in_the_order_of_the_checkpoint(tmp_path: Path) -> None:
    keys = ["norm.w", "a-b", "a.y", "a", "layers.0.q", "layers.0.k", "layers.1.k", "layers.1.q", "embed"]
    labels = [node.label for node in of(tmp_path, dict.fromkeys(keys, (1,))).rows()]
    assert labels == ["norm.w", "a-b", "a", "y", "layers.{0..1}", "q", "k", "embed"]


def test_of_modules_that_are_alike_only_one_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"layers.{n}.experts.{e}.{w}.weight" for n in range(20) for e in range(30) for w in ("up", "down")]
    made = []
    monkeypatch.setattr("dcptools.tree._Module", lambda *given: made.append(given) or _Module(*given))
    (layers,) = tree_of(keys, [((1,), "float32", 1, 4)] * len(keys)).nodes
    assert (layers.label, layers.tensors) == ("layers.{0..19}.experts.{0..29}", 1200)
    assert len(made) < 100  # names in one layer and one expert; there are 3,041 in all


def test_what_differs_in_dtype_or_in_a_name_stays_apart(tmp_path: Path) -> None:
    state = {"0": {"w": torch.zeros(2)}, "1": {"w": torch.zeros(2).half()}, "2": {"v": torch.zeros(2)}}
    shown = tree(saved.save(tmp_path, {"layers": state}))
    assert [node.label for node in shown.rows()] == ["layers", "0.w", "1.w", "2.v"]


def test_experts_in_layers_are_grouped_on_both_levels(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"layers.{n}.experts.{e}.up.w": (4, 2) for n in range(3) for e in range(8)}
    shapes |= {f"layers.{n}.norm": (2,) for n in range(3)}
    assert rows(of(tmp_path, shapes)) == [
        ("layers.{0..2}", "27 keys, 198 elements, 792 B"),
        ("experts.{0..7}.up.w", "24 x [4, 2] float32"),
        ("norm", "3 x [2] float32"),
    ]


def test_a_tensor_that_is_also_a_module(tmp_path: Path) -> None:
    shown = of(tmp_path, {"a": (2,), "a.b": (3,), "a.": (4,)})
    assert [(node.label, node.depth, node.shape) for node in shown.rows()] == [
        ("a", 0, (2,)), ("b", 1, (3,)), ("", 1, (4,)),
    ]  # fmt: skip
    assert (shown.nodes[0].tensors, shown.nodes[0].numel) == (3, 9)


def test_numbers_that_are_written_otherwise_are_names(tmp_path: Path) -> None:
    keys = ["layers.0", "layers.1", "layers.01", "layers.\N{ARABIC-INDIC DIGIT ONE}", f"layers.{'9' * 4000}"]
    labels = [node.label for node in of(tmp_path, dict.fromkeys(keys, (1,))).rows()]
    assert labels == ["layers", "01", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 4000, "{0..1}"]


def test_a_key_of_many_dots_does_not_overflow_the_stack(tmp_path: Path) -> None:
    keys = {f"layers.{n}" + ".a.b" * 1000: (1,) for n in range(2)} | {"layers.0" + ".a" * 50: (1,)}
    shown = of(tmp_path, keys)
    assert max(node.depth for node in shown.rows()) < MAX_DEPTH
    assert sum(node.tensors for node in shown.nodes) == 3


def test_pickled_objects_are_leaves(tmp_path: Path) -> None:
    shown = tree(saved.save(tmp_path, {"step": 3, "model": {"w": torch.zeros(2)}}))
    assert rows(shown) == [("model.w", "[2] float32"), ("step", "object")]


def test_control_characters_cannot_drive_a_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in str(of(tmp_path, {"a.\x1b[2J": (1,), "b": (1,)}))


def test_only_what_is_expanded_shows_its_children(tmp_path: Path) -> None:
    shown = of(tmp_path, {"a.x": (1,), "a.y.p": (1,), "a.y.q": (1,), "b": (1,)})
    assert [node.path for node in shown.rows(())] == ["a", "b"]
    assert [node.path for node in shown.rows({"a"})] == ["a", "a.x", "a.y", "b"]
    assert [node.path for node in shown.rows({"a.y"})] == ["a", "b"]  # its parent is closed
    assert [node.path for node in shown.rows()] == ["a", "a.x", "a.y", "a.y.p", "a.y.q", "b"]


def test_an_empty_tree() -> None:
    assert str(Tree(())) == ""


def test_a_path_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint):
        tree(tmp_path)


segments = st.sampled_from(["a", "b", "0", "1", "2", "01", ""])
keys = st.lists(segments, min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(keys, st.sampled_from([(), (2,), (0, 3)]), min_size=1, max_size=12))
def test_every_key_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[int, ...]]
) -> None:
    path = tmp_path_factory.mktemp("tree")
    shown = of(path, shapes)
    checkpoint: Checkpoint = read(path)
    assert sum(node.tensors for node in shown.nodes) == len(shapes)
    assert sum(node.nbytes for node in shown.nodes) == checkpoint.nbytes
    assert sum(node.count for node in shown.rows() if node.dtype) == len(shapes)
    for node in shown.rows():
        assert node.tensors == (node.count if node.dtype else 0) + sum(child.tensors for child in node.children)


def test_a_hundred_thousand_keys_take_a_moment(tmp_path: Path) -> None:
    many = {f"layers.{n}.experts.{e}.{w}": (1,) for n in range(10) for e in range(250) for w in ("up", "down")}
    checkpoint = read(saved.save_chunks(tmp_path, {key: [((0,), torch.zeros(1))] for key in many}))
    start = time.process_time()
    for _ in range(20):  # what 100,000 keys cost, without making so many
        shown = tree(checkpoint)
    assert time.process_time() - start < 10  # seconds of this process; 1 is usual
    (layers,) = shown.nodes
    assert isinstance(layers, Node) and (layers.label, layers.count) == ("layers.{0..9}.experts.{0..249}", 2500)
