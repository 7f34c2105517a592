"""The notation for how values lie: that of einops, with axes in braces that are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_composed import values

from dcptools.errors import UsageError
from dcptools.layouts.rearrange import Rearrangement
from dcptools.tensors import Composed


def applied(text: str, tensor: torch.Tensor, **sizes: int) -> dict[tuple[int, ...], Any]:
    """What it makes of a tensor's values, by the indices of the axes in braces."""
    made = Rearrangement.parse(text).apply(Composed.whole("w", tuple(tensor.shape)), sizes)
    return {tuple(at.values()): values(part, {"w": tensor.numpy()}) for at, part in made}


def test_pairs_of_rotary_positions_go_to_halves() -> None:
    rows, heads = torch.randn(12, 5), 2
    wanted = rows.view(heads, 3, 2, 5).transpose(1, 2).reshape(12, 5)
    (found,) = applied("(heads half two) in -> (heads two half) in", rows, heads=heads, two=2).values()
    assert (found == wanted.numpy()).all()


def test_a_stack_is_cut_into_experts_that_are_turned() -> None:
    stack = torch.randn(3, 4, 5)
    found = applied("expert in out -> {expert} out in", stack)
    assert found.keys() == {(0,), (1,), (2,)}
    assert all((found[at,] == stack[at].T.numpy()).all() for at in range(3))


def test_a_stack_may_lie_in_one_dimension() -> None:
    flat = torch.randn(12, 5)
    found = applied("(expert in) out -> {expert} out in", flat, expert=3)
    assert all((found[at,] == flat[4 * at : 4 * at + 4].T.numpy()).all() for at in range(3))


def test_a_pair_in_one_tensor_is_cut() -> None:
    fused = torch.randn(8, 5)
    found = applied("(part out) in -> {part} out in", fused, part=2)
    assert (found[0,] == fused[:4].numpy()).all()
    assert (found[1,] == fused[4:].numpy()).all()


@pytest.mark.parametrize(
    "text",
    [
        "", "a b", "a b -> a", "a -> a b", "a a -> a a", "(a b -> a b", "a b) -> a b", "a {b} -> a b", "a -> ({a})",
        "a (b (c d)) -> a b c d", "() -> ", "a-b -> a b", "a b -> {a} {a} b",
    ],
)  # fmt: skip
def test_what_is_no_notation_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rearrangement") as caught:
        Rearrangement.parse(text)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("a b c -> c b a", {}),  # two dimensions
        ("(a b) c -> (b a) c", {}),  # neither a nor b is known
        ("(a b) c -> (b a) c", {"a": 5}),  # 5 does not divide 12
        ("(a b) c -> (b a) c", {"a": 3, "b": 3}),
        ("(a b) c -> (b a) c", {"a": 0}),
    ],
)
def test_a_shape_that_does_not_fit_is_a_value_error(text: str, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"needs 3 dimensions|is not \(a b\)|cannot be reshaped"):
        applied(text, torch.zeros(12, 5), **sizes)
