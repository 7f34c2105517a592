"""Values to look at: a slice is what torch gives, statistics are what numpy gives, and no more is read than that."""

from __future__ import annotations

import math
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import broken, distributed, saved
from checkpoints.edit import editing
from hypothesis import given
from hypothesis import strategies as st
from reference import full_load, raw

from dcptools import values
from dcptools._text import format_bytes
from dcptools.checkpoint import read
from dcptools.errors import BrokenCheckpoint, Cancelled, NotACheckpoint, UnknownKey, UnsupportedCheckpoint, UsageError
from dcptools.storage import LocalSource
from dcptools.values import STATISTICS, load_tensor, stats

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")
KEY = "model.w"


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A tensor of shape (6, 5, 4) in four chunks that two files hold, and the tensor."""
    whole = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    places = [((r, c, 0), whole[r : r + 3, c : c + n].clone()) for r in (0, 3) for c, n in ((0, 2), (2, 3))]
    return saved.save_chunks(tmp_path_factory.mktemp("values") / "chunked", {KEY: places}, files=2), whole


# --- load_tensor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", saved.dtype_state())
def test_every_dtype_comes_back_as_torch_has_it(key: str, tmp_path: Path) -> None:
    state = {key: saved.dtype_state()[key]}
    loaded = load_tensor(saved.save(tmp_path, state), key)
    assert (loaded.dtype, loaded.shape, raw(loaded)) == (state[key].dtype, state[key].shape, raw(state[key]))


def test_every_shape_and_every_stride(tmp_path: Path) -> None:
    state = {**saved.strided_state(), **saved.shape_state()}
    checkpoint = read(saved.save(tmp_path, state))
    for key, tensor in state.items():
        loaded = load_tensor(checkpoint, key)
        assert (loaded.dtype, loaded.shape, raw(loaded)) == (tensor.dtype, tensor.shape, raw(tensor)), key


@pytest.mark.parametrize("case", ["fsdp_tp", "mesh_2d", "shard0_uneven", "dtypes"])
def test_what_four_processes_saved(case: str, cases: dict[str, Path]) -> None:
    for key, tensor in distributed.expected(cases[case]).items():
        assert raw(load_tensor(cases[case], key)) == raw(tensor), key


INDICES = (
    ..., (), 0, -1, np.s_[2:5], np.s_[:, 1], np.s_[..., 0], np.s_[1, ..., 2], np.s_[1, 2, 3], np.s_[-2:, 4, ::2],
    np.s_[1::3, ::2], np.s_[5:2], np.s_[:, :100], np.s_[..., :, :, :], np.int64(3), np.s_[0:0, 0],
)  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_an_index_means_what_it_means_in_torch(index: Any, chunked: tuple[Path, torch.Tensor]) -> None:
    path, whole = chunked
    expected = whole[index]
    loaded = load_tensor(path, KEY, index)
    assert loaded.shape == expected.shape
    assert torch.equal(loaded, expected)


parts = st.one_of(
    st.integers(-5, 4).filter(lambda n: n >= -4 and n < 4),
    st.builds(slice, *[st.none() | st.integers(-8, 8)] * 2, st.none() | st.integers(1, 4)),
)


@given(index=st.lists(parts, max_size=3).map(tuple), dots=st.integers(0, 3) | st.none())
def test_any_index_of_integers_slices_and_an_ellipsis(
    chunked: tuple[Path, torch.Tensor], index: tuple[Any, ...], dots: int | None
) -> None:
    path, whole = chunked
    if dots is not None:
        index = (*index[:dots], ..., *index[dots:])
    assert torch.equal(load_tensor(path, KEY, index), whole[index])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (6, "The index 6 does not fit a dimension of size 6.\nExpected an integer within it, or a slice"),
        (np.s_[:, -6], "The index -6 does not fit a dimension of size 5."),
        (np.s_[::-1], "The index slice(None, None, -1) does not fit a dimension of size 6."),
        (np.s_[0, 0, 0, 0], "The index (0, 0, 0, 0) does not fit the shape (6, 5, 4).\nGive at most one entry"),
        (np.s_[..., 0, ...], "does not fit the shape (6, 5, 4)"),
        (None, "The index None does not fit"),
        (True, "The index True does not fit"),
        ("a", "The index 'a' does not fit"),
        (1.0, "The index 1.0 does not fit"),
        ([0, 1], "The index [0, 1] does not fit"),
    ],
    ids=str,
)
def test_what_is_no_index_is_said(index: Any, message: str, chunked: tuple[Path, torch.Tensor]) -> None:
    with pytest.raises(UsageError) as error:
        load_tensor(chunked[0], KEY, index)
    assert message in str(error.value)


def test_unknown_keys_and_paths_are_said(chunked: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(UnknownKey, match="model.v"):
        load_tensor(chunked[0], "model.v")
    with pytest.raises(NotACheckpoint):
        load_tensor(tmp_path, KEY)


def test_a_tensor_that_does_not_fit_into_memory_is_said(tmp_path: Path) -> None:
    with saved.editing(saved.save(tmp_path, {"a": torch.zeros(4)})) as metadata:
        entry = metadata.state_dict_metadata["a"]
        entry.size = entry.chunks[0].sizes = torch.Size([1 << 45])
    memory = format_bytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with pytest.raises(UsageError) as caught:
        load_tensor(tmp_path, "a")
    assert str(caught.value) == (
        f"'a': 35,184,372,088,832 values of float32, {format_bytes(1 << 47)}, do not fit into memory (this machine has "
        f"{memory}).\nTake a slice of it, with an index such as np.s_[:1000]."
    )


def test_only_the_bytes_under_a_slice_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved.save(tmp_path, {KEY: torch.arange(1_000_000.0).reshape(1000, 1000)})
    checkpoint, taken = read(path), 0
    read_into = LocalSource.read_into

    def counted(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        nonlocal taken
        taken += out.nbytes
        read_into(self, name, start, out)

    monkeypatch.setattr(LocalSource, "read_into", counted)
    assert load_tensor(checkpoint, KEY, np.s_[700, 5:9]).tolist() == [700_005, 700_006, 700_007, 700_008]
    assert taken < 20_000  # of 4,000,000: the slice, and the ends of the archive


def test_a_scalar_of_a_slice_is_a_tensor_of_no_dimension(chunked: tuple[Path, torch.Tensor]) -> None:
    assert load_tensor(chunked[0], KEY, np.s_[1, 2, 3]).shape == ()


# --- stats ------------------------------------------------------------------------------------------------------


def expected_row(tensor: torch.Tensor) -> dict[str, float]:
    """The statistics by numpy, all values at once."""
    wide = (tensor.abs() if tensor.is_complex() else tensor).to(torch.float64).numpy().reshape(-1)
    finite = wide[np.isfinite(wide)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # means of nothing
        return {
            "min": finite.min() if finite.size else math.nan,
            "max": finite.max() if finite.size else math.nan,
            "mean": finite.mean() if finite.size else math.nan,
            "std": finite.std() if finite.size else math.nan,
            "norm": float(np.sqrt(np.square(finite).sum())),
            "zeros": (finite == 0).sum(),
            "nan": np.isnan(wide).sum(),
            "inf": np.isinf(wide).sum(),
        }


def assert_statistics(frame: pd.DataFrame, tensors: dict[str, torch.Tensor]) -> None:
    assert list(frame.columns) == ["key", "dtype", "numel", *STATISTICS]
    assert list(frame["key"]) == list(tensors)
    for row in frame.to_dict("records"):
        tensor = tensors[row["key"]]
        assert (row["dtype"], row["numel"]) == (str(tensor.dtype).removeprefix("torch."), tensor.numel())
        largest = max(abs(expected_row(tensor)["min"]), abs(expected_row(tensor)["max"]))
        for name, value in expected_row(tensor).items():
            near = {"mean": {"abs": 1e-14 * largest}, "std": {"rel": 1e-7}}.get(name, {"rel": 1e-12})
            assert row[name] == pytest.approx(value, **near, nan_ok=True), (row["key"], name)


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "a.normal": torch.randn(40, 30, generator=generator),
        "b.special": saved.special_floats(),
        "c.special": saved.special_floats(torch.bfloat16),
        "d.far": torch.randn(500, dtype=torch.float64, generator=generator) * 1e-3 + 1e6,
        "e.transposed": torch.randn(40, 30, generator=generator).t(),
        "f.zeros": torch.tensor([0.0, -0.0, 1.0, 0.0]),
        "g.empty": torch.empty(0, 3),
        "h.scalar": torch.tensor(-2.5),
        "i.nan": torch.full((3,), math.nan),
        "j.int": torch.arange(-300, 300, dtype=torch.int16),
        "k.bool": torch.tensor([True, False, True]),
        "l.complex": torch.complex(torch.tensor([3.0, 0.0]), torch.tensor([4.0, 0.0])),
        "m.float8": torch.tensor([1.0, -2.0, 448.0]).to(torch.float8_e4m3fn),
    }


@pytest.mark.parametrize("slab", [values.SLAB_ELEMENTS, 7], ids=["whole", "slabs of 7"])
@pytest.mark.parametrize("workers", [1, 3])
def test_statistics_are_those_of_numpy(
    slab: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "SLAB_ELEMENTS", slab)
    assert_statistics(stats(saved.save(tmp_path, some_tensors()), workers=workers), some_tensors())


@pytest.mark.parametrize("case", ["fsdp_tp", "shard0_uneven"])
def test_statistics_of_what_four_processes_saved(case: str, cases: dict[str, Path]) -> None:
    tensors = {key: tensor for key, tensor in full_load(cases[case]).items() if tensor.numel()}
    frame = stats(cases[case], list(tensors))
    assert_statistics(frame, {key: tensors[key] for key in frame["key"]})


def test_the_result_does_not_depend_on_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "SLAB_ELEMENTS", 100)
    path = saved.save(tmp_path, {KEY: torch.randn(5000)})
    one, four = stats(path, workers=1), stats(path, workers=4)
    pd.testing.assert_frame_equal(one, four, check_exact=True)


def test_globs_choose_the_tensors(tmp_path: Path) -> None:
    checkpoint = read(saved.trained(tmp_path))
    assert list(stats(checkpoint, "model.*norm.weight")["key"]) == [
        key for key in checkpoint.tensors if key.startswith("model.") and key.endswith("norm.weight")
    ]
    assert len(stats(checkpoint, ["model.lm_head.weight", "*.embed_tokens.weight"])) == 2
    assert len(stats(checkpoint)) == len(checkpoint.tensors)


@pytest.mark.parametrize(("keys", "asked"), [("x.*", "'x.*'"), (["x", "y"], "'x', 'y'"), ([], "an empty list")])
def test_globs_without_a_match_are_said(keys: Any, asked: str, chunked: tuple[Path, torch.Tensor]) -> None:
    with pytest.raises(UsageError) as error:
        stats(chunked[0], keys)
    assert str(error.value) == f"No tensor's key matches {asked}.\ninspect() lists all keys."


def test_progress_ends_at_the_bytes_of_the_values(chunked: tuple[Path, torch.Tensor]) -> None:
    told: list[tuple[int, int, str]] = []
    stats(chunked[0], progress=lambda *said: told.append(said))
    assert told[-1] == (480, 480, KEY)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_a_set_event_cancels(chunked: tuple[Path, torch.Tensor]) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled, match=r"^Cancelled\.$"):  # nothing was being written
        stats(chunked[0], cancel=cancel)


def test_the_bar_says_that_it_reads(
    chunked: tuple[Path, torch.Tensor], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    stats(chunked[0], progress=True)
    shown = capfd.readouterr().err
    assert "reading: 100%" in shown and "writing" not in shown


def test_a_dtype_without_numbers_is_said(tmp_path: Path) -> None:
    saved.save(tmp_path, {KEY: torch.zeros(4, dtype=torch.uint8)})
    with editing(tmp_path) as metadata:
        metadata.state_dict_metadata[KEY].properties.dtype = torch.bits8
    with pytest.raises(UnsupportedCheckpoint, match=r"'model.w' is bits8, which has no values to count"):
        stats(tmp_path)


@pytest.mark.parametrize("look", [stats, lambda path: load_tensor(path, broken.W)], ids=["stats", "load_tensor"])
def test_a_hole_is_not_read_as_values(look: Callable[[Path], Any], tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    with pytest.raises(BrokenCheckpoint, match="nothing is stored for"):
        look(tmp_path / "hole")


@pytest.mark.parametrize("look", [stats, lambda path: load_tensor(path, KEY)], ids=["stats", "load_tensor"])
def test_a_file_that_ends_early_is_an_error(look: Callable[[Path], Any], tmp_path: Path) -> None:
    saved.save(tmp_path, {KEY: torch.arange(10_000.0)})
    (file,) = tmp_path.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(BrokenCheckpoint):
        look(tmp_path)
