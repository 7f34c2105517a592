"""``read`` and ``inspect``: what is in a checkpoint, what is wrong with it; and that to look is safe and cheap."""

from __future__ import annotations

import copy
import enum
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from checkpoints import broken, edit, hostile, saved
from checkpoints.broken import B, W
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as torch_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import WriteItemType

import dcptools
from dcptools._pickle import machine as machine_module
from dcptools.checkpoint import Checkpoint, Chunk, StoredFile, storage_data
from dcptools.dtypes import TABLE
from dcptools.errors import BrokenCheckpoint, DcptoolsError, UnknownKey, UnsafeMetadata
from dcptools.findings import Finding
from dcptools.storage import LocalSource
from dcptools.tensors import read_region
from tests.bench import many_chunks

COPY_AGAIN = "Copy or download the checkpoint again, use another one, or save again."


def message(directory: Path) -> str:
    """Of the error, without its path and its last line, which are always the same."""
    with pytest.raises(BrokenCheckpoint) as caught:
        dcptools.read(directory)
    path, _, rest = str(caught.value).partition("/.metadata ")
    assert path == str(directory)
    first, hint = rest.split("\n")
    assert hint == COPY_AGAIN
    return first


def findings(directory: Path) -> list[str]:
    return [str(finding) for finding in dcptools.read(directory).findings]


# --- the same as torch reads ------------------------------------------------------------------------------------


def _makers() -> dict[str, Callable[[Path], Path]]:
    """Whole checkpoints: makers in ``saved`` that need nothing but a directory."""
    found: dict[str, Callable[[Path], Path]] = {}
    for name, maker in inspect.getmembers(saved, inspect.isfunction):
        parameters = list(inspect.signature(maker).parameters.values())
        required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if maker.__module__ == saved.__name__ and name[0] != "_" and required == ["directory"]:
            found[name] = maker
    return found


# there is no .metadata, two chunks at one place, or a class that is not installed here
UNREADABLE_FOR_TORCH = (
    *("hf_dcp", "replicated_chunks", "megatron_like", "own_storage_info"),
    *("safetensors_format", "safetensors_format_with_bytes"),
    *("python313_paths", "windows_paths"),
)


def as_torch_reads(directory: Path) -> dict[str, Any]:
    """Key -> shape, dtype, and for each chunk its offsets, sizes and place; or the place of an object."""
    metadata = edit.load_metadata(directory)
    places = {(index.fqn, index.offset): info for index, info in metadata.storage_data.items()}

    def place(key: str, offsets: Any) -> tuple[str, int, int]:
        info: _StorageInfo = places[key, offsets]
        return info.relative_path, info.offset, info.length

    entries: dict[str, Any] = {}
    for key, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, torch_metadata.TensorStorageMetadata):
            chunks = [(tuple(c.offsets), tuple(c.sizes), *place(key, c.offsets)) for c in entry.chunks]
            entries[key] = tuple(entry.size), str(entry.properties.dtype).removeprefix("torch."), chunks
        else:
            name, _, nbytes = place(key, None)
            entries[key] = name, nbytes
    return entries


def as_read(checkpoint: Checkpoint) -> dict[str, Any]:
    entries: dict[str, Any] = {
        key: (t.shape, t.dtype.name, [(c.offsets, c.shape, c.file, c.start, c.nbytes) for c in t.chunks])
        for key, t in checkpoint.tensors.items()
    }
    return entries | {key: (o.file, o.nbytes) for key, o in checkpoint.objects.items()}


@pytest.mark.parametrize("name", [name for name in _makers() if name not in UNREADABLE_FOR_TORCH])
def test_everything_is_read_as_torch_reads_it(name: str, tmp_path: Path) -> None:
    directory = _makers()[name](tmp_path / "a")
    assert as_read(dcptools.read(directory)) == as_torch_reads(directory)


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_pickle_protocols(number: int, tmp_path: Path) -> None:
    directory = saved.protocol(tmp_path, number)
    assert as_read(dcptools.read(directory)) == as_torch_reads(directory)


def windows_paths_313(directory: Path) -> Path:
    return saved.windows_paths(directory, python313=True)


@pytest.mark.parametrize("maker", [saved.python313_paths, saved.windows_paths, windows_paths_313])
def test_paths_of_other_pythons_and_systems(maker: Callable[[Path], Path], tmp_path: Path) -> None:
    expected = as_read(dcptools.read(saved.trained(tmp_path / "plain")))
    assert as_read(dcptools.read(maker(tmp_path / "other"))) == expected


def test_enumerations_as_python_3_11_0_to_3_11_3_pickled_them(tmp_path: Path) -> None:
    """By name, through ``builtins.getattr``: see https://github.com/python/cpython/pull/26658."""
    by_name = enum.pickle_by_enum_name
    with (
        patch.object(torch_metadata._MEM_FORMAT_ENCODING, "__reduce_ex__", by_name),
        patch.object(WriteItemType, "__reduce_ex__", by_name),
    ):
        for maker in (saved.trained, saved.megatron_like):
            assert b"getattr" in (maker(tmp_path / "old" / maker.__name__) / ".metadata").read_bytes()
    for maker in (saved.trained, saved.megatron_like):
        old = dcptools.read(tmp_path / "old" / maker.__name__)
        new = dcptools.read(maker(tmp_path / "new" / maker.__name__))
        assert (as_read(old), old.findings) == (as_read(new), new.findings)


FAULTLESS = ("whole", "linked_files", "shifted_hints", "unlisted_storage", "no_checksums")


@pytest.mark.parametrize("maker", [getattr(broken, name) for name in FAULTLESS] + [saved.replicated_chunks])
def test_what_looks_odd_and_is_no_fault_has_no_finding(maker: Callable[[Path], Path], tmp_path: Path) -> None:
    assert dcptools.read(maker(tmp_path / "a")).findings == ()


WITH_FINDINGS = ("hf_dcp", "megatron_like", "own_storage_info")


@pytest.mark.parametrize("name", [name for name in _makers() if name not in WITH_FINDINGS])
def test_whole_checkpoints_have_no_finding(name: str, tmp_path: Path) -> None:
    assert findings(_makers()[name](tmp_path / "a")) == []


# --- tensors, objects, roots ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return dcptools.read(broken.whole(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return dcptools.read(saved.trained(tmp_path_factory.mktemp("trained"), saved.model_state(layers=1)))


def test_a_stored_tensor(whole: Checkpoint) -> None:
    tensor = whole[W]
    assert (tensor.key, tensor.shape, tensor.dtype, tensor.numel, tensor.nbytes) == (
        W,
        (6, 4),
        TABLE["float32"],
        24,
        96,
    )
    assert (tensor.path, tensor.root) == (("model", "model.w"), "model")
    assert tensor.files == ("__0_0.distcp", "__1_0.distcp", "__2_0.distcp")
    for number in (-1, len(tensor.offsets)):
        with pytest.raises(IndexError, match="none has the number"):
            tensor.chunk(number)
    assert tensor.chunks[1] == Chunk((2, 0), (2, 4), "__1_0.distcp", 0, tensor.chunk(1).nbytes, "torch")


def test_files_have_their_sizes(whole: Checkpoint) -> None:
    sizes = {path.name: path.stat().st_size for path in Path(whole.path).glob("*.distcp")}
    assert {file.name: file.nbytes for file in whole.files} == sizes


def test_files_of_zero_bytes_and_a_file_for_each_item(tmp_path: Path) -> None:
    assert len(dcptools.read(saved.empty_files(tmp_path / "a")).files) == 1
    checkpoint = dcptools.read(saved.file_per_item(tmp_path / "b"))
    assert len(checkpoint.files) == checkpoint.chunk_count > 20


def test_a_checkpoint_counts(whole: Checkpoint) -> None:
    content = (Path(whole.path) / ".metadata").read_bytes()
    assert (whole.chunk_count, whole.nbytes, whole.version) == (4, 112, "1.0.0")
    assert whole.metadata_nbytes == len(content)
    assert len(whole.digest) == 64
    assert whole.errors == whole.warnings == whole.findings == ()


def test_the_digest_changes_with_the_metadata(tmp_path: Path, whole: Checkpoint) -> None:
    assert dcptools.read(broken.shifted_hints(tmp_path)).digest != whole.digest


def test_bytes_entries_are_kept_apart(tmp_path: Path) -> None:
    checkpoint = dcptools.read(saved.extra_state(tmp_path))
    prefix = "model.model.layers.0."
    assert sorted(checkpoint.objects) == [
        f"{prefix}mlp._extra_state",
        f"{prefix}mlp.down_proj._extra_state.scale",
        f"{prefix}self_attn._extra_state",
    ]
    assert not checkpoint.objects.keys() & checkpoint.tensors.keys()
    entry = checkpoint.objects[f"{prefix}self_attn._extra_state"]
    assert (entry.root, entry.file) == ("model", "__0_0.distcp")
    assert entry.nbytes == edit.location(tmp_path, entry.key).length


def test_a_bytes_entry_is_never_unpickled(tmp_path: Path) -> None:
    directory, marker = tmp_path / "a", tmp_path / "marker"
    saved.save(directory, {"model": {"model.norm.weight": torch.ones(2)}, "step": 3})
    edit.replace_item(directory, "step", hostile.system_pickle(marker))
    dcptools.inspect(directory)
    dcptools.preview(directory)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("maker", "roots"),
    [
        (saved.trained, {"model", "optimizer", None}),  # None: step
        (saved.bare, {None}),
        (saved.one_element_paths, {None}),
        (saved.app_state, {"app"}),
        (saved.megatron_like, {None}),
    ],
)
def test_roots_come_from_planner_data(maker: Callable[[Path], Path], roots: set[str | None], tmp_path: Path) -> None:
    checkpoint = dcptools.read(maker(tmp_path))
    tensors, objects = checkpoint.tensors.values(), checkpoint.objects.values()
    assert {t.root for t in tensors} | {o.root for o in objects} == roots


def test_a_path_is_the_one_in_the_saved_state_dict(trained: Checkpoint) -> None:
    assert trained["model.model.norm.weight"].path == ("model", "model.norm.weight")
    assert trained.objects["optimizer.param_groups.0.lr"].path == ("optimizer", "param_groups", "0", "lr")
    assert trained.objects["step"].path == ("step",)


@pytest.mark.parametrize("planner_data", [None, {}, "model", 7, {"model.model.norm.weight": 3, 4: ("x",)}])
def test_without_planner_data_roots_are_unknown(planner_data: Any, tmp_path: Path) -> None:
    checkpoint = dcptools.read(saved.planner_data(tmp_path, planner_data))
    assert {t.root for t in checkpoint.tensors.values()} == {None}


# --- findings ---------------------------------------------------------------------------------------------------

AGAIN = "(use another checkpoint, or save it again)"
FINDINGS = {
    "missing_file": [f"error[missing-file] {W}: there is no file __2_0.distcp (copy the missing files)"],
    "file_is_directory": [f"error[missing-file] {W}: there is no file __2_0.distcp (copy the missing files)"],
    "truncated_file": [
        f"error[truncated-file] {W}: __2_0.distcp has 1,477 bytes and should have 1,577 (copy the file again)"
    ],
    "hole": [f"error[hole] {W}: nothing is stored for [2:4] of 6 along dimension 0 {AGAIN}"],
    "tail_hole": [f"error[hole] {W}: nothing is stored for [6:7] of 7 along dimension 0 {AGAIN}"],
    "no_chunks": [f"error[hole] {W}: no chunk of it is stored {AGAIN}"],
    "overlap": [f"error[overlap] {W}: chunks overlap along dimension 0, at index 1 of 6 {AGAIN}"],
    "out_of_bounds": [f"error[overlap] {W}: a chunk at (5, 0) of size (2, 4) reaches outside (6, 4) {AGAIN}"],
    "negative_offset": [f"error[overlap] {W}: a chunk at (-1, 0) of size (2, 4) reaches outside (6, 4) {AGAIN}"],
    "no_storage": [f"error[no-storage] {W}: storage_data does not say where 1 of its 3 chunks are stored {AGAIN}"],
    "unknown_transform": [
        f"error[unsupported-encoding] {B}: dcptools cannot undo the transform stream.rot13/1 (save again without it)"
    ],
}


@pytest.mark.parametrize("name", FINDINGS)
def test_what_is_wrong_with_one_key_is_a_finding(name: str, tmp_path: Path) -> None:
    getattr(broken, name)(tmp_path / "a")
    assert findings(tmp_path / "a") == FINDINGS[name]


def test_an_object_without_storage_is_a_finding(tmp_path: Path) -> None:
    broken.wrong_types(tmp_path, "an entry is a bytes entry")
    assert findings(tmp_path) == [f"error[no-storage] {B}: storage_data does not say where it is stored {AGAIN}"]
    assert dcptools.read(tmp_path).objects[B].nbytes is None


def test_compressed_chunks_are_known(tmp_path: Path) -> None:
    tensors = dcptools.read(saved.zstd(tmp_path)).tensors.values()
    assert {chunk.encoding for tensor in tensors for chunk in tensor.chunks} == {"zstd"}


def test_foreign_classes_are_a_finding_and_the_rest_is_read(tmp_path: Path) -> None:
    checkpoint = dcptools.read(saved.megatron_like(tmp_path))
    assert list(checkpoint.tensors) == [
        "embedding.word_embeddings.weight",
        "decoder.layers.mlp.linear_fc1.weight",
        "decoder.final_layernorm.weight",
    ]
    checkpoint_module = "torch.distributed.checkpoint"
    assert checkpoint.warnings == (
        Finding(
            "foreign-class",
            "",
            ".metadata names megatron.core.dist_checkpointing.core.MCoreMetadata, "
            f"{checkpoint_module}.filesystem._StoragePrefix, {checkpoint_module}.planner.SavePlan, "
            f"{checkpoint_module}.planner.TensorWriteData, {checkpoint_module}.planner.WriteItem and 1 more; "
            "nothing of it was imported",
            "harmless unless keys are missing",
        ),
    )


def test_a_trainers_own_storage_info_is_read_as_torchs(tmp_path: Path) -> None:
    checkpoint = dcptools.read(saved.own_storage_info(tmp_path / "own"))
    assert as_read(checkpoint) == as_read(dcptools.read(saved.trained(tmp_path / "torch")))
    assert checkpoint.findings == (
        Finding(
            "foreign-class",
            "",
            ".metadata has trainer.filesystem._StorageInfo in place of torch's class; it was read by its fields, "
            "which are checked like torch's, and nothing of it was imported",
            severity="info",
        ),
    )


@dataclass
class Outside(saved.OwnStorageInfo):
    def __post_init__(self) -> None:
        self.relative_path = "../outside"


@dataclass
class Otherwise:
    place: str
    first: int
    count: int


@pytest.mark.parametrize(
    ("own", "name", "expected"),
    [
        (Outside, "_StorageInfo", r"\.relative_path: expected the name of a file in .*, found '\.\./outside'\."),
        (Otherwise, "_StorageInfo", r": expected a field relative_path, found none\."),
        (saved.OwnStorageInfo, "Place", r": expected torch's _StorageInfo, found a trainer\.filesystem\.Place\."),
    ],
)
def test_the_fields_of_a_trainers_own_storage_info_are_checked(
    own: type, name: str, expected: str, tmp_path: Path
) -> None:
    found = message(saved.own_storage_info(tmp_path, own, name))
    start = r"has classes of another program and cannot be read: storage_data\['[\w.]+'\]"
    assert re.fullmatch(start + expected, found)


# --- every field is checked -------------------------------------------------------------------------------------

IN_B, AT_B = f"is damaged: state_dict_metadata['{B}']", f"is damaged: storage_data['{B}']"
INDEX = "torch.distributed.checkpoint.metadata.MetadataIndex"
BAD_FIELDS: dict[str, str] = {
    "state_dict_metadata is a list": "is damaged: state_dict_metadata: expected a dict, found [].",
    "state_dict_metadata is None": "is damaged: state_dict_metadata: expected a dict, found None.",
    "storage_data is a list": "is damaged: storage_data: expected a dict, found [1].",
    "a key is an integer": "is damaged: state_dict_metadata[7], a key: expected a string, found 7.",
    "a key is bytes": "is damaged: state_dict_metadata[b'w'], a key: expected a string, found b'w'.",
    "a key is a record": f"is damaged: state_dict_metadata[<{INDEX}>], a key: expected a string, found a {INDEX}.",
    "an entry is a string": f"{IN_B}: expected tensor or bytes metadata, found 'tensor'.",
    "a size is a float": f"{IN_B}.size: expected a tuple of sizes below 2**62, found (4.0,).",
    "a size is a boolean": f"{IN_B}.size: expected a tuple of sizes below 2**62, found (True,).",
    "a size is None": f"{IN_B}.size: expected a tuple of sizes below 2**62, found None.",
    "a size is a string": f"{IN_B}.size: expected a tuple of sizes below 2**62, found '4'.",
    "a size has a record and a class": (
        f"{IN_B}.size: expected a tuple of sizes below 2**62, found (<{INDEX}>, <{INDEX}>)."
    ),
    "chunks is None": f"{IN_B}.chunks: expected a list, found None.",
    "chunks has None": f"{IN_B}.chunks[0].offsets: expected 1 integers of 64 bits, found None.",
    "properties is None": f"{IN_B}.properties.dtype: expected a dtype of torch, found None.",
    "the path is bytes": f"{AT_B}.relative_path: expected a string, found b'__0_0.distcp'.",
    "the path is None": f"{AT_B}: expected a field relative_path, found none.",  # torch does not pickle None
    "the path is empty": f"{AT_B}.relative_path: expected the name of a file in the checkpoint's directory, found ''.",
    "the path has a NUL": (
        f"{AT_B}.relative_path: expected the name of a file in the checkpoint's directory, found '__0_0\\x00.distcp'."
    ),
    "the offset is a float": f"{AT_B}.offset: expected a number of bytes below 2**62, found 0.0.",
    "the length is None": f"{AT_B}: expected a field length, found none.",
}
HARMLESS = {  # what is known of them is all that is needed
    "planner_data is a string",
    "planner_data has integers",
    "an entry is a bytes entry",
    "the dtype is a string",
}


@pytest.mark.parametrize("what", broken.WRONG_TYPES)
def test_a_field_of_another_type_is_named(what: str, tmp_path: Path) -> None:
    broken.wrong_types(tmp_path, what)
    if what in HARMLESS:
        assert dcptools.read(tmp_path)[W].shape == (6, 4)
    else:
        assert message(tmp_path) == BAD_FIELDS[what]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((-4,), ".size: expected a tuple of sizes below 2**62, found (-4,)."),
        ((1 << 62,), f".size: expected a tuple of sizes below 2**62, found ({1 << 62},)."),
        ((1 << 61,), f".size: expected less than 2**62 bytes, found ({1 << 61},)."),
        ((1 << 40, 1 << 40), f".size: expected less than 2**62 bytes, found ({1 << 40}, {1 << 40})."),
        ((3, 4), ".chunks[0].offsets: expected 2 integers of 64 bits, found (0,)."),
    ],
)
def test_impossible_sizes(size: tuple[int, ...], expected: str, tmp_path: Path) -> None:
    assert message(broken.sized(tmp_path, size)) == IN_B + expected


def test_a_chunk_of_another_rank_is_named(tmp_path: Path) -> None:
    expected = f"is damaged: state_dict_metadata['{W}'].chunks[1].offsets: expected 2 integers of 64 bits, found (2,)."
    assert message(broken.rank_mismatch(tmp_path)) == expected


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, 0.0, "0"])
def test_chunk_offsets_are_integers_of_64_bits(value: Any, tmp_path: Path) -> None:
    with edit.editing(broken.whole(tmp_path)) as metadata:
        metadata.state_dict_metadata[W].chunks[2].offsets = (4, value)
    expected = f"['{W}'].chunks[2].offsets: expected 2 integers of 64 bits, found (4, {value!r})."
    assert message(tmp_path) == "is damaged: state_dict_metadata" + expected


@pytest.mark.parametrize(
    "path", ["../outside.distcp", "/etc/passwd", "a/../../b", "..\\b", "\\\\host\\share", "C:\\b", "C:b", ".."]
)
def test_paths_that_leave_the_directory(path: str, tmp_path: Path) -> None:
    expected = f"{AT_B}.relative_path: expected the name of a file in the checkpoint's directory, found {path!r}."
    assert message(broken.located(tmp_path, relative_path=path)) == expected


def test_paths_into_a_folder_below_are_read(tmp_path: Path) -> None:
    broken.located(tmp_path, relative_path="rank_0/__0_0.distcp")
    (tmp_path / "rank_0").mkdir()
    (tmp_path / "__0_0.distcp").rename(tmp_path / "rank_0" / "__0_0.distcp")
    assert StoredFile("rank_0/__0_0.distcp", 3154) in dcptools.read(tmp_path).files


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"offset": -10}, f".offset: expected a number of bytes below 2**62, found {-10}."),
        ({"offset": 1 << 62}, f".offset: expected a number of bytes below 2**62, found {1 << 62}."),
        ({"length": -1}, ".length: expected a number of bytes below 2**62, found -1."),
        ({"length": True}, ".length: expected a number of bytes below 2**62, found True."),
        ({"transform_descriptors": "zstd"}, ".transform_descriptors: expected a list of names, found 'zstd'."),
        ({"transform_descriptors": [1]}, ".transform_descriptors: expected a string, found 1."),
    ],
)
def test_impossible_places(fields: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert message(broken.located(tmp_path, **fields)) == AT_B + expected


class Twice:
    """Pickled, a dict whose items have equal keys; unpickled by torch, the second replaces the first."""

    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self.items = items

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), None, None, iter(self.items)


def test_one_offset_that_is_stored_twice_is_damage(tmp_path: Path) -> None:
    with edit.editing(broken.whole(tmp_path)) as metadata:
        again = torch_metadata.MetadataIndex(B, torch.Size((0,)), 5)
        metadata.storage_data = Twice([*metadata.storage_data.items(), (again, edit.location(tmp_path, W))])
    assert message(tmp_path) == f"{AT_B}: there are two items for the offset (0,)."


@pytest.mark.parametrize("offset", [(0.0,), ((0,),), [0], "0", (True,)])
def test_offsets_in_storage_data_are_integers(offset: Any, tmp_path: Path) -> None:
    with edit.editing(broken.whole(tmp_path)) as metadata:
        index = edit.indices(metadata, B)[0]
        object.__setattr__(index, "offset", offset)
    expected = f"is damaged: storage_data, an offset of '{B}': expected a tuple of integers, found {offset!r}."
    assert message(tmp_path) == expected


def test_shapes_have_no_more_dimensions_than_torch_has(tmp_path: Path) -> None:
    broken.sized(tmp_path / "a", (1,) * 65)
    assert "expected a tuple of sizes below 2**62" in message(tmp_path / "a")


def test_one_list_of_chunks_cannot_stand_for_those_of_all_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of a million chunks that thousands of tensors refer to takes few bytes, and would be a billion chunks."""
    monkeypatch.setattr(storage_data, "MOST_UNSTORED", 0)
    with edit.editing(broken.whole(tmp_path)) as metadata:
        for number in range(3):
            metadata.state_dict_metadata[f"model.copy{number}"] = metadata.state_dict_metadata[W]
    expected = "state_dict_metadata['model.copy2'].chunks: there are far more chunks than the 4 that are stored."
    assert message(tmp_path).endswith(expected)


def test_untrusted_values_in_messages_are_short(tmp_path: Path) -> None:
    deep: Any = ()
    for _ in range(7):  # tuples built of two others each: as long as all tuples of 2**7 when printed
        deep = (deep, deep, "x" * 10_000)
    broken.sized(tmp_path, deep)
    assert len(message(tmp_path)) < 20_000
    broken.sized(tmp_path / "a", (0.5,) * (1 << 20))
    assert message(tmp_path / "a").endswith("found (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...).")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return broken.whole(tmp_path_factory.mktemp("damaged"))


@given(at=st.integers(0, 10**6), noise=st.binary(min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_whatever_bytes_are_damaged_the_error_is_ours(at: int, noise: bytes, damaged: Path, whole: Checkpoint) -> None:
    content = bytearray((Path(whole.path) / ".metadata").read_bytes())
    content[at % len(content) : at % len(content) + len(noise)] = noise
    (damaged / ".metadata").write_bytes(content)
    try:
        checkpoint = dcptools.read(damaged)
    except DcptoolsError as error:
        assert str(error).startswith(str(damaged / ".metadata"))
    else:  # then everybody can look at it
        str(checkpoint), checkpoint.to_json(), checkpoint.to_frame()
        str(dcptools.preview(checkpoint))


# --- safe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*hostile.RUNNERS, "extension", "in_planner_data"])
def test_what_the_pickle_names_is_not_called(name: str, tmp_path: Path) -> None:
    marker = hostile.runner(tmp_path / "a", name)
    with pytest.raises(BrokenCheckpoint) as caught:
        dcptools.read(tmp_path / "a")
    assert not marker.exists()
    assert str(caught.value).startswith(str(tmp_path / "a" / ".metadata"))
    if name == "in_planner_data":
        assert type(caught.value) is UnsafeMetadata


@pytest.mark.parametrize("name", hostile.POISONERS)
def test_what_a_pickle_changes_is_gone_with_it(name: str, tmp_path: Path, trained: Checkpoint) -> None:
    def names() -> dict[str, Any]:
        modules = [
            module for key, module in sys.modules.items() if key.startswith(("dcptools", "torch.distributed.ch"))
        ]
        classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
        return {f"{cls.__module__}.{cls.__qualname__}": sorted(vars(cls)) for cls in classes}

    before, table, environment = names(), dict(TABLE), dict(os.environ)
    with pytest.raises(BrokenCheckpoint):
        dcptools.read(hostile.checkpoint(tmp_path, hostile.POISONERS[name]()))
    assert (names(), table, environment) == (before, dict(TABLE), dict(os.environ))
    assert as_read(dcptools.read(trained.path)) == as_read(trained)


@pytest.mark.parametrize(
    ("module", "name", "shown"),
    [
        (
            "torch.distributed.checkpoint.filesystem",
            "_StorageInfo",
            "torch.distributed.checkpoint.filesystem._StorageInfo",
        ),
        ("torch.serialization", "_get_layout", "function"),
    ],
)
def test_a_pickle_cannot_change_the_next_one_through_what_it_may_name(
    module: str, name: str, shown: str, tmp_path: Path
) -> None:
    """BUILD on an allowed class: from then on every item would seem to have gone through a transform."""
    sound = (broken.whole(tmp_path) / ".metadata").read_bytes()
    poison = hostile.stack_global(module, name)
    poison += b"N}" + hostile.text("transform_descriptors") + hostile.text("stream.rot13/1") + b"\x85s\x86b"
    assert sound.startswith(b"\x80\x04\x95")
    after_frame = sound[11:-1]
    (tmp_path / ".metadata").write_bytes(b"\x80\x04" + poison + after_frame + b"\x86.")  # both, in a tuple
    assert message(tmp_path) == f"cannot be unpickled: {shown} is given a state."
    (tmp_path / ".metadata").write_bytes(sound)
    assert dcptools.read(tmp_path).findings == ()


WITHOUT_TORCH = """
import sys
import dcptools
path = sys.argv[1]
checkpoint = dcptools.read(path)
frame = dcptools.inspect(checkpoint)
mapping = dcptools.preview(checkpoint)
plan = dcptools.plan(mapping)
for value in (checkpoint, mapping, plan):
    str(value), value._repr_html_(), value.to_json(), value.to_frame()
heavy = {"torch", "transformers", "safetensors", "matplotlib", "IPython", "ipywidgets"}
print(len(frame), len(plan.files), sorted(heavy & set(sys.modules)))
"""


def test_up_to_the_plan_nothing_needs_torch(trained: Checkpoint) -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, trained.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout == f"{len(trained.tensors) + len(trained.objects)} 1 []\n"


# --- the value --------------------------------------------------------------------------------------------------


def test_it_is_frozen(whole: Checkpoint) -> None:
    with pytest.raises(FrozenInstanceError):
        whole.path = "elsewhere"  # type: ignore[misc]
    with pytest.raises(TypeError):
        whole.tensors["new"] = whole[W]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        whole[W].shape = ()  # type: ignore[misc]


def test_unknown_keys_are_answered_with_close_ones(trained: Checkpoint) -> None:
    with pytest.raises(UnknownKey) as caught:
        trained["model.model.norm.weigth"]
    assert str(caught.value).splitlines()[0] == f"{trained.path} has no tensor 'model.model.norm.weigth'."
    assert str(caught.value).splitlines()[1].startswith("Did you mean model.model.norm.weight")
    with pytest.raises(KeyError, match=r"inspect\(\) lists all keys"):
        trained["?"]
    with pytest.raises(UnknownKey, match=r"'step' is a pickled object, not a tensor"):
        trained["step"]


def test_it_prints_as_a_table(tmp_path: Path) -> None:
    saved.save(tmp_path, {"model": {"a": torch.ones(1000, 3), "b": torch.ones(2).bool()}, "step": 3})
    nbytes = edit.location(tmp_path, "step").length
    assert str(dcptools.read(tmp_path)) == (
        f"{tmp_path}: 2 tensors with 3,002 elements in 12.00 kB, 1 object, 2 chunks in 1 file\n"
        "root           keys    elements     bytes  dtypes\n"
        "-----------  ------  ----------  --------  -------------\n"
        f"(top level)       1           0  {nbytes / 1000:>5.2f} kB  object\n"
        "model             2       3,002  12.00 kB  float32, bool"
    )


def test_its_findings_are_printed_too(tmp_path: Path) -> None:
    broken.hole(tmp_path)
    checkpoint = dcptools.read(tmp_path)
    assert str(checkpoint).splitlines()[-1] == FINDINGS["hole"][0]
    assert "[2:4] of 6 along dimension 0" in checkpoint._repr_html_()


def test_the_keys_as_tables(whole: Checkpoint) -> None:
    assert whole.keys_table() == (
        "key            shape    dtype      bytes    chunks\n"
        "-------------  -------  -------  -------  --------\n"
        "model.model.b  [4]      float32     16 B         1\n"
        "model.model.w  [6, 4]   float32     96 B         3"
    )
    assert whole.keys_table(most=1).endswith("\n... 1 more of 2 rows")
    assert whole.keys_table(most=None) == whole.keys_table()


def test_names_cannot_drive_a_terminal_or_a_page(tmp_path: Path) -> None:
    name = "model.model.<b>\x1b[31m\n.w"
    saved.save_chunks(tmp_path, {name: [((0,), torch.ones(2)), ((4,), torch.ones(2))]})
    checkpoint = dcptools.read(tmp_path)
    assert checkpoint.errors[0].key == name
    for text in (str(checkpoint), checkpoint.keys_table(), checkpoint._repr_html_(), str(dcptools.preview(checkpoint))):
        assert "\x1b" not in text
    assert "<b>" not in checkpoint._repr_html_()


def test_it_is_json(tmp_path: Path) -> None:
    checkpoint = dcptools.read(broken.missing_file(tmp_path) and tmp_path)
    value = json.loads(json.dumps(checkpoint.to_json()))
    assert value["tensors"][0] == {"key": W, "root": "model", "shape": [6, 4], "dtype": "float32", "chunks": 3}
    assert value["files"] == [{"name": f.name, "nbytes": f.nbytes} for f in checkpoint.files]
    assert {"name": "__2_0.distcp", "nbytes": None} in value["files"]
    assert [finding["code"] for finding in value["findings"]] == ["missing-file"]


def test_a_checkpoint_of_nothing(tmp_path: Path) -> None:
    checkpoint = dcptools.read(saved.empty_state(tmp_path))
    assert (checkpoint.nbytes, checkpoint.chunk_count, checkpoint.keys_table()) == (0, 0, "")
    assert str(checkpoint).startswith(f"{tmp_path}: 0 tensors with 0 elements in 0 B, 0 objects, 0 chunks in 0 files")
    assert list(checkpoint.to_frame()) == COLUMNS
    assert checkpoint._repr_html_()


# --- inspect ----------------------------------------------------------------------------------------------------

COLUMNS = ["key", "kind", "root", "shape", "dtype", "numel", "nbytes", "chunks", "files"]


def test_inspect_is_a_frame_of_all_keys(tmp_path: Path) -> None:
    state = {"model": {"model.w": torch.ones(3, 2).bfloat16(), "model.count": torch.tensor(1)}, "step": 3}
    frame = dcptools.inspect(saved.save(tmp_path, state))
    nbytes = edit.location(tmp_path, "step").length
    expected = pd.DataFrame(
        [
            ["model.model.count", "tensor", "model", (), "int64", 1, 8, 1, 1],
            ["model.model.w", "tensor", "model", (3, 2), "bfloat16", 6, 12, 1, 1],
            ["step", "object", None, None, None, None, nbytes, 1, 1],
        ],
        columns=COLUMNS,
        dtype="object",
    ).astype({"numel": "Int64", "nbytes": "Int64", "chunks": "int64", "files": "int64"})
    pd.testing.assert_frame_equal(frame, expected)


def test_types_of_the_columns(trained: Checkpoint) -> None:
    types = {"numel": "Int64", "nbytes": "Int64", "chunks": "int64", "files": "int64"}
    for frame in (dcptools.inspect(trained), dcptools.inspect(trained.path).iloc[:0]):
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
            n: types.get(n, "object") for n in COLUMNS
        }


def test_inspect_takes_a_checkpoint_or_a_path_and_sorts_by_key(trained: Checkpoint) -> None:
    frame = dcptools.inspect(trained)
    pd.testing.assert_frame_equal(frame, dcptools.inspect(trained.path))
    pd.testing.assert_frame_equal(frame, dcptools.inspect(Path(trained.path)))
    assert frame["key"].tolist() == sorted([*trained.tensors, *trained.objects])


def _many(directory: Path, keys: int) -> Path:
    """A checkpoint of that many keys, in two chunks each, whose data files are sparse."""
    directory.mkdir()
    sizes, properties = torch.Size((4, 8)), torch_metadata.TensorProperties(torch.float32)
    chunks = [torch_metadata.ChunkStorageMetadata(torch.Size((row, 0)), sizes) for row in (0, 4)]
    metadata = torch_metadata.Metadata({}, {}, {}, version="1.0.0")
    for n in range(keys):
        key = f"model.model.layers.{n // 10}.mlp.experts.{n % 10}.weight"
        entry = torch_metadata.TensorStorageMetadata(properties, torch.Size((8, 8)), list(chunks))
        metadata.state_dict_metadata[key], metadata.planner_data[key] = entry, ("model", key[6:])
        for rank, chunk in enumerate(chunks):
            info = _StorageInfo(f"__{rank}_0.distcp", n * 1500, 1500)
            metadata.storage_data[torch_metadata.MetadataIndex(key, chunk.offsets, rank)] = info
    (directory / ".metadata").write_bytes(pickle.dumps(metadata, protocol=4))
    for rank in range(2):
        (directory / f"__{rank}_0.distcp").touch()
        os.truncate(directory / f"__{rank}_0.distcp", keys * 1500)
    return directory


def _seconds(directory: Path, keys: int) -> float:
    start = time.process_time()
    frame = dcptools.inspect(directory)
    seconds = time.process_time() - start
    assert len(frame) == keys
    assert frame["chunks"].sum() == 2 * keys
    return seconds


def test_inspect_takes_linear_time(tmp_path: Path) -> None:
    few, many = _many(tmp_path / "few", 5_000), _many(tmp_path / "many", 20_000)
    _seconds(few, 5_000)
    assert _seconds(many, 20_000) < 9 * min(_seconds(few, 5_000) for _ in range(2))  # 4 if linear, 16 if quadratic


@pytest.mark.long
def test_inspect_of_100_000_keys(tmp_path: Path) -> None:
    assert _seconds(_many(tmp_path / "many", 100_000), 100_000) < 20


# --- a value that keeps its promise


def test_nothing_of_it_can_be_changed(whole: Checkpoint) -> None:
    tensor = whole[W]
    for array in (tensor.offsets, tensor.sizes, *(getattr(tensor.columns, n) for n in ("file", "start", "nbytes"))):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 99
    with pytest.raises(TypeError):
        whole.tensors["another"] = tensor  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        tensor.key = "another"  # type: ignore[misc]


@pytest.mark.parametrize("again", [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy])
def test_it_can_be_sent_to_another_process(again: Any, whole: Checkpoint) -> None:
    other = again(whole)
    assert other == whole and hash(other) == hash(whole) and other is not whole
    assert str(other) == str(whole)
    assert other[W].chunks == whole[W].chunks
    assert (
        read_region(other[W], [(0, n) for n in other[W].shape]).tobytes()
        == read_region(whole[W], [(0, n) for n in whole[W].shape]).tobytes()
    )
    test_nothing_of_it_can_be_changed(other)


def test_another_save_is_another_checkpoint(tmp_path: Path) -> None:
    first = dcptools.read(broken.whole(tmp_path / "a"))
    assert first == dcptools.read(tmp_path / "a")
    assert first != dcptools.read(broken.whole(tmp_path / "b"))
    assert first != "a"
    os.utime(tmp_path / "a" / "__0_0.distcp", (0, 0))
    assert first != dcptools.read(tmp_path / "a")


def test_a_metadata_file_of_holes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / ".metadata").open("wb") as file:
        file.truncate(100_000_000_000)
    with pytest.raises(
        BrokenCheckpoint, match=r"\.metadata has 100 GB; that of 100 million chunks has less than 20.00 GB"
    ):
        dcptools.read(tmp_path)


@pytest.mark.parametrize("when", ["read", "unpickled"])
def test_metadata_that_does_not_fit_into_memory_says_so(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object) -> Any:
        raise MemoryError

    broken.whole(tmp_path)
    if when == "read":
        monkeypatch.setattr(LocalSource, "content", too_much)
    else:
        monkeypatch.setitem(machine_module._HANDLERS, ord("]"), too_much)
    expected = r"\.metadata has .* kB, and its contents do not fit into memory\.\nRead it on a machine with more"
    with pytest.raises(BrokenCheckpoint, match=expected):
        dcptools.read(tmp_path)


def test_metadata_that_is_read_one_by_one_says_so(tmp_path: Path) -> None:
    """As protocol 2 writes it, for example: the same content, in other opcodes."""
    many_chunks.save(tmp_path / "a", 2000)
    quick = dcptools.read(tmp_path / "a")
    assert "metadata-slow" not in {finding.code for finding in quick.findings}
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(edit.load_metadata(tmp_path / "a"), protocol=2))
    slow = dcptools.read(tmp_path / "a")
    assert [str(f) for f in slow.findings if f.code == "metadata-slow"] == [
        "info[metadata-slow]: .metadata has 1,920 records in a form that is read one by one "
        "(the values are right, but reading takes up to ten times as long; please report which program wrote it)"
    ]
    assert slow.tensors.keys() == quick.tensors.keys()


def test_keys_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    checkpoint = dcptools.read(
        saved.save(tmp_path, {"model": {f"layers.{n}.w": torch.ones(1) for n in (10, 9, 2, 100)}})
    )
    expected = [f"model.layers.{n}.w" for n in (2, 9, 10, 100)]
    assert list(checkpoint.to_frame()["key"]) == expected
    assert [line.split()[0] for line in checkpoint.keys_table().splitlines()[2:]] == expected


def test_containers_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    state = {f"layers.{n}": {"w": torch.ones(1)} for n in (10, 2, 1)}
    checkpoint = dcptools.read(saved.save(tmp_path, state))
    assert [root for root, *_ in checkpoint.summary()] == ["layers.1", "layers.2", "layers.10"]
    assert str(checkpoint).index("layers.2") < str(checkpoint).index("layers.10")
