"""What ``write`` leaves behind: the planned model, whole and readable; or, when anything goes wrong, nothing."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from checkpoints import broken, models, saved
from checkpoints.edit import editing
from reference import full_load, raw, read_files, saved_files
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import dcptools
from dcptools._text import counted
from dcptools.errors import (
    BrokenCheckpoint,
    Cancelled,
    ChecksumError,
    DcptoolsError,
    FindingsError,
    TargetError,
    UsageError,
)
from dcptools.mapping import KeyMapping, Output
from dcptools.shards import ShardPlan
from dcptools.storage import LocalSink
from dcptools.storage import sink as sink_module
from dcptools.tensors import View
from dcptools.tensors import reader as reader_module
from dcptools.writer import engine
from dcptools.writer.cut import Sizes
from dcptools.writer.engine import Engine
from dcptools.writer.journal import JOURNAL
from dcptools.writer.publishing import check_file, publish
from dcptools.writer.writing import fill

pytestmark = pytest.mark.usefixtures("no_sync")
ROOT = Path(__file__).parents[1]
INDEX = "model.safetensors.index.json"
SMALL = Sizes(slab_bytes=64)


def planned(directory: Path, assets: Path | None = None, **options: Any) -> ShardPlan:
    return dcptools.plan(dcptools.preview(directory, model_assets_dir=assets), **{"dtype": "keep", **options})


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    return models.assets(tmp_path / "assets", tokenizer=bytes(range(256)) * 20)


def fill_one(plan: ShardPlan, save_dir: Path, number: int) -> None:
    sink = LocalSink(save_dir, "shared")
    fill(Engine(plan, sink, [plan.files[number]], workers=1, sync=False))
    sink.close()


def test_processes_fill_a_file_each_and_another_one_publishes_them(tmp_path: Path, assets: Path) -> None:
    plan = planned(saved.trained(tmp_path / "a"), assets, shard_size=4_000)
    assert len(plan.files) > 1
    (tmp_path / "out").mkdir()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(fill_one, repeat(plan), repeat(tmp_path / "out"), range(len(plan.files))))
    assert all(name.startswith(".") for name in os.listdir(tmp_path / "out"))
    publish(plan, tmp_path / "out", LocalSink(tmp_path / "out", "shared"), sync=False)
    dcptools.write(plan, tmp_path / "alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# The files


def test_a_single_file_has_no_index(tmp_path: Path) -> None:
    state = saved.model_state()
    plan = planned(saved.trained(tmp_path / "a", state))
    report = dcptools.write(plan, tmp_path / "out")
    files = read_files(tmp_path / "out")
    assert list(files) == ["model.safetensors"]
    assert files == saved_files(state, plan)
    assert (report.files, report.index) == ((("model.safetensors", len(files["model.safetensors"])),), "")


def test_several_files_and_their_index(tmp_path: Path) -> None:
    state = {f"model.{n}": torch.arange(n + 1.0) for n in range(4)}
    plan = planned(saved.trained(tmp_path / "a", state, optimizer=False), shard_size=16)
    dcptools.write(plan, tmp_path / "out")
    files = read_files(tmp_path / "out")
    assert files.pop(INDEX).decode() == (
        "{\n"
        '  "metadata": {\n'
        '    "total_parameters": 10,\n'
        '    "total_size": 40\n'
        "  },\n"
        '  "weight_map": {\n'
        '    "model.0": "model-00001-of-00003.safetensors",\n'
        '    "model.1": "model-00001-of-00003.safetensors",\n'
        '    "model.2": "model-00002-of-00003.safetensors",\n'
        '    "model.3": "model-00003-of-00003.safetensors"\n'
        "  }\n"
        "}\n"
    )
    assert files == saved_files(state, plan)


def test_the_header_says_format_pt_and_nothing_else(tmp_path: Path) -> None:
    dcptools.write(planned(saved.trained(tmp_path / "a"), dtype="bfloat16"), tmp_path / "out")
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}


def test_a_tensor_that_is_larger_than_a_shard_is_alone(tmp_path: Path) -> None:
    state = {"model.a": torch.zeros(2), "model.b": torch.zeros(100), "model.c": torch.zeros(2)}
    report = dcptools.write(planned(saved.trained(tmp_path / "a", state), shard_size=64), tmp_path / "out")
    assert [list(load_file(tmp_path / "out" / name)) for name, _ in report.files] == [
        ["model.a"],
        ["model.b"],
        ["model.c"],
    ]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype_loads_in_safetensors(tmp_path: Path) -> None:
    state = {name.removeprefix("model."): t for name, t in saved.dtype_state().items()}
    mapping = dcptools.preview(
        saved.trained(tmp_path / "a", state, optimizer=False), exclude=["*complex32", "*complex128"]
    )
    plan = dcptools.plan(mapping, dtype="keep")
    dcptools.write(plan, tmp_path / "out")
    assert read_files(tmp_path / "out") == saved_files(state, plan)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        loaded = {name: raw(file.get_tensor(name)) for name in file.keys()}
    assert loaded == {name: raw(t) for name, t in state.items() if "complex32" not in name and "complex128" not in name}
    assert len(loaded) == 19


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "keep"])
@pytest.mark.parametrize("make", [saved.strided, saved.strided_raw])
def test_every_stride_in_every_dtype(make: Callable[[Path], Path], dtype: str, tmp_path: Path) -> None:
    state = {name.removeprefix("model."): t for name, t in saved.strided_state().items()}
    plan = planned(make(tmp_path / "a"), dtype=dtype, shard_size=300)
    dcptools.write(plan, tmp_path / "out")
    files = read_files(tmp_path / "out")
    files.pop(INDEX)
    assert files == saved_files(state, plan)


@pytest.mark.parametrize("make", [saved.zstd, saved.file_per_item, saved.empty_files, saved.replicated_chunks])
def test_every_way_to_store(make: Callable[[Path], Path], tmp_path: Path) -> None:
    plan = planned(make(tmp_path / "a"), dtype="bfloat16")
    dcptools.write(plan, tmp_path / "out", workers=3, sizes=SMALL)
    state = {key.removeprefix("model."): t for key, t in full_load(tmp_path / "a").items()}
    assert read_files(tmp_path / "out") == saved_files(state, plan)


@pytest.mark.parametrize(
    ("dtype", "values", "count"),
    [
        ("float16", [1.0, 7e4, -7e4, float("inf"), float("nan"), 65504.0], 2),
        ("float16", [-7e4, 1.0], 1),
        ("bfloat16", [3.4e38, 1.0], 1),
        ("bfloat16", [-3.4e38, 1.0], 1),
        ("float32", [1e39, -1e39, 3.4e38], 2),
        ("float32", [-1e39, 1.0], 1),
        ("float16", [float("inf"), float("nan"), 65504.0], 0),
    ],
)
def test_values_that_became_inf_are_counted(dtype: str, values: list[float], count: int, tmp_path: Path) -> None:
    tensor = torch.tensor(values, dtype=torch.float64 if dtype == "float32" else torch.float32)
    plan = planned(saved.trained(tmp_path / "a", {"model.w": tensor, "model.v": torch.ones(3)}), dtype=dtype)
    found = [f for f in dcptools.write(plan, tmp_path / "out").findings if f.code == "cast-overflow"]
    message = f"{counted(count, 'finite value')} became Inf in the cast"
    assert [(f.key, f.severity, f.message) for f in found] == ([("model.w", "warning", message)] if count else [])


def test_strict_keeps_no_model_with_values_that_became_inf(tmp_path: Path) -> None:
    directory = saved.trained(tmp_path / "a", {"model.w": torch.tensor([7e4, 1.0])}, optimizer=False)
    plan = planned(directory, dtype="float16")
    plan = replace(plan, options=replace(plan.options, strict=True))  # there are no assets, a warning too
    with pytest.raises(FindingsError) as raised:
        dcptools.write(plan, tmp_path / "out")
    assert str(raised.value) == (
        "1 error prevents the conversion (strict: warnings count as errors):\n"
        "error[cast-overflow] model.w: 1 finite value became Inf in the cast (write it in a wider dtype: dtype_for=)"
    )
    assert not (tmp_path / "out").exists()


def all_nan(report: dcptools.Report) -> list[str]:
    return [str(f) for f in report.found_while_writing if f.code == "all-nan"]


@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float32"])
def test_a_tensor_that_is_nan_throughout_is_told(dtype: str, tmp_path: Path) -> None:
    """However it is cut: in its own order, in another one, beside others, as a single value; and no other tensor."""
    nan, one = torch.full((20, 30), float("nan")), torch.ones(20, 30)
    state = {
        "model.nan": nan, "model.nan.t": nan.t(), "model.nan.value": nan[0, 0],
        "model.first": torch.cat([nan, one]), "model.last": torch.cat([one, nan]), "model.inf": one / 0,
        "model.but_one": torch.cat([nan, one[:1], nan]), "model.t": torch.cat([nan, one]).t(),
        "model.empty": nan[:0], "model.integers": torch.full((8,), -1),
    }  # fmt: skip
    plan = planned(saved.trained(tmp_path / "a", state, optimizer=False), dtype=dtype)
    for sizes in (None, SMALL):
        report = dcptools.write(plan, tmp_path / "out", sizes=sizes, overwrite=True)
        assert all_nan(report) == [
            f"warning[all-nan] {name}: every value is NaN (look at an earlier checkpoint)"
            for name in ("model.nan", "model.nan.t", "model.nan.value")
        ]


FLOATS = ("float64", "float32", "bfloat16", "float16")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")


@pytest.mark.parametrize("dtype", [*FLOATS, *FLOAT8])
def test_nan_is_known_by_its_bits_in_every_dtype(dtype: str, tmp_path: Path) -> None:
    """Each value of a byte alone, and those of wider dtypes around Inf, beside what torch says."""
    kind = getattr(torch, dtype)
    if kind.itemsize == 1:
        every = torch.arange(256).to(torch.uint8).view(kind)
    else:
        nan = torch.tensor([float("nan"), float("inf"), 0.0, 1.0], dtype=kind)
        every = torch.cat([nan, -nan])
    state = {f"model.{n}": value.reshape(1) for n, value in enumerate(every)}
    report = dcptools.write(planned(saved.trained(tmp_path / "a", state, optimizer=False)), tmp_path / "out")
    expected = {f"model.{n}" for n in torch.isnan(every.double()).nonzero().flatten().tolist()}
    assert {f.key for f in report.findings if f.code == "all-nan"} == expected != set()


def test_strict_keeps_no_model_with_a_tensor_that_is_nan(tmp_path: Path) -> None:
    directory = saved.trained(tmp_path / "a", {"model.w": torch.full((9,), float("nan"))}, optimizer=False)
    plan = planned(directory)
    plan = replace(plan, options=replace(plan.options, strict=True))  # there are no assets, a warning too
    with pytest.raises(FindingsError, match=r"error\[all-nan\] model.w: every value is NaN"):
        dcptools.write(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("written", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("dtype", FLOAT8)
def test_fp8_is_cast_only_where_it_is_asked_for(dtype: str, written: str, tmp_path: Path) -> None:
    every = torch.arange(256).to(torch.uint8).view(getattr(torch, dtype))
    directory = saved.trained(tmp_path / "a", {"model.w": every, "model.kept": every}, optimizer=False)
    report = dcptools.write(planned(directory, dtype=written, dtype_for=[f"model.w={written}"]), tmp_path / "out")
    loaded, expected = load_file(tmp_path / "out" / "model.safetensors"), every.to(getattr(torch, written))
    assert raw(loaded["model.w"]) == raw(expected)
    assert raw(loaded["model.kept"]) == raw(every)
    became_inf = int((expected.isinf() & every.double().isfinite()).sum())
    found = [f.message for f in report.findings if f.code == "cast-overflow"]
    assert found == ([f"{counted(became_inf, 'finite value')} became Inf in the cast"] if became_inf else [])


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_number_of_workers_changes_nothing(workers: int, tmp_path: Path) -> None:
    state = saved.model_state()
    plan = planned(saved.trained(tmp_path / "a", state), shard_size=1000, dtype="float16")
    report = dcptools.write(plan, tmp_path / "out", workers=workers, sizes=Sizes(slab_bytes=100))
    files = read_files(tmp_path / "out")
    files.pop(INDEX)
    assert files == saved_files(state, plan)
    assert report.workers == workers


@pytest.mark.parametrize("dtype", ["bfloat16", "keep"])
def test_values_are_written_in_whole_blocks(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever tensors and chunks lie there: the kernel has less work with whole pages."""
    block, written = SMALL.block_bytes, written_pieces(monkeypatch)
    plan = planned(saved.trained(tmp_path / "a", saved.model_state()), dtype=dtype)
    dcptools.write(plan, tmp_path / "out", workers=1, sizes=SMALL)
    [file] = plan.files
    header = len(file.header)
    assert written[:2] == [(0, header), (header, block - header % block)]
    assert written[2:-1] == [(at, block) for at in range(written[2][0], written[-1][0], block)]
    assert sum(written[-1]) == file.nbytes


def written_pieces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Start and bytes of each write of weights from now on."""
    write, pieces = LocalSink.write, []

    def counting(self: LocalSink, name: str, start: int, data: memoryview) -> None:
        if name.endswith(".safetensors"):
            pieces.append((start, data.nbytes))
        write(self, name, start, data)

    monkeypatch.setattr(LocalSink, "write", counting)
    return pieces


def test_a_block_of_rows_that_are_cut_holds_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, written = torch.arange(50 * 5.0).reshape(50, 5), written_pieces(monkeypatch)
    chunks = [((0, at), values[:, at:to].contiguous()) for at, to in ((0, 2), (2, 5))]
    directory = saved.save_chunks(tmp_path / "a", {"model.model.w": chunks})
    dcptools.write(dcptools.plan(directory, dtype="keep"), tmp_path / "out", workers=1, sizes=SMALL)
    assert {nbytes % 20 for _, nbytes in written[1:]} == {0}
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["model.w"], values)


def test_values_without_dimensions_among_others(tmp_path: Path) -> None:
    """They are cast by themselves: torch gives their NaN other bits."""
    nan = torch.tensor(torch.nan)
    state = {f"model.{name}": nan if name in "ade" else nan.repeat(3) for name in "abcdef"}
    plan = planned(saved.trained(tmp_path / "a", state, optimizer=False), dtype="bfloat16")
    dcptools.write(plan, tmp_path / "out")
    assert read_files(tmp_path / "out") == saved_files(state, plan)


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 workers cannot write anything"):
        dcptools.write(planned(saved.trained(tmp_path / "a")), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_modes_follow_the_umask(tmp_path: Path, assets: Path) -> None:
    (assets / "tokenizer.json").chmod(0o600)
    before = os.umask(0o027)
    try:
        dcptools.write(planned(saved.trained(tmp_path / "a"), assets, shard_size=1000), tmp_path / "out")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o640}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


# Outputs that are views


def experts(mapping: KeyMapping) -> KeyMapping:
    """Each expert of the stack as an output of its own, and one transposed: what splitting experts will do."""
    (stack,) = [output for output in mapping.outputs if output.name.endswith("experts.w")]
    count, rows, columns = stack.shape
    key, step = stack.sources[0].key, rows * columns
    views = {f"model.experts.{n}.w": View(key, (rows, columns), (columns, 1), n * step) for n in range(count)}
    views["model.experts.0.w_t"] = View(key, (columns, rows), (1, columns), 0)
    split = [Output(name, (view,), view.shape, stack.dtype, "split") for name, view in views.items()]
    others = [output for output in mapping.outputs if output is not stack]
    return replace(mapping, outputs=tuple(sorted([*others, *split], key=lambda output: output.name)))


@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_outputs_that_are_views_of_one_tensor(order: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    stack = torch.arange(4 * 6 * 10.0).reshape(4, 6, 10)
    back = [order.index(dim) for dim in range(3)]
    halves = [((0, 0, n), stack[:, :, n : n + 5].permute(order).contiguous().permute(back)) for n in (0, 5)]
    directory = saved.save_chunks(
        tmp_path / "a", {"model.model.experts.w": halves, "model.model.b": [((0,), torch.ones(3))]}
    )
    plan = dcptools.plan(experts(dcptools.preview(directory)), dtype=dtype, shard_size=500)
    report = dcptools.write(plan, tmp_path / "out", workers=2, sizes=Sizes(slab_bytes=96))
    state = {f"model.experts.{n}.w": stack[n] for n in range(4)}
    state |= {"model.experts.0.w_t": stack[0].t(), "model.b": torch.ones(3)}
    files = read_files(tmp_path / "out")
    files.pop(INDEX)
    assert files == saved_files(state, plan)
    assert (report.items_checked, report.items_unchecked) == (3, 0)


def test_an_item_under_many_outputs_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    open_item = reader_module.open_item
    monkeypatch.setattr(reader_module, "open_item", lambda *given: opened.append(given[2].offsets) or open_item(*given))
    directory = saved.save(tmp_path / "a", {"model": {"model.experts.w": torch.arange(240.0).reshape(4, 6, 10)}})
    dcptools.write(dcptools.plan(experts(dcptools.preview(directory)), dtype="keep"), tmp_path / "out")
    assert opened == [(0, 0, 0)]


def fused(mapping: KeyMapping, name: str, views: list[View], shape: tuple[int, ...]) -> KeyMapping:
    """The mapping with the outputs of some sources replaced by one output of several views of them."""
    keys = {view.key for view in views}
    outputs = [output for output in mapping.outputs if output.sources[0].key not in keys]
    dtype = mapping.checkpoint[views[0].key].dtype
    outputs.append(Output(name, tuple(views), shape, dtype, "fused"))
    return replace(mapping, outputs=tuple(sorted(outputs, key=lambda output: output.name)))


@pytest.mark.parametrize("slab", [8, 64, 1000, 1 << 21])
@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float16"])
def test_an_output_of_several_tensors(dtype: str, slab: int, tmp_path: Path) -> None:
    """Experts that are stored apart become one stack: in each of them the rows of gate, then those of up."""
    torch.manual_seed(0)
    gates, ups = torch.randn(4, 6, 10), torch.randn(4, 6, 10)
    state = {f"model.layers.0.experts.{n}.gate": gates[n] for n in range(4)}
    state |= {f"model.layers.0.experts.{n}.up": ups[n] for n in range(4)}
    mapping = dcptools.preview(saved.trained(tmp_path / "a", {**state, "model.z": torch.ones(3)}))
    views = [
        View(f"model.model.layers.0.experts.{n}.{part}", (6, 10), (10, 1), 0)
        for n in range(4)
        for part in ("gate", "up")
    ]
    plan = dcptools.plan(fused(mapping, "model.gate_up", views, (4, 12, 10)), dtype=dtype)
    report = dcptools.write(plan, tmp_path / "out", workers=3, sizes=Sizes(slab_bytes=slab))
    expected = {"model.gate_up": torch.cat([gates, ups], dim=1), "model.z": torch.ones(3)}
    assert read_files(tmp_path / "out") == saved_files(expected, plan)
    assert (report.items_checked, report.items_unchecked) == (9, 0)


@pytest.mark.parametrize("slab", [64, 1 << 21])
@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_an_output_of_views_in_any_order(dtype: str, slab: int, tmp_path: Path) -> None:
    """A transpose, rows in the order of rotary halves, every second row, and a row that is taken twice."""
    torch.manual_seed(0)
    weight, other = torch.randn(16, 30), torch.randn(30, 16)
    mapping = dcptools.preview(saved.trained(tmp_path / "a", {"model.w": weight, "model.v": other}, optimizer=False))
    views = [
        View("model.model.v", (16, 30), (1, 16), 0),
        View("model.model.w", (2, 2, 4, 30), (240, 30, 60, 1), 0),
        View("model.model.w", (8, 30), (60, 1), 30),
        View("model.model.w", (2, 30), (0, 1), 90),
    ]
    plan = dcptools.plan(fused(mapping, "model.all", views, (42, 30)), dtype=dtype)
    dcptools.write(plan, tmp_path / "out", workers=2, sizes=Sizes(slab_bytes=slab))
    rotary = weight.reshape(2, 4, 2, 30).transpose(1, 2).reshape(16, 30)
    expected = torch.cat([other.t(), rotary, weight[1::2], weight[3:4].repeat(2, 1)])
    assert read_files(tmp_path / "out") == saved_files({"model.all": expected}, plan)


def test_an_overflow_in_an_output_of_several_tensors_is_counted_once(tmp_path: Path) -> None:
    state = {f"model.{n}": torch.full((3,), 1e6) for n in range(4)}
    mapping = dcptools.preview(saved.trained(tmp_path / "a", state, optimizer=False))
    views = [View(f"model.model.{n}", (3,), (1,), 0) for n in range(4)]
    plan = dcptools.plan(fused(mapping, "model.all", views, (12,)), dtype="float16")
    report = dcptools.write(plan, tmp_path / "out", sizes=Sizes(slab_bytes=8))
    assert [(f.key, f.message) for f in report.findings if f.code == "cast-overflow"] == [
        ("model.all", "12 finite values became Inf in the cast")
    ]


# Assets


def test_assets_are_copied_byte_for_byte(tmp_path: Path, assets: Path) -> None:
    """As files, through the symlinks of the Hub's cache; ``.py`` files too, and they are not run."""
    marker = tmp_path / "was_run"
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / "0123"
    blob.write_bytes(os.urandom(3 << 20))  # more than is copied at a time
    (assets / "vocab.json").symlink_to(blob)
    (assets / "modeling_mine.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (assets / "empty.txt").write_bytes(b"")
    (assets / "model.safetensors").write_bytes(b"weights do not belong to the assets")
    report = dcptools.write(planned(saved.trained(tmp_path / "a"), assets), tmp_path / "out")
    files, sources = read_files(tmp_path / "out"), read_files(assets)
    assert report.assets == ("config.json", "empty.txt", "modeling_mine.py", "tokenizer.json", "vocab.json")
    assert {n: files[n] for n in report.assets[1:]} == {n: sources[n] for n in report.assets[1:]}
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert not marker.exists()


def test_config_gets_the_dtype_and_keeps_its_fields(tmp_path: Path, assets: Path) -> None:
    config = {
        "model_type": "qwen3",
        "torch_dtype": "float32",
        "rope_theta": 1e-06,
        "name": "größe",
        "x": {"y": [1, None]},
    }
    (assets / "config.json").write_text(json.dumps(config))
    dcptools.write(planned(saved.trained(tmp_path / "a"), assets, dtype="bfloat16"), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {**config, "torch_dtype": "bfloat16"}
    assert list(written) == list(config)


# Progress


def test_a_cancellation_while_items_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are opened some at a time, which takes long where each read does."""
    cancel, opened, open_item = threading.Event(), [], reader_module.open_item

    def slow(*given: Any) -> Any:
        opened.append(given[2])
        cancel.set()
        time.sleep(0.05)
        return open_item(*given)

    monkeypatch.setattr(reader_module, "open_item", slow)
    state = {f"model.{number}.w": torch.ones(1) for number in range(200)}
    with pytest.raises(Cancelled):
        dcptools.write(planned(saved.trained(tmp_path / "a", state)), tmp_path / "out", cancel=cancel)
    assert len(opened) < 50
    assert not (tmp_path / "out").exists()


def test_values_are_written_before_all_items_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening takes long where each read does, and nobody should wait for all of it to see the bar move."""
    opened, open_item, written = [], reader_module.open_item, written_pieces(monkeypatch)

    def counting(*given: Any) -> Any:
        opened.append(len(written))
        return open_item(*given)

    monkeypatch.setattr(reader_module, "open_item", counting)
    state = {f"model.{number}.w": torch.ones(64) for number in range(1000)}
    dcptools.write(planned(saved.trained(tmp_path / "a", state)), tmp_path / "out", workers=1, sizes=SMALL)
    assert len(opened) == 1000
    assert opened.count(1) < 350  # after the header, before any values


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_grows_to_the_total_in_the_calling_thread(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, 0.02)
    plan = planned(saved.trained(tmp_path / "a"), dtype="bfloat16")
    calls: list[tuple[int, int, str]] = []
    threads: set[threading.Thread] = set()

    def progress(done: int, total: int, name: str) -> None:
        calls.append((done, total, name))
        threads.add(threading.current_thread())

    dcptools.write(plan, tmp_path / "out", progress=progress, workers=workers, sizes=SMALL)
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert len(set(done)) > 2
    assert calls[-1][:2] == (plan.total_bytes, plan.total_bytes)
    assert {total for _, total, _ in calls} == {plan.total_bytes}
    assert {name for *_, name in calls[1:]} <= {output.name for output in plan.mapping.outputs} | {""}
    assert threads == {threading.current_thread()}


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[str]:
    """Each write takes so long; the name of its file is added to the list when it begins."""
    write, begun = LocalSink.write, list[str]()

    def slow(self: LocalSink, name: str, start: int, data: memoryview) -> None:
        begun.append(name)
        time.sleep(seconds)
        write(self, name, start, data)

    monkeypatch.setattr(LocalSink, "write", slow)
    return begun


def test_an_error_in_the_progress_callable_stops_the_run(tmp_path: Path) -> None:
    def progress(done: int, total: int, name: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        dcptools.write(planned(saved.trained(tmp_path / "a")), tmp_path / "out", progress=progress)
    assert not (tmp_path / "out").exists()


def test_cancel_stops_long_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = slow_down(monkeypatch, 0.1)
    cancel, state = threading.Event(), {f"model.layers.{n}.w": torch.zeros(8, 8) for n in range(200)}

    def progress(done: int, total: int, name: str) -> None:
        if done:
            cancel.set()

    plan = planned(saved.trained(tmp_path / "a", state, optimizer=False))
    with pytest.raises(Cancelled, match="Cancelled; what was half-written is removed"):
        dcptools.write(plan, tmp_path / "out", progress=progress, cancel=cancel, workers=2, sizes=SMALL)
    assert len(writes) < 50  # of 400, which take 20 s
    assert not (tmp_path / "out").exists()


def test_torch_keeps_its_number_of_threads(tmp_path: Path) -> None:
    before, inside = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        plan = planned(saved.trained(tmp_path / "a"), dtype="bfloat16")
        dcptools.write(plan, tmp_path / "out", progress=lambda *_: inside.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 3
        assert set(inside) == {1}
    finally:
        torch.set_num_threads(before)


def test_no_thread_and_no_open_file_is_left(tmp_path: Path) -> None:
    plan = planned(saved.trained(tmp_path / "a"), dtype="bfloat16", shard_size=500)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    dcptools.write(plan, tmp_path / "out")
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)


def test_without_a_cast_torch_is_not_imported_and_memory_is_small(tmp_path: Path) -> None:
    saved.trained(tmp_path / "a")
    program = (
        "import sys, dcptools; report = dcptools.convert(*sys.argv[1:], dtype='keep'); "
        "print('torch' in sys.modules, report.peak_bytes)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported, peak = done.stdout.split()
    assert imported == "False"
    assert 10_000_000 < int(peak) < 100_000_000  # its own, and not that of this process, which has torch


# Failures


@contextmanager
def nothing_changes(directory: Path) -> Iterator[None]:
    before = read_files(directory)
    yield
    assert read_files(directory) == before


def old_model(directory: Path, assets: Path) -> Path:
    """A model of three shards that was converted before, with values of its own, and a file that is not ours."""
    checkpoint = saved.trained(directory.with_name("old_step"), {f"model.{n}": -torch.arange(9.0) for n in "abc"})
    dcptools.write(planned(checkpoint, assets, shard_size=36), directory)
    (directory / "README.md").write_text("mine")
    return directory


STATE = {f"model.{n}": torch.arange(9.0) for n in "abcd"}


def new_plan(tmp_path: Path, assets: Path | None, **options: Any) -> ShardPlan:
    """A model of two shards."""
    directory = saved.trained(tmp_path / "step_10", STATE, optimizer=False)
    return planned(directory, assets, **{"shard_size": 72, **options})


def fail_write(monkeypatch: pytest.MonkeyPatch, plan: ShardPlan, assets: Path) -> None:
    """The disk is full after some writes."""
    write, count = LocalSink.write, iter(range(100))

    def failing(self: LocalSink, name: str, start: int, data: memoryview) -> None:
        if next(count) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, name, start, data)

    monkeypatch.setattr(LocalSink, "write", failing)


def fail_create(monkeypatch: pytest.MonkeyPatch, plan: ShardPlan, assets: Path) -> None:
    """No file can be made any more: the quota of files, for example."""
    create = LocalSink.create

    def failing(self: LocalSink, name: str, nbytes: int) -> None:
        if name.startswith("model-00002"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        create(self, name, nbytes)

    monkeypatch.setattr(LocalSink, "create", failing)


def fail_sync(monkeypatch: pytest.MonkeyPatch, plan: ShardPlan, assets: Path) -> None:
    """The disk reports a lost write."""

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)


def fail_flush(monkeypatch: pytest.MonkeyPatch, plan: ShardPlan, assets: Path) -> None:
    """The disk reports a lost write while more is being written, and, as disks do, only once."""

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sink_module, "_sync_data", failing)
    monkeypatch.setattr(engine, "FLUSH_SECONDS", 0)
    slow_down(monkeypatch, 0.02)


def fail_missing_file(monkeypatch: pytest.MonkeyPatch, plan: ShardPlan, assets: Path) -> None:
    """A file of the checkpoint went after the plan was made."""
    (Path(plan.checkpoint.path) / "__0_0.distcp").unlink()


def fail_truncated_file(monkeypatch: pytest.MonkeyPatch, plan: ShardPlan, assets: Path) -> None:
    """A file of the checkpoint was cut short after the plan was made."""
    os.truncate(Path(plan.checkpoint.path) / "__0_0.distcp", 3000)


def fail_missing_asset(monkeypatch: pytest.MonkeyPatch, plan: ShardPlan, assets: Path) -> None:
    """An asset went after the plan was made."""
    (assets / "tokenizer.json").unlink()


def fail_lost_write(monkeypatch: pytest.MonkeyPatch, plan: ShardPlan, assets: Path) -> None:
    """A disk that says it wrote the header, and did not."""
    write = LocalSink.write

    def losing(self: LocalSink, name: str, start: int, data: memoryview) -> None:
        if start or not name.endswith(".safetensors"):
            write(self, name, start, data)

    monkeypatch.setattr(LocalSink, "write", losing)


FAILURES: dict[Callable[..., None], tuple[type[DcptoolsError], str]] = {
    fail_write: (TargetError, r"Writing to .*/out failed: No space left on device\.\nNothing was kept\.$"),
    fail_create: (TargetError, r"Writing to .*/out failed: .*quota exceeded\.\nNothing was kept\.$"),
    fail_sync: (TargetError, r"Writing to .*/out failed: Input/output error\.\nNothing was kept\.$"),
    fail_flush: (TargetError, r"Writing to .*/out failed: Input/output error\.\nNothing was kept\.$"),
    fail_missing_file: (BrokenCheckpoint, r"changed since it was read: __0_0\.distcp was written to"),
    fail_truncated_file: (
        BrokenCheckpoint,
        r"changed since it was read: __0_0\.distcp was written to",
    ),
    fail_missing_asset: (TargetError, r"failed: No such file or directory: .*/assets/tokenizer.json\.\nNothing was"),
    fail_lost_write: (BrokenCheckpoint, r"^model-00001-of-00002.safetensors was written, but is not what was planned"),
}


@pytest.mark.parametrize("fail", FAILURES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_run_leaves_what_was_there(
    fail: Callable[..., None], overwrite: bool, tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = old_model(tmp_path / "out", assets) if overwrite else tmp_path / "out"
    plan = new_plan(tmp_path, assets)
    fail(monkeypatch, plan, assets)
    kind, text = FAILURES[fail]
    threads = threading.active_count()
    with nothing_changes(out), pytest.raises(kind, match=text) as caught:
        dcptools.write(plan, out, overwrite=overwrite, workers=2)
    assert type(caught.value) is kind
    assert out.exists() == overwrite
    assert threading.active_count() == threads


def test_a_file_that_cannot_be_opened_again_is_not_called_missing(tmp_path: Path) -> None:
    """As safetensors does, whatever the reason."""
    plan = planned(saved.trained(tmp_path / "a"))
    with pytest.raises(OSError, match="File name too long"):
        check_file(plan.files[0], str(tmp_path / ("x" * 300)))


def test_a_flipped_bit_leaves_an_existing_model_alone(tmp_path: Path, assets: Path) -> None:
    out = old_model(tmp_path / "out", assets)
    broken.flipped_bit(tmp_path / "a")
    with nothing_changes(out), pytest.raises(ChecksumError):
        dcptools.write(planned(tmp_path / "a", assets), out, overwrite=True)


# Overwriting


def model(directory: Path) -> dict[str, Tensor] | None:
    """What transformers would load: the single file, or all shards of the index; None if there is neither."""
    if (directory / "model.safetensors").exists():
        return load_file(directory / "model.safetensors")
    if not (directory / INDEX).exists():
        return None
    weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
    loaded = {}
    for name in set(weight_map.values()):
        with safe_open(directory / name, "pt") as file:
            loaded |= {key: file.get_tensor(key) for key in file.keys() if weight_map[key] == name}
    assert loaded.keys() == weight_map.keys()
    return loaded


def is_new(loaded: dict[str, Tensor] | None) -> bool:
    return loaded is not None and loaded.keys() == STATE.keys() and all(torch.equal(loaded[n], STATE[n]) for n in STATE)


@pytest.mark.parametrize("shard_size", [36, 72, 108, 10_000])
def test_overwriting_removes_stale_shards_and_keeps_the_rest(shard_size: int, tmp_path: Path, assets: Path) -> None:
    out = old_model(tmp_path / "out", assets)
    for name in ("pytorch_model.bin", "notes.txt"):
        (out / name).write_text("old")
    plan = new_plan(tmp_path, assets, shard_size=shard_size)
    report = dcptools.write(plan, out, overwrite=True)
    written = {name for name, _ in report.files} | ({report.index} if report.index else set())
    assert set(read_files(out)) == written | {"README.md", "notes.txt", "config.json", "tokenizer.json"}
    assert is_new(model(out))


STEPS = 5  # two assets, two shards, the index


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_step_of_publishing_fails(
    step: int, overwrite: bool, tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = old_model(tmp_path / "out", assets) if overwrite else tmp_path / "out"
    plan = new_plan(tmp_path, assets)
    break_replace(monkeypatch, step, lambda: (_ for _ in ()).throw(OSError(errno.EIO, os.strerror(errno.EIO))))
    with nothing_changes(out), pytest.raises(TargetError, match=r"Input/output error.\nNothing was kept\.$"):
        dcptools.write(plan, out, overwrite=overwrite)
    assert out.exists() == overwrite


def break_replace(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """``act`` in place of the renaming number ``step``."""
    calls, replace_file = iter(range(100)), os.replace

    def breaking(source: Any, target: Any) -> None:
        if Path(target).name != JOURNAL and next(calls) == step:
            act()
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", breaking)


@pytest.mark.parametrize("step", range(STEPS + 1))
@pytest.mark.parametrize("shard_size", [72, 10_000])
def test_a_crash_while_publishing(step: int, shard_size: int, tmp_path: Path, assets: Path) -> None:
    """The process dies between two steps: never a mixture that loads; the next run puts everything right."""
    out = old_model(tmp_path / "out", assets)
    plan = new_plan(tmp_path, assets, shard_size=shard_size)
    if not (child := os.fork()):
        with pytest.MonkeyPatch.context() as monkeypatch:
            break_replace(monkeypatch, step, lambda: os._exit(9))
            dcptools.write(plan, out, overwrite=True)
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finished = step >= 2 + len(plan.files) + bool(plan.index)
    assert status == (0 if finished else 9)
    assert is_new(model(out)) if finished else model(out) is None
    dcptools.write(plan, out, overwrite=True)
    assert is_new(model(out))
    assert not any(name.startswith(".dcptools-") for name in read_files(out))


def test_files_are_on_the_disk_before_they_get_their_names(
    tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace_file = os.replace

    def recorded_sync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        short = "journal" if "journal" in name else name[23:-4]
        events.append(f"sync {short}" if name.startswith(".dcptools-") else f"sync {name}/")

    def recorded_replace(source: Any, target: Any) -> None:
        events.append(f"rename {Path(target).name}")
        replace_file(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    dcptools.write(new_plan(tmp_path, assets), tmp_path / "out", workers=1)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = ["config.json", "tokenizer.json"]
    assert events == [
        "sync journal",
        f"rename {JOURNAL}",
        *(f"sync {name}" for shard in shards for name in (shard, "journal")),  # a line about it when it is there
        *(f"sync {name}" for name in (*names, INDEX)),
        *(f"rename {name}" for name in (*names, *shards)),
        "sync out/",
        f"rename {INDEX}",
        "sync out/",
    ]


def test_without_fsync_nothing_is_synced(tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in ((os, "fsync"), (sink_module, "_sync_data")):
        monkeypatch.setattr(place, name, lambda descriptor: pytest.fail("it was synced"))
    dcptools.write(new_plan(tmp_path, assets), tmp_path / "out", fsync=False)
    assert is_new(model(tmp_path / "out"))


# Signals


SLOW = """
import runpy, signal, time
from dcptools import storage
from dcptools.writer import cut, engine

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
engine.Sizes = lambda: cut.Sizes(slab_bytes=1 << 12)
write = storage.LocalSink.write

def slow(self, name, start, data):
    time.sleep(0.02)
    write(self, name, start, data)

storage.LocalSink.write = slow
runpy.run_module("dcptools.convert", run_name="__main__")
"""


@contextmanager
def converting(tmp_path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A conversion that takes a minute, as soon as it has begun to write."""
    state = {f"model.layers.{n}.w": torch.zeros(250, 1000) for n in range(12)}
    saved.trained(tmp_path / "big", state, optimizer=False)
    command = [sys.executable, "-c", SLOW, "--load-dir", tmp_path / "big", "--save-dir", tmp_path / "out", *options]
    command += ["--dtype", "keep", "--shard-size", "3MB", "--workers", "2", "--no-fsync"]
    with subprocess.Popen([str(c) for c in command], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: any((tmp_path / "out").glob(".dcptools-*.tmp")) or process.poll() is not None)
        yield process
        process.kill()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_second_ctrl_c_does_not_leave_workers_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would write into files that are being removed, or make new ones after that."""
    shutdown, interrupts = ThreadPoolExecutor.shutdown, iter([KeyboardInterrupt, None])

    def interrupted(self: ThreadPoolExecutor, *args: Any, **options: Any) -> None:
        if self._thread_name_prefix == "dcptools" and next(interrupts, None):
            raise KeyboardInterrupt
        shutdown(self, *args, **options)

    def progress(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
    slow_down(monkeypatch, 0.2)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        dcptools.write(planned(saved.trained(tmp_path / "a")), tmp_path / "out", progress=progress, sizes=SMALL)
    assert threading.active_count() == before
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_a_worker_is_being_started_does_not_leave_it_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool does not know that one, which makes files while others are removed."""
    start, create, creating = threading.Thread.start, LocalSink.create, threading.Event()

    def interrupted(self: threading.Thread) -> None:
        start(self)
        if self.name.startswith("dcptools_"):
            assert creating.wait(60)
            raise KeyboardInterrupt

    def slow(self: LocalSink, name: str, nbytes: int) -> None:
        creating.set()
        time.sleep(0.3)
        create(self, name, nbytes)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr(LocalSink, "create", slow)
    (tmp_path / "out").mkdir()
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        dcptools.write(planned(saved.trained(tmp_path / "a")), tmp_path / "out", workers=2)
    wait_for(lambda: threading.active_count() == before)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_nothing(times: int, tmp_path: Path) -> None:
    with converting(tmp_path) as process:
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        assert process.wait(timeout=20) == 130
        assert process.stderr and process.stderr.read().endswith("Interrupted; what was half-written is removed.\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("times", [1, 200])
def test_sigterm_leaves_an_existing_model_alone(times: int, tmp_path: Path, assets: Path) -> None:
    out = old_model(tmp_path / "out", assets)
    with nothing_changes(out), converting(tmp_path, "--overwrite", "--model-assets-dir", str(assets)) as process:
        for _ in range(times):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
        assert process.stderr
        assert "Stopped by a signal; what was half-written is removed.\n" in process.stderr.read()


def test_sigkill_leaves_hidden_files_that_the_next_run_removes(tmp_path: Path) -> None:
    with converting(tmp_path) as process:
        process.kill()
        assert process.wait(timeout=20) == -signal.SIGKILL
    left = read_files(tmp_path / "out")
    assert ".dcptools-lock" in left
    assert len(left) > 1
    assert all(name.startswith(".dcptools-") for name in left)
    dcptools.convert(tmp_path / "big", tmp_path / "out", dtype="keep")
    assert set(read_files(tmp_path / "out")) == {"model.safetensors"}


# Memory


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
@pytest.mark.parametrize("axis", [0, 1])
def test_peak_memory_is_as_predicted_and_does_not_grow(dtype: str, axis: int, tmp_path: Path) -> None:
    """One tensor of 1 GB, in two chunks of rows or of columns; its bytes are holes of a sparse file."""
    directory = sparse_checkpoint(tmp_path / "step_10", (16_384, 16_384), axis)
    command = [sys.executable, "-c", MEASURED, "--load-dir", directory, "--save-dir", tmp_path / "out"]
    command += ["--dtype", dtype, "--quiet", "--no-fsync"]
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True, check=True)
    peak, predicted = int(done.stdout), planned(directory, dtype=dtype).peak_bytes
    print(f"{dtype}, cut along {axis}: {peak:,} bytes, and {predicted:,} were predicted")
    assert predicted / 1.5 <= peak <= predicted
    assert peak < 500_000_000
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > (1 << 30 if dtype == "keep" else 1 << 29)


MEASURED = """
import runpy
try:
    runpy.run_module("dcptools.convert", run_name="__main__")
finally:
    with open("/proc/self/status") as status:
        print(1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1]))
"""


def sparse_checkpoint(directory: Path, shape: tuple[int, int], axis: int) -> Path:
    """A float32 tensor of zeros in two chunks along ``axis``, of which next to nothing is on the disk."""
    half = tuple(n // 2 if dim == axis else n for dim, n in enumerate(shape))
    start = tuple(n // 2 if dim == axis else 0 for dim, n in enumerate(shape))
    small = torch.zeros(1).expand(half)  # a stand-in, whose metadata are right
    saved.save_chunks(directory, {"model.model.w": [((0, 0), small), (start, small)]}, files=2)
    with editing(directory) as metadata:
        for info in metadata.storage_data.values():
            with (directory / info.relative_path).open("wb") as file:
                torch.save(torch.zeros(half), SparseFile(file))
                info.offset, info.length = 0, file.tell()
    return directory


class SparseFile:
    """Leaves a hole where only zeros are written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        if len(data) > 1 << 20 and not np.frombuffer(data, np.uint8).any():
            self.file.seek(len(data), os.SEEK_CUR)
            return len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()
