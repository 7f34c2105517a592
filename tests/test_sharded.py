"""Values in safetensors files: shards without ``.metadata``, and ``.metadata`` that points into such files."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import edit, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import raw
from safetensors import safe_open
from safetensors.torch import load_file
from test_properties import FLOATS, OTHERS, SHAPES, cut, values

import dcptools
from dcptools._safetensors import MAX_HEADER_BYTES
from dcptools.checkpoint import Checkpoint
from dcptools.errors import BrokenCheckpoint, NotACheckpoint, UnsupportedCheckpoint
from dcptools.tensors import read_region

AGAIN = "Copy the checkpoint again, use another one, or save again."
INFO = (
    "info[no-metadata]: the headers of {} say what is there: a tensor ends where its last part does, so missing "
    "shards of the last ranks go unnoticed (model_assets_dir= or reference= compares it with the model)"
)


def bits_of(checkpoint: Checkpoint, key: str) -> bytes:
    tensor = checkpoint[key]
    return read_region(tensor, [(0, n) for n in tensor.shape]).tobytes()


# --- shards without .metadata -----------------------------------------------------------------------------------


def test_shards_of_torchs_writer_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    checkpoint = dcptools.read(saved.hf_dcp(tmp_path))
    (path,) = tmp_path.iterdir()
    with safe_open(path, "pt") as file:
        assert set(checkpoint.tensors) == set(file.keys())
        for key, tensor in checkpoint.tensors.items():
            assert bits_of(checkpoint, key) == raw(file.get_tensor(key))
            assert (tensor.dtype.name, {chunk.encoding for chunk in tensor.chunks}) == ("float32", {"values"})
    assert [str(finding) for finding in checkpoint.findings] == [INFO.format("1 shard")]
    assert (checkpoint.ranks, checkpoint.objects, checkpoint.version) == ((0,), {}, "")


def test_shards_are_converted(tmp_path: Path) -> None:
    state = saved.model_state(special_values=True)
    report = dcptools.convert(saved.hf_dcp(tmp_path / "c", state), tmp_path / "model", dtype="keep")
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: raw(tensor) for name, tensor in written.items()} == {k: raw(t) for k, t in state.items()}
    assert "no-checksum" in {finding.code for finding in report.findings}
    assert report.items_without_checksum == len(state)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_cut_into_shards_is_read_as_it_was(data: st.DataObject) -> None:
    shape = data.draw(SHAPES.filter(lambda shape: 0 not in shape))
    tensor = data.draw(values(data.draw(st.sampled_from((*FLOATS, *OTHERS))), shape))
    parts = []
    for box in data.draw(cut(shape)):
        parts.append(([start for start, _ in box], tensor[tuple(slice(*pair) for pair in box)]))
    with tempfile.TemporaryDirectory() as directory:
        saved.save_shards(Path(directory), {"w": parts, "scalar": [([], torch.tensor(7))]})
        checkpoint = dcptools.read(directory)
        assert checkpoint["w"].shape == shape
        assert bits_of(checkpoint, "w") == raw(tensor)
        assert bits_of(checkpoint, "scalar") == raw(torch.tensor(7))
        assert {finding.code for finding in checkpoint.findings} == {"no-metadata"}


def two_ranks(directory: Path, **kept: Any) -> Path:
    halves = [([0, 0], torch.zeros(2, 3)), ([2, 0], torch.ones(2, 3))]
    return saved.save_shards(directory, {"w": halves}, **kept)


def test_a_shard_that_is_missing_or_cut_is_a_finding(tmp_path: Path) -> None:
    first, second = sorted(two_ranks(tmp_path).iterdir())
    (tmp_path / second.name).write_bytes(second.read_bytes()[:-4])
    (found,) = dcptools.read(tmp_path).errors
    assert str(found) == (
        f"error[truncated-file] w: {second.name} has {second.stat().st_size:,} bytes and should have "
        f"{second.stat().st_size + 4:,} (copy the file again)"
    )
    first.unlink()
    assert [error.code for error in dcptools.read(tmp_path).errors] == ["hole", "truncated-file"]


def test_a_shard_that_does_not_say_what_it_has(tmp_path: Path) -> None:
    two_ranks(tmp_path, sharding=None)
    with pytest.raises(UnsupportedCheckpoint, match=r"does not say which parts of tensors it has: there is no DCP_SHA"):
        dcptools.read(tmp_path)


def test_shards_of_two_saves(tmp_path: Path) -> None:
    saved.save_shards(tmp_path, {"w": [([0], torch.zeros(2)), ([2], torch.zeros(2, dtype=torch.bfloat16))]})
    with pytest.raises(BrokenCheckpoint) as caught:
        dcptools.read(tmp_path)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}: 'w' is float32 with 1 dimension in shard-00001-model-00001-of-00001.safetensors, "
        "and bfloat16 with 1 in shard-00002-model-00001-of-00001.safetensors.",
        "These are shards of two saves. Use another checkpoint, or save again into an empty directory.",
    ]


def test_a_directory_above_shards_proposes_it(tmp_path: Path) -> None:
    two_ranks(tmp_path / "epoch_0_step_1" / "model")
    with pytest.raises(NotACheckpoint, match=rf"Give that one: {tmp_path}/epoch_0_step_1/model"):
        dcptools.read(tmp_path / "epoch_0_step_1")


def test_a_shard_that_is_written_again_counts_as_changed(tmp_path: Path) -> None:
    first, _ = sorted(two_ranks(tmp_path / "c").iterdir())
    checkpoint = dcptools.read(tmp_path / "c")
    assert checkpoint.changed_files() == ()
    first.write_bytes(first.read_bytes())
    assert checkpoint.changed_files() == (first.name,)
    assert dcptools.read(shutil.copytree(tmp_path / "c", tmp_path / "same")).digest == checkpoint.digest
    assert dcptools.read(saved.hf_dcp(tmp_path / "other")).digest != checkpoint.digest


# --- .metadata that points into safetensors files ---------------------------------------------------------------


@pytest.mark.parametrize("maker", [saved.safetensors_format, saved.safetensors_format_with_bytes])
def test_metadata_that_points_into_safetensors_files(maker: Any, tmp_path: Path) -> None:
    checkpoint = dcptools.read(maker(tmp_path))
    assert checkpoint.findings == ()
    key = "model.model.norm.weight"
    start = edit.location(tmp_path, key).offset  # bytes entries come first, and no safetensors reader opens the file
    (tmp_path / "rest").write_bytes((tmp_path / "__0_0.distcp").read_bytes()[start:])
    with safe_open(tmp_path / "rest", "pt") as file:
        assert set(file.keys()) == set(checkpoint.tensors)
        assert all(bits_of(checkpoint, name) == raw(file.get_tensor(name)) for name in file.keys())
    assert checkpoint[key].path == ("model", "model.norm.weight")


@pytest.mark.parametrize(
    ("field", "value"), [("offsets", torch.Size([1, 0])), ("sizes", torch.Size([8, 2]))], ids=["offsets", "sizes"]
)
def test_a_part_that_the_header_does_not_have_is_stored_nowhere(field: str, value: Any, tmp_path: Path) -> None:
    saved.safetensors_format(tmp_path, {"a": torch.zeros(4, 4), "b": torch.zeros(4)})
    with edit.editing(tmp_path) as metadata:
        (index,) = [index for index in metadata.storage_data if index.fqn == "model.a"]
        (chunk,) = metadata.state_dict_metadata["model.a"].chunks
        setattr(chunk, field, value)
        info = metadata.storage_data.pop(index)
        metadata.storage_data[type(index)("model.a", chunk.offsets)] = info
    found = {(finding.code, finding.key) for finding in dcptools.read(tmp_path).errors}
    assert ("no-storage", "model.a") in found
    assert {key for _, key in found} == {"model.a"}


def test_a_damaged_header_costs_its_own_file_alone(tmp_path: Path) -> None:
    saved.safetensors_format(tmp_path)
    (tmp_path / "__0_0.distcp").write_bytes(struct.pack("<Q", 1 << 40) + bytes(10_000))
    checkpoint = dcptools.read(tmp_path)
    assert {finding.code for finding in checkpoint.errors} == {"no-storage"}
    assert {finding.key for finding in checkpoint.errors} == set(checkpoint.tensors)
    assert [str(finding) for finding in checkpoint.warnings] == [
        f"warning[no-storage]: {tmp_path}/__0_0.distcp is not a valid safetensors file: the header: "
        "expected 2 to 100,000,000 bytes, found 1099511627776. (copy the file again)"
    ]


def test_a_missing_file_of_them_is_said_as_always(tmp_path: Path) -> None:
    saved.safetensors_format(tmp_path)
    (tmp_path / "__0_0.distcp").unlink()
    assert {finding.code for finding in dcptools.read(tmp_path).findings} == {"missing-file"}


# --- hostile headers --------------------------------------------------------------------------------------------

SHARD = "shard-00001-model-00001-of-00001.safetensors"


def entry(shape: Any = (2,), place: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


def header(directory: Path, content: dict[str, Any] | bytes, sharding: Any = None, length: int | None = None) -> Path:
    """A shard with that header and 64 bytes of values; the parts of all keys begin at 0 unless it is said otherwise."""
    if isinstance(content, dict):
        offsets = {key: {"saved_offsets": [0]} for key in content}
        info = sharding if isinstance(sharding, str) else json.dumps(offsets if sharding is None else sharding)
        content = json.dumps({"__metadata__": {"DCP_SHARDING_INFO": info}, **content}).encode()
    directory.mkdir(exist_ok=True)
    (directory / SHARD).write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + bytes(64))
    return directory


SIZES = "expected a list of numbers below 2**62, found"
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a dtype that nobody knows": (
        {"content": {"w": entry(dtype="F5")}},
        "['w'].dtype: expected a dtype of safetensors that dcptools knows, found 'F5'",
    ),
    "a dtype that is a list": (
        {"content": {"w": entry(dtype=[])}},
        "['w'].dtype: expected a dtype of safetensors that dcptools knows, found []",
    ),
    "a negative size": ({"content": {"w": entry([-1])}}, f"['w'].shape: {SIZES} [-1]"),
    "a size that is a boolean": ({"content": {"w": entry([True])}}, f"['w'].shape: {SIZES} [True]"),
    "a size that is a float": ({"content": {"w": entry([2.0])}}, f"['w'].shape: {SIZES} [2.0]"),
    "too many dimensions": (
        {"content": {"w": entry([1] * 65, [0, 4])}}, f"['w'].shape: {SIZES} [1, 1, 1, 1, 1, 1, ...]"
    ),
    "no shape": ({"content": {"w": {"dtype": "F32", "data_offsets": [0, 4]}}}, f"['w'].shape: {SIZES} None"),
    "an entry that is text": ({"content": {"w": "F32"}}, "['w']: expected an object, found 'F32'"),
    "places of another size": (
        {"content": {"w": entry(place=[0, 12])}},
        "['w'].data_offsets: expected two places that are 8 bytes apart, found [0, 12]",
    ),
    "places that overlap": (
        {"content": {"v": entry(), "w": entry(place=[4, 12])}},
        "data_offsets: the values do not follow each other at byte 8",
    ),
    "places with a gap": (
        {"content": {"v": entry(), "w": entry(place=[12, 20])}},
        "data_offsets: the values do not follow each other at byte 8",
    ),
    "a key that is too long": (
        {"content": {"k" * 5000: entry()}},
        f"['{'k' * 200}'], a key: expected a string of at most 4,096 characters, found '{'k' * 97}...{'k' * 98}'",
    ),
    "offsets of another number of dimensions": (
        {"content": {"w": entry()}, "sharding": {"w": {"saved_offsets": [0, 0]}}},
        "['w'].saved_offsets: expected 1 numbers, found [0, 0]",
    ),
    "negative offsets": (
        {"content": {"w": entry()}, "sharding": {"w": {"saved_offsets": [-2]}}}, f"['w'].saved_offsets: {SIZES} [-2]"
    ),
    "no offsets of a key": (
        {"content": {"w": entry()}, "sharding": {"v": {}}},
        "['w'] in DCP_SHARDING_INFO: expected saved_offsets, found None",
    ),
    "sharding that is no JSON": (
        {"content": {"w": entry()}, "sharding": "x"},
        "DCP_SHARDING_INFO: it is not JSON: Expecting value: line 1 column 1 (char 0)",
    ),
    "sharding that is a number": (
        {"content": b'{"__metadata__": {"DCP_SHARDING_INFO": 1}}'},
        "__metadata__['DCP_SHARDING_INFO']: expected a string, found 1"
    ),
    "metadata that is a list": ({"content": b'{"__metadata__": []}'}, "__metadata__: expected an object, found []"),
    "a list": ({"content": b"[1]"}, "the header: expected an object, found [1]"),
    "a name that stands twice": (
        {"content": b'{"w": 1, "w": 2}'}, "the header: it is not JSON: a name occurs in it twice"
    ),
    "half a surrogate": (
        {"content": b'{"\\ud800": {}}'}, "['\\ud800'], a key: expected a string of Unicode, found '\\ud800'"
    ),
    "millions of lists": (
        {"content": b'{"w": [' + b"[]," * 100_000 + b"1]}"}, "the header: it nests more deeply than any tensors need"
    ),
    "a tower of lists": (
        {"content": b'{"w": ' + b"[" * 50_000}, "the header: it nests more deeply than any tensors need"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_refused_and_the_field_is_named(what: str, tmp_path: Path) -> None:
    arguments, problem = HOSTILE[what]
    header(tmp_path, **arguments)
    with pytest.raises(BrokenCheckpoint) as caught:
        dcptools.read(tmp_path)
    assert str(caught.value).splitlines() == [f"{tmp_path}/{SHARD} is not a valid safetensors file: {problem}.", AGAIN]


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER_BYTES + 1, (1 << 64) - 1])
def test_a_header_that_is_too_long_is_not_read(length: int, tmp_path: Path) -> None:
    header(tmp_path, {}, length=length)
    with pytest.raises(BrokenCheckpoint, match=f"the header: expected 2 to 100,000,000 bytes, found {length}"):
        dcptools.read(tmp_path)


def test_a_header_that_is_cut(tmp_path: Path) -> None:
    header(tmp_path, {"w": entry()}, length=100_000)
    with pytest.raises(BrokenCheckpoint, match=r"ends at byte \d+, [\d,]+ bytes too early"):
        dcptools.read(tmp_path)


def test_a_tensor_that_would_have_no_end(tmp_path: Path) -> None:
    header(tmp_path, {"w": entry()}, {"w": {"saved_offsets": [(1 << 62) - 1]}})
    with pytest.raises(BrokenCheckpoint, match=r"'w' would have the shape \(\d+,\), which is 2\*\*62 bytes or more"):
        dcptools.read(tmp_path)


def test_a_tensor_with_a_part_far_away_has_a_hole_and_is_not_read(tmp_path: Path) -> None:
    header(tmp_path, {"w": entry()}, {"w": {"saved_offsets": [1 << 40]}})
    checkpoint = dcptools.read(tmp_path)
    assert [finding.code for finding in checkpoint.errors] == ["hole"]
    with pytest.raises(BrokenCheckpoint, match="nothing is stored for"):
        read_region(checkpoint["w"], [(0, 1)], np.empty(1, "u4"))
