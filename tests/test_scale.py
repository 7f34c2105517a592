"""What takes time or memory for each key, chunk or output is done once, and not again for each of the others."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import saved
from safetensors.torch import load_file

import dcptools
from dcptools._collector import no_collections, what_is_there_stays
from dcptools._parallel import MAX_WORKERS
from dcptools.checkpoint import StoredTensor
from dcptools.checkpoint.metadata import parse
from dcptools.storage import MOST_FETCHED_BYTES, LocalSource
from dcptools.storage.source import ENOUGH_AT_HAND
from dcptools.tensors import SMALL_BYTES, TensorReader, View, frames, read_elements
from dcptools.tensors.frames import MOST_BYTES
from dcptools.writer import engine
from dcptools.writer.cut import Sizes
from tests.bench import stamped

PAGE, MB = 4096, 1 << 20  # bytes
SHAPES = {"mlp.weight": (300, 200), "norm.weight": (16,), "proj.weight": (100, 100), "proj.bias": (100,)}


def small_tensors(count: int) -> dict[str, torch.Tensor]:
    return {f"layers.{number}.weight": torch.full((3,), float(number)) for number in range(count)}


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_as_it_was_even_after_an_error(collecting: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with pytest.raises(ZeroDivisionError), no_collections():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_what_was_there_is_looked_at_again_afterwards() -> None:
    with what_is_there_stays():
        assert gc.get_freeze_count() > 0
        with what_is_there_stays():  # of another thread: the first one ends it
            pass
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_what_is_made_without_collections_is_old_afterwards() -> None:
    with no_collections():
        made = [[] for _ in range(1000)]
    assert any(each is made[0] for each in gc.get_objects(generation=2))


def test_what_somebody_froze_stays_frozen() -> None:
    with what_is_there_stays():
        with no_collections():
            pass
        assert gc.get_freeze_count() > 0


def test_what_was_unpickled_goes_as_values_are_made_of_it(tmp_path: Path) -> None:
    data = (saved.save(tmp_path / "in", {"model": small_tensors(2000)}) / ".metadata").read_bytes()
    parse(data, "metadata")  # what is made once
    tracemalloc.start()
    try:
        parse(data, "metadata")
        assert tracemalloc.get_traced_memory()[1] < 2000 * 1700, "bytes for each tensor; 1,860 if all of it stays"
    finally:
        tracemalloc.stop()


def test_preview_and_plan_make_their_values_without_collections(tmp_path: Path) -> None:
    checkpoint = dcptools.read(saved.save(tmp_path / "in", {"model": small_tensors(2000)}))
    collections = []

    def count(phase: str, info: dict[str, int]) -> None:
        collections.append(info)

    gc.collect()
    gc.callbacks.append(count)
    try:
        dcptools.plan(dcptools.preview(checkpoint))
    finally:
        gc.callbacks.remove(count)
    assert len(collections) <= 4  # of the few objects that are made before and after


def test_what_an_error_leaves_behind_is_not_kept_as_something_old() -> None:
    """As of a checkpoint that could not be read, whose files stay open as long as its error does."""

    class Own:
        pass

    own: Any = Own()
    own.own, there = own, weakref.ref(own)
    with pytest.raises(ZeroDivisionError), no_collections():
        del own
        raise ZeroDivisionError
    gc.collect(0)
    assert there() is None


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many readers there were whenever one was made."""
    readers: weakref.WeakSet[TensorReader] = weakref.WeakSet()
    counts: list[int] = []

    class Counted(TensorReader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            readers.add(self)
            counts.append(len(readers))

    monkeypatch.setattr(engine, "TensorReader", Counted)
    return counts


def test_readers_of_small_tensors_go_as_soon_as_their_values_are_written(tmp_path: Path, alive: list[int]) -> None:
    tensors = small_tensors(400)
    plan = dcptools.plan(saved.save(tmp_path / "in", {"model": tensors}), dtype="keep")
    sizes = Sizes(block_parts=8, blocks_together=2, items_together=16)
    dcptools.write(plan, tmp_path / "out", fsync=False, workers=1, sizes=sizes)
    assert max(alive) < 100
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def test_few_tensors_of_many_ranks_are_open_at_once(tmp_path: Path, alive: list[int]) -> None:
    stamped.save(tmp_path / "in", {f"model.layers.{n}.w": stamped.Stored((32, 4), 32) for n in range(100)}, 32)
    plan = dcptools.plan(tmp_path / "in", dtype="keep")
    sizes = Sizes(block_items=64, blocks_together=2)
    dcptools.write(plan, tmp_path / "out", fsync=False, workers=1, sizes=sizes)
    assert len(alive) == 100 and max(alive) < 30


def test_the_chunks_of_a_stack_are_looked_at_once_for_all_its_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    chunks = StoredTensor.chunks.fget  # type: ignore[attr-defined]

    def counted(tensor: StoredTensor) -> Any:
        looked.append(tensor.key)
        return chunks(tensor)

    checkpoint = dcptools.read(saved.save(tmp_path, {"model": {"experts": torch.arange(60.0).reshape(10, 6)}}))
    monkeypatch.setattr(StoredTensor, "chunks", property(counted))
    reader = TensorReader(checkpoint["model.experts"])
    out = np.empty(6, reader.bits)
    for expert in range(10):
        reader.open()
        read_elements(reader, View("model.experts", (6,), (1,), 6 * expert), 0, 6, out)
        assert out.view("float32").tolist() == list(range(6 * expert, 6 * expert + 6))
    assert looked == ["model.experts"]


def test_nearly_all_reads_are_announced_before_they_wait_for_a_slow_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"layers.{n}.{name}": torch.randn(shape) for n in range(8) for name, shape in SHAPES.items()}
    plan = dcptools.plan(saved.save(tmp_path / "in", {"model": tensors}), dtype="keep")
    there: set[tuple[str, int]] = set()  # pages
    waited, reads, told = [], [], []
    read_into = LocalSource.read_into

    def pages(name: str, start: int, nbytes: int) -> set[tuple[str, int]]:
        return {(name, page) for page in range(start // PAGE, (start + nbytes - 1) // PAGE + 1)}

    def announced(self: LocalSource, name: str, start: int, nbytes: int) -> None:
        told.append(nbytes)
        there.update(pages(name, start, nbytes))

    def read(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        reads.append(name)
        if new := pages(name, start, out.nbytes) - there:
            waited.append((name, start, out.nbytes))
            there.update(new)
        read_into(self, name, start, out)

    monkeypatch.setattr(LocalSource, "at_hand", lambda _, *range_: pages(*range_) <= there)
    monkeypatch.setattr(LocalSource, "read_ahead", announced)
    monkeypatch.setattr(LocalSource, "read_into", read)
    dcptools.write(plan, tmp_path / "out", fsync=False, workers=2, sizes=Sizes(slab_bytes=1 << 16, items_together=12))
    assert len(waited) <= 2 < len(reads) / 20, waited
    assert len(told) <= len(tensors) / 3  # items that lie side by side, from the first byte to the last
    assert sum(told) >= sum(chunk.nbytes for tensor in plan.checkpoint.tensors.values() for chunk in tensor.chunks)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def test_what_is_at_hand_is_not_announced_and_neighbours_are_announced_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []
    told: list[tuple[str, int, int]] = []

    def at_hand(_: LocalSource, name: str, start: int, nbytes: int) -> bool:
        looked.append(start)
        return name == "near" or nbytes == 1

    monkeypatch.setattr(LocalSource, "at_hand", at_hand)
    monkeypatch.setattr(LocalSource, "read_ahead", lambda _, *range_: told.append(range_))
    LocalSource(".").will_read(("near", place, 1) for place in range(100))
    assert len(looked) == ENOUGH_AT_HAND and not told
    LocalSource(".").will_read(("far", place * MB, MB) for place in reversed(range(9)))
    assert told == [("far", 0, 4 * MB), ("far", 4 * MB, 4 * MB), ("far", 8 * MB, MB)]
    told.clear()
    small = [("far", place, 1) for place in range(ENOUGH_AT_HAND)]
    LocalSource(".").will_read([*small, ("far", MB, MB)])
    assert told == [("far", 0, ENOUGH_AT_HAND), ("far", MB, MB)]  # small ones may have been read with a neighbour


@pytest.mark.parametrize(
    "here", [range(50), range(50, 100), range(85), range(15, 100), range(0, 100, 2), range(100)], ids=str
)
@pytest.mark.parametrize("ranks", [1, 8])
def test_what_is_missing_is_announced_where_some_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: range, ranks: int
) -> None:
    tensors = {f"layers.{n}": stamped.Stored((128, 64), ranks) for n in range(300)}
    stamped.save(tmp_path / "in", tensors, ranks)
    plan = dcptools.plan(tmp_path / "in", dtype="keep")
    nbytes = {path.name: path.stat().st_size for path in (tmp_path / "in").glob("*.distcp")}
    told: set[tuple[str, int]] = set()  # pages

    def at_hand(_: LocalSource, name: str, start: int, count: int) -> bool:
        return (start + count // 2) * 100 // nbytes[name] in here  # per cent of a file

    def announced(_: LocalSource, name: str, start: int, count: int) -> None:
        told.update((name, page) for page in range(start // PAGE, (start + count - 1) // PAGE + 1))

    monkeypatch.setattr(LocalSource, "at_hand", at_hand)
    monkeypatch.setattr(LocalSource, "read_ahead", announced)
    dcptools.write(plan, tmp_path / "out", fsync=False)
    pages = [(name, page) for name, count in nbytes.items() for page in range(count // PAGE)]
    missing = {(name, page) for name, page in pages if page * PAGE * 100 // nbytes[name] not in here}
    assert len(missing - told) <= len(missing) / 10
    assert not told if here == range(100) else missing


@pytest.mark.parametrize("workers", range(1, MAX_WORKERS + 1))
def test_all_that_waits_in_memory_has_room_there(workers: int) -> None:
    far: Any = SimpleNamespace(ahead=True)
    sizes = Sizes().for_source(far, workers)
    values = (sizes.blocks_read_ahead + sizes.blocks_together) * 2 * sizes.block_bytes
    items = 3 * sizes.items_together * SMALL_BYTES
    assert workers * (values + items) <= MOST_FETCHED_BYTES


@pytest.mark.parametrize(("tensors", "ranks"), [(4, 2500), (100, 100), (2500, 4)])
def test_far_items_are_announced_before_they_are_read_and_only_some_of_very_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: int, ranks: int
) -> None:
    many = {f"model.layers.{n}": stamped.Stored((ranks, 64), ranks) for n in range(tensors)}
    stamped.save(tmp_path / "in", many, 1)
    plan = dcptools.plan(tmp_path / "in", str(tensors * ranks * 64), dtype="keep")
    assert len(plan.files) >= 4
    places = np.sort([chunk.start for tensor in plan.checkpoint.tensors.values() for chunk in tensor.chunks])
    told, read, most = set[int](), set[int](), [0]
    lock, read_into = threading.Lock(), LocalSource.read_into

    def item(start: int) -> int:
        return int(np.searchsorted(places, start, "right"))

    def will_read(_: LocalSource, ranges: Iterable[tuple[str, int, int]]) -> None:
        starts = [start for _, start, _ in ranges]  # items are opened meanwhile
        with lock:
            told.update(map(item, starts))
            most.append(len(told - read))

    def read_announced(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        with lock:
            assert item(start) in told
            read.add(item(start))
        read_into(self, name, start, out)

    for attribute, value in (("ahead", True), ("will_read", will_read), ("read_into", read_announced)):
        monkeypatch.setattr(LocalSource, attribute, value)
    dcptools.write(plan, tmp_path / "out", fsync=False, workers=4)
    assert len(read) == tensors * ranks
    sizes = Sizes().for_source(plan.checkpoint.source, 4)
    in_blocks = (sizes.blocks_read_ahead + sizes.blocks_together) * sizes.block_items
    assert max(most) <= 4 * (3 * sizes.items_together + in_blocks) < tensors * ranks


def test_items_that_claim_to_be_huge_are_not_all_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamped.save(tmp_path, {"model.layers.0": stamped.Stored((128,), 128)}, 1)
    (tensor,) = dcptools.read(tmp_path).tensors.values()
    reader = TensorReader(tensor)
    assert len(list(frames([reader]))) == 128
    monkeypatch.setattr(StoredTensor, "place", lambda _, number: ("__0_0.distcp", number << 26, 60 << 20))
    assert 0 < sum(nbytes for _, _, nbytes in frames([reader])) <= MOST_BYTES < 128 * 60 << 20


def test_outputs_that_lie_side_by_side_in_one_tensor_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = torch.arange(6 * 300, dtype=torch.float32).reshape(6, 300)
    mapping = dcptools.preview(saved.save(tmp_path / "in", {"model": {"model.layers.0.experts": stack}}))
    (whole,) = mapping.outputs
    (view,) = whole.sources
    cut = tuple(
        replace(whole, name=f"{at}", shape=(300,), sources=(View(view.key, (300,), (1,), row * 300),))
        for at, row in enumerate((0, 1, 2, 4, 5, 3))
    )
    plan = dcptools.plan(replace(mapping, outputs=cut), dtype="keep")
    lengths = []
    read_into = LocalSource.read_into

    def counting(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        lengths.append(out.nbytes)
        read_into(self, name, start, out)

    monkeypatch.setattr(LocalSource, "read_into", counting)
    dcptools.write(plan, tmp_path / "out", fsync=False)
    assert [length for length in lengths if length % 1200 == 0] == [3 * 1200, 2 * 1200, 1200]
    written = load_file(tmp_path / "out" / "model.safetensors")
    for at, row in enumerate((0, 1, 2, 4, 5, 3)):
        assert torch.equal(written[f"{at}"], stack[row])
