"""The compiled part of the writer does what the Python code does, or leaves it alone."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import saved
from checkpoints.edit import flip_value
from reference import full_load, read_files, saved_files

import dcptools
from dcptools.errors import BrokenCheckpoint, Cancelled, ChecksumError
from dcptools.storage import LocalSink, LocalSource
from dcptools.tensors import Checksums
from dcptools.writer import _engine

native: Any = pytest.importorskip("dcptools.writer._native", reason="the compiled part is not there")
if not native.LEVELS:
    pytest.skip("this CPU has no AVX2", allow_module_level=True)
AT_ONCE = 512 << 10  # bytes that it writes at once


@pytest.fixture(params=native.LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    """Each kind of vector instructions that this CPU has."""
    return str(request.param)


class Files:
    """A file to read from and one to write to."""

    def __init__(self, directory: Path) -> None:
        self.source = os.open(directory / "source", os.O_RDWR | os.O_CREAT)
        self.target = os.open(directory / "target", os.O_RDWR | os.O_CREAT)
        self.memory = memoryview(bytearray(native.MEMORY_BYTES))

    def copy(self, level: str, data: bytes, cuts: list[int], start: int, *, casts: bool) -> tuple[Any, bytes]:
        """Copy ``data`` in pieces, which end at ``cuts``; what the function says, and what it wrote."""
        os.pwrite(self.source, data, 0)
        os.ftruncate(self.target, 0)
        pieces = tuple((self.source, a, b - a) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True))
        said = native.copy(level, casts, pieces, self.target, start, self.memory)
        written = os.pread(self.target, start + len(data) + 1, 0)
        assert not any(written[:start])
        return said, written[start:]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    opened = Files(tmp_path)
    yield opened
    os.close(opened.source)
    os.close(opened.target)


def random_bytes(nbytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


def cast_by_torch(data: bytes) -> bytes:
    values = torch.from_numpy(np.frombuffer(data, "i4").copy()).view(torch.float32)
    return values.to(torch.bfloat16).view(torch.int16).numpy().tobytes()


def ordinary(nbytes: int, seed: int = 0) -> bytes:
    """Any float32 but NaN, Inf, and what becomes Inf."""
    bits = np.frombuffer(random_bytes(nbytes, seed), "u4").copy()
    bits[bits & 0x7FFFFFFF >= 0x7F7F8000] &= 0xBFFFFFFF
    return bits.tobytes()


LENGTHS = [*range(70), *range(120, 140), *range(250, 280), 511, 512, 777, 1024, 4095]
LONG = [(128 << 10) - 1, 128 << 10, (128 << 10) + 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE + 12345]


@pytest.mark.parametrize("start", [0, 1, 7, AT_ONCE - 1, AT_ONCE, 3 * AT_ONCE - 100])
def test_bytes_are_copied_and_their_checksum_is_told(level: str, start: int, files: Files) -> None:
    for nbytes in [*LENGTHS, *LONG]:
        data = random_bytes(nbytes, nbytes)
        said, written = files.copy(level, data, [], start, casts=False)
        assert (said, written) == ([zlib.crc32(data)], data), nbytes


@pytest.mark.parametrize("start", [0, 1, 2, 7, AT_ONCE - 2, AT_ONCE - 1, AT_ONCE, 3 * AT_ONCE - 100])
def test_values_are_cast_as_torch_does(level: str, start: int, files: Files) -> None:
    for count in [*LENGTHS, *LONG]:
        data = ordinary(4 * count, count)
        said, written = files.copy(level, data, [], start, casts=True)
        assert (said, written) == ([zlib.crc32(data)], cast_by_torch(data)), count


@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("start", [0, 5, AT_ONCE - 1])
def test_pieces_lie_one_behind_the_other(level: str, casts: bool, start: int, files: Files) -> None:
    cuts = [0, 4, 8, 100, 100, 1000, 150_000, 900_004, 900_008, 1_500_000]
    data = ordinary(2_000_000)
    said, written = files.copy(level, data, cuts, start, casts=casts)
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert said == [zlib.crc32(piece) for piece in pieces]
    assert written == (cast_by_torch(data) if casts else data)


def test_every_way_to_round(level: str, files: Files) -> None:
    """Each sign, exponent and upper half of the mantissa, just below, at and above each tie."""
    upper = np.arange(1 << 16, dtype="u4") << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], "u4")
    bits = (upper[:, None] | low).reshape(-1)
    bits = bits[bits & 0x7FFFFFFF < 0x7F7F8000]
    said, written = files.copy(level, bits.tobytes(), [], 0, casts=True)
    assert said is not None
    assert written == cast_by_torch(bits.tobytes())


@pytest.mark.long
def test_every_float32_is_cast_as_torch_does(files: Files) -> None:
    for first in range(0, 1 << 32, 1 << 24):
        bits = np.arange(first, first + (1 << 24), dtype=np.uint32)
        bits = bits[bits & 0x7FFFFFFF < 0x7F7F8000]
        said, written = files.copy(native.LEVELS[0], bits.tobytes(), [], 0, casts=True)
        assert said == [zlib.crc32(bits.tobytes())], hex(first)
        assert written == cast_by_torch(bits.tobytes()), hex(first)


@pytest.mark.parametrize("value", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0x7F7F8000, 0xFF7FFFFF])
def test_inf_and_nan_are_left_alone(level: str, value: int, files: Files) -> None:
    """Also what becomes Inf. It is seen wherever it stands."""
    for count in (1, 15, 16, 17, 40, 100_000):
        for at in {0, count // 2, max(0, count - 17), count - 1}:
            bits = np.frombuffer(ordinary(4 * count), "u4").copy()
            bits[at] = value
            assert files.copy(level, bits.tobytes(), [], 0, casts=True)[0] is None, (count, at)
            assert files.copy(level, bits.tobytes(), [], 0, casts=False)[0] is not None


def test_the_largest_value_that_stays_finite_is_cast(level: str, files: Files) -> None:
    bits = np.full(33, 0x7F7F7FFF, "u4")
    said, written = files.copy(level, bits.tobytes(), [], 0, casts=True)
    assert said is not None
    assert written == cast_by_torch(bits.tobytes())


def test_a_file_that_cannot_be_read_or_written(level: str, files: Files) -> None:
    copy, memory = native.copy, files.memory
    os.pwrite(files.source, bytes(1000), 0)
    assert copy(level, False, ((files.source, 900, 100),), files.target, 0, memory) == [zlib.crc32(bytes(100))]
    assert copy(level, False, ((files.source, 901, 100),), files.target, 0, memory) is None  # it is too short
    assert copy(level, False, ((-1, 0, 100),), files.target, 0, memory) is None
    assert copy(level, False, ((files.source, 0, 100),), -1, 0, memory) is None
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert copy(level, False, ((files.source, 0, 100),), full, 0, memory) is None
    finally:
        os.close(full)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"level": "avx1024"}, ValueError),
        ({"pieces": ((0, -1, 4),)}, ValueError),
        ({"pieces": ((0, 0, -4),)}, ValueError),
        ({"pieces": ((0, 0, 6),)}, ValueError),  # no whole number of float32
        ({"pieces": ((0, 0, 4), (0, 0))}, TypeError),
        ({"pieces": ((0, 0, 4), None)}, TypeError),
        ({"pieces": ((0, 1 << 63, 4),)}, OverflowError),
        ({"start": -1}, ValueError),
        ({"memory": memoryview(bytearray(native.MEMORY_BYTES - 1))}, ValueError),
        ({"memory": memoryview(bytes(native.MEMORY_BYTES))}, (TypeError, BufferError)),  # read-only
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], error: type[Exception], level: str, files: Files) -> None:
    given = {"level": level, "pieces": ((files.source, 0, 4),), "start": 0, "memory": files.memory, **change}
    with pytest.raises(error):
        native.copy(given["level"], True, given["pieces"], files.target, given["start"], given["memory"])
    assert os.fstat(files.target).st_size == 0


# In the engine


@pytest.fixture
def python_writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """File and start of what is written by Python code from now on."""
    write, calls = LocalSink.write, []

    def recorded(self: LocalSink, name: str, start: int, data: memoryview) -> None:
        calls.append((name, start))
        write(self, name, start, data)

    monkeypatch.setattr(LocalSink, "write", recorded)
    return calls


def converted(directory: Path, out: Path, dtype: str = "bfloat16", **options: Any) -> dcptools.Report:
    """Write it, and compare the files with those of torch and safetensors."""
    plan = dcptools.plan(directory, dtype=dtype, shard_size=10**10)
    report = dcptools.write(plan, out, fsync=False, **options)
    state = {key.removeprefix("model."): t for key, t in full_load(directory).items()}
    assert read_files(out) == saved_files(state, plan)
    return report


def test_plain_values_are_all_copied_by_it(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_writes: list[tuple[str, int]]
) -> None:
    monkeypatch.setattr(_engine, "LEVEL", level)
    state = {f"model.model.{n}.w": torch.randn(300, 1000) for n in range(9)} | {"model.model.n": torch.arange(5)}
    for dtype in ("bfloat16", "keep"):
        report = converted(saved.save(tmp_path / f"a-{dtype}", state), tmp_path / f"out-{dtype}", dtype)
        assert (report.items_checked, report.items_unchecked) == (10, 0)
    assert [start for name, start in python_writes if name.endswith(".safetensors")] == [0, 0]  # the headers


def test_a_block_with_something_unusual_is_done_by_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_writes: list[tuple[str, int]]
) -> None:
    """And only that one; its bytes are counted once, or they would be read again for their checksum."""
    monkeypatch.setattr(Checksums, "_read_through", lambda self, item: pytest.fail("it was read again"))
    state = {f"model.model.{n}.w": torch.randn(1 << 20) for n in range(12)}
    state["model.model.5.w"][12345] = torch.nan
    state["model.model.5.w"][12346] = 3.4e38
    report = converted(saved.save(tmp_path / "a", state), tmp_path / "out", workers=1)
    assert len(python_writes) == 2  # the header and one block
    assert [f.message for f in report.found_while_writing] == ["1 finite values became Inf in the cast"]
    assert (report.items_checked, report.items_unchecked) == (12, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "keep"])
def test_a_flipped_bit_is_noticed(dtype: str, tmp_path: Path) -> None:
    directory = saved.save(tmp_path / "a", {"model.model.w": torch.randn(50_000), "model.model.v": torch.ones(3)})
    flip_value(directory, "model.model.w", byte=100_001)
    with pytest.raises(ChecksumError, match=r"^'model.model.w', chunk at"):
        dcptools.convert(directory, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the one that the Python code raises."""
    directory = saved.save(tmp_path / "a", {"model.model.w": torch.randn(50_000)})
    (file,) = directory.glob("*.distcp")
    copy = native.copy

    def cut_first(*given: Any) -> Any:
        os.truncate(file, 100_000)
        return copy(*given)

    monkeypatch.setattr(native, "copy", cut_first)
    with pytest.raises(BrokenCheckpoint, match="ends at byte 100,000"):
        dcptools.convert(directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_in_many_files_does_not_open_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    copy = native.copy

    def counting(level: str, casts: bool, pieces: tuple[tuple[int, int, int], ...], *rest: Any) -> Any:
        opened.append(len({file for file, _, _ in pieces}))
        return copy(level, casts, pieces, *rest)

    monkeypatch.setattr(native, "copy", counting)
    rows = torch.randn(200, 10)
    placed = {"model.model.w": [((n, 0), rows[n : n + 1].clone()) for n in range(200)]}
    directory = saved.save_chunks(tmp_path / "a", placed, files=200)
    converted(directory, tmp_path / "out", "keep", workers=4)
    assert sum(opened) >= 200
    assert max(opened) == 256 // 4  # all workers together not more than what a source keeps open


def test_cancelling_does_not_wait_for_the_rest_of_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = saved.save(tmp_path / "a", {"model.model.w": torch.randn(1 << 20)})  # two slabs, one block
    copy, cancel, calls = native.copy, threading.Event(), []

    def slow(*given: Any) -> Any:
        calls.append(given)
        cancel.set()
        time.sleep(0.5)  # it is looked for 20 times a second
        return copy(*given)

    monkeypatch.setattr(native, "copy", slow)
    with pytest.raises(Cancelled):
        dcptools.convert(directory, tmp_path / "out", workers=1, cancel=cancel)
    assert len(calls) == 1
    assert not (tmp_path / "out").exists()


def test_values_in_many_small_pieces_are_left_to_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_writes: list[tuple[str, int]]
) -> None:
    monkeypatch.setattr(_engine, "MAX_PIECES", 20)
    for count in (20, 21):
        state = {f"model.model.{n}": torch.randn(7) for n in range(count)}
        converted(saved.save(tmp_path / f"a-{count}", state), tmp_path / f"out-{count}")
    assert len([start for _, start in python_writes if start]) == 1


def test_places_without_descriptors_are_left_to_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_writes: list[tuple[str, int]]
) -> None:
    directory = saved.save(tmp_path / "a", {"model.model.w": torch.randn(50_000)})
    for number, place in enumerate((LocalSource, LocalSink)):
        with monkeypatch.context() as patched:
            name = "open_file" if place is LocalSource else "descriptor"
            patched.setattr(place, name, lambda self, name: None)
            converted(directory, tmp_path / f"out-{number}")
    assert len([start for _, start in python_writes if start]) == 2


def test_a_disk_that_takes_no_more_is_left_to_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_writes: list[tuple[str, int]]
) -> None:
    """Which tries again, and raises what the system says."""
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(LocalSink, "descriptor", lambda self, name: full)
    try:
        converted(saved.save(tmp_path / "a", {"model.model.w": torch.randn(50_000)}), tmp_path / "out")
    finally:
        os.close(full)
    assert len([start for _, start in python_writes if start]) == 1
