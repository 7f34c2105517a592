"""One tensor, a slice of it, and statistics of many: the values that torch would give."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import broken, saved

import dcptools
from dcptools.errors import BrokenCheckpoint, Cancelled, UnknownKey, UsageError

INDICES = [..., 2, -1, np.s_[1:3], np.s_[..., 2], np.s_[1, ::2, -3:], np.s_[:, 4:1], np.s_[0, 0, 0], np.s_[::3, ..., 1]]
VALUES = torch.arange(4 * 5 * 6, dtype=torch.float32).reshape(4, 5, 6)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dcptools.Checkpoint:
    state = {"x": VALUES, "t": VALUES.permute(2, 0, 1), "scalar": torch.tensor(2.5), **saved.dtype_state()}
    return dcptools.read(saved.save(tmp_path_factory.mktemp("values") / "checkpoint", state))


@pytest.mark.parametrize("key", ["x", "t"])
@pytest.mark.parametrize(
    "index",
    [..., 2, -1, np.s_[1:3], np.s_[..., 2], np.s_[1, ::2, -3:], np.s_[:, 4:1], np.s_[0, 0, 0], np.s_[::3, ..., 1]],
)
def test_a_slice_is_the_slice_of_the_tensor(stored: dcptools.Checkpoint, key: str, index: Any) -> None:
    whole = VALUES if key == "x" else VALUES.permute(2, 0, 1)
    found = dcptools.load_tensor(stored, key, index)
    assert found.shape == whole[index].shape and torch.equal(found, whole[index])


def test_every_dtype_comes_back_as_it_was(stored: dcptools.Checkpoint) -> None:
    for key, value in saved.dtype_state().items():
        found = dcptools.load_tensor(stored, key)
        assert found.dtype == value.dtype
        assert found.contiguous().view(torch.uint8).equal(value.contiguous().view(torch.uint8))


def test_a_scalar(stored: dcptools.Checkpoint) -> None:
    assert dcptools.load_tensor(stored, "scalar").equal(torch.tensor(2.5))


@pytest.mark.parametrize("index", [4, np.s_[..., ...], np.s_[0, 0, 0, 0], np.s_[::-1], "a", True, [0, 1]])
def test_an_index_that_does_not_fit(stored: dcptools.Checkpoint, index: Any) -> None:
    with pytest.raises(UsageError, match="does not fit"):
        dcptools.load_tensor(stored, "x", index)


def test_an_unknown_key_gets_a_proposal(stored: dcptools.Checkpoint) -> None:
    with pytest.raises(UnknownKey, match="Did you mean scalar"):
        dcptools.load_tensor(stored, "scaler")


def test_a_slice_reads_its_own_bytes_only(stored: dcptools.Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head and the tail of the archive, and the six values."""
    read: list[int] = []
    original = type(stored.source).read_into

    def counted(self: Any, name: str, start: int, out: memoryview) -> None:
        read.append(out.nbytes)
        original(self, name, start, out)

    monkeypatch.setattr(type(stored.source), "read_into", counted)
    dcptools.load_tensor(stored, "x", np.s_[1, 2])
    assert read[-1] == 6 * 4


def test_statistics_are_those_of_torch(tmp_path: Path) -> None:
    values = torch.randn(3000, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 100
    row = dcptools.stats(saved.save(tmp_path / "a", {"w": values.float()}), workers=3).iloc[0]
    wide = values.float().double()
    assert (row["key"], row["dtype"], row["numel"]) == ("w", "float32", 600_000)
    assert (row["min"], row["max"]) == (wide.min(), wide.max())
    for name, expected in (("mean", wide.mean()), ("std", wide.std(correction=0)), ("norm", wide.norm())):
        assert math.isclose(row[name], expected, rel_tol=1e-12), name


def test_nan_inf_and_zeros_are_counted(tmp_path: Path) -> None:
    bad = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 3.0])
    row = dcptools.stats(saved.save(tmp_path / "a", {"w": bad, "empty": torch.ones(0)})).set_index("key")
    assert list(row.loc["w", ["zeros", "nan", "inf", "min", "max", "mean"]]) == [2, 1, 2, 0.0, 3.0, 1.0]
    assert row.loc["empty", ["min", "mean", "std"]].isna().all() and row.loc["empty", "norm"] == 0


def test_keys_are_globs(stored: dcptools.Checkpoint) -> None:
    assert set(dcptools.stats(stored, ["x", "sca*"])["key"]) == {"x", "scalar"}
    with pytest.raises(UsageError, match="No tensor's key matches 'nothing'"):
        dcptools.stats(stored, "nothing")


def test_progress_and_cancel(stored: dcptools.Checkpoint) -> None:
    calls: list[tuple[int, int, str]] = []
    dcptools.stats(stored, "x", progress=lambda *call: calls.append(call))
    assert calls[-1][:2] == (480, 480)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        dcptools.stats(stored, cancel=cancel)


def test_a_hole_is_not_read_as_values(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    key = next(iter(dcptools.read(tmp_path / "hole").errors)).key
    with pytest.raises(BrokenCheckpoint, match="nothing is stored for"):
        dcptools.load_tensor(tmp_path / "hole", key)
