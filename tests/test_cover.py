"""What tiles a tensor is accepted, and nothing else; judged by hypothesis and by counting every element."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcptools.checkpoint.cover import check_cover

Shape = tuple[int, ...]
Box = tuple[Shape, Shape]  # offsets, sizes


def check(shape: Shape, boxes: Sequence[Box]) -> tuple[str, str] | None:
    columns = [np.array([box[side] for box in boxes], np.int64).reshape(len(boxes), len(shape)) for side in (0, 1)]
    return check_cover(shape, *columns)


def code(shape: Shape, boxes: Sequence[Box]) -> str:
    problem = check(shape, boxes)
    return problem[0] if problem else "fine"


# --- tilings ----------------------------------------------------------------------------------------------------


@st.composite
def guillotine(draw: st.DrawFn, shape: Shape) -> list[Box]:
    """Cut a box in two, and a piece again, a few times; chunks of different sizes that no grid would give."""
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 12))):
        index = draw(st.integers(0, len(boxes) - 1))
        offsets, sizes = boxes[index]
        dims = [dim for dim, size in enumerate(sizes) if size > 1]
        if not dims:
            continue
        dim = draw(st.sampled_from(dims))
        at = draw(st.integers(1, sizes[dim] - 1))
        boxes[index] = offsets, _replaced(sizes, dim, at)
        boxes.append((_replaced(offsets, dim, offsets[dim] + at), _replaced(sizes, dim, sizes[dim] - at)))
    return draw(st.permutations(boxes))


@st.composite
def grid(draw: st.DrawFn, shape: Shape) -> list[Box]:
    """A mesh: each dimension cut at places of its own, as by several kinds of parallelism at once."""
    cuts = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=3))}) for n in shape]
    pieces = itertools.product(*(itertools.pairwise(cut) for cut in cuts))
    boxes = [(tuple(a for a, _ in piece), tuple(b - a for a, b in piece)) for piece in pieces]
    return draw(st.permutations(boxes))


SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple)
TILINGS = SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), guillotine(shape) | grid(shape)))


def _replaced(values: Shape, dim: int, value: int) -> Shape:
    return (*values[:dim], value, *values[dim + 1 :])


@given(TILINGS)
def test_a_tiling_is_accepted(tiling: tuple[Shape, list[Box]]) -> None:
    assert code(*tiling) == "fine"


@given(TILINGS, st.data())
def test_a_tiling_without_one_box_has_a_hole(tiling: tuple[Shape, list[Box]], data: st.DataObject) -> None:
    shape, boxes = tiling
    del boxes[data.draw(st.integers(0, len(boxes) - 1))]
    assert code(shape, boxes) == "hole"


@given(TILINGS, st.data())
def test_replicas_and_empty_boxes_do_not_count(tiling: tuple[Shape, list[Box]], data: st.DataObject) -> None:
    shape, boxes = tiling
    replicas = data.draw(st.lists(st.sampled_from(boxes), max_size=3))
    empty = (shape, (0,) * len(shape))  # what a rank holds that came away with nothing
    assert code(shape, data.draw(st.permutations([*boxes, *replicas, empty]))) == "fine"


@given(TILINGS, st.data())
def test_a_box_that_is_moved_or_resized_is_reported(tiling: tuple[Shape, list[Box]], data: st.DataObject) -> None:
    shape, boxes = tiling
    index = data.draw(st.integers(0, len(boxes) - 1))
    side = data.draw(st.integers(0, 1))
    dim = data.draw(st.integers(0, len(shape) - 1))
    box = list(boxes[index])
    box[side] = _replaced(box[side], dim, box[side][dim] + data.draw(st.sampled_from([-1, 1])))
    boxes[index] = (box[0], box[1])
    assert code(shape, boxes) != "fine"


@given(TILINGS)
def test_coordinates_near_64_bits_do_not_wrap_around(tiling: tuple[Shape, list[Box]]) -> None:
    shape, boxes = tiling
    scale = (2**62 - 1) // max(shape)
    large = [(tuple(scale * n for n in offsets), tuple(scale * n for n in sizes)) for offsets, sizes in boxes]
    assert code(tuple(scale * n for n in shape), large) == "fine"
    if len(large) > 1:
        assert code(tuple(scale * n for n in shape), large[1:]) == "hole"


# --- an oracle that counts --------------------------------------------------------------------------------------


@st.composite
def any_boxes(draw: st.DrawFn) -> tuple[Shape, list[Box]]:
    """Boxes inside a small tensor, mostly wrong, sometimes a tiling."""
    shape: Shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))
    starts = [draw(st.tuples(*(st.integers(0, n) for n in shape))) for _ in range(draw(st.integers(0, 5)))]
    return shape, [
        (start, draw(st.tuples(*map(st.integers, [0] * len(shape), _rest(shape, start))))) for start in starts
    ]


def _rest(shape: Shape, start: Shape) -> list[int]:
    return [n - at for n, at in zip(shape, start, strict=True)]


@settings(max_examples=400)
@given(any_boxes())
def test_the_answer_is_that_of_counting_every_element(case: tuple[Shape, list[Box]]) -> None:
    shape, boxes = case
    times = np.zeros(shape, int)
    for offsets, sizes in set(boxes):
        times[tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))] += 1
    found = code(shape, boxes)
    assert (found == "fine") == bool(np.all(times == 1))
    assert found != "hole" or np.any(times == 0)
    assert found != "overlap" or np.any(times > 1)


# --- what it says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "boxes", "expected"),
    [
        ((6,), [((0,), (2,)), ((4,), (2,))], ("hole", "nothing is stored for [2:4] of 6 along dimension 0")),
        (
            (3, 20),
            [((0, n), (3, 1)) for n in range(1, 20, 3)],
            ("hole", "nothing is stored for [0:1], [2:4], [5:7] and 4 more of 20 along dimension 1"),
        ),
        (
            (6, 4),
            [((0, 0), (3, 4)), ((2, 0), (4, 4))],
            ("overlap", "chunks overlap along dimension 0, at index 2 of 6"),
        ),
        ((6, 4), [], ("hole", "no chunk of it is stored")),
        ((), [], ("hole", "no chunk of it is stored")),
        ((2, 2), [((0, 0), (1, 1)), ((1, 1), (1, 1))], ("hole", "its 2 chunks hold 50% of (2, 2)")),
        ((2, 2), [((0, 0), (2, 1)), ((0, 0), (1, 2))], ("overlap", "its 2 chunks overlap")),
        ((4,), [((2,), (3,))], ("overlap", "a chunk at (2,) of size (3,) reaches outside (4,)")),
        ((4,), [((-1,), (5,))], ("overlap", "a chunk at (-1,) of size (5,) reaches outside (4,)")),
        ((4,), [((0,), (-4,))], ("overlap", "a chunk at (0,) of size (-4,) reaches outside (4,)")),
    ],
)
def test_what_is_wrong_is_said_in_words(shape: Shape, boxes: list[Box], expected: tuple[str, str]) -> None:
    assert check(shape, boxes) == expected


def test_a_scalar_is_covered_by_one_box_or_by_replicas_of_it() -> None:
    assert code((), [((), ())]) == code((), [((), ())] * 3) == "fine"


def test_a_tensor_without_elements_needs_no_chunk() -> None:
    assert code((0,), []) == code((3, 0), []) == code((0,), [((0,), (0,))]) == "fine"


def test_cuts_along_too_many_dimensions_are_refused_rather_than_expanded() -> None:
    def halves(dims: int) -> list[Box]:
        return [(corner, (1,) * dims) for corner in itertools.product((0, 1), repeat=dims)]

    assert code((2,) * 6, halves(6)) == "fine"
    assert code((2,) * 16, halves(16)) == "fine"
    shifted = [((1, *[0] * 12), (1,) * 13), *halves(13)[1:]]
    assert check((2,) * 13, shifted) == ("overlap", "its 8,191 chunks are cut along 13 dimensions, but not as a grid")
