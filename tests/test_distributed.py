"""Checkpoints that four real processes saved together: every tensor, every region of it, and the converted files."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from checkpoints import distributed
from reference import raw, read_files, saved_files

import dcptools
from dcptools.tensors import read_region
from dcptools.writer.cut import Sizes

INDEX = "model.safetensors.index.json"
NAMES = [name for name in distributed.CASES if name not in distributed.WITHOUT_METADATA]


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_what_the_processes_held(name: str, cases: dict[str, Path]) -> None:
    """The optimizer's too: nothing here knows what a weight is."""
    checkpoint, expected = dcptools.read(cases[name]), distributed.expected(cases[name])
    assert not checkpoint.findings
    assert checkpoint.tensors.keys() == expected.keys()
    for key, tensor in checkpoint.tensors.items():
        region = [(0, n) for n in tensor.shape]
        assert read_region(tensor, region).tobytes() == raw(expected[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_random_boxes_across_the_processes(name: str, cases: dict[str, Path]) -> None:
    checkpoint, expected = dcptools.read(cases[name]), distributed.expected(cases[name])
    rng = np.random.default_rng(0)
    for key, _ in itertools.product(checkpoint.tensors, range(20)):
        tensor = checkpoint[key]
        region = [tuple(sorted(rng.integers(0, n + 1, 2).tolist())) for n in tensor.shape]
        wanted = expected[key][tuple(slice(start, stop) for start, stop in region)]
        assert read_region(tensor, [(a, b) for a, b in region]).tobytes() == raw(wanted), (key, region)


@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_what_safetensors_writes(name: str, dtype: str, cases: dict[str, Path], tmp_path: Path) -> None:
    """Also where a tensor spans many slabs, each of which needs bytes of several processes."""
    plan = dcptools.plan(cases[name], shard_size=150, dtype=dtype)
    report = dcptools.write(plan, tmp_path / "out", workers=3, fsync=False, sizes=Sizes(slab_bytes=64))
    held = distributed.expected(cases[name])
    state = {key.removeprefix("model."): t for key, t in held.items() if key.startswith("model.")}
    files = read_files(tmp_path / "out")
    files.pop(INDEX, None)
    assert files == saved_files(state, plan)
    assert report.tensors == len(state) > 0
    assert report.items_unchecked == report.items_without_checksum == 0
    assert report.items_checked > 0


def test_items_of_all_processes_are_checked(cases: dict[str, Path], tmp_path: Path) -> None:
    """Rows of w in four parts, and b in four."""
    report = dcptools.convert(cases["shard0_even"], tmp_path / "out", dtype="keep", fsync=False)
    assert report.items_checked == 8


def test_the_optimizer_is_left_out(cases: dict[str, Path]) -> None:
    mapping = dcptools.preview(cases["fsdp2"])
    assert [output.name for output in mapping.outputs] == [
        f"model.{name}" for name in ("0.weight", "1.bias", "1.weight", "2.bias", "2.weight")
    ]
    assert {left.key.partition(".")[0] for left in mapping.leftovers} == {"optimizer", "step"}
