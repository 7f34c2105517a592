"""Figures are checked by what they draw, in data coordinates: rectangles, lines, texts, colours. Never by pixels."""

from __future__ import annotations

import doctest
import importlib
import math
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import broken, edit, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import style
from matplotlib.collections import Collection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.text import Text

import dcptools
from dcptools import plots
from dcptools.comparing import STATISTICS, Comparison
from dcptools.demo import Demo
from dcptools.dtypes import TABLE
from dcptools.errors import UnknownKey, UsageError
from dcptools.mapping import Output
from dcptools.plots import _diff, _heat, _histogram
from dcptools.plots import _figure as page
from dcptools.plots._treemap import Box, squarified, treemap
from dcptools.shards import PlannedTensor, PlanOptions, ShardFile, ShardPlan
from dcptools.tensors import View
from dcptools.tree import Node, Tree

W = "model.model.w"
SVG = "{http://www.w3.org/2000/svg}"


# --- reading a figure -------------------------------------------------------------------------------------------


def boxes(figure: Figure, label: str) -> list[tuple[float, float, float, float]]:
    """(x start, x stop, y start, y stop) of the rectangles of a collection."""
    extents = [path.get_extents() for path in collection(figure, label).get_paths()]
    return [(e.x0, e.x1, e.y0, e.y1) for e in extents]


def collection(figure: Figure, label: str) -> Collection:
    return next(c for c in figure.axes[0].collections if c.get_label() == label)


def segments(figure: Figure) -> list[tuple[int, float, float]]:
    """(number of the bar, start, width) of the segments of ``shards``."""
    return [(round((y0 + y1) / 2), x0, x1 - x0) for x0, x1, y0, y1 in boxes(figure, "segments")]


def colours(figure: Figure, label: str) -> list[str]:
    return [to_hex(colour) for colour in np.asarray(collection(figure, label).get_facecolor())]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for shown in figure.legends for text in shown.get_texts()]


def texts(figure: Figure) -> list[str]:
    """What stands in and beside the axes, without their labels."""
    return [text.get_text() for text in figure.axes[0].texts]


def title(figure: Figure) -> str:
    """The headline and the notes below it."""
    return "\n".join([figure.get_suptitle().strip(), *(a.get_text() for a in figure.artists if isinstance(a, Text))])


def y_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def limit_lines(figure: Figure) -> list[float]:
    return [float(np.asarray(line.get_xdata())[0]) for line in figure.axes[0].lines]


def hatched(figure: Figure) -> bool:
    return any(patch.get_hatch() for patch in figure.axes[0].patches)


# --- plans without a checkpoint, for more tensors than a test could save -----------------------------------------


def plan_of(*files: list[tuple[str, int]], shard_size: int = 1000, dtype: str = "keep") -> ShardPlan:
    """A plan whose files hold tensors of these names and sizes in bytes."""
    header, number = b"\0" * 16, len(files)
    made = []
    for index, tensors in enumerate(files, start=1):
        starts = np.cumsum([len(header), *(nbytes for _, nbytes in tensors)]).tolist()
        planned = tuple(
            PlannedTensor(
                Output(name, (View(name, (nbytes,), (1,), 0),), (nbytes,), TABLE["uint8"], ""),
                TABLE["uint8"],
                start,
                nbytes,
            )
            for (name, nbytes), start in zip(tensors, starts, strict=False)
        )
        made.append(ShardFile(f"model-{index:05d}-of-{number:05d}.safetensors", header, planned, starts[-1]))
    nothing: Any = None
    return ShardPlan(nothing, tuple(made), PlanOptions(shard_size, dtype), ())


def layers(numbers: range, each: int, nbytes: int = 10) -> list[tuple[str, int]]:
    return [(f"model.layers.{n}.mlp.experts.{e}.weight", nbytes) for n in numbers for e in range(each)]


# --- shards -----------------------------------------------------------------------------------------------------


def test_each_tensor_of_a_plan_is_a_segment_at_its_place_in_its_file(demo: Demo) -> None:
    plan = dcptools.plan(demo.checkpoint, "300kB")
    expected = [
        (row, t.start - len(file.header), t.nbytes) for row, file in enumerate(plan.files) for t in file.tensors
    ]
    assert segments(plots.shards(plan)) == expected


def test_bars_carry_file_names_and_sizes() -> None:
    figure = plots.shards(plan_of([("a", 1500)], [("b", 20), ("c", 30)]))
    assert y_labels(figure) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [text for text in texts(figure) if not text.startswith("limit")] == ["1.50 kB", "50 B"]


def test_the_limit_is_a_labelled_line_at_the_shard_size() -> None:
    figure = plots.shards(plan_of([("a", 800)], [("b", 400)], shard_size=1000))
    assert limit_lines(figure) == [1000]
    assert "limit 1.00 kB" in texts(figure)


def test_a_limit_far_beyond_the_bars_is_told_and_not_drawn() -> None:
    figure = plots.shards(plan_of([("a", 800)], shard_size=2_000_000_000))
    assert limit_lines(figure) == []
    assert "the limit of 2.00 GB per file is far to the right" in title(figure)
    assert figure.axes[0].get_xlim()[1] < 1000


def test_the_limit_can_be_left_out() -> None:
    figure = plots.shards(plan_of([("a", 800)]), limit=False)
    assert limit_lines(figure) == []
    assert "limit" not in title(figure)


def test_layers_have_a_colour_each_and_what_is_outside_of_them_one() -> None:
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.a", "model.layers.0.b", "model.layers.10.a"]
    outside, head, first, again, tenth = colours(plots.shards(plan_of([(name, 10) for name in names])), "segments")
    assert (outside, first) == (head, again)
    assert len({outside, first, tenth}) == 3


def test_the_legend_lists_layers_by_number() -> None:
    names = [f"model.layers.{n}.w" for n in (10, 2, 1)] + ["model.norm.weight"]
    assert legend(plots.shards(plan_of([(name, 10) for name in names]))) == ["1", "2", "10", "outside the layers"]


def test_the_legend_shows_a_choice_of_many_layers_and_says_so() -> None:
    figure = plots.shards(plan_of(layers(range(36), each=2)))
    assert legend(figure) == ["0", "5", "10", "15", "20", "25", "30", "35"]
    assert figure.legends[0].get_title().get_text() == "layer (8 of 36)"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.linear_attn.A_log", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.post_attention_layernorm.weight", "norm"),
        ("transformer.h.0.ln_1.weight", "norm"),
        ("model.layers.0.mlp.down_proj.weight", "mlp"),
        ("model.layers.0.mlp.gate.weight", "mlp"),
        ("model.layers.0.mlp.experts.3.up_proj.weight", "experts"),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", "experts"),
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("lm_head.weight", "embedding"),
        ("visual.patch.proj.weight", "other"),
    ],
)
def test_the_kind_of_module_is_read_from_the_name(name: str, kind: str) -> None:
    assert legend(plots.shards(plan_of([(name, 10)]), color_by="module")) == [kind]


def test_kinds_of_modules_have_different_colours() -> None:
    names = ["a.norm", "a.experts.w", "a.self_attn.w", "a.mlp.w", "embed_tokens.w", "x"]
    assert len(set(colours(plots.shards(plan_of([(n, 9) for n in names]), color_by="module"), "segments"))) == 6


def test_many_tensors_of_one_layer_are_drawn_as_one_and_nothing_moves() -> None:
    figure = plots.shards(plan_of(layers(range(3), each=900), layers(range(3, 4), each=100)))
    assert segments(figure) == [(0, 0, 9000), (0, 9000, 9000), (0, 18000, 9000), (1, 0, 1000)]
    assert "neighbours of one colour are drawn as one" in title(figure)


def test_a_hundred_thousand_tensors_are_some_hundred_segments_that_add_up() -> None:
    names = [f"model.layers.{n % 61}.mlp.experts.{n}.weight" for n in range(100_000)]  # no neighbours of one layer
    plan = plan_of(*([(name, 7 + i % 5) for i, name in enumerate(names[f::50])] for f in range(50)))
    figure = plots.shards(plan)
    drawn = segments(figure)
    totals: Counter[int] = Counter()
    for row, start, width in drawn:
        assert start == pytest.approx(totals[row])  # no gap, no overlap
        totals[row] += round(width)
    assert [totals[row] for row in range(50)] == [file.data_nbytes for file in plan.files]
    assert 400 < len(drawn) <= 1050
    assert "are drawn as one" in title(figure)


def test_a_large_tensor_among_tiny_ones_stays_a_segment_of_its_own() -> None:
    tiny = [(f"model.layers.{n % 2}.a{n}", 1) for n in range(3000)]
    figure = plots.shards(plan_of([*tiny[:1500], ("model.layers.7.big", 50_000), *tiny[1500:]]))
    assert (0, 1500, 50_000) in segments(figure)


@pytest.mark.parametrize(("files", "labels"), [(1, 1), (40, 40), (41, 9), (200, 41), (2000, 41)])
def test_many_files_get_numbers_that_thin_out_in_a_figure_of_bounded_height(files: int, labels: int) -> None:
    figure = plots.shards(plan_of(*([(f"model.layers.{n}.w", 900)] for n in range(files))))
    shown = y_labels(figure)
    assert len(shown) == labels
    assert shown[0] == (f"model-00001-of-{files:05d}.safetensors" if files <= 40 else "1")
    assert figure.get_figheight() <= 12


def test_a_numbered_label_stands_at_its_file() -> None:
    figure = plots.shards(plan_of(*([("w", 900)] for _ in range(41))))
    assert y_labels(figure) == ["1", "5", "10", "15", "20", "25", "30", "35", "40"]
    assert figure.axes[0].get_yticks().tolist() == [0, 4, 9, 14, 19, 24, 29, 34, 39]


def test_bytes_on_the_axis_are_in_one_decimal_unit() -> None:
    axes = plots.shards(plan_of([("a", 2_400_000_000)], shard_size=2_500_000_000)).axes[0]
    shown = [axes.xaxis.get_major_formatter()(tick) for tick in (0, 500_000_000, 2_000_000_000)]
    assert shown == ["0", "0.5 GB", "2 GB"]


def test_a_plan_whose_tensors_have_no_bytes_can_be_drawn() -> None:
    figure = plots.shards(plan_of([("a", 0)]))
    figure.draw_without_rendering()
    assert segments(figure) == []


def test_shards_refuses_another_colouring() -> None:
    wrong: Any = "rank"
    with pytest.raises(UsageError, match="Cannot colour by 'rank'"):
        plots.shards(plan_of([("a", 1)]), color_by=wrong)


# --- sizes ------------------------------------------------------------------------------------------------------


def bars(figure: Figure) -> dict[str, float]:
    """Label and width of the bars, from the top down."""
    patches = sorted(figure.axes[0].patches, key=lambda bar: bar.get_y())  # type: ignore[attr-defined]
    return dict(zip(y_labels(figure), (bar.get_width() for bar in patches), strict=True))  # type: ignore[attr-defined]


def test_sizes_by_root_are_those_of_the_summary(demo: Demo) -> None:
    checkpoint = dcptools.read(demo.checkpoint)
    expected = {root: nbytes for root, _, _, nbytes, _ in checkpoint.summary()}
    assert bars(plots.sizes(checkpoint, by="root")) == expected


def test_sizes_are_sorted_and_labelled(tmp_path: Path) -> None:
    path = saved.save(tmp_path, {"model": {"a.w": torch.zeros(50), "b.w": torch.zeros(750)}})
    figure = plots.sizes(path)
    assert bars(figure) == {"model.b": 3000, "model.a": 200}
    assert texts(figure) == ["3.00 kB  94%", "200 B  6%"]
    assert title(figure) == "3.20 kB by module\n"


def test_sizes_by_dtype_count_pickled_objects_too(demo: Demo) -> None:
    frame = dcptools.inspect(demo.checkpoint)
    expected = frame.fillna({"dtype": "object"}).groupby("dtype")["nbytes"].sum().to_dict()
    assert bars(plots.sizes(demo.checkpoint, by="dtype")) == expected


def test_repeated_layers_are_one_bar(demo: Demo) -> None:
    drawn = bars(plots.sizes(demo.checkpoint, depth=4))
    frame = dcptools.inspect(demo.checkpoint)
    expected = frame[frame["key"].str.startswith("model.model.layers.")]["nbytes"].sum()
    assert drawn["model.model.layers.*"] == expected
    assert sum(drawn.values()) == frame["nbytes"].sum()


def test_sizes_end_with_all_other_groups_as_one(tmp_path: Path) -> None:
    state = {f"m{n:02}.w": torch.zeros(100 - n) for n in range(30)}
    drawn = bars(plots.sizes(saved.save(tmp_path, {"model": state})))
    assert list(drawn)[:2] + list(drawn)[-2:] == ["model.m00", "model.m01", "model.m19", "other (10 more)"]
    assert drawn["other (10 more)"] == sum(4 * (100 - n) for n in range(20, 30))


def test_sizes_of_an_empty_checkpoint_are_an_empty_figure(tmp_path: Path) -> None:
    figure = plots.sizes(saved.empty_state(tmp_path / "c"))
    figure.draw_without_rendering()
    assert bars(figure) == {}


def tiles(figure: Figure) -> dict[str, tuple[float, str, str]]:
    """Path to the share of the map's area, the colour, and what else is said, of each module in the treemap."""
    drawn = next(c for axes in figure.axes for c in axes.collections if c.get_label() == "modules")
    extents = [path.get_extents() for path in drawn.get_paths()]
    areas = [extent.width * extent.height for extent in extents]
    said = [tip.split("\n", 1) for tip in tips(figure)[-len(areas) :]]
    faces = [to_hex(face) for face in np.asarray(drawn.get_facecolor())]
    width, height = figure.axes[1].get_xlim()[1], figure.axes[1].get_ylim()[0]
    return {
        path: (area / width / height, face, rest) for (path, rest), area, face in zip(said, areas, faces, strict=True)
    }


def test_areas_of_a_treemap_are_bytes_and_deeper_is_lighter(tmp_path: Path) -> None:
    state = {f"layers.{n}.w": torch.zeros(100) for n in range(3)} | {"head.w": torch.zeros(100)}
    found = tiles(plots.sizes(saved.save(tmp_path, {"model": state, "optimizer": {"a": torch.zeros(400)}})))
    assert found.keys() == {"model", "model.layers.{0..2}.w", "model.head.w", "optimizer.a"}
    areas = {path: area for path, (area, _, _) in found.items()}
    assert areas["model"] == pytest.approx(0.5) and areas["optimizer.a"] == pytest.approx(0.5)
    assert areas["model.layers.{0..2}.w"] == pytest.approx(3 * areas["model.head.w"])
    assert found["model.layers.{0..2}.w"][2] == "1.20 kB, 37.5%\n3 x [100] float32"
    colours = {path: sum(to_rgb(colour)) for path, (_, colour, _) in found.items()}
    assert colours["model.head.w"] == colours["model.layers.{0..2}.w"] > colours["model"]
    assert found["model"][1] != found["optimizer.a"][1]


def test_modules_of_a_treemap_lie_in_each_other_and_never_overlap(demo: Demo) -> None:
    figure = plots.sizes(demo.checkpoint)
    drawn = next(c for c in figure.axes[1].collections if c.get_label() == "modules")
    paths = list(tiles(figure))
    placed = dict(zip(paths, (path.get_extents() for path in drawn.get_paths()), strict=True))
    for path, box in placed.items():
        for other, beside in placed.items():
            if path.startswith(other + "."):
                assert (
                    beside.x0 <= box.x0 < box.x1 <= beside.x1 + 1e-9
                    and beside.y0 <= box.y0 < box.y1 <= beside.y1 + 1e-9
                )
            elif path != other and not other.startswith(path + "."):
                across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
                down = min(box.y1, beside.y1) - max(box.y0, beside.y0)
                assert min(across, down) < 1e-9, (path, other)


def test_a_treemap_goes_as_deep_as_the_bars() -> None:
    tree = Tree((node("model", 1000, node("layers.{0..3}", 800, node("mlp", 800)), node("head", 200)),))
    figure, axes = page.new_figure(3)
    treemap(figure, axes, tree, 2)
    assert [tip.split("\n")[0] for tip in figure.tips["modules"]] == ["model", "model.layers.{0..3}", "model.head"]


def node(label: str, nbytes: int, *children: Node, path: str = "") -> Node:
    """A module of a tree, with the paths of what is in it."""
    full = f"{path}.{label}" if path else label
    inner = tuple(node(child.label, child.nbytes, *child.children, path=full) for child in children)
    return Node(label, full, 0, 1, (), "", 1, nbytes, nbytes, inner)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=30), st.integers(1, 50), st.integers(1, 50))
def test_a_rectangle_is_cut_into_areas_in_proportion(numbers: list[int], width: int, height: int) -> None:
    numbers.sort(reverse=True)
    cut = squarified(numbers, Box(0, 0, width, height))
    for number, box in zip(numbers, cut, strict=True):
        assert box.width * box.height == pytest.approx(width * height * number / sum(numbers), rel=1e-6, abs=1e-12)
        assert box.x >= -1e-9 and box.x + box.width <= width * (1 + 1e-9)
        assert box.y >= -1e-9 and box.y + box.height <= height * (1 + 1e-9)


def test_modules_that_are_too_small_for_a_treemap_are_one(tmp_path: Path) -> None:
    keys = {f"m{n}.w": [((0,), torch.zeros(1 + n % 3))] for n in range(5000)} | {"big": [((0,), torch.zeros(9999))]}
    found = tiles(plots.sizes(saved.save_chunks(tmp_path, keys)))
    assert found.keys() == {"big", "other (5,000 more)"}
    assert sum(area for area, _, _ in found.values()) == pytest.approx(1)


@pytest.mark.parametrize("options", [{"by": "rank"}, {"depth": 0}, {"by": "dtype", "depth": 2}])
def test_sizes_refuses_other_groups(demo: Demo, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="Expected"):
        plots.sizes(demo.checkpoint, **options)


# --- chunks -----------------------------------------------------------------------------------------------------


def cut(directory: Path, shape: tuple[int, ...], grid: tuple[int, ...], *, drop: tuple[int, ...] = ()) -> Path:
    """A tensor cut into a grid, a chunk a rank in row-major order; some can be left out."""
    placed = []
    for cell in np.ndindex(*grid):
        spans = [(n * i // g, n * (i + 1) // g) for n, i, g in zip(shape, cell, grid, strict=True)]
        placed.append((tuple(a for a, _ in spans), torch.zeros([b - a for a, b in spans])))
    kept = [chunk for rank, chunk in enumerate(placed) if rank not in drop]
    return saved.save_chunks(directory, {W: kept}, files=len(kept))


def test_blocks_of_a_mesh_are_where_they_lie_with_rank_and_file(tmp_path: Path) -> None:
    figure = plots.chunks(cut(tmp_path, (4, 6), (2, 2)), W)
    assert boxes(figure, "chunks") == [(0, 3, 0, 2), (3, 6, 0, 2), (0, 3, 2, 4), (3, 6, 2, 4)]
    assert texts(figure) == [f"rank {n}\n__{n}_0.distcp" for n in range(4)]
    assert legend(figure) == ["rank 0", "rank 1", "rank 2", "rank 3"]
    assert len(set(colours(figure, "chunks"))) == 4
    assert title(figure) == f"{W}\n[4, 6] float32: 4 chunks, from 4 ranks in 4 files"


def test_rows_go_down(tmp_path: Path) -> None:
    axes = plots.chunks(cut(tmp_path, (4, 6), (2, 1)), W).axes[0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 6), (4, 0))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("dimension 1 (columns)", "dimension 0 (rows)")


def test_chunks_of_a_real_run_are_drawn_by_the_rank_that_wrote_them(demo: Demo) -> None:
    figure = plots.chunks(demo.checkpoint, "model.lm_head.weight")
    assert boxes(figure, "chunks") == [(0, 128, 0, 129), (0, 128, 129, 258), (0, 128, 258, 387), (0, 128, 387, 515)]
    assert texts(figure) == [f"rank {n}\n__{n}_0.distcp" for n in range(4)]


def test_one_dimension_is_a_strip(tmp_path: Path) -> None:
    figure = plots.chunks(cut(tmp_path, (10,), (2,)), W)
    assert boxes(figure, "chunks") == [(0, 5, 0, 1), (5, 10, 0, 1)]
    assert not figure.axes[0].yaxis.get_visible()


def test_a_scalar_is_one_box(tmp_path: Path) -> None:
    path = saved.save(tmp_path, {"model": {"model.w": torch.tensor(2.0)}})
    figure = plots.chunks(path, W)
    assert boxes(figure, "chunks") == [(0, 1, 0, 1)]
    assert texts(figure) == ["rank 0\n__0_0.distcp"]


def test_of_four_dimensions_the_two_that_are_cut_are_drawn(tmp_path: Path) -> None:
    figure = plots.chunks(cut(tmp_path, (8, 5, 6, 7), (2, 1, 3, 1)), W)
    assert len(boxes(figure, "chunks")) == 6
    assert figure.axes[0].get_ylim() == (8, 0)
    assert figure.axes[0].get_xlim() == (0, 6)
    assert "drawn: dimensions 0 and 2 of 4; no chunk is cut along the others" in title(figure)


def test_of_three_cut_dimensions_the_title_names_the_hidden_one(tmp_path: Path) -> None:
    figure = plots.chunks(cut(tmp_path, (4, 6, 8), (2, 3, 4)), W)
    assert len(boxes(figure, "chunks")) == 12
    assert "drawn: dimensions 1 and 2 of 3; it is also cut along 0" in title(figure)
    assert texts(figure)[0] == "rank 0 +1\n__0_0.distcp"


def test_a_hole_is_hatched_and_told(tmp_path: Path) -> None:
    figure = plots.chunks(cut(tmp_path, (8, 8), (4, 4), drop=(5,)), W)
    assert hatched(figure)
    assert legend(figure)[-1] == "not stored"
    assert "its 15 chunks hold 93.8% of" in title(figure)


def test_without_a_hole_nothing_is_hatched(tmp_path: Path) -> None:
    figure = plots.chunks(cut(tmp_path, (8, 8), (4, 4)), W)
    assert not hatched(figure)
    assert "not stored" not in legend(figure)


def test_a_chunk_that_is_stored_nowhere_is_a_hole(tmp_path: Path) -> None:
    figure = plots.chunks(broken.no_storage(tmp_path / "c"), broken.W)
    assert len(boxes(figure, "chunks")) == 2
    assert hatched(figure)


def test_many_ranks_get_few_lines_in_the_legend_and_no_label_without_room(tmp_path: Path) -> None:
    figure = plots.chunks(cut(tmp_path, (256, 4), (128, 1)), W)
    assert len(set(colours(figure, "chunks"))) == 128
    assert legend(figure)[0] == "rank 0"
    assert legend(figure)[-1] == "rank 127"
    assert len(legend(figure)) <= 16
    assert texts(figure) == []


def test_a_label_gets_shorter_with_its_box(tmp_path: Path) -> None:
    figure = plots.chunks(cut(tmp_path, (64,), (32,)), W)
    assert texts(figure) == [str(rank) for rank in range(32)]


def test_replicas_are_one_box(tmp_path: Path) -> None:
    figure = plots.chunks(saved.replicated_chunks(tmp_path), W)
    assert boxes(figure, "chunks") == [(0, 3, 0, 2), (0, 3, 2, 4)]


def test_a_file_whose_name_tells_no_rank_is_shown_by_its_name(tmp_path: Path) -> None:
    path = cut(tmp_path, (4, 6), (2, 1))
    with edit.editing(path) as metadata:
        for info in metadata.storage_data.values():
            if info.relative_path == "__0_0.distcp":
                info.relative_path = "first.bin"
    (path / "__0_0.distcp").rename(path / "first.bin")
    figure = plots.chunks(path, W)
    assert legend(figure) == ["rank 1", "first.bin"]
    assert texts(figure) == ["first.bin", "rank 1\n__1_0.distcp"]


def test_a_tensor_without_values_is_an_empty_figure(tmp_path: Path) -> None:
    figure = plots.chunks(saved.save(tmp_path, {"model": {"model.w": torch.zeros(0, 4)}}), W)
    assert texts(figure) == ["no values"]
    assert legend(figure) == []


@pytest.mark.parametrize("draw", [plots.chunks, plots.histogram])
def test_an_unknown_key_is_refused(demo: Demo, draw: Callable[..., Figure]) -> None:
    with pytest.raises(UnknownKey, match="has no tensor 'nothing'"):
        draw(demo.checkpoint, "nothing")


# --- histogram --------------------------------------------------------------------------------------------------


def steps(figure: Figure) -> tuple[list[float], list[float]]:
    """Counts and edges of the bins."""
    counts, edges, _ = next(patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch)).get_data()
    return counts.tolist(), edges.tolist()


def one(directory: Path, tensor: torch.Tensor) -> Path:
    return saved.save(directory, {"model": {"model.w": tensor}})


def test_a_histogram_counts_every_value(demo: Demo) -> None:
    key = "model.lm_head.weight"
    counts, edges = steps(plots.histogram(demo.checkpoint, key, bins=50))
    expected, expected_edges = np.histogram(dcptools.load_tensor(demo.checkpoint, key).numpy().astype("f8"), 50)
    assert counts == expected.tolist()
    assert edges == pytest.approx(expected_edges.tolist())


def test_counts_are_on_a_logarithmic_axis(tmp_path: Path) -> None:
    assert plots.histogram(one(tmp_path, torch.rand(100)), W).axes[0].get_yscale() == "log"


def test_nan_infinities_and_zeros_are_counted_in_the_title_and_only_finite_values_drawn(tmp_path: Path) -> None:
    values = torch.tensor([math.nan, math.nan, math.inf, -math.inf, math.inf, 0.0, -0.0, 1.0, 2.0])
    figure = plots.histogram(one(tmp_path, values), W)
    assert title(figure) == f"{W}\nfloat32, 9 values\n2 NaN, 3 Inf, 2 zeros"
    assert sum(steps(figure)[0]) == 4


def test_an_index_picks_what_is_drawn(tmp_path: Path) -> None:
    path = one(tmp_path, torch.arange(24.0).reshape(4, 6))
    counts, edges = steps(plots.histogram(path, W, index=np.s_[1, ::2], bins=4))
    assert counts == [1, 0, 1, 1]
    assert (edges[0], edges[-1]) == (6, 10)


def test_integers_get_a_bin_each(tmp_path: Path) -> None:
    counts, edges = steps(plots.histogram(one(tmp_path, torch.tensor([1, 1, 3])), W))
    assert (counts, edges) == ([2, 0, 1], [0.5, 1.5, 2.5, 3.5])


def test_of_complex_values_the_magnitudes_are_drawn(tmp_path: Path) -> None:
    figure = plots.histogram(one(tmp_path, torch.tensor([3 + 4j, 0j])), W, bins=2)
    assert steps(figure) == ([1, 1], [0, 2.5, 5])
    assert figure.axes[0].get_xlabel() == "magnitude"


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(0),
        torch.full((3,), math.nan),
        torch.full((3,), 1e30),
        torch.zeros(3),
        torch.tensor([1.0, 1.0 + 2**-52], dtype=torch.float64),
        torch.tensor([0.0, 5e-324], dtype=torch.float64),
        saved.special_floats(torch.float64),
        torch.tensor([2**62, -(2**62)]),
        torch.tensor([2**63 + 1], dtype=torch.uint64),
        torch.tensor(True),
    ],
    ids=str,
)
def test_awkward_values_are_drawn_without_a_warning(tmp_path: Path, values: torch.Tensor) -> None:
    path = one(tmp_path, values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.histogram(path, W)
        figure.draw_without_rendering()
    wide = values.double()
    assert sum(steps(figure)[0]) == int((wide.isfinite() & (wide.abs() < 1e300)).sum())


def test_every_dtype_with_numbers_can_be_drawn(tmp_path: Path) -> None:
    path = saved.save(tmp_path, {"model": saved.dtype_state()})
    for key in dcptools.read(path).tensors:
        plots.histogram(path, key)


def test_of_a_large_tensor_a_sample_is_drawn_and_the_title_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_histogram, "MOST_VALUES", 100)
    monkeypatch.setattr(_histogram, "BLOCK", 10)
    figure = plots.histogram(one(tmp_path, torch.arange(1000.0)), W, bins=10)
    assert "a sample of 100 from 1,000 values, in 10 evenly spaced blocks" in title(figure)
    assert steps(figure)[0] == [10] * 10


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_sample_holds_values_of_the_index_each_once_and_not_too_many(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 12), min_size=0, max_size=4))
    picked = [_pick(data, n) for n in shape]
    most, whole = data.draw(st.integers(1, 400)), np.arange(math.prod(shape)).reshape(shape)
    asked = whole[tuple(slice(p.start, p.stop, p.step) if isinstance(p, range) else p for p in picked)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_histogram, "BLOCK", 16)
        sample = [n for block in _histogram._blocks(picked, most) for n in np.ravel(whole[block]).tolist()]
    assert len(set(sample)) == len(sample) <= max(most, 16)
    assert set(sample) <= set(asked.ravel().tolist())
    assert len(sample) >= min(asked.size, 1)
    if _histogram._span(picked) <= most:
        assert len(sample) == asked.size


def _pick(data: st.DataObject, size: int) -> int | range:
    if data.draw(st.booleans()):
        return data.draw(st.integers(0, size - 1))
    return range(data.draw(st.integers(0, size - 1)), size, data.draw(st.integers(1, 3)))


@pytest.mark.parametrize("bins", [0, -1, 10_001, 2.5, True])
def test_bins_must_be_a_sensible_number(demo: Demo, bins: Any) -> None:
    with pytest.raises(UsageError, match="bins="):
        plots.histogram(demo.checkpoint, "model.lm_head.weight", bins=bins)


# --- diff -------------------------------------------------------------------------------------------------------


def compared(directory: Path, edit: Callable[[dict[str, torch.Tensor]], None], layers: int = 3) -> Comparison:
    """A model and what ``edit`` makes of it."""
    state = saved.model_state(layers=layers)
    changed = {name: tensor.clone() for name, tensor in state.items()}
    edit(changed)
    return dcptools.diff(saved.bare(directory / "a", state), saved.bare(directory / "b", changed))


def cells(figure: Figure) -> dict[tuple[str, str], str]:
    """Labels of row and column to the colour of the cell."""
    rows, columns = (
        {round(place - 0.5): label.get_text() for place, label in zip(places, labels, strict=True)}
        for axis in (figure.axes[0].yaxis, figure.axes[0].xaxis)
        for places, labels in [(axis.get_ticklocs(), axis.get_ticklabels())]
    )
    places = [(round(y0), round(x0)) for x0, _, y0, _ in boxes(figure, "cells")]
    return {(rows[y], columns[x]): colour for (y, x), colour in zip(places, colours(figure, "cells"), strict=True)}


def test_layers_go_down_and_modules_across(tmp_path: Path) -> None:
    def edit(state: dict[str, torch.Tensor]) -> None:
        state["model.layers.1.mlp.up_proj.weight"] *= 1.5
        state["model.layers.2.mlp.up_proj.weight"] *= 1.0123
        del state["model.layers.0.self_attn.q_proj.weight"]
        state["lm_head.weight"] = state["lm_head.weight"][:3]

    figure = plots.diff(compared(tmp_path, edit))
    found = cells(figure)
    assert {row for row, _ in found} == {"0", "1", "2", "no layer"}
    assert {column for row, column in found if row == "no layer"} == {
        "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight",
    }  # fmt: skip
    different = {at: colour for at, colour in found.items() if colour != _diff.EQUAL}
    apart = {at for at, colour in different.items() if colour == _diff.APART.lower()}
    assert apart == {("0", "self_attn.q_proj.weight"), ("no layer", "lm_head.weight")}
    assert different.keys() - apart == {("1", "mlp.up_proj.weight"), ("2", "mlp.up_proj.weight")}
    assert different["1", "mlp.up_proj.weight"] != different["2", "mlp.up_proj.weight"]
    assert {"0.5", "0.012"} <= set(texts(figure))
    assert plots.describe(figure) == (
        "Heat map of A and B by layer and module: 3 layers, 14 modules; 2 differ, most of all "
        "model.layers.*.mlp.up_proj.weight of layer 1: 0.5; 2 with tensors that only one has, or of another shape."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"), (0.0234, "0.023"), (4.06, "4.1"), (31.4, "31"), (314.2, "314"), (2345.0, "2.3e3"),
        (0.00123, "0.0012"), (3e-5, "3e-5"), (3.14e-5, "3.1e-5"), (9.99e-13, "1e-12"), (math.inf, "inf"),
    ],
)  # fmt: skip
def test_a_value_in_a_cell_has_two_digits(value: float, text: str) -> None:
    assert _heat.short(value) == text


@pytest.mark.parametrize("layers", [1, 12])
def test_texts_of_a_heat_map_do_not_run_into_each_other(layers: int, tmp_path: Path) -> None:
    def edit(state: dict[str, torch.Tensor]) -> None:
        for number, tensor in enumerate(state.values()):
            tensor += tensor * 1.23 * 10 ** -(number % 5)

    figure = plots.diff(compared(tmp_path, edit, layers))
    figure.draw_without_rendering()
    axes, bar = figure.axes
    for row in {text.get_position()[1] for text in axes.texts}:
        texts = [text.get_window_extent() for text in axes.texts if text.get_position()[1] == row]
        across = sorted((box.x0, box.x1) for box in texts)
        assert all(one[1] < other[0] for one, other in pairwise(across))
    low, high = bar.get_ylim()
    labels = [label.get_window_extent() for label in bar.get_yticklabels() if low <= label.get_position()[1] <= high]
    down = sorted((box.y0, box.y1) for box in labels)
    assert len(down) > 2 and all(one[1] < other[0] for one, other in pairwise(down))


def test_equal_models_are_all_of_one_colour(tmp_path: Path) -> None:
    figure = plots.diff(compared(tmp_path, lambda state: None))
    assert set(cells(figure).values()) == {_diff.EQUAL}
    assert plots.describe(figure).endswith("; all tensors are equal.")


def test_of_many_experts_the_largest_value_counts(tmp_path: Path) -> None:
    state = {f"model.layers.0.mlp.experts.{n}.up.weight": torch.ones(4) for n in range(9)}
    later = {**state, "model.layers.0.mlp.experts.7.up.weight": torch.tensor([1.0, 1.0, 1.0, 3.0])}
    found = dcptools.diff(saved.save(tmp_path / "a", state), saved.save(tmp_path / "b", later))
    assert list(cells(plots.diff(found))) == [("0", "mlp.experts.*.up.weight")]
    assert "; 1 differs, most of all " in plots.describe(plots.diff(found, "max_abs"))
    assert plots.describe(plots.diff(found, "max_abs")).endswith(": 2.")
    assert plots.describe(plots.diff(found, "unequal")).endswith(": 0.25.")


def test_too_many_modules_are_put_together(tmp_path: Path) -> None:
    state = {f"model.layers.0.part{n // 10}.{'abcdefghij'[n % 10]}.weight": torch.ones(1) for n in range(60)}
    found = dcptools.diff(saved.save(tmp_path / "a", state), saved.save(tmp_path / "b", state))
    assert {column for _, column in cells(plots.diff(found))} == {f"part{n}" for n in range(6)}


def test_values_beyond_all_numbers_are_drawn(tmp_path: Path) -> None:
    one = saved.save(tmp_path / "a", {"model.layers.0.w": torch.tensor([1.0, math.inf]), "x": torch.tensor(0.0)})
    other = saved.save(tmp_path / "b", {"model.layers.0.w": torch.tensor([1.0, 2.0]), "x": torch.tensor(1.0)})
    found = dcptools.diff(one, other)
    for statistic in STATISTICS:
        figure = plots.diff(found, statistic)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.draw_without_rendering()
    assert "inf" in texts(plots.diff(found, "max_abs"))


def test_diff_refuses_another_statistic(tmp_path: Path) -> None:
    found = compared(tmp_path, lambda state: None, layers=1)
    with pytest.raises(UsageError, match="Cannot draw 'variance'"):
        plots.diff(found, "variance")  # type: ignore[arg-type]


# --- on a page --------------------------------------------------------------------------------------------------


def element(figure: Figure) -> Element:
    """The figure as a page gets it."""
    return ElementTree.fromstring(plots.svg(figure))


def tips(figure: Figure) -> list[str]:
    return [title.text or "" for title in element(figure).iter(f"{SVG}title")]


def words(figure: Figure) -> list[str]:
    return [text.text for text in element(figure).iter(f"{SVG}text") if text.text]


def styles(shown: Element) -> dict[str, list[str]]:
    """What is said of each property anywhere."""
    found: dict[str, list[str]] = {}
    for part in [part for part in shown.iter() if part is not shown]:
        for said in filter(None, part.get("style", "").split(";")):
            name, value = said.split(":", 1)
            found.setdefault(name, []).append(value)
    return found


def test_segments_say_which_tensors_they_are() -> None:
    figure = plots.shards(plan_of([("model.layers.3.b", 1500), ("lm_head.weight", 20)]))
    assert tips(figure) == ["model.layers.3.b\n1.50 kB, layer 3", "lm_head.weight\n20 B, outside the layers"]
    assert tips(plots.shards(plan_of([("x.norm", 9)]), color_by="module")) == ["x.norm\n9 B, module norm"]


def test_neighbours_that_are_drawn_as_one_say_so() -> None:
    figure = plots.shards(plan_of(layers(range(2), each=600)))
    first, second = "model.layers.0.mlp.experts.0.weight", "model.layers.0.mlp.experts.599.weight"
    assert tips(figure)[0] == f"600 tensors:\n{first}\nto {second}\n6.00 kB, layer 0"


def test_bars_boxes_bins_and_cells_say_what_they_are(tmp_path: Path) -> None:
    tensors = {W: [((0, 0), torch.zeros(2, 3)), ((2, 0), torch.ones(2, 3))]}
    path = saved.save_chunks(tmp_path / "a", tensors, files=2)
    assert tips(plots.sizes(path, by="dtype")) == ["float32\n48 bytes, 100%"]
    assert tips(plots.chunks(path, W)) == [
        f"rank {n}: __{n}_0.distcp\ndimension 0: {2 * n} to {2 * n + 1}\ndimension 1: 0 to 2" for n in range(2)
    ]
    assert tips(plots.histogram(path, W, bins=2)) == ["0 to 0.5\n6 values", "0.5 to 1\n6 values"]
    state = {"model.layers.0.w": torch.ones(2), "model.layers.1.w": torch.ones(2)}
    other = saved.save(tmp_path / "c", state | {"model.layers.1.w": torch.tensor([1.0, 2.0])})
    found = dcptools.diff(saved.save(tmp_path / "b", state), other)
    equal, apart = tips(plots.diff(found, "max_abs"))
    assert equal == "model.layers.0.w\nequal\nlargest absolute difference: 0"
    assert apart == "model.layers.1.w\nvalues\nlargest absolute difference: 1"


def test_a_page_gets_text_in_its_own_colours_on_a_clear_ground(tmp_path: Path) -> None:
    ours = {f"var(--dcp-{name})" for name in ("text", "soft", "line", "fill", "ground")}
    for figure in figures(tmp_path):
        shown = element(figure)
        assert shown.get("role") == "img" and shown.get("aria-label") == plots.describe(figure)
        for text in shown.iter(f"{SVG}text"):
            said = dict(part.split(":", 1) for part in text.get("style", "").split(";"))
            assert said.get("fill", "black") in ours | {"#ffffff", "black"}
            assert "font-family" not in said
        found = styles(shown)
        assert "var(--dcp-text)" in found["fill"]
        assert not {"#1a1a1a", "#595959", "#dddddd", "#e8e8e8"} & {*found["fill"], *found["stroke"]}
        assert "#ffffff" not in found["stroke"]


def test_labels_on_a_page_are_text(demo: Demo) -> None:
    figure = plots.chunks(demo.checkpoint, "model.lm_head.weight")
    assert {"model.lm_head.weight", "rank 0", "__0_0.distcp", "dimension 1 (columns)"} <= set(words(figure))


def test_names_are_text_in_an_element_of_a_page_and_nothing_else(tmp_path: Path) -> None:
    key = "model.model.<script>alert(1)</script></title></svg>&\"'\x00\x1b\u202e" + "a" * 1000 + ".w"
    path = saved.save_chunks(tmp_path, {key: [((0,), torch.arange(3.0))]})
    allowed = {"svg", "style", "g", "path", "text", "title", "use", "defs", "clipPath", "rect"}
    shown = [plots.sizes(path), plots.chunks(path, key), plots.values(dcptools.stats(path)), plots.histogram(path, key)]
    for figure in [*shown, plots.shards(dcptools.plan(path, "1GB"))]:
        text = plots.svg(figure)
        assert {part.tag.removeprefix(SVG) for part in ElementTree.fromstring(text).iter()} <= allowed
        assert "<script" not in text and "&lt;script&gt;" in text
        assert text.count("</title>") == text.count("<title>") and text.count("</svg>") == 1
        assert all(character.isprintable() or character == "\n" for character in text)
        assert max(map(len, "\n".join(tips(figure)).split("\n")), default=0) <= 200


def test_a_narrow_page_gets_a_narrow_figure_with_text_of_the_same_size(demo: Demo) -> None:
    key = "optimizer.state.model.layers.0.post_attention_layernorm.weight.exp_avg_sq"
    assert key in dcptools.read(demo.checkpoint).tensors
    figure = plots.chunks(demo.checkpoint, key)
    wide, narrow = plots.svg(figure), plots.svg(figure, width=400)
    sizes = [set(re.findall(r"font-size:([^;\"]+)", text)) for text in (wide, narrow)]
    assert sizes[0] == sizes[1] != set()
    assert "max-width:900px" in wide and "max-width:400px" in narrow
    headline = figure.get_suptitle().strip()
    assert headline.startswith("optimizer.") and headline.endswith("exp_avg_sq") and len(headline) <= 32
    assert "[128] float32: 4 chunks, from 4 ranks in 4 files" in title(figure)
    assert plots.describe(figure).startswith(f"Map of the chunks of {key[:20]}")
    assert "max-width:400px" in plots.svg(figure, width=2000)  # and it never becomes wider


def test_two_figures_on_a_page_share_no_ids(demo: Demo) -> None:
    ids = [
        [part.get("id") for part in element(plots.sizes(demo.checkpoint)).iter() if part.get("id")] for _ in range(2)
    ]
    assert ids[0] and ids[1] and not set(ids[0]) & set(ids[1])
    figure = plots.svg(plots.sizes(demo.checkpoint))
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", figure))
    assert used == set(re.findall(r' id="([^"]+)"', figure))


def test_a_figure_of_a_hundred_thousand_tensors_is_a_small_element() -> None:
    names = [f"model.layers.{n % 61}.mlp.experts.{n}.weight" for n in range(100_000)]
    plan = plan_of(*([(name, 7 + i % 5) for i, name in enumerate(names[f::50])] for f in range(50)))
    assert len(plots.svg(plots.shards(plan))) < 300_000
    frame = pd.DataFrame({"key": [f"model.layers.{n // 40}.m{n % 40}.w" for n in range(100_000)]})
    figure = plots.values(frame.assign(norm=frame.index % 7, numel=4, min=0.0, max=1.0, std=1.0, zeros=0, nan=0, inf=0))
    text = plots.svg(figure)
    assert "<image" in text and "<title>" not in text  # more cells than there is room for tooltips
    assert len(text) < 300_000


def test_svg_refuses_other_figures() -> None:
    with pytest.raises(UsageError, match="not made by dcptools.plots"):
        plots.svg(Figure())


# --- values -----------------------------------------------------------------------------------------------------


def table(**norms: float) -> pd.DataFrame:
    """Statistics of tensors of these norms, ``__`` for a dot."""
    keys = [key.replace("__", ".") for key in norms]
    frame = pd.DataFrame({"key": keys, "norm": list(norms.values())})
    return frame.assign(numel=8, min=-1.0, max=2.0, std=1.0, zeros=0, nan=0, inf=0)


def maps(figure: Figure) -> dict[str, list[str]]:
    """The names of the maps, and the texts in their cells."""
    return {axes.get_title("left"): [text.get_text() for text in axes.texts] for axes in figure.axes}


def opacity(figure: Figure) -> dict[tuple[str, str], tuple[str, float]]:
    """Labels of row and column to the colour of the cell and how strong it is."""
    faces = np.asarray(collection(figure, "cells").get_facecolor())
    return {at: (to_hex(face[:3]), float(face[3])) for at, face in zip(cells(figure), faces, strict=True)}


def test_a_layer_that_differs_from_the_others_stands_out() -> None:
    norms = {f"model__layers__{n}__mlp__up": 2.0 for n in (0, 1, 2, 10)} | {"model__layers__3__mlp__up": 16.0}
    figure = plots.values(table(**norms, model__layers__4__mlp__up=1.0, lm_head=50.0))
    found = opacity(figure)
    assert [row for row, column in found if column == "mlp.up"] == ["0", "1", "2", "10", "3", "4"]
    assert y_labels(figure) == ["0", "1", "2", "3", "4", "10", "no layer"]
    assert {found[layer, "mlp.up"][1] for layer in ("0", "1", "2", "10")} == {found["no layer", "lm_head"][1]} == {0.0}
    assert found["3", "mlp.up"] == (page.RED.lower(), 0.8)
    assert found["4", "mlp.up"] == (page.BLUE.lower(), pytest.approx(0.8 / 3))
    assert tips(figure)[4] == "model.layers.3.mlp.up\nnorm: 16\n8 times the median of the module, 2"
    assert plots.describe(figure) == (
        "Heat map of the norm by layer and module: weights: 6 layers, 2 modules; "
        "what stands out most is model.layers.*.mlp.up of layer 3: 16, 8 times the median."
    )


def test_real_values_are_read_streamed_and_drawn(tmp_path: Path) -> None:
    state = {f"model.layers.{n}.w": torch.ones(4) for n in range(5)}
    state["model.layers.2.w"] = torch.tensor([1.0, math.nan, 1.0, math.inf])
    state["model.layers.4.w"] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    path = saved.save(tmp_path, state)
    drawn = opacity(plots.values(path, "nan"))
    assert drawn["2", "w"] == (page.PURPLE.lower(), 0.8)
    assert {strength for at, (_, strength) in drawn.items() if at != ("2", "w")} == {0.0}
    assert "model.layers.2.w\nshare of NaN: 0.25\n1 NaN and 1 Inf of 4 values" in tips(plots.values(path, "nan"))
    zeros = plots.values(dcptools.stats(path), "zeros")
    assert [at for at, (_, strength) in opacity(zeros).items() if strength] == [("2", "w"), ("4", "w")]
    assert legend(zeros) == ["0.01%", "1%", "100%", "holds NaN or Inf"]
    assert {"NaN", "0.5"} == set(texts(zeros))


def test_weights_and_moments_are_maps_of_their_own_and_counters_are_none(demo: Demo) -> None:
    figure = plots.values(demo.checkpoint)
    assert list(maps(figure)) == ["weights", "exp_avg", "exp_avg_sq"]
    assert {len(axes.collections[0].get_paths()) for axes in figure.axes} == {47}
    assert "48 other tensors not drawn: counters and the like, or empty" in title(figure)
    assert [len([t for t in axes.get_xticklabels() if t.get_visible()]) for axes in figure.axes] == [0, 0, 14]
    assert [text for text in words(figure) if text == "mlp.up_proj.weight"] == ["mlp.up_proj.weight"]


def test_of_several_experts_the_one_that_stands_out_is_drawn() -> None:
    norms = {f"model__layers__{n}__experts__{e}__w": 4.0 for n in range(2) for e in range(12)}
    figure = plots.values(table(**{**norms, "model__layers__1__experts__10__w": 1.0}))
    assert maps(figure) == {"": ["4", "1"]}
    assert tips(figure)[1] == (
        "model.layers.1.experts.10.w\nnorm: 1\n0.25 times the median of the module, 4\n"
        "the one that stands out most of 12 tensors"
    )


def test_values_that_are_all_alike_or_missing_can_be_drawn() -> None:
    zero = plots.values(table(model__layers__0__w=0.0, model__layers__1__w=0.0, model__layers__2__w=3.0))
    assert [strength for _, strength in opacity(zero).values()] == [0.0, 0.0, 0.8]
    alike = plots.values(table(model__layers__0__w=2.0, model__layers__1__w=2.0))
    assert plots.describe(alike).endswith("; no layer differs from the others.")
    for figure in (plots.values(table()), plots.values(table(w=math.nan)), alike):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.draw_without_rendering()


def test_values_refuses_what_it_cannot_draw() -> None:
    wrong: Any = "kurtosis"
    with pytest.raises(
        UsageError, match="Cannot draw 'kurtosis'.\nExpected one of norm, std, max_abs, zeros, nan, inf."
    ):
        plots.values(table(w=1.0), wrong)
    with pytest.raises(UsageError, match="no column 'inf'"):
        plots.values(table(w=1.0).drop(columns="inf"))


def test_long_names_of_modules_leave_room_for_the_maps() -> None:
    long = "a_part_of_a_name_".join("abcd")
    weights = {f"model__layers__{n}__{long}__weight": 1.0 + n for n in range(2)}
    moments = {f"optimizer__state__{n}__other_{long}__exp_avg": 1.0 + n for n in range(2)}
    figure = plots.values(table(**weights, **moments))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    whole, above = figure.bbox, math.inf
    for axes in figure.axes:
        (label,) = axes.get_xticklabels()
        assert axes.bbox.height > 40 and label.get_window_extent().height > 100
        assert axes.bbox.y1 < above and label.get_window_extent().y0 >= whole.y0
        above = label.get_window_extent().y0


# --- all of them ------------------------------------------------------------------------------------------------

EVIL = "model.model.$x_1$.\x1b[31m\u202e重<b>\"'" + "a" * 1000


def figures(directory: Path) -> Iterator[Figure]:
    """One of each, of a checkpoint whose keys want to be formulas, colours, right to left, HTML, and very long."""
    tensors = {EVIL: [((0,), torch.arange(3.0))], "model.lm_head.weight": [((0,), torch.arange(9.0))]}
    path = saved.save_chunks(directory, tensors)
    yield plots.shards(dcptools.plan(path, "1GB"))
    yield plots.sizes(path)
    yield plots.chunks(path, EVIL)
    yield plots.histogram(path, EVIL)
    yield plots.diff(dcptools.diff(path, path))
    yield plots.values(path)


def test_names_are_drawn_as_plain_clipped_text(tmp_path: Path) -> None:
    _, sizes, chunks, histogram, *_ = figures(tmp_path)
    start = r"model.model.$x_1$.\x1b[31m\u202"
    assert [figure.get_suptitle().strip()[:30] for figure in (chunks, histogram)] == [start[:30]] * 2
    assert chunks.get_suptitle().strip() == start[:30] + "…" + "a" * 29
    assert any(label.startswith(r"model.model.$x_1$") and len(label) <= 60 for label in y_labels(sizes))


def test_no_text_is_mathematics_or_too_small(tmp_path: Path) -> None:
    with matplotlib.rc_context({"text.parse_math": True, "axes.formatter.use_mathtext": True}):
        for figure in figures(tmp_path):
            figure.draw_without_rendering()
            shown = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
            assert not any(text.get_parse_math() or text.get_usetex() for text in shown)
            assert min(float(text.get_fontsize()) for text in shown) >= 8


def test_names_outside_of_the_font_are_escaped_so_that_drawing_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in figures(tmp_path):
            figure.draw_without_rendering()
    key = "model.model.größe.重み"
    assert plots.chunks(saved.odd_names(tmp_path / "odd"), key).get_suptitle().strip() == (
        r"model.model.größe.\u91cd\u307f"
    )


def test_figures_stay_dark_on_white_in_a_dark_style(tmp_path: Path) -> None:
    with style.context("dark_background"):
        for figure in figures(tmp_path):
            assert to_hex(figure.get_facecolor()) == to_hex(figure.axes[0].get_facecolor()) == "#ffffff"
            for text in figure.findobj(Text):
                assert isinstance(text, Text)
                if text.get_text() and to_hex(text.get_color()) == "#ffffff":
                    assert text.get_text().endswith((".distcp", " B"))  # on a dark box


def test_a_figure_describes_itself_in_a_sentence(demo: Demo) -> None:
    figure = plots.chunks(demo.checkpoint, "model.lm_head.weight")
    assert plots.describe(figure) == (
        "Map of the chunks of model.lm_head.weight: [515, 128] float32: 4 chunks, from 4 ranks in 4 files."
    )
    assert repr(figure) == f"<Figure: {plots.describe(figure)}>"


def test_other_figures_have_no_description() -> None:
    with pytest.raises(UsageError, match="not made by dcptools.plots"):
        plots.describe(Figure())


def test_a_notebook_gets_an_element_of_its_page_and_a_picture_for_where_that_is_forbidden(tmp_path: Path) -> None:
    path = saved.save_chunks(tmp_path, {"model.model.<b>'": [((0,), torch.arange(2.0))]})
    bundle = plots.histogram(path, "model.model.<b>'")._repr_mimebundle_()  # type: ignore[attr-defined]
    assert bundle.keys() == {"text/html", "image/png", "text/plain"}
    head, _, tail = bundle["text/html"].partition(bundle["image/png"])
    assert head == "<div class='dcp-shown'><img src='data:image/png;base64,"
    image, _, element = tail.partition("<div hidden='hidden'>")
    assert image == (
        "' width='900' style='max-width:100%' alt='Histogram of model.model.&lt;b&gt;&#x27;: "
        "float32, 2 values; 0 NaN, 0 Inf, 1 zero; from 0 to 1.'>"
    )
    assert element.startswith('<svg xmlns="http://www.w3.org/2000/svg" ')
    assert element.endswith(
        "</svg></div></div><style>.dcp-shown>img{display:none}.dcp-shown>div[hidden]{display:block!important}</style>"
    )


def test_layouts_are_constrained_and_pyplot_knows_no_figure(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    assert all(type(figure.get_layout_engine()).__name__ == "ConstrainedLayoutEngine" for figure in figures(tmp_path))
    assert plt.get_fignums() == []


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_dcptools_imports_no_matplotlib_and_plots_no_pyplot() -> None:
    code = "import sys, dcptools; print('matplotlib' in sys.modules); from dcptools import plots; "
    assert run(code + "print('matplotlib.pyplot' in sys.modules)") == "False\nFalse\n"


def test_without_matplotlib_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["matplotlib"] = None
import dcptools
try:
    from dcptools import plots
except dcptools.DcptoolsError as error:
    print(error)
"""
    assert run(code).splitlines()[-1] == "Install it with: pip install 'dcptools[notebook]'"


@pytest.mark.parametrize(
    "module", ["_figure", "_shards", "_sizes", "_chunks", "_histogram", "_diff", "_values", "_treemap", "_svg"]
)
def test_the_examples_are_true(demo: Demo, module: str) -> None:
    tests = importlib.import_module(f"dcptools.plots.{module}")
    assert doctest.testmod(tests, extraglobs={"demo": demo}).failed == 0
