"""Every value comes out as it was saved, whatever its chunks, strides and encoding; or an error says what is wrong."""

from __future__ import annotations

import errno
import io
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import broken, hostile, hostile_items, saved
from checkpoints.edit import item_bytes, item_parts, location, replace_item, torch_item, zip_item
from hypothesis import given
from hypothesis import strategies as st
from reference import raw
from torch.utils.serialization.config import save as save_config

import dcptools
from dcptools.checkpoint import Checkpoint, read
from dcptools.errors import (
    BrokenCheckpoint,
    Cancelled,
    DcptoolsError,
    TargetError,
    UnsafeMetadata,
    UnsupportedCheckpoint,
    UsageError,
)
from dcptools.storage import LocalSource, Source
from dcptools.storage import source as source_module
from dcptools.tensors import (
    Checksums,
    Region,
    TensorReader,
    View,
    bits,
    boxes,
    ranges,
    read_elements,
    read_region,
    read_view,
    row_major,
    tiles,
    unpacked,
)
from dcptools.tensors import item as item_module
from dcptools.tensors import reader as reader_module
from dcptools.tensors.archive import HEAD_BYTES, TAIL_BYTES, Archive, Frame
from dcptools.tensors.arrangement import parse_arrangement
from dcptools.tensors.geometry import is_row_major

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")


def whole(checkpoint: Checkpoint, key: str) -> bytes:
    return read_region(checkpoint[key], [(0, n) for n in checkpoint[key].shape]).tobytes()


def region_of(data: st.DataObject, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    pairs = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return [(start, stop) for start, stop in pairs]


def as_slices(region: Region) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in region)


# Any tensor that torch.save can write


@pytest.mark.parametrize("key", saved.dtype_state())
def test_every_dtype_keeps_its_bits(key: str, tmp_path: Path) -> None:
    state = {key: saved.dtype_state()[key]}
    assert whole(read(saved.save(tmp_path, state)), key) == raw(state[key])


@pytest.mark.parametrize("key", saved.shape_state())
def test_every_shape(key: str, tmp_path: Path) -> None:
    state = {key: saved.shape_state()[key]}
    assert whole(read(saved.save(tmp_path, state)), key) == raw(state[key])


@pytest.mark.parametrize("make", [saved.strided, saved.strided_raw])
@pytest.mark.parametrize("key", saved.strided_state())
def test_every_stride_offset_and_flag(key: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    state = saved.strided_state()
    assert whole(read(make(tmp_path)), key) == raw(state[key])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_conjugate_and_negative_bits_keep_nan_payloads(dtype: torch.dtype, tmp_path: Path) -> None:
    values = saved.random_bits(dtype, (5, 4))
    state = {
        "a": values.conj(),
        "b": torch._neg_view(values),
        "c": torch._neg_view(values.conj()),
        "d": values.conj().t(),
    }
    checkpoint = read(saved.save_chunks(tmp_path, {key: [((0, 0), t)] for key, t in state.items()}))
    assert {key: whole(checkpoint, key) for key in state} == {key: raw(t) for key, t in state.items()}


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.float64])
def test_negative_bit_of_real_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch._neg_view(torch.tensor([0, 1, -7, -128], dtype=dtype))
    checkpoint = read(saved.save_chunks(tmp_path, {"a": [((0,), values)]}))
    assert whole(checkpoint, "a") == raw(values)


def test_overlapping_strides_that_look_dense(tmp_path: Path) -> None:
    """Strides (3, 3, 1) of (2, 2, 2) span eight elements and never grow, and yet the values are not the first eight."""
    values = torch.arange(8.0).as_strided((2, 2, 2), (3, 3, 1))
    checkpoint = read(saved.save_chunks(tmp_path, {"a": [((0, 0, 0), values)]}))
    assert whole(checkpoint, "a") == raw(values)


def test_zstd_items(tmp_path: Path) -> None:
    state = saved.model_state()
    checkpoint = read(saved.zstd(tmp_path, state))
    assert {key: whole(checkpoint, f"model.{key}") for key in state} == {key: raw(t) for key, t in state.items()}


def test_replicas_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = read(saved.replicated_chunks(tmp_path))["model.model.w"]
    opened = count_opened(monkeypatch)
    assert len(tensor.chunks) == 4
    assert read_region(tensor, [(0, 4), (0, 3)]).view("f4").ravel().tolist() == list(range(12))
    assert sorted(opened) == [(0, 0), (2, 0)]


def count_opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The offsets of each chunk whose item is opened from now on."""
    opened: list[tuple[int, ...]] = []
    open_item = reader_module.open_item

    def counting(source: Any, tensor: Any, chunk: Any, unpacked: Any) -> Any:
        opened.append(chunk.offsets)
        time.sleep(0.005)  # so that other threads want the same one meanwhile
        return open_item(source, tensor, chunk, unpacked)

    monkeypatch.setattr(reader_module, "open_item", counting)
    return opened


# Regions


@given(data=st.data())
def test_any_region_of_any_view(data: st.DataObject, strided: Checkpoint) -> None:
    key = data.draw(st.sampled_from(sorted(strided.tensors)))
    expected = saved.strided_state()[key]
    region = region_of(data, strided[key].shape)
    assert read_region(strided[key], region).tobytes() == raw(expected[as_slices(region)])


@given(data=st.data())
def test_any_range_of_any_view(data: st.DataObject, strided: Checkpoint) -> None:
    key = data.draw(st.sampled_from(sorted(strided.tensors)))
    expected = saved.strided_state()[key].resolve_conj().resolve_neg().flatten()
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, expected.numel())] * 2)))
    reader = TensorReader(strided[key])
    out = np.empty(stop - start, reader.bits)
    reader.read_range(start, stop, out)
    assert out.tobytes() == raw(expected[start:stop])


def test_a_range_over_chunks_is_read_in_one_piece_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(40.0).reshape(10, 4)
    chunks = [((6, 0), values[6:].clone()), ((0, 0), values[:3].clone()), ((3, 0), values[3:6].clone())]
    reader = TensorReader(read(saved.save_chunks(tmp_path, {"a": chunks}))["a"])
    assert reader.straight
    reader.open()
    found = count_read(monkeypatch)
    out = np.empty(27, reader.bits)
    reader.read_range(7, 34, out)
    assert out.view("f4").tolist() == list(range(7, 34))
    assert found == [4 * 5, 4 * 12, 4 * 10]


def test_what_is_cut_in_columns_is_not_straight(tmp_path: Path) -> None:
    values = torch.arange(40.0).reshape(10, 4)
    chunks = [((0, 0), values[:, :1].clone()), ((0, 1), values[:, 1:].clone())]
    assert not TensorReader(read(saved.save_chunks(tmp_path, {"a": chunks}))["a"]).straight


@pytest.fixture(scope="module")
def strided(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read(saved.strided_raw(tmp_path_factory.mktemp("strided")))


@pytest.mark.parametrize("scratch", [16, 64, 1024])
@pytest.mark.parametrize("key", saved.strided_state())
def test_a_small_scratch_buffer_changes_nothing(
    key: str, scratch: int, strided: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bits, "SMALL_GAP", 8)
    reader = TensorReader(strided[key], scratch_bytes=scratch)
    out = np.empty(reader.tensor.shape, reader.bits)
    reader.read_region([(0, size) for size in out.shape], out)
    assert out.tobytes() == raw(saved.strided_state()[key])


def test_only_the_bytes_under_a_region_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a chunk of 4 MB costs a few kB: head and tail of the archive, and the row."""
    values = torch.zeros(1000, 1000)
    tensor = read(saved.save_chunks(tmp_path, {"a": [((0, 0), values), ((1000, 0), values.clone())]}))["a"]
    monkeypatch.setattr(item_module, "_parsed", {})  # another test may have parsed such an archive
    ranges = count_read(monkeypatch)
    read_region(tensor, [(7, 8), (0, 1000)])
    assert sum(ranges) == HEAD_BYTES + TAIL_BYTES + 4000


def test_a_column_is_read_with_its_neighbours_and_not_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = read(saved.save_chunks(tmp_path, {"a": [((0, 0), torch.arange(1000.0).reshape(500, 2))]}))["a"]
    ranges = count_read(monkeypatch)
    assert read_region(tensor, [(0, 500), (1, 2)]).view("f4").ravel().tolist() == [2 * n + 1.0 for n in range(500)]
    assert len(ranges) == 3


def test_rows_that_lie_far_apart_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(4 * 10_000.0).reshape(4, 10_000)
    tensor = read(saved.save_chunks(tmp_path, {"a": [((0, 0), values)]}))["a"]
    ranges = count_read(monkeypatch)
    assert read_region(tensor, [(0, 4), (50, 60)]).tobytes() == raw(values[:, 50:60])
    assert ranges == [HEAD_BYTES, TAIL_BYTES, 40, 40, 40, 40]


def count_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read from now on."""
    ranges: list[int] = []
    read_into = LocalSource.read_into

    def counting(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        ranges.append(out.nbytes)
        read_into(self, name, start, out)

    monkeypatch.setattr(LocalSource, "read_into", counting)
    return ranges


@pytest.mark.parametrize("key", ["contiguous", "transposed", "conjugated", "negated", "expanded"])
def test_the_target_may_have_any_strides(key: str, strided: Checkpoint) -> None:
    tensor = strided[f"model.model.{key}"]
    expected = read_region(tensor, [(0, n) for n in tensor.shape])
    rows, columns = expected.shape
    targets = [
        np.zeros((columns, rows), expected.dtype).T,
        np.zeros((2 * rows, 3 * columns), expected.dtype)[1::2, ::3],
        np.zeros_like(expected)[::-1, ::-1],
    ]
    for target in targets:
        TensorReader(tensor).read_region([(0, rows), (0, columns)], target)
        assert target.tobytes() == expected.tobytes()


def test_threads_share_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(64.0 * 48).reshape(64, 48)
    chunks = [((row, 0), values[row : row + 8].t().contiguous().t()) for row in range(0, 64, 8)]
    reader = TensorReader(read(saved.save_chunks(tmp_path, {"a": chunks}, files=8))["a"], scratch_bytes=256)
    opened = count_opened(monkeypatch)

    def check(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        (a, b), (c, d) = np.sort(rng.integers(0, 65, 2)), np.sort(rng.integers(0, 49, 2))
        out = np.empty((b - a, d - c), reader.bits)
        reader.read_region([(a, b), (c, d)], out)
        return bool(np.array_equal(out.view("f4"), values[a:b, c:d].numpy()))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(200)))
    assert max(Counter(opened).values()) == 1


def test_a_file_that_is_read_is_not_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads push each other's files out all the time."""
    monkeypatch.setattr(source_module, "MAX_OPEN_FILES", 1)
    chunks = [((row,), torch.tensor([float(row)])) for row in range(64)]
    tensor = read(saved.save_chunks(tmp_path, {"a": chunks}, files=64))["a"]

    def check(seed: int) -> bool:
        order = np.random.default_rng(seed).permutation(64)
        return all(read_region(tensor, [(row, row + 1)]).view("f4")[0] == row for row in order.tolist())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(24)))


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MAX_OPEN_FILES", 3)
    chunks = [((row,), torch.tensor([float(row)])) for row in range(40)]
    tensor = read(saved.save_chunks(tmp_path, {"a": chunks}, files=40))["a"]
    before = open_files()
    assert read_region(tensor, [(0, 40)]).view("f4").tolist() == [float(n) for n in range(40)]
    assert open_files() == before + 3
    tensor.source.close()
    assert open_files() == before
    assert read_region(tensor, [(39, 40)]).view("f4").tolist() == [39.0]


def test_unpacked_items_share_one_file(tmp_path: Path) -> None:
    """A zstd item is unpacked, to be read from its middle; a tensor of 2000 chunks must not open 2000 files."""
    from torch.distributed.checkpoint._extension import ZStandard

    chunks = [((row, 0), torch.full((1, 5), float(row))) for row in range(30)]
    directory = saved.save_chunks(tmp_path, {"a": chunks})
    for number in range(30):
        stream = open(tmp_path / "packed", "wb")  # noqa: SIM115  (the transform closes it)
        with ZStandard().transform_to(stream) as packing:
            packing.write(item_bytes(directory, "a", number))
        replace_item(directory, "a", (tmp_path / "packed").read_bytes(), number)
    with saved.editing(directory) as metadata:
        for info in metadata.storage_data.values():
            info.transform_descriptors = ["stream.zstd/1"]
    before, reader = open_files(), TensorReader(read(directory)["a"])
    out = np.empty((30, 5), reader.bits)
    for _ in range(2):  # the second time all of them lie there, beside each other
        reader.read_region([(0, 30), (0, 5)], out)
        assert out.view("f4").tolist() == [[float(row)] * 5 for row in range(30)]
    assert open_files() <= before + 2
    del reader
    assert open_files() <= before + 1


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# What is not as announced


ITEMS = {
    "other_shape": (BrokenCheckpoint, "it holds float32 (5,), but the metadata says float32 (4,)."),
    "other_dtype": (BrokenCheckpoint, "it holds int32 (4,), but the metadata says float32 (4,)."),
    "wrong_shape": (BrokenCheckpoint, "it holds float32 (4,), but the metadata says float32 (2, 2)."),
    "short_data": (BrokenCheckpoint, "its 12 bytes of values are too few for (4,)"),
    "strides_past_storage": (BrokenCheckpoint, "its 16 bytes of values are too few for (4,)"),
    "no_data": (BrokenCheckpoint, "it has no data/0"),
    "not_a_zip": (UnsupportedCheckpoint, "not an archive as torch.save writes it"),
    "legacy_item": (UnsupportedCheckpoint, "not an archive as torch.save writes it"),
    "deflated": (UnsupportedCheckpoint, "is compressed or encrypted, which torch.save never does"),
    "big_endian": (UnsupportedCheckpoint, "It was saved on a big-endian machine"),
    "no_tensor": (UnsupportedCheckpoint, "data.pkl holds dict, not a plain tensor."),
    "unknown_transform": (UnsupportedCheckpoint, "The encoding transform stream.rot13/1 is not one that"),
}


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_that_is_not_as_announced(name: str, tmp_path: Path) -> None:
    getattr(broken, name)(tmp_path)
    kind, text = ITEMS[name]
    tensor = read(tmp_path)[broken.B]
    with pytest.raises(kind) as caught:
        read_region(tensor, [(0, 1) for _ in tensor.shape])
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"'{broken.B}', chunk at ")
    assert location(tmp_path, broken.B).relative_path in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"), [("item_runs_system", UnsafeMetadata), ("item_loads_bytes", UnsupportedCheckpoint)]
)
def test_a_hostile_item_is_not_run(name: str, kind: type[DcptoolsError], tmp_path: Path) -> None:
    marker: Path = getattr(broken, name)(tmp_path / "a")
    with pytest.raises(kind, match=rf"^'{broken.B}', chunk at \(0,\) of \(4,\) in __0_0.distcp:\n"):
        read_region(read(tmp_path / "a")[broken.B], [(0, 4)])
    assert not marker.exists()


PARSE_ALL = """
import json, sys
from dcptools import DcptoolsError
from dcptools.tensors.arrangement import parse_arrangement

for path in sys.argv[1:]:
    try:
        parse_arrangement(open(path, "rb").read())
    except DcptoolsError as error:
        print(json.dumps([path.rpartition("/")[2], str(error)]), flush=True)
"""


def test_a_small_item_does_not_take_long_or_say_much(tmp_path: Path) -> None:
    paths = []
    for name, make in hostile.ITEM_PICKLES.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(make())
        assert paths[-1].stat().st_size < 1 << 16
    command = [sys.executable, "-c", PARSE_ALL, *map(str, paths)]
    done = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, timeout=60)
    said = dict(map(json.loads, done.stdout.splitlines()))
    assert said.keys() == hostile.ITEM_PICKLES.keys(), done.stderr
    assert "the sizes of the tensor are not as torch writes them" in said["shared_shape"]
    assert "the flags of the tensor are not as torch writes them" in said["nested_flags"]
    assert said["long_names"].startswith("data.pkl holds mmm")
    assert len(said["long_names"]) < 3000


@pytest.mark.parametrize("name", ["whole", "linked_files", "no_checksums", "shifted_hints", "rezipped", "no_byteorder"])
def test_an_oddity_that_is_no_fault(name: str, tmp_path: Path) -> None:
    getattr(broken, name)(tmp_path / "a")
    checkpoint = read(tmp_path / "a")
    assert whole(checkpoint, broken.W) == raw(torch.arange(24.0))
    assert whole(checkpoint, broken.B) == raw(torch.arange(4.0))


@pytest.mark.parametrize("name", ["hole", "tail_hole", "no_chunks", "overlap", "out_of_bounds", "negative_offset"])
def test_a_tensor_that_its_chunks_do_not_cover_is_not_read(name: str, tmp_path: Path) -> None:
    """Not even where the sizes of the chunks add up (``overlap``): a hole would hold what happened to be in memory."""
    getattr(broken, name)(tmp_path)
    tensor = read(tmp_path)[broken.W]
    assert tensor.problem and not tensor.covered
    with pytest.raises(BrokenCheckpoint) as caught:
        read_region(tensor, [(0, n) for n in tensor.shape])
    assert str(caught.value) == f"'{broken.W}': {tensor.problem}.\nUse another checkpoint, or save again."


def test_a_region_outside_of_the_tensor(tmp_path: Path) -> None:
    broken.whole(tmp_path)
    with pytest.raises(BrokenCheckpoint, match=r"^'model.model.w': its chunks do not cover \[\[5, 7\], \[3, 5\]\]"):
        read_region(read(tmp_path)[broken.W], [(5, 7), (3, 5)])


@pytest.mark.parametrize("name", ["missing_file", "file_is_directory", "truncated_file"])
def test_a_file_that_is_damaged(name: str, tmp_path: Path) -> None:
    file = getattr(broken, name)(tmp_path)
    with pytest.raises(BrokenCheckpoint) as caught:
        whole(read(tmp_path), broken.W)
    assert str(caught.value).startswith(f"'{broken.W}', chunk at (4, 0) of (2, 4) in {file}:\n{tmp_path / file} ")


def test_a_chunk_without_a_place(tmp_path: Path) -> None:
    broken.no_storage(tmp_path)
    with pytest.raises(BrokenCheckpoint) as caught:
        whole(read(tmp_path), broken.W)
    assert str(caught.value) == (
        "'model.model.w', chunk at (2, 0) of (2, 4) in no file:\nThe metadata does not say where it is stored."
    )


def test_a_damaged_zstd_item(tmp_path: Path) -> None:
    directory = saved.zstd(tmp_path, {"model.norm.weight": torch.arange(400.0)})
    info = location(directory, "model.model.norm.weight")
    content = bytearray((directory / info.relative_path).read_bytes())
    content[info.offset + 20 : info.offset + 60] = b"\xff" * 40
    (directory / info.relative_path).write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=r"(?s)^'model.model.norm.weight', chunk .* zstd stream is damaged"):
        whole(read(directory), "model.model.norm.weight")


@pytest.mark.parametrize("tail", [False, True])
def test_a_zstd_bomb_is_not_unpacked(tail: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the values and what torch writes around them, even if it is a valid item with the right values."""
    import zstandard

    values = torch.zeros(1 << 20, dtype=torch.uint8)
    directory = saved.zstd(tmp_path, {"model.norm.weight": values})
    bomb = zip_item(item_parts(torch_item(values)) | {"archive/x": bytes(8 << 20)}) if tail else bytes(8 << 20)
    replace_item(directory, "model.model.norm.weight", zstandard.compress(bomb))
    written: list[int] = []
    monkeypatch.setattr(unpacked.Unpacked, "write", lambda _, __, data: written.append(len(data)))
    with pytest.raises(BrokenCheckpoint, match=r"unpacks to more than such a tensor can have"):
        whole(read(directory), "model.model.norm.weight")
    assert sum(written) <= values.nbytes + (1 << 16)


@pytest.mark.parametrize("alignment", [64, 4096])
def test_a_zstd_item_has_room_for_what_torch_writes_around_it(alignment: int, tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in (saved.shape_state() | saved.strided_state()).items()}
    state |= {
        "model.deep": torch.arange(4.0).reshape(2, *[1] * 61, 2).transpose(0, -1),
        "model." + "long" * 900: torch.ones(3),
    }
    before = save_config.storage_alignment
    save_config.storage_alignment = alignment
    try:
        checkpoint = read(saved.zstd(tmp_path, state))
    finally:
        save_config.storage_alignment = before
    assert {key: whole(checkpoint, f"model.{key}") for key in state} == {key: raw(t) for key, t in state.items()}


@pytest.mark.parametrize("look", [dcptools.stats, lambda path, cancel: dcptools.convert(path, cancel=cancel)])
def test_unpacking_stops_when_it_is_cancelled(look: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = saved.zstd(tmp_path, {"model.norm.weight": torch.zeros(6 << 20)})
    cancel, parts, write = threading.Event(), [], unpacked.Unpacked.write

    def slow(self: unpacked.Unpacked, start: int, data: bytes) -> None:
        cancel.set()
        parts.append(len(data))
        time.sleep(0.05)
        write(self, start, data)

    monkeypatch.setattr(unpacked.Unpacked, "write", slow)
    with pytest.raises(Cancelled):
        look(directory, cancel=cancel)
    assert len(parts) < 12  # of 24


@pytest.mark.parametrize("made", [False, True])
def test_a_zstd_item_without_a_place_to_unpack_it(made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No directory for temporary files at all, or one that has gone since."""
    checkpoint = read(saved.zstd(tmp_path / "a", {"model.norm.weight": torch.arange(4.0)}))

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", (lambda: str(tmp_path / "gone")) if made else none)
    with pytest.raises(TargetError) as caught:
        whole(checkpoint, "model.model.norm.weight")
    first, second, third, last = str(caught.value).splitlines()
    assert first == "'model.model.norm.weight', chunk at (0,) of (4,) in __0_0.distcp:"
    assert second == (
        f"Unpacking into {tmp_path / 'gone'} failed: No such file or directory."
        if made
        else "There is no directory for temporary files: No usable temporary directory found in ['/tmp']."
    )
    assert third == "It is compressed with zstd and must be unpacked to be read."
    assert last.startswith("Set the environment variable TMPDIR to a writable directory")


def test_a_changed_byte_in_an_item_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Each byte of an item in turn: the values are right, or there is an error that names tensor and file."""
    directory = saved.save_chunks(tmp_path, {"a": [((0, 0), torch.arange(8.0).reshape(2, 4).t())]})
    path, expected = directory / "__0_0.distcp", raw(torch.arange(8.0).reshape(2, 4).t())
    sound, tensor = path.read_bytes(), read(directory)["a"]
    outcomes: Counter[str] = Counter()
    file = path.open("r+b", buffering=0)
    for at, flip in itertools.product(range(len(sound)), (0x01, 0x80)):
        os.pwrite(file.fileno(), bytes([sound[at] ^ flip]), at)
        reader = TensorReader(tensor, Checksums())
        out = np.empty((4, 2), reader.bits)
        try:
            reader.read_region([(0, 4), (0, 2)], out)
        except DcptoolsError as error:
            assert "'a'" in str(error) and "__0_0.distcp" in str(error)
            outcomes[type(error).__name__] += 1
        else:
            assert out.tobytes() == expected, f"byte {at} ^ {flip:#x}"
            outcomes["harmless"] += 1
        os.pwrite(file.fileno(), sound[at : at + 1], at)
    file.close()
    assert set(outcomes) == {"harmless", "ChecksumError", "BrokenCheckpoint", "UnsupportedCheckpoint"}


# The archive


def archive_of(tmp_path: Path, payload: bytes, start: int = 0) -> Archive:
    (tmp_path / "items").write_bytes(b"\xaa" * start + payload + b"\xbb" * 7)
    return Archive(LocalSource(tmp_path), "items", start, len(payload))


def stored(source: Source, name: str, start: int, nbytes: int) -> bytes:
    out = bytearray(nbytes)
    source.read_into(name, start, memoryview(out))
    return bytes(out)


def contents(archive: Archive) -> dict[str, bytes]:
    source = archive.source
    assert isinstance(source, LocalSource)
    return {
        entry.name: stored(source, archive.file, archive.start + archive.content_start(entry), entry.nbytes)
        for entry in archive.entries.values()
    }


def wanted(parts: dict[str, bytes]) -> dict[str, bytes]:
    """The entries that a tensor needs, without the archive's own name."""
    short = {name.partition("/")[2]: content for name, content in parts.items()}
    return {name: c for name, c in short.items() if name in ("data.pkl", "byteorder") or name.startswith("data/")}


@pytest.mark.parametrize("elements", [0, 1, 100, 700, 5000])
def test_archive_of_torch_save(elements: int, tmp_path: Path) -> None:
    payload = torch_item(torch.arange(float(elements)))
    assert contents(archive_of(tmp_path, payload, start=33)) == wanted(item_parts(payload))


NAMES = st.one_of(
    st.text("abc/.", min_size=1, max_size=8), st.sampled_from(["x/data.pkl", "x/byteorder", "x/data/0", "x/data/1"])
)


@given(st.dictionaries(NAMES, st.binary(max_size=3000), max_size=5))
def test_archive_of_other_programs(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, bytes]) -> None:
    if not parts:
        return  # nothing but an end record: not what torch.save writes
    assert contents(archive_of(tmp_path_factory.mktemp("zip"), zip_item(parts), start=5)) == wanted(parts)


def test_archive_with_64_bit_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an item of more than 4 GB has them: sizes and offsets in extra fields, and a second end record."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    parts = {"archive/data.pkl": b"x" * 20, "archive/data/0": bytes(range(200)), "archive/version": b"3\n"}
    payload = zip_item(parts)
    assert b"PK\x06\x06" in payload
    assert contents(archive_of(tmp_path, payload, start=5)) == wanted(parts)


@pytest.mark.parametrize("elements", [4, 5000])
def test_archive_that_is_cut_short(elements: int, tmp_path: Path) -> None:
    payload = torch_item(torch.arange(float(elements)))
    for kept in {*range(0, len(payload), 97), *range(len(payload) - 100, len(payload))}:
        with pytest.raises((BrokenCheckpoint, UnsupportedCheckpoint)):
            _ = archive_of(tmp_path, payload[:kept]).entries


def test_archive_reads_head_and_tail_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = count_read(monkeypatch)
    archive = archive_of(tmp_path, torch_item(torch.zeros(10_000)))
    assert archive.entries["data.pkl"].nbytes
    assert ranges == [HEAD_BYTES, TAIL_BYTES]


def crc_in(archive: Archive, frame: Frame) -> int | None:
    return frame.crc(archive.source, archive.file, archive.start, archive.nbytes)


@pytest.mark.parametrize("elements", [4, 5000])
def test_an_archive_in_the_frame_of_another_has_its_own_checksum(elements: int, tmp_path: Path) -> None:
    one, other = torch.arange(float(elements)), torch.rand(elements)
    archive = archive_of(tmp_path, torch_item(one))
    frame = archive.frame(archive.entries["data/0"])
    assert frame is not None
    assert crc_in(archive, frame) == zlib.crc32(raw(one))
    assert crc_in(archive_of(tmp_path, torch_item(other), start=5), frame) == zlib.crc32(raw(other))


@pytest.mark.parametrize("elements", [4, 5000])
def test_a_frame_is_every_byte_but_values_and_their_checksum(elements: int, tmp_path: Path) -> None:
    """A flipped bit anywhere else, but for what a tensor has no use for, and an archive is parsed as if it were new."""
    payload = torch_item(torch.arange(float(elements)))
    archive = archive_of(tmp_path, payload)
    frame, values = archive.frame(archive.entries["data/0"]), archive.entries["data/0"]
    assert frame is not None
    first, directory = archive.content_start(values), payload.index(b"PK\x01\x02")
    names = (b"archive/data/0", b"archive/.format_version", b"archive/.storage_alignment", b"archive/version")
    free = [payload.index(name, directory) - 30 for name in (*names, b"archive/.data/serialization_id")]
    for at in (*range(first), *range(directory, len(payload))):
        flipped = archive_of(tmp_path, payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :])
        assert (crc_in(flipped, frame) is None) == (not any(start <= at < start + 4 for start in free)), at


def test_a_chunk_that_looks_like_another_is_read_as_what_it_is(tmp_path: Path) -> None:
    """Equal in bytes, shape and dtype, but stored in another order."""
    values = torch.rand(60, 60)
    parts = [((60 * n, 0), part) for n, part in enumerate((values, values.t().contiguous().t(), values.neg()))]
    tensor = read(saved.save_chunks(tmp_path, {"a": parts}))["a"]
    assert read_region(tensor, [(0, 180), (0, 60)]).tobytes() == raw(torch.cat([values, values, values.neg()]))


def with_items(directory: Path, *payloads: bytes) -> Checkpoint:
    """A tensor ``a`` that is made of these items, one below the other."""
    side = hostile_items.SIDE
    chunks = [((side * number, 0), torch.zeros(hostile_items.SHAPE)) for number in range(len(payloads))]
    saved.save_chunks(directory, {"a": chunks})
    for number, payload in enumerate(payloads):
        replace_item(directory, "a", payload, number)
    return read(directory)


STRIDES = [hostile_items.ROWS, hostile_items.COLUMNS]


@pytest.mark.parametrize("order", [STRIDES, STRIDES[::-1]])
def test_an_item_never_has_the_strides_of_another(order: list[tuple[int, int]], tmp_path: Path) -> None:
    """Around the values they are equal in every byte, and what tells them apart lies behind the values."""
    payloads = [hostile_items.pickle_behind_the_values(strides) for strides in order]
    expected = torch.cat([torch.load(io.BytesIO(payload)) for payload in payloads])
    assert not torch.equal(expected[:8], expected[8:])
    assert whole(with_items(tmp_path, *payloads), "a") == raw(expected)


@pytest.mark.parametrize("names", list(itertools.permutations(["data.pkl", "byteorder", "data/0"])))
def test_an_item_is_read_as_what_it_is_whatever_was_read_before(names: tuple[str, ...], tmp_path: Path) -> None:
    kinds = list(itertools.product(STRIDES, (b"little", b"middle")))

    def look(number: int) -> bytes | str:
        try:
            return read_region(checkpoint["a"], [(number * 8, number * 8 + 8), (0, 8)]).tobytes()
        except UnsupportedCheckpoint as error:
            return str(error).partition("\n")[2]

    checkpoint = with_items(tmp_path, *[hostile_items.in_order(names, *kind) for kind in kinds])
    alone = []
    for number in range(len(kinds)):
        item_module._parsed.clear()
        alone.append(look(number))
    assert len(set(alone)) == 3  # two tensors, and one error that both of the others have
    for first, second in itertools.permutations(range(len(kinds)), 2):
        item_module._parsed.clear()
        assert (look(first), look(second)) == (alone[first], alone[second])


def test_only_entries_that_the_end_record_counts_are_read(tmp_path: Path) -> None:
    """As torch does; the standard library reads the one behind them as well, and that is another tensor."""
    payload = hostile_items.more_entries_than_counted()
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        assert archive.getinfo("archive/data.pkl") is archive.infolist()[-1]
    assert whole(with_items(tmp_path, payload), "a") == raw(torch.load(io.BytesIO(payload)))


@pytest.mark.parametrize("order", [STRIDES, STRIDES[::-1]])
def test_a_directory_behind_its_end_record_is_refused(order: list[tuple[int, int]], tmp_path: Path) -> None:
    """An end record among the values would not be compared either."""
    checkpoint = with_items(tmp_path, *map(hostile_items.directory_in_the_values, order))
    with pytest.raises(BrokenCheckpoint, match="its central directory is damaged"):
        whole(checkpoint, "a")


def test_an_item_never_has_the_byte_order_of_another(tmp_path: Path) -> None:
    checkpoint = with_items(tmp_path, *map(hostile_items.byteorder_behind_the_values, (b"little", b"middle")))
    with pytest.raises(UnsupportedCheckpoint, match=r"^'a', chunk at \(8, 0\)"):
        whole(checkpoint, "a")


def test_a_directory_that_reaches_into_its_end_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match="its central directory is damaged"):
        whole(with_items(tmp_path, hostile_items.directory_over_its_end()), "a")


@pytest.mark.parametrize(
    "names", [("data.pkl",), ("byteorder",), ("data/0",), ("data.pkl", "DATA.PKL"), ("data/0", "Data/0")]
)
def test_two_entries_of_one_name_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    """torch takes the first one, and does not tell capitals from small letters."""
    with pytest.raises(BrokenCheckpoint, match=f"it has two entries {names[-1]}\\."):
        whole(with_items(tmp_path, hostile_items.twice(*names)), "a")


# data.pkl


def layout_of(value: object) -> Any:
    parts = item_parts(torch_item(value))
    return parse_arrangement(next(content for name, content in parts.items() if name.endswith("data.pkl")))


def test_layout_of_a_view() -> None:
    view = torch.arange(24.0).reshape(4, 6)[1:3, ::2]
    layout = layout_of(view)
    assert (layout.dtype.name, layout.shape, layout.strides, layout.offset) == ("float32", (2, 3), (6, 2), 6)
    assert not layout.row_major


@pytest.mark.parametrize("value", [{"a": 1}, [torch.zeros(2)], torch.nn.Linear(1, 1), torch.zeros(2).to_sparse(), None])
def test_layout_of_something_else_than_a_tensor(value: object) -> None:
    with pytest.raises(DcptoolsError):
        layout_of(value)


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((), (), True),
        ((3, 4), (4, 1), True),
        ((3, 4), (1, 3), False),
        ((1, 4), (77, 1), True),  # a stride of one element says nothing
        ((3, 0), (5, 9), True),  # nor one of none
        ((2, 2), (1, 1), False),
        ((2,), (0,), False),
    ],
)
def test_row_major(shape: tuple[int, ...], strides: tuple[int, ...], expected: bool) -> None:
    assert is_row_major(shape, strides) is expected


# Views


@given(data=st.data())
def test_a_region_of_a_view_is_where_numpy_finds_it(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Any box of a tensor, some of its dimensions dropped, new ones of size 1 added, in any order."""
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=4)))
    stored = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    box = [(start, data.draw(st.integers(start + 1, size))) for start, size in zip(starts, shape, strict=True)]
    viewed = stored[as_slices(box)]
    offset = sum(a * s for (a, _), s in zip(box, row_major(shape), strict=True))
    for axis in reversed(range(viewed.ndim)):
        if viewed.shape[axis] == 1 and data.draw(st.booleans()):
            viewed = viewed[(slice(None),) * axis + (0,)]
    viewed = viewed.transpose(data.draw(st.permutations(range(viewed.ndim))))
    if data.draw(st.booleans()):
        viewed = viewed[None]
    view = View("a", viewed.shape, tuple(s // 4 for s in viewed.strides), offset)
    region = region_of(data, view.shape)
    expected = viewed[as_slices(region)]
    out = np.zeros(expected.shape, np.uint32)
    directory = saved.save_chunks(
        tmp_path_factory.mktemp("view"), {"a": [((0,) * stored.ndim, torch.from_numpy(stored))]}
    )
    read_view(TensorReader(read(directory)["a"]), view, region, out)
    assert np.array_equal(out.view(np.float32), expected)


def test_one_expert_of_a_stack(tmp_path: Path) -> None:
    stack = torch.arange(24.0).reshape(4, 3, 2)
    reader = TensorReader(read(saved.save(tmp_path, {"a": stack}))["a"])
    out = np.empty((2, 3), reader.bits)
    read_view(reader, View("a", (2, 3), (1, 2), 2 * 6), [(0, 2), (0, 3)], out)
    assert out.view("f4").tolist() == stack[2].t().tolist()


def test_a_view_of_a_tensor_without_elements(tmp_path: Path) -> None:
    reader = TensorReader(read(saved.save(tmp_path, {"a": torch.zeros(0, 5)}))["a"])
    read_view(reader, View.whole(reader.tensor), [(0, 0), (0, 5)], np.empty((0, 5), reader.bits))


@given(data=st.data())
def test_any_view_is_what_numpy_sees(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Every second row, a diagonal, what runs across the rows, the same element again: whatever stays in the tensor."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    stored = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    offset = data.draw(st.integers(0, stored.size - 1))
    sizes, strides, room = [], [], stored.size - 1 - offset
    for _ in range(data.draw(st.integers(0, 3))):
        strides.append(data.draw(st.integers(0, stored.size)))
        sizes.append(data.draw(st.integers(1, min(6, room // strides[-1] + 1 if strides[-1] else 6))))
        room -= (sizes[-1] - 1) * strides[-1]
    view = View("a", tuple(sizes), tuple(strides), offset)
    expected = np.lib.stride_tricks.as_strided(stored.ravel()[offset:], sizes, [4 * stride for stride in strides])
    cut = data.draw(st.integers(1, shape[-1]))
    chunks = [((0,) * (stored.ndim - 1) + (at,), stored[..., at : at + cut]) for at in range(0, shape[-1], cut)]
    directory = saved.save_chunks(
        tmp_path_factory.mktemp("view"), {"a": [(at, torch.from_numpy(part.copy())) for at, part in chunks]}
    )
    reader = TensorReader(read(directory)["a"])
    region = region_of(data, view.shape)
    out = np.zeros([stop - start for start, stop in region], np.uint32)
    read_view(reader, view, region, out)
    assert np.array_equal(out.view(np.float32), expected[as_slices(region)])
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, view.numel)] * 2)))
    row = np.zeros(stop - start, np.uint32)
    read_elements(reader, view, start, stop, row)
    assert row.view(np.float32).tolist() == expected.ravel()[start:stop].tolist()


def test_rows_in_another_order_are_read_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rotary permutation of a head: even rows first, then the odd ones. All of it lies close together."""
    values = torch.arange(8 * 100.0).reshape(8, 100)
    reader = TensorReader(read(saved.save(tmp_path, {"a": values}))["a"])
    reader.open()
    found = count_read(monkeypatch)
    out = np.empty((2, 4, 100), reader.bits)
    read_view(reader, View("a", (2, 4, 100), (100, 200, 1), 0), [(0, 2), (0, 4), (0, 100)], out)
    assert out.view("f4").reshape(8, 100)[:, 0].tolist() == [0, 200, 400, 600, 100, 300, 500, 700]
    assert found == [8 * 100 * 4]


@pytest.mark.parametrize(
    ("shape", "strides", "offset"), [((2, 2), (1,), 0), ((2,), (-1,), 1), ((-1,), (1,), 0), ((2,), (1,), -1)]
)
def test_numbers_that_make_no_view_are_refused(shape: Any, strides: Any, offset: int) -> None:
    with pytest.raises(UsageError, match="is not a view"):
        View("a", shape, strides, offset)


def test_a_view_that_leaves_its_tensor_is_refused(tmp_path: Path) -> None:
    reader = TensorReader(read(saved.save(tmp_path, {"a": torch.arange(12.0).reshape(6, 2)}))["a"])
    with pytest.raises(BrokenCheckpoint, match="has 12 elements, and none at 10:14"):
        read_view(reader, View("a", (2, 2), (2, 1), 10), [(0, 2), (0, 2)], np.empty((2, 2), reader.bits))


# Cutting into pieces


SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


def covered(shape: tuple[int, ...], regions: list[Region]) -> set[int]:
    """How often the elements are in a region."""
    count = np.zeros(shape, int)
    for region in regions:
        count[as_slices(region)] += 1
    return set(count.ravel().tolist())


@given(SHAPES, st.integers(1, 50))
def test_ranges_follow_each_other_and_cover_all(shape: tuple[int, ...], most: int) -> None:
    found = list(ranges(shape, most))
    assert list(itertools.chain(*(range(start, stop) for start, stop in found))) == list(range(math.prod(shape)))
    assert all(0 < stop - start <= most for start, stop in found)


def test_ranges_cut_no_short_row() -> None:
    assert list(ranges((5, 10), 29)) == [(0, 20), (20, 40), (40, 50)]
    assert list(ranges((2, 2, 5), 25)) == [(0, 20)]
    assert list(ranges((2, 10), 6)) == [(0, 6), (6, 12), (12, 18), (18, 20)]
    assert list(ranges((), 1)) == [(0, 1)]
    assert list(ranges((3, 0), 1)) == []


@given(SHAPES, st.data())
def test_boxes_are_a_range_of_elements_one_after_the_other(shape: tuple[int, ...], data: st.DataObject) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    start = data.draw(st.integers(0, numbers.size))
    stop = data.draw(st.integers(start, numbers.size))
    found = [numbers[as_slices(region)].ravel().tolist() for region in boxes(shape, start, stop)]
    assert list(itertools.chain(*found)) == list(range(start, stop))
    assert all(found) and len(found) <= max(1, 2 * len(shape) - 1)


@given(SHAPES, st.integers(1, 50), st.randoms())
def test_tiles_cover_every_element_once(shape: tuple[int, ...], most: int, random: Any) -> None:
    if 0 in shape:
        return
    strides = list(row_major(shape))
    random.shuffle(strides)
    regions = list(tiles(shape, strides, most))
    assert covered(shape, list(regions)) == {1}
    assert all(0 < math.prod(stop - start for start, stop in region) <= most for region in regions)


def test_tiles_are_long_in_both_orders() -> None:
    regions = list(tiles((1000, 1000), (1, 1000), 10_000))
    assert regions[0] == [(0, 100), (0, 100)]
    assert len(regions) == 100
