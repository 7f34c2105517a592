"""Records that follow each other are read in one step, and read the same as one by one."""

from __future__ import annotations

import gc
import io
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from checkpoints import saved
from checkpoints.edit import load_metadata
from checkpoints.hostile import text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from dcptools._pickle import machine as machine_module
from dcptools.checkpoint import metadata as metadata_module
from dcptools.checkpoint import records
from dcptools.checkpoint.metadata import RawMetadata
from dcptools.errors import BrokenCheckpoint

WHAT = "The pickle"


def read(data: bytes, *, in_steps: bool) -> RawMetadata:
    return metadata_module._checked(*metadata_module._loads(data, WHAT, in_steps=in_steps), WHAT, len(data))


def same(data: bytes) -> bool:
    return repr(read(data, in_steps=True)) == repr(read(data, in_steps=False))


class Counted:
    """How often a record was read by the machine itself."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Counted:
        handlers, build = machine_module._HANDLERS, machine_module._HANDLERS[ord("b")]

        def counting(machine: Any, at: int) -> int:
            self.count += 1
            return build(machine, at)

        self._patch = patch.dict(handlers, {ord("b"): counting})
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


def framed(metadata: object, nbytes: int) -> bytes:
    """Pickled with a FRAME about every ``nbytes`` bytes: it stands between any two opcodes."""
    stream = io.BytesIO()
    with patch.object(pickle._Framer, "_FRAME_SIZE_TARGET", nbytes):  # type: ignore[attr-defined]
        pickle._Pickler(stream, protocol=4).dump(metadata)  # type: ignore[attr-defined]
    return stream.getvalue()


MAKERS = [
    saved.trained, saved.zstd, saved.extra_state, saved.bare, saved.replicated_chunks, saved.megatron_like,
    saved.own_storage_info, saved.old_torch_metadata, saved.strided, saved.odd_names, saved.windows_paths,
]  # fmt: skip


@pytest.mark.parametrize("maker", MAKERS)
def test_checkpoints_read_the_same(maker: Any, tmp_path: Path) -> None:
    assert same((maker(tmp_path / "a") / ".metadata").read_bytes())


def test_nearly_all_records_are_read_in_steps(tmp_path: Path) -> None:
    """What is left: the first of each class, which names it, and the few that are not of tensors."""
    for maker in (saved.trained, saved.zstd, saved.bare):
        metadata = load_metadata(maker(tmp_path / maker.__name__))
        data = pickle.dumps(metadata, protocol=4)
        with Counted() as in_steps:
            read(data, in_steps=True)
        with Counted() as one_by_one:
            read(data, in_steps=False)
        tensors = sum(isinstance(entry, TensorStorageMetadata) for entry in metadata.state_dict_metadata.values())
        others = len(metadata.state_dict_metadata) - tensors
        assert one_by_one.count - in_steps.count > 5 * tensors - 10
        assert in_steps.count < one_by_one.count - 5 * tensors + 3 * others + 12


SAMPLES = sorted((Path(__file__).parent / "data" / "metadata").iterdir())


@pytest.mark.parametrize("path", SAMPLES, ids=[path.name for path in SAMPLES])
def test_what_versions_of_torch_wrote_is_read_in_steps(path: Path) -> None:
    """A change of the order in which torch pickles fields would cost a factor of eight, and no error would tell."""
    data = path.read_bytes()
    with Counted() as in_steps:
        raw = read(data, in_steps=True)
    with Counted() as one_by_one:
        read(data, in_steps=False)
    assert same(data)
    assert (len(raw.tensors), len(raw.start)) == (24, 50)
    assert in_steps.count < 10 < 190 < one_by_one.count
    assert raw.one_by_one < 5


def test_the_samples_are_of_several_versions() -> None:
    assert [path.name for path in SAMPLES] == ["2.10.0", "2.13.0", "2.2.2", "2.6.0"]


@pytest.mark.parametrize("nbytes", [1, 20, 77, 300])
def test_a_frame_may_begin_anywhere(nbytes: int, tmp_path: Path) -> None:
    metadata = load_metadata(saved.trained(tmp_path, saved.model_state(layers=1)))
    data = framed(metadata, nbytes)
    assert data.count(b"\x95") > 10
    assert same(data)
    assert repr(read(data, in_steps=True)) == repr(read(pickle.dumps(metadata, protocol=4), in_steps=True))


# --- any metadata -----------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**40, 2**55]) | st.integers(0, 2**40)
# "\u0114" has the byte of a MEMOIZE in it; 148 characters have it as their length; 300 take another opcode
TEXTS = st.sampled_from(["w", "\u0114\u0114", "x" * 148, "x" * 255, "x" * 300, "\u0114" * 74, ""]) | st.text(max_size=9)


@st.composite
def metadatas(draw: st.DrawFn) -> Metadata:
    """Nonsense in a sound form. Objects occur once or again and again, as they do in what one process gathered."""
    entries: dict[str, Any] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    files = draw(st.lists(TEXTS.filter(bool), min_size=1, max_size=3))
    share = draw(st.booleans())
    for key in draw(st.lists(TEXTS, unique=True, max_size=6)):
        dims = draw(st.sampled_from([0, 1, 2, 3, 5]))
        sizes = st.lists(NUMBERS, min_size=dims, max_size=dims).map(torch.Size)
        chunks, common = [], draw(sizes)
        for offsets in draw(st.lists(sizes, unique=True, max_size=5)):
            shape = draw(st.sampled_from([common, offsets])) if share and draw(st.booleans()) else draw(sizes)
            chunks.append(ChunkStorageMetadata(offsets, shape))
            index = MetadataIndex(
                key if share else (key + " ")[:-1],
                offsets if share else torch.Size(tuple(offsets)),
                draw(st.none() | st.integers(0, 70_000)),
            )
            storage[index] = _StorageInfo(draw(st.sampled_from(files)), draw(NUMBERS), draw(NUMBERS))
            if draw(st.integers(0, 4)) == 0:
                storage[index].transform_descriptors = draw(
                    st.lists(st.sampled_from(["stream.zstd/1", "x"]), max_size=2)
                )
        if draw(st.integers(0, 5)) == 0:
            entries[key] = BytesStorageMetadata()
            storage[MetadataIndex(key)] = _StorageInfo(files[0], draw(NUMBERS), 7)
        else:
            dtype = draw(st.sampled_from([torch.float32, torch.bool]))
            entries[key] = TensorStorageMetadata(TensorProperties(dtype), torch.Size([1] * dims), chunks)
    items = list(storage.items())
    draw(st.randoms()).shuffle(items)
    return Metadata(entries, {key: ("model", key) for key in entries}, dict(items))


def rows(metadata: Metadata) -> Iterator[tuple[Any, ...]]:
    """What is to be read of it: for each chunk, its place in the tensor and where it is stored."""
    stored = {(index.fqn, index.offset): info for index, info in metadata.storage_data.items()}
    for key, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            for chunk in entry.chunks:
                info = stored[key, chunk.offsets]
                yield key, tuple(chunk.offsets), tuple(chunk.sizes), info.relative_path, info.offset, info.length


def rows_read(raw: metadata_module.RawMetadata) -> Iterator[tuple[Any, ...]]:
    for tensor in raw.tensors:
        for row, (offsets, sizes) in enumerate(zip(tensor.offsets.tolist(), tensor.sizes.tolist(), strict=True)):
            at = tensor.first + row
            yield (
                tensor.key, tuple(offsets), tuple(sizes), raw.file_names[raw.file[at]], raw.start[at], raw.nbytes[at]
            )  # fmt: skip


@given(metadata=metadatas(), nbytes=st.sampled_from([50, 1000, 64 * 1024]), protocol=st.sampled_from([2, 4, 5]))
@settings(max_examples=300, deadline=None)
def test_any_metadata_reads_the_same(metadata: Metadata, nbytes: int, protocol: int) -> None:
    for data in (framed(metadata, nbytes), pickle.dumps(metadata, protocol=protocol)):
        try:
            expected = read(data, in_steps=False)
        except BrokenCheckpoint:  # a file called "..", for one
            with pytest.raises(BrokenCheckpoint):
                read(data, in_steps=True)
        else:
            assert repr(read(data, in_steps=True)) == repr(expected)
            assert list(rows_read(expected)) == list(rows(metadata))


def test_what_is_damaged_reads_the_same(tmp_path: Path) -> None:
    """Reading in steps never reads what reading one by one refuses."""
    sources = [(maker(tmp_path / maker.__name__) / ".metadata").read_bytes() for maker in (saved.bare, saved.zstd)]
    chance, read_all = random.Random(7), 0
    for _ in range(1500):
        source = chance.choice(sources)
        data, at, other = bytearray(source), chance.randrange(len(source)), chance.randrange(len(source))
        match chance.randrange(4):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                del data[at : at + chance.randrange(1, 9)]
            case 3:
                data[at:at] = source[other : other + chance.randrange(1, 40)]
        try:
            found = read(bytes(data), in_steps=True)
        except BrokenCheckpoint:
            continue
        read_all += 1
        assert repr(found) == repr(read(bytes(data), in_steps=False))
    assert read_all > 50


# --- records that occur again -----------------------------------------------------------------------------------


def four_tensors() -> Metadata:
    def entry() -> TensorStorageMetadata:
        chunks = [ChunkStorageMetadata(torch.Size((2 * n,)), torch.Size((2,))) for n in range(3)]
        return TensorStorageMetadata(TensorProperties(torch.float32), torch.Size((6,)), chunks)

    keys = ("a", "b", "c", "d")
    return Metadata(
        {key: entry() for key in keys},
        {key: (key,) for key in keys},
        {
            MetadataIndex(key, torch.Size((2 * n,)), n): _StorageInfo("f", 10 * m + n, 1)
            for m, key in enumerate(keys)
            for n in range(3)
        },
    )


def shared_entry(metadata: Any) -> None:
    metadata.state_dict_metadata["d"] = metadata.state_dict_metadata["b"]


def shared_chunks(metadata: Any) -> None:
    metadata.state_dict_metadata["d"].chunks = metadata.state_dict_metadata["b"].chunks


def shared_chunk(metadata: Any) -> None:
    metadata.state_dict_metadata["d"].chunks[1] = metadata.state_dict_metadata["b"].chunks[1]


def shared_properties(metadata: Any) -> None:
    metadata.state_dict_metadata["d"].properties = metadata.state_dict_metadata["b"].properties


def shared_info(metadata: Any) -> None:
    infos = list(metadata.storage_data)
    metadata.storage_data[infos[-1]] = metadata.storage_data[infos[4]]


def shared_in_plans(metadata: Any) -> None:
    metadata.planner_data["plan"] = {"x": list(metadata.storage_data), "y": list(metadata.state_dict_metadata.values())}


@pytest.mark.parametrize(
    "change", [shared_entry, shared_chunks, shared_chunk, shared_properties, shared_info, shared_in_plans]
)
def test_a_part_of_a_batch_may_occur_again(change: Any) -> None:
    metadata = four_tensors()
    change(metadata)
    data = pickle.dumps(metadata, protocol=4)
    raw = metadata_module.parse(data, WHAT)
    assert list(rows_read(raw)) == list(rows(metadata))
    assert repr(raw) == repr(read(data, in_steps=False))


def test_a_record_of_a_batch_may_be_changed_afterwards() -> None:
    """BUILD on one of them, by its number in the memo: what is read is the later state."""
    data = pickle.dumps(four_tensors(), protocol=4)
    machine = machine_module._Machine(data, WHAT, metadata_module._allowed(data), {}, None, None)
    machine.run()
    last = max(n for n, value in enumerate(machine.memo) if getattr(value, "kind", None) is records.STORED)
    state = b"}(" + text("relative_path") + text("g") + text("offset") + b"K\x05" + text("length") + b"K\x06ub"
    assert data.endswith(b"ub.")
    changed = data[:-3] + text("more") + b"j" + last.to_bytes(4, "little") + state + b"ub."
    start = changed.index(b"\x95")
    raw = metadata_module.parse(
        changed[:start] + changed[start + 9 :], WHAT
    )  # without its FRAME, whose length is wrong now
    assert list(rows_read(raw))[-1] == ("d", (4,), (2,), "g", 5, 6)


def test_nothing_waits_for_the_garbage_collector() -> None:
    """The memo of a million chunks is 200 MB."""
    gc.collect()
    gc.disable()
    try:
        metadata_module.parse(pickle.dumps(four_tensors(), protocol=4), WHAT)
        assert not [each for each in gc.get_objects() if isinstance(each, (records.Meanings, machine_module._Machine))]
    finally:
        gc.enable()


def test_a_record_that_was_read_with_others_cannot_be_memoized() -> None:
    """What comes back from the memo would be nothing, where one by one it is the record."""
    data = pickle.dumps(four_tensors(), protocol=4)
    at = data.rindex(b"ubu") + 2
    changed = data[:at] + b"\x94" + data[at:]
    start = changed.index(b"\x95")
    changed = changed[:start] + changed[start + 9 :]  # FRAME has a wrong length now
    with pytest.raises(BrokenCheckpoint, match="is memoized"):
        read(changed, in_steps=True)
    assert metadata_module.parse(changed, WHAT)


def test_a_record_that_was_read_with_others_cannot_hide_in_a_tuple() -> None:
    """One by one it is a tuple where a record belongs, which is damage; so it is when they are read in one step."""
    data = pickle.dumps(four_tensors(), protocol=4)
    at = data.rindex(b"ubu")  # the last record is built, and the items are set in storage_data
    changed = data[: at + 2] + b"\x85" + data[at + 2 :]  # TUPLE1
    start = changed.index(b"\x95")
    changed = changed[:start] + changed[start + 9 :]  # FRAME has a wrong length now
    for in_steps in (True, False):
        with pytest.raises(BrokenCheckpoint):
            read(changed, in_steps=in_steps)
