"""Tensors that are put together from views: whatever is done to them, they have the values that numpy's arrays have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcptools.tensors import Composed, NotViews, View


def values(tensor: Composed, stored: dict[str, Any]) -> Any:
    """The values that the views stand for."""
    parts = [
        np.lib.stride_tricks.as_strided(
            flat[view.offset :], view.shape, [step * flat.itemsize for step in view.strides]
        )
        for view in tensor.views
        for flat in [stored[view.key].reshape(-1)]
    ]
    return np.concatenate([part.reshape(-1) for part in parts]).reshape(tensor.shape)


@st.composite
def factors(draw: st.DrawFn, numel: int) -> tuple[int, ...]:
    """A shape with so many elements."""
    shape = []
    while numel > 1 and len(shape) < 4:
        size = draw(st.sampled_from([size for size in range(2, numel + 1) if numel % size == 0]))
        shape.append(size)
        numel //= size
    return (*shape, numel) if numel > 1 else tuple(shape)


@given(st.data())
def test_what_is_done_to_the_shape_is_done_to_the_values(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    stored = {"a": np.arange(math.prod(shape)), "b": np.arange(math.prod(shape)) + 1000}
    tensor, array = Composed.whole("a", shape), stored["a"].reshape(shape)
    for _ in range(data.draw(st.integers(1, 5))):
        dims = array.ndim
        step = data.draw(st.sampled_from(["reshape", "permute", "narrow", "select", "cat"] if dims else ["reshape"]))
        try:
            if step == "reshape":
                to = data.draw(factors(array.size))
                tensor, array = tensor.reshape(*to), array.reshape(to)
            elif step == "permute":
                order = data.draw(st.permutations(range(dims)))
                tensor, array = tensor.permute(*order), array.transpose(order)
            elif step == "cat":
                dim = data.draw(st.integers(0, dims - 1))
                other, its = Composed.whole("b", shape), stored["b"].reshape(shape)
                if other.numel == tensor.numel:
                    tensor = Composed.cat([tensor, other.reshape(*tensor.shape)], dim)
                    array = np.concatenate([array, its.reshape(array.shape)], dim)
            else:
                dim = data.draw(st.integers(0, dims - 1))
                start = data.draw(st.integers(0, array.shape[dim] - 1))
                length = data.draw(st.integers(1, array.shape[dim] - start)) if step == "narrow" else 1
                part = np.take(array, range(start, start + length), dim)
                tensor = tensor.narrow(dim, start, length) if step == "narrow" else tensor.select(dim, start)
                array = part if step == "narrow" else part.squeeze(dim)
        except NotViews:
            return
    assert tensor.shape == array.shape
    assert (values(tensor, stored) == array).all()


def test_one_expert_of_a_stack_is_one_range() -> None:
    assert Composed.whole("w", (8, 4, 6)).select(0, 3).views == (View("w", (1, 4, 6), (24, 6, 1), 72),)


def test_rows_in_another_order_are_one_view() -> None:
    """As rotary positions need it: pairs that lie next to each other go to the two halves of a head."""
    turned = Composed.whole("w", (8, 5)).reshape(2, 2, 2, 5).permute(0, 2, 1, 3).reshape(8, 5)
    (view,) = turned.views
    assert (view.shape, view.strides) == ((2, 2, 2, 5), (20, 5, 10, 1))


def test_what_is_no_few_views_is_said_so() -> None:
    with pytest.raises(NotViews, match="too many views"):
        Composed.cat([Composed.whole("a", (1 << 16, 2)), Composed.whole("b", (1 << 16, 2))], 1)
    with pytest.raises(NotViews, match="cannot be rearranged"):
        Composed.cat([Composed.whole("a", (2, 2)), Composed.whole("b", (2, 2))]).permute(1, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: t.reshape(5, 2), lambda t: t.permute(0, 0), lambda t: t.narrow(0, 2, 3),
        lambda t: Composed.cat([t, Composed.whole("b", (3, 4))]),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot|not an order|not within"):
        wrong(Composed.whole("a", (4, 3)))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_tensors_without_elements_have_none(shape: tuple[int, ...]) -> None:
    tensor = Composed.whole("a", shape)
    assert tensor.permute(*reversed(range(len(shape)))).shape == shape[::-1]
    assert Composed.cat([tensor, tensor]).shape == (2 * shape[0], *shape[1:])
    assert Composed.cat([tensor, tensor]).numel == 0
