"""Every stored byte that is converted is checked against the CRC-32 that was saved with it."""

from __future__ import annotations

import io
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from checkpoints import broken, saved
from checkpoints.edit import data_entry, flip_value, item_bytes, item_parts, location, replace_item
from hypothesis import given
from hypothesis import strategies as st

import dcptools
from dcptools.checkpoint import StoredTensor, read
from dcptools.errors import Cancelled, ChecksumError
from dcptools.storage import LocalSource
from dcptools.tensors import Checksums, Region, TensorReader, View, checksums, read_view


def read_regions(tensor: StoredTensor, regions: Sequence[Region], sums: Checksums) -> None:
    reader = TensorReader(tensor, sums)
    for region in regions:
        reader.read_region(region, np.empty([stop - start for start, stop in region], reader.bits))


def counts(sums: Checksums) -> dict[str, int]:
    return {"checked": sums.checked, "unchecked": sums.unchecked, "without": sums.without}


def test_whole_items_are_checked_once(tmp_path: Path) -> None:
    sums = Checksums()
    read_regions(read(broken.whole(tmp_path))[broken.W], [[(0, 6), (0, 4)]] * 2, sums)
    assert counts(sums) == {"checked": 3, "unchecked": 0, "without": 0}


def test_a_flipped_bit_names_tensor_and_file(tmp_path: Path) -> None:
    file, key = broken.flipped_bit(tmp_path)
    with pytest.raises(ChecksumError) as caught:
        read_regions(read(tmp_path)[key], [[(0, 6), (0, 4)]], Checksums())
    first, second, third = str(caught.value).splitlines()
    assert first == f"'{key}', chunk at (2, 0) of (2, 4) in {file}:"
    assert second.startswith("the stored bytes have the CRC-32 ")
    assert third == "The file was damaged after it was saved. Copy it again, or use another checkpoint."


def test_torch_does_not_notice_the_flipped_bit(tmp_path: Path) -> None:
    """Why all this is done; when torch starts to notice, this may go."""
    _, key = broken.flipped_bit(tmp_path)
    assert torch.load(io.BytesIO(item_bytes(tmp_path, key, 1))).shape == (2, 4)


@given(cuts=st.lists(st.integers(1, 29), unique=True), threads=st.integers(1, 4), data=st.data())
def test_pieces_in_any_order(
    cuts: list[int], threads: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However an item is cut, and in whatever order and by how many threads it is read: checked once, or a fault."""
    directory = saved.save_chunks(tmp_path_factory.mktemp("cut"), {"a": [((0, 0), torch.arange(60.0).reshape(30, 2))]})
    edges = [0, *sorted(cuts), 30]
    regions = data.draw(st.permutations([[(a, b), (0, 2)] for a, b in itertools.pairwise(edges)]))

    def run() -> Checksums:
        sums = Checksums()
        reader = TensorReader(read(directory)["a"], sums)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda r: reader.read_region(r, np.empty([b - a for a, b in r], reader.bits)), regions))
        return sums

    assert counts(run()) == {"checked": 1, "unchecked": 0, "without": 0}
    flip_value(directory, "a", data.draw(st.integers(0, 239)))
    with pytest.raises(ChecksumError):
        run()


def test_checking_costs_no_read_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if the pieces are read from the last to the first."""
    tensor = read(saved.save_chunks(tmp_path, {"a": [((0,), torch.arange(100.0))]}))["a"]
    reads: list[int] = []
    read_into = LocalSource.read_into

    def counting(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        reads.append(out.nbytes)
        read_into(self, name, start, out)

    monkeypatch.setattr(LocalSource, "read_into", counting)
    sums = Checksums()
    read_regions(tensor, [[(n, n + 25)] for n in (75, 50, 25, 0)], sums)
    assert counts(sums) == {"checked": 1, "unchecked": 0, "without": 0}
    assert reads[-4:] == [100] * 4
    assert sum(reads[:-4]) < 3072  # the archive around the values


def test_an_item_that_is_read_in_part_is_counted(tmp_path: Path) -> None:
    broken.flipped_bit(tmp_path)  # in row 2 or 3, which is not read whole
    sums = Checksums()
    read_regions(read(tmp_path)[broken.W], [[(0, 3), (0, 4)]], sums)
    assert counts(sums) == {"checked": 1, "unchecked": 1, "without": 0}


def read_rows(directory: Path, start: int, stop: int) -> Checksums:
    sums = Checksums()
    read_regions(read(directory)[broken.W], [[(start, stop), (0, 4)]], sums)
    return sums


def test_items_that_several_processes_read_are_put_together(tmp_path: Path) -> None:
    """Rows 0 to 2 and 3 to 5, of chunks with two rows each."""
    broken.whole(tmp_path)
    sums, other = read_rows(tmp_path, 0, 3), read_rows(tmp_path, 3, 6)
    assert counts(sums) == counts(other) == {"checked": 1, "unchecked": 1, "without": 0}
    sums.join(pickle.loads(pickle.dumps(other.parts())))
    assert counts(sums) == {"checked": 2, "unchecked": 0, "without": 0}
    alone = read_rows(tmp_path, 0, 3)
    alone.join([])
    assert counts(alone) == {"checked": 1, "unchecked": 1, "without": 0}


def test_a_flipped_bit_of_which_each_process_reads_a_part(tmp_path: Path) -> None:
    file, key = broken.flipped_bit(tmp_path)
    sums, other = read_rows(tmp_path, 0, 3), read_rows(tmp_path, 3, 6)
    with pytest.raises(ChecksumError) as caught:
        sums.join(other.parts())
    assert str(caught.value).startswith(f"'{key}', chunk at (2, 0) of (2, 4) in {file}:\n")


def test_items_without_a_checksum_are_counted(tmp_path: Path) -> None:
    sums = Checksums()
    read_regions(read(broken.no_checksums(tmp_path))[broken.W], [[(0, 6), (0, 4)]], sums)
    assert counts(sums) == {"checked": 0, "unchecked": 0, "without": 3}


def transposed() -> torch.Tensor:
    return torch.arange(40.0).reshape(5, 8).t()


def narrowed() -> torch.Tensor:
    return torch.arange(80.0).reshape(8, 10)[:, 2:7]


@pytest.mark.parametrize("make", [transposed, narrowed])
def test_an_item_in_another_order_is_read_through(make: Callable[[], torch.Tensor], tmp_path: Path) -> None:
    directory = saved.save_chunks(tmp_path, {"a": [((0, 0), make())]})
    sums = Checksums()
    read_regions(read(directory)["a"], [[(0, 1), (0, 1)]], sums)
    assert counts(sums) == {"checked": 1, "unchecked": 0, "without": 0}
    flip_value(directory, "a", 159)
    with pytest.raises(ChecksumError):
        read_regions(read(directory)["a"], [[(0, 1), (0, 1)]], Checksums())


def test_a_dense_item_that_is_wanted_in_another_order(tmp_path: Path) -> None:
    """Its columns are read with their neighbours, again and again; so it is read through, once."""
    directory = saved.save_chunks(tmp_path, {"a": [((0, 0), torch.arange(40.0).reshape(8, 5))]})

    def run() -> Checksums:
        sums = Checksums()
        reader = TensorReader(read(directory)["a"], sums)
        for row in range(5):
            read_view(reader, View("a", (5, 8), (1, 5), 0), [(row, row + 1), (0, 8)], np.empty((1, 8), reader.bits))
        return sums

    assert counts(run()) == {"checked": 1, "unchecked": 0, "without": 0}
    flip_value(directory, "a", 0)
    with pytest.raises(ChecksumError):
        run()


def test_the_memory_for_pieces_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "MAX_PIECES", 5)
    directory = saved.save_chunks(tmp_path, {"a": [((0,), torch.arange(100.0))]})
    sums = Checksums()
    read_regions(read(directory)["a"], [[(n, n + 1)] for n in range(5)], sums)
    assert counts(sums) == {"checked": 1, "unchecked": 0, "without": 0}


def test_unpacked_items_of_one_file_are_not_mixed_up(tmp_path: Path) -> None:
    """Two zstd items, half of each in turn: their pieces have the same places in what was unpacked."""
    state = {"a": torch.arange(8.0), "b": -torch.arange(8.0)}
    checkpoint, sums = read(saved.zstd(tmp_path, state)), Checksums()
    readers = [TensorReader(checkpoint[f"model.{key}"], sums) for key in state]
    for region, reader in (((0, 4), 0), ((4, 8), 1), ((4, 8), 0), ((0, 4), 1)):
        readers[reader].read_region([region], np.empty(4, np.uint32))
    assert counts(sums) == {"checked": 2, "unchecked": 0, "without": 0}


def test_replicas_are_not_counted(tmp_path: Path) -> None:
    sums = Checksums()
    read_regions(read(saved.replicated_chunks(tmp_path))["model.model.w"], [[(0, 4), (0, 3)]], sums)
    assert counts(sums) == {"checked": 2, "unchecked": 0, "without": 0}


def test_an_empty_item_has_nothing_to_check(tmp_path: Path) -> None:
    sums = Checksums()
    read_regions(read(saved.save(tmp_path, {"a": torch.zeros(0, 3)}))["a"], [[(0, 0), (0, 3)]], sums)
    assert counts(sums) == {"checked": 0, "unchecked": 0, "without": 0}


def test_reading_through_stops_when_the_run_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transpose is read through before its values are: of its 8 pieces not all are read."""
    cancel, read_into, found = threading.Event(), LocalSource.read_into, []

    def counting(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        if out.nbytes == checksums.PIECE_BYTES:
            cancel.set()
            time.sleep(0.2)  # until the calling thread has seen it
            found.append(start)
        read_into(self, name, start, out)

    monkeypatch.setattr(LocalSource, "read_into", counting)
    directory = saved.trained(tmp_path / "a", {"model.norm.weight": torch.zeros(1 << 10, 1 << 11).t()})
    with pytest.raises(Cancelled):
        dcptools.convert(directory, tmp_path / "out", cancel=cancel)
    assert len(found) < 8


# In a conversion


def convert(directory: Path, save_dir: Path) -> dcptools.Report:
    return dcptools.convert(directory, save_dir, dtype="keep", shard_size=40)


def test_the_report_counts_items(tmp_path: Path) -> None:
    report = convert(broken.whole(tmp_path / "a"), tmp_path / "out")
    assert (report.items_checked, report.items_unchecked, report.items_without_checksum) == (4, 0, 0)
    assert not [finding for finding in report.findings if finding.code == "no-checksum"]
    assert "checksums of 4 stored items verified;" in str(report)


def test_missing_checksums_are_an_info(tmp_path: Path) -> None:
    report = convert(broken.no_checksums(tmp_path / "a"), tmp_path / "out")
    assert (report.items_checked, report.items_unchecked, report.items_without_checksum) == (0, 0, 4)
    (finding,) = [finding for finding in report.findings if finding.code == "no-checksum"]
    assert (finding.severity, finding.message) == ("info", "no checksum was stored with 4 items")


@pytest.mark.parametrize("key", [broken.W, broken.B])
def test_a_flipped_bit_leaves_nothing(key: str, tmp_path: Path) -> None:
    flip_value(broken.whole(tmp_path / "a"), key, 7)
    file = location(tmp_path / "a", key).relative_path
    with pytest.raises(ChecksumError, match=rf"^'{key}', chunk at .* in {file}:\n"):
        convert(tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_in_a_zstd_item(tmp_path: Path) -> None:
    """zstd's own checksum is optional and torch does not ask for it, so the archive's tells."""
    state = {"model.w": torch.arange(4.0)}
    sound = item_bytes(saved.trained(tmp_path / "b", state, optimizer=False), "model.model.w")
    at = sound.index(item_parts(sound)[data_entry(item_parts(sound))])
    directory = saved.zstd(tmp_path / "a", state)
    replace_item(directory, "model.model.w", zstandard.compress(sound[:at] + b"\xff" + sound[at + 1 :]))
    with pytest.raises(ChecksumError, match=r"^'model.model.w', chunk at \(0,\) of \(4,\) in __0_0.distcp:\n"):
        convert(directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
