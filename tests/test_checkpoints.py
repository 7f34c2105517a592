"""Each maker makes what it says; proved with torch, zipfile and pickle, without the package that reads them."""

from __future__ import annotations

import contextlib
import copyreg
import inspect
import io
import itertools
import json
import os
import pickle
import pickletools
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from checkpoints import broken, distributed, edit, hostile, lookalikes, saved
from checkpoints.edit import item_bytes, item_parts, load_metadata, location
from reference import assert_same, full_load
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)

UNREADABLE = (Exception, CheckpointException)  # the latter is no Exception


def makers(module: ModuleType) -> list[str]:
    """Public functions whose only required argument is a directory."""
    names = []
    for name, function in inspect.getmembers(module, inspect.isfunction):
        parameters = list(inspect.signature(function).parameters.values())
        required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if function.__module__ == module.__name__ and not name.startswith("_") and required == ["directory"]:
            names.append(name)
    return names


def tensor_entries(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    entries = metadata.state_dict_metadata
    return {key: entry for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def covered(entry: TensorStorageMetadata) -> list[int]:
    """How often each element of the tensor is stored."""
    count = torch.zeros(tuple(entry.size), dtype=torch.int64)
    for chunk in entry.chunks:
        count[tuple(slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))] += 1
    return sorted(set(count.flatten().tolist()))


def globals_of(directory: Path) -> set[str]:
    """Module and name of each global that ``.metadata`` (protocol 4) asks for, found without loading it."""
    found, memo, pushed = set(), [], ["", ""]
    for opcode, argument, _ in pickletools.genops((directory / ".metadata").read_bytes()):
        if opcode.name == "MEMOIZE":
            memo.append(pushed[-1])
        elif opcode.name == "STACK_GLOBAL":
            found.add(" ".join(pushed[-2:]))
            pushed.append("")
        else:
            value: Any = argument
            pushed.append(memo[value] if "BINGET" in opcode.name else value if isinstance(value, str) else "")
    return found


# --- saved ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", makers(saved))
def test_every_saved_maker_returns_the_directory_it_filled(name: str, tmp_path: Path) -> None:
    target = tmp_path / "some" / name
    assert getattr(saved, name)(target) == target
    assert any(target.iterdir())
    assert inspect.getdoc(getattr(saved, name))


def test_model_state_has_the_shapes_of_qwen3() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        head_dim=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        expected = {name: t.shape for name, t in Qwen3ForCausalLM(config).state_dict().items()}
    assert {name: t.shape for name, t in saved.model_state().items()} == expected


def test_model_state_options() -> None:
    assert "lm_head.weight" not in saved.model_state(lm_head=False)
    tied = saved.model_state(tied=True)
    assert tied["lm_head.weight"] is tied["model.embed_tokens.weight"]
    first, again, other = saved.model_state(), saved.model_state(), saved.model_state(seed=1)
    assert_same(first, again)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert {t.dtype for t in saved.model_state(dtype=torch.bfloat16).values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_special_values(dtype: torch.dtype, tmp_path: Path) -> None:
    state = saved.model_state(special_values=True, dtype=dtype)
    values = state["model.embed_tokens.weight"].double()
    assert values.isnan().any()
    assert values.isposinf().any()
    assert values.isneginf().any()
    assert ((values == 0) & values.signbit()).any()
    assert ((values.abs() > 0) & (values.abs() < torch.finfo(dtype).tiny)).any()
    assert_same(full_load(saved.bare(tmp_path / "a", state)), state)


def test_special_values_that_a_cast_to_bfloat16_changes() -> None:
    values = saved.special_floats()
    assert (values.isfinite() & values.bfloat16().isinf()).any()
    signalling = values[:1]
    assert signalling.isnan()
    assert (signalling.view(torch.int32) >> 16 << 16).view(torch.float32).isinf()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_dtypes_keep_their_bits(tmp_path: Path) -> None:
    state = saved.dtype_state()
    directory = saved.save(tmp_path / "a", state)
    reading = {key: torch.load(io.BytesIO(item_bytes(directory, key))) for key in state}
    assert_same(reading, state)
    assert len(state) == len(saved.DTYPES) == 21
    pickles = {key: _data_pickle(directory, key) for key in state}
    assert b"_rebuild_tensor_v3" in pickles["model.model.uint16"]
    assert b"_rebuild_tensor_v3" in pickles["model.model.float8_e4m3fn"]
    assert b"_rebuild_tensor_v2" in pickles["model.model.float32"]


def _data_pickle(directory: Path, key: str) -> bytes:
    parts = item_parts(item_bytes(directory, key))
    return parts[edit.data_pickle(parts)]


def test_shapes(tmp_path: Path) -> None:
    state = saved.shape_state()
    assert_same(full_load(saved.save(tmp_path / "a", state)), state)
    assert state["model.model.empty_rows"].shape == (0, 1 << 40)


def test_strided_as_dcp_stores_it(tmp_path: Path) -> None:
    state = saved.strided_state()
    directory = saved.strided(tmp_path / "a")
    items = {key: torch.load(io.BytesIO(item_bytes(directory, key))) for key in state}
    assert_same(items, state)
    kept = {key.removeprefix("model.model."): item for key, item in items.items()}
    assert kept["transposed"].stride() == (1, 6)
    assert kept["permuted"].stride() == (1, 12, 4)
    assert kept["channels_last"].stride() == (24, 1, 8, 2)
    assert kept["overlapping"].stride() == (1, 1)
    assert kept["offset_by_as_strided"].storage_offset() == 2
    assert kept["offset_by_as_strided"].stride() == (0, 1)
    assert kept["conjugated"].is_conj()
    assert kept["conjugated_transposed"].is_conj()
    assert kept["negated"].is_neg()
    assert kept["narrowed_rows"].storage_offset() == 0
    assert kept["expanded"].is_contiguous()
    assert not any(isinstance(item, torch.nn.Parameter) for item in kept.values())


def test_strided_raw_keeps_the_views(tmp_path: Path) -> None:
    state = saved.strided_state()
    directory = saved.strided_raw(tmp_path / "a")
    items = {key: torch.load(io.BytesIO(item_bytes(directory, key))) for key in state}
    assert_same(items, state)
    assert_same(full_load(directory), {key: t.detach().resolve_conj().resolve_neg() for key, t in state.items()})
    for key, item in items.items():
        assert item.stride() == state[key].stride(), key
        assert item.storage_offset() == state[key].storage_offset(), key
    assert items["model.model.narrowed_rows"].storage_offset() == 8
    assert items["model.model.expanded"].stride() == (0, 1)
    assert isinstance(items["model.model.parameter_transposed"], torch.nn.Parameter)


def test_save_chunks_is_what_dcp_writes(tmp_path: Path) -> None:
    state = saved.model_state(layers=1)
    whole = saved.trained(tmp_path / "a", state, optimizer=False)
    halves = {
        f"model.{key}": [
            ((n, *(0,) * (t.dim() - 1)), part.clone()) for n, part in zip((0, 2), (t[:2], t[2:]), strict=True)
        ]
        for key, t in state.items()
    }
    chunked = saved.save_chunks(tmp_path / "b", halves, files=3)
    assert_same(full_load(chunked), full_load(whole))
    assert load_metadata(chunked).planner_data == load_metadata(whole).planner_data
    assert load_metadata(chunked).version == load_metadata(whole).version
    assert globals_of(chunked) == globals_of(whole)


def test_containers(tmp_path: Path) -> None:
    def paths(name: str) -> dict[str, Any]:
        planner_data: dict[str, Any] = load_metadata(getattr(saved, name)(tmp_path / name)).planner_data
        return planner_data

    assert paths("trained")["model.model.norm.weight"] == ("model", "model.norm.weight")
    assert paths("trained")["optimizer.state.model.norm.weight.exp_avg"] == (
        "optimizer",
        "state",
        "model.norm.weight",
        "exp_avg",
    )
    assert paths("bare")["model.norm.weight"] == ("model.norm.weight",)
    assert paths("bare")["lm_head.weight"] == ("lm_head.weight",)
    assert paths("app_state")["app.model.model.norm.weight"] == ("app", "model", "model.norm.weight")
    assert paths("one_element_paths")["model.model.norm.weight"] == ("model.model.norm.weight",)
    assert not any(key.startswith("model.") for key in paths("no_model"))
    assert paths("empty_state") == {}
    assert paths("colliding").keys() == {
        "model.model.norm.weight",
        "model.norm.weight",
        "model._orig_mod.model.norm.weight",
    }
    assert load_metadata(saved.planner_data(tmp_path / "none", None)).planner_data is None


@pytest.mark.parametrize("wrapper", saved.WRAPPERS)
def test_wrappers(wrapper: str, tmp_path: Path) -> None:
    keys = load_metadata(saved.wrapped(tmp_path / "a", wrapper)).state_dict_metadata
    assert f"model.{wrapper}model.norm.weight" in keys
    assert f"model.{wrapper}model.layers.0.{wrapper}self_attn.q_proj.weight" in keys


def test_extra_state_is_bytes_under_the_model(tmp_path: Path) -> None:
    directory = saved.extra_state(tmp_path / "a")
    key = "model.model.layers.0.self_attn._extra_state"
    entries = load_metadata(directory).state_dict_metadata
    assert isinstance(entries[key], BytesStorageMetadata)
    assert isinstance(entries["model.model.layers.0.mlp._extra_state"], BytesStorageMetadata)
    assert isinstance(entries["model.model.layers.0.mlp.down_proj._extra_state.scale"], BytesStorageMetadata)
    assert full_load(directory)["model.model.layers.0.mlp.up_proj._extra_state"].tolist() == [0, 1, 2, 3, 4]
    stored = torch.load(io.BytesIO(item_bytes(directory, key)), weights_only=False)
    assert stored.getvalue() == b"scales"


def test_odd_names(tmp_path: Path) -> None:
    keys = load_metadata(saved.odd_names(tmp_path / "a")).state_dict_metadata
    assert {f"model.model.{name}" for name in saved.ODD_NAMES} <= keys.keys()


def test_replicated_chunks_are_stored_twice_and_load(tmp_path: Path) -> None:
    directory = saved.replicated_chunks(tmp_path / "a")
    assert covered(tensor_entries(load_metadata(directory))["model.model.w"]) == [2]
    assert torch.equal(full_load(directory)["model.model.w"], torch.arange(12.0).reshape(4, 3))


def test_zstd(tmp_path: Path) -> None:
    state = saved.model_state()
    directory = saved.zstd(tmp_path / "a", state)
    infos = load_metadata(directory).storage_data.values()
    assert {tuple(info.transform_descriptors) for info in infos} == {("stream.zstd/1",)}
    assert item_bytes(directory, "model.lm_head.weight")[:4] == b"\x28\xb5\x2f\xfd"
    assert_same(full_load(directory), {f"model.{key}": t for key, t in state.items()})


def test_safetensors_format(tmp_path: Path) -> None:
    state = saved.model_state()
    directory = saved.safetensors_format(tmp_path / "a", state)
    assert {info.offset for info in load_metadata(directory).storage_data.values()} == {0}
    with safe_open(directory / "__0_0.distcp", "pt") as file:
        assert_same({key: file.get_tensor(key) for key in file.keys()}, {f"model.{k}": t for k, t in state.items()})
    with pytest.raises(UNREADABLE):
        full_load(directory)


def test_safetensors_format_with_bytes_starts_late(tmp_path: Path) -> None:
    directory = saved.safetensors_format_with_bytes(tmp_path / "a")
    start = location(directory, "model.model.norm.weight").offset
    assert start == sum(location(directory, key).length for key in ("step", "model.model._extra_state")) > 0
    with pytest.raises(Exception, match=r"(?i)header"):
        safe_open(directory / "__0_0.distcp", "pt")
    (tmp_path / "rest").write_bytes((directory / "__0_0.distcp").read_bytes()[start:])
    with safe_open(tmp_path / "rest", "pt") as file:
        assert torch.equal(file.get_tensor("model.model.norm.weight"), torch.arange(4.0))


def test_hf_dcp(tmp_path: Path) -> None:
    directory = saved.hf_dcp(tmp_path / "a")
    (path,) = directory.iterdir()
    assert path.name == "shard-00001-model-00001-of-00001.safetensors"
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["DCP_SHARDING_INFO"])["lm_head.weight"] == {"saved_offsets": [0, 0]}


def test_files_per_rank(tmp_path: Path) -> None:
    many = saved.file_per_item(tmp_path / "a")
    assert len(list(many.glob("*.distcp"))) == len(load_metadata(many).state_dict_metadata)
    sizes = sorted(path.stat().st_size for path in saved.empty_files(tmp_path / "b").glob("*.distcp"))
    assert sizes[:3] == [0, 0, 0]
    assert sizes[3] > 0


def test_old_torch_metadata(tmp_path: Path) -> None:
    directory = saved.old_torch_metadata(tmp_path / "a")
    asked = globals_of(directory)
    assert "torch.distributed._shard.sharded_tensor.metadata TensorProperties" in asked
    assert "torch.distributed._shard.sharded_tensor.metadata MEM_FORMAT_ENCODING" in asked
    assert not asked & {f"torch.distributed.checkpoint.metadata {name}" for name in ("TensorProperties", "StorageMeta")}
    assert load_metadata(directory).__dict__.keys() == {"state_dict_metadata", "planner_data", "storage_data"}
    assert "model.model.norm.weight" in full_load(directory)


@pytest.mark.parametrize(
    ("directory_name", "asked"),
    [("py313", "pathlib._local PosixPath"), ("windows", "pathlib WindowsPath"), ("both", "pathlib._local WindowsPath")],
)
def test_paths_of_other_systems(directory_name: str, asked: str, tmp_path: Path) -> None:
    makers_by_name: dict[str, Callable[[Path], Path]] = {
        "py313": saved.python313_paths,
        "windows": saved.windows_paths,
        "both": lambda directory: saved.windows_paths(directory, python313=True),
    }
    before = dict(sys.modules)
    directory = makers_by_name[directory_name](tmp_path / directory_name)
    assert asked in globals_of(directory)
    assert sys.modules.get("pathlib._local") is before.get("pathlib._local")
    assert Path("/a") == pickle.loads(pickle.dumps(Path("/a")))
    if sys.version_info < (3, 13) and sys.platform != "win32":
        with pytest.raises((ModuleNotFoundError, NotImplementedError)):
            load_metadata(directory)


def test_megatron_like(tmp_path: Path) -> None:
    directory = saved.megatron_like(tmp_path / "a")
    asked = globals_of(directory)
    assert "megatron.core.dist_checkpointing.core MCoreMetadata" in asked
    planner = {
        f"torch.distributed.checkpoint.planner {n}"
        for n in ("SavePlan", "WriteItem", "TensorWriteData", "WriteItemType")
    }
    assert planner <= asked
    assert "torch.distributed.checkpoint.filesystem _StoragePrefix" in asked
    assert "megatron" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        load_metadata(directory)
    with saved.module_of(saved.MCoreMetadata, "megatron.core.dist_checkpointing.core"):
        metadata = load_metadata(directory)
    assert metadata.planner_data is None
    assert {"mcore_data", "all_local_plans"} <= metadata.__dict__.keys()


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_protocols(number: int, tmp_path: Path) -> None:
    directory = saved.protocol(tmp_path / "a", number)
    assert (directory / ".metadata").read_bytes()[:2] == bytes([0x80, number])
    assert "model.model.norm.weight" in full_load(directory)


# --- distributed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in distributed.CASES if name not in distributed.WITHOUT_METADATA])
def test_distributed_cases_load_as_expected(name: str, cases: dict[str, Path]) -> None:
    metadata = load_metadata(cases[name])
    assert_same(full_load(cases[name]), distributed.expected(cases[name]))
    assert {tuple(covered(entry)) for entry in tensor_entries(metadata).values()} == {(1,)}
    assert len({path.name.split("_")[2] for path in cases[name].glob("*.distcp")}) == 4


def chunks(directory: Path, key: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    entry = tensor_entries(load_metadata(directory))[key]
    return [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]


def test_how_distributed_cases_are_cut(cases: dict[str, Path]) -> None:
    assert len(chunks(cases["shard0_even"], "model.model.w")) == 4
    assert chunks(cases["shard0_uneven"], "model.model.rows10")[-1] == ((9, 0), (1, 6))
    assert chunks(cases["shard0_uneven"], "model.model.rows5")[-1] == ((5, 0), (0, 6))
    assert chunks(cases["shard1"], "model.model.even")[1] == ((0, 2), (3, 2))
    assert chunks(cases["shard_last_of_three"], "model.model.last")[1] == ((0, 0, 2), (2, 3, 2))
    assert ((2, 3), (2, 3)) in chunks(cases["mesh_2d"], "model.model.even")
    assert len(chunks(cases["mesh_2d_same_dimension"], "model.model.even")) == 4
    assert [offsets for offsets, _ in chunks(cases["fsdp_tp"], "model.model.0.bias")] == [(0,), (4,), (2,), (6,)]
    assert len(chunks(cases["replicated"], "model.model.plain")) == 1
    assert [offsets for offsets, _ in chunks(cases["hsdp"], "model.model.even")] == [(0, 0), (4, 0)]
    assert chunks(cases["dtypes"], "model.model.scalar") == [((), ())]


def test_files_of_distributed_cases(cases: dict[str, Path]) -> None:
    sizes = {path.name: path.stat().st_size for path in cases["replicated"].glob("*.distcp")}
    assert len(sizes) == 4
    assert 0 in sizes.values()
    assert len(list(cases["threads"].glob("__3_*.distcp"))) == 2
    assert len(list(cases["file_per_item"].glob("__3_*.distcp"))) == 3
    assert any(key.startswith("optimizer.") for key in load_metadata(cases["fsdp2"]).state_dict_metadata)
    local = torch.load(io.BytesIO(item_bytes(cases["strided"], "model.model.w")))
    assert local.shape == (12, 2)
    assert local.stride() == (1, 12)


def test_per_rank_metadata(cases: dict[str, Path]) -> None:
    names = {path.name for path in cases["per_rank_metadata"].iterdir()}
    assert names == {f"__{rank}{end}" for rank in range(4) for end in (".metadata", "_0.distcp")}
    metadata = pickle.loads((cases["per_rank_metadata"] / "__1.metadata").read_bytes())
    assert [tuple(chunk.offsets) for chunk in metadata.state_dict_metadata["model.model.rows10"].chunks] == [(3, 0)]


def test_hf_dcp_of_four_ranks(cases: dict[str, Path]) -> None:
    paths = sorted(cases["hf_dcp"].iterdir())
    assert [path.name[:11] for path in paths] == [f"shard-0000{rank}" for rank in (1, 2, 3, 4)]
    whole: dict[str, Tensor] = {key: torch.zeros_like(t) for key, t in distributed.expected(cases["hf_dcp"]).items()}
    for path in paths:
        with safe_open(path, "pt") as file:
            for key, info in json.loads(file.metadata()["DCP_SHARDING_INFO"]).items():
                part = file.get_tensor(key)
                start = info["saved_offsets"][0]
                whole[key][start : start + len(part)] = part
    assert_same(whole, distributed.expected(cases["hf_dcp"]))


def test_cases_are_saved_once(cases: dict[str, Path]) -> None:
    root = cases["shard0_even"].parent
    before = (cases["shard0_even"] / ".metadata").stat().st_mtime_ns
    assert distributed.save_cases(root) == cases
    assert (cases["shard0_even"] / ".metadata").stat().st_mtime_ns == before


# --- broken -----------------------------------------------------------------------------------------------------

GOOD = {broken.W: torch.arange(24.0).reshape(6, 4), broken.B: torch.arange(4.0)}
NO_FAULT = ("whole", "linked_files", "no_checksums", "shifted_hints", "unlisted_storage", "rezipped", "no_byteorder",
            "big_endian", "deflated", "legacy_item", "escaping_path", "absolute_path")  # fmt: skip


@pytest.mark.parametrize("name", makers(broken))
def test_every_broken_maker_makes_a_directory(name: str, tmp_path: Path) -> None:
    getattr(broken, name)(tmp_path / "a" / name)
    assert any((tmp_path / "a" / name).iterdir())
    assert inspect.getdoc(getattr(broken, name))


@pytest.mark.parametrize("name", NO_FAULT)
def test_what_looks_broken_and_is_not(name: str, tmp_path: Path) -> None:
    """torch loads these, and gets the right values; whether a path may lead outside is for the reader to say."""
    getattr(broken, name)(tmp_path / "a")
    loaded = full_load(tmp_path / "a")
    assert torch.equal(loaded[broken.W], GOOD[broken.W])
    assert torch.equal(loaded[broken.B], GOOD[broken.B])


@pytest.mark.parametrize(
    "name",
    ["missing_file", "truncated_file", "file_is_directory", "garbage_metadata", "truncated_metadata", "empty_metadata",
     "metadata_is_directory", "not_metadata", "no_storage", "no_storage_data", "no_tensor", "not_a_zip",
     "short_data", "no_data", "strides_past_storage", "unknown_transform", "negative_location", "huge_location",
     "negative_size", "rank_mismatch"],
)  # fmt: skip
def test_torch_notices(name: str, tmp_path: Path) -> None:
    getattr(broken, name)(tmp_path / "a")
    with pytest.raises(UNREADABLE):
        full_load(tmp_path / "a")


def test_torch_does_not_notice_holes(tmp_path: Path) -> None:
    assert (full_load(broken.hole(tmp_path / "a"), fill=-7.0)[broken.W][2:4] == -7).all()
    assert (full_load(broken.tail_hole(tmp_path / "b"), fill=-7.0)[broken.W][6:] == -7).all()
    assert (full_load(broken.no_chunks(tmp_path / "c"), fill=-7.0)[broken.W] == -7).all()
    assert covered(tensor_entries(load_metadata(broken.hole(tmp_path / "d")))[broken.W]) == [0, 1]


def test_torch_does_not_notice_a_larger_item(tmp_path: Path) -> None:
    assert torch.equal(full_load(broken.other_shape(tmp_path / "a"))[broken.B], GOOD[broken.B])


def test_overlap_has_the_right_number_of_elements(tmp_path: Path) -> None:
    entry = tensor_entries(load_metadata(broken.overlap(tmp_path / "a")))[broken.W]
    assert covered(entry) == [0, 1, 2]
    assert sum(torch.Size(chunk.sizes).numel() for chunk in entry.chunks) == entry.size.numel()


def test_flipped_bit_goes_unnoticed_by_torch_but_not_by_the_checksum(tmp_path: Path) -> None:
    name, key = broken.flipped_bit(tmp_path / "a")
    assert location(tmp_path / "a", key, 1).relative_path == name
    assert int((full_load(tmp_path / "a")[key] != GOOD[key]).sum()) == 1
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        item_parts(item_bytes(tmp_path / "a", key, 1))


def test_no_checksums(tmp_path: Path) -> None:
    def crcs(directory: Path) -> list[tuple[int, int]]:
        with zipfile.ZipFile(io.BytesIO(item_bytes(directory, broken.B))) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data/0"))
            return [(archive.getinfo(name).CRC, zlib.crc32(GOOD[broken.B].numpy().tobytes()))]

    assert [stored == true for stored, true in crcs(broken.whole(tmp_path / "a"))] == [True]
    assert [stored for stored, _ in crcs(broken.no_checksums(tmp_path / "b"))] == [0]
    assert torch.serialization.get_crc32_options()


def test_sizes_and_paths(tmp_path: Path) -> None:
    assert tensor_entries(load_metadata(broken.huge_size(tmp_path / "a")))[broken.B].size == (1 << 62,)
    assert tensor_entries(load_metadata(broken.negative_size(tmp_path / "b")))[broken.B].size == (-4,)
    outside = broken.absolute_path(tmp_path / "c")
    assert location(tmp_path / "c", broken.B).relative_path == str(outside)
    outside = broken.escaping_path(tmp_path / "d")
    assert location(tmp_path / "d", broken.B).relative_path == "../outside.distcp"
    assert outside.exists()
    assert chunks(broken.out_of_bounds(tmp_path / "e"), broken.W)[2] == ((5, 0), (2, 4))
    assert chunks(broken.negative_offset(tmp_path / "f"), broken.W)[0] == ((-1, 0), (2, 4))


def test_items_that_are_not_as_announced(tmp_path: Path) -> None:
    def tensor(directory: Path) -> Tensor:
        item: Tensor = torch.load(io.BytesIO(item_bytes(directory, broken.B)))
        return item

    assert tensor(broken.other_dtype(tmp_path / "a")).dtype == torch.int32
    assert tensor(broken.other_shape(tmp_path / "b")).shape == (5,)
    assert tensor(broken.legacy_item(tmp_path / "c")).tolist() == [0, 1, 2, 3]
    assert not zipfile.is_zipfile(io.BytesIO(item_bytes(tmp_path / "c", broken.B)))
    assert tensor(broken.wrong_shape(tmp_path / "d")).shape == (4,)
    parts = item_parts(item_bytes(broken.big_endian(tmp_path / "e"), broken.B))
    assert parts[edit.data_entry(parts)] == GOOD[broken.B].numpy().astype(">f4").tobytes()
    with zipfile.ZipFile(io.BytesIO(item_bytes(broken.deflated(tmp_path / "f"), broken.B))) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}


@pytest.mark.parametrize("what", broken.WRONG_TYPES)
def test_wrong_types_are_in_the_pickle(what: str, tmp_path: Path) -> None:
    metadata = load_metadata(broken.wrong_types(tmp_path / "a", what))
    assert pickle.dumps(metadata) != pickle.dumps(load_metadata(broken.whole(tmp_path / "b")))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["item_runs_system", "item_loads_bytes"])
def test_items_that_run(name: str, tmp_path: Path) -> None:
    marker: Path = getattr(broken, name)(tmp_path / "a")
    payload = item_bytes(tmp_path / "a", broken.B)
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(payload), weights_only=True)
    assert not marker.exists()
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(payload), weights_only=False)
    assert marker.exists()


# --- hostile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*hostile.RUNNERS, "in_planner_data"])
def test_runners_run(name: str, tmp_path: Path) -> None:
    """Here they are let loose, on purpose: all they do is to touch a file in the test's own directory."""
    marker = hostile.runner(tmp_path / "a", name)
    assert not marker.exists()
    with contextlib.suppress(Exception):
        pickle.loads((tmp_path / "a" / ".metadata").read_bytes())
    assert marker.exists()


def test_hostile_planner_data_stands_in_a_sound_checkpoint(tmp_path: Path) -> None:
    hostile.runner(tmp_path / "a", "in_planner_data")
    assert "model.model.norm.weight" in full_load(tmp_path / "a")


def test_extension_is_cached_past_find_class(tmp_path: Path) -> None:
    class Watcher(pickle.Unpickler):
        asked: list[str] = []  # noqa: RUF012

        def find_class(self, module: str, name: str) -> Any:
            self.asked.append(f"{module}.{name}")
            return super().find_class(module, name)

    marker = hostile.runner(tmp_path / "a", "extension")
    content = (tmp_path / "a" / ".metadata").read_bytes()
    with pytest.raises(ValueError, match="unregistered extension code 240"):
        pickle.loads(content)
    copyreg.add_extension("os", "system", 240)
    try:
        for _ in range(2):
            Watcher(io.BytesIO(content)).load()
    finally:
        copyreg.remove_extension("os", "system", 240)
    assert Watcher.asked == ["os.system"]  # once for two loads
    assert marker.exists()


def eat(directory: Path, name: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return hostile.load_in_child(hostile.checkpoint(directory, hostile.EATERS[name]()) / ".metadata", **options)


@pytest.mark.parametrize("name", ["long_binput", "text_put", "binbytes8", "bytearray8"])
def test_eaters_of_memory(name: str, tmp_path: Path) -> None:
    assert len(hostile.EATERS[name]()) < 20
    assert "MemoryError" in eat(tmp_path / name, name).stderr


def test_nine_bytes() -> None:
    assert len(hostile.long_binput()) == 9


def test_eaters_of_the_stack(tmp_path: Path) -> None:
    assert eat(tmp_path / "a", "nested_key").returncode < 0
    assert eat(tmp_path / "b", "nested_value").returncode == 0
    assert eat(tmp_path / "c", "nested_value", after="hash(value)").returncode < 0


def test_eaters_of_time(tmp_path: Path) -> None:
    assert len(hostile.doubling_key()) < 500
    with pytest.raises(subprocess.TimeoutExpired):
        eat(tmp_path / "a", "doubling_key", timeout=3.0)
    assert eat(tmp_path / "b", "doubling_value").returncode == 0
    with pytest.raises(subprocess.TimeoutExpired):
        eat(tmp_path / "c", "wide_key", timeout=1.0)
    with pytest.raises(subprocess.TimeoutExpired):
        eat(tmp_path / "d", "wide_keys_in_keys", timeout=1.0)


def test_other_eaters(tmp_path: Path) -> None:
    assert eat(tmp_path / "a", "cycle", after="assert value[0] is value").returncode == 0
    assert "truncated" in eat(tmp_path / "b", "frame").stderr or "MemoryError" in eat(tmp_path / "b", "frame").stderr
    assert "persistent" in eat(tmp_path / "c", "persistent_id").stderr


def test_poisoners() -> None:
    from torch.distributed.checkpoint import metadata as module

    assert set(hostile.POISONERS) == {"poisoned_class", "poisoned_enum", "poisoned_slots", "poisoned_environment"}
    pickle.loads(hostile.poisoned_class())
    assert Metadata({}).poisoned == "yes"  # type: ignore[attr-defined]
    del Metadata.poisoned  # type: ignore[attr-defined]
    pickle.loads(hostile.poisoned_enum())
    assert module._MEM_FORMAT_ENCODING.poisoned == "yes"  # type: ignore[attr-defined]
    del module._MEM_FORMAT_ENCODING.poisoned  # type: ignore[attr-defined]
    chunk = pickle.loads(hostile.poisoned_slots())
    assert type(chunk) is ChunkStorageMetadata
    assert str(chunk.sizes) == "yes"
    pickle.loads(hostile.poisoned_environment())
    assert os.environ.pop("DCPTOOLS_POISONED") == "yes"


# --- look-alikes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", makers(lookalikes))
def test_every_lookalike_returns_its_path(name: str, tmp_path: Path) -> None:
    target = tmp_path / "some" / name
    assert getattr(lookalikes, name)(target) == target
    assert target.exists()
    assert inspect.getdoc(getattr(lookalikes, name))
    readable = {"lightning", "torchtitan", "flat_parameters", "lora_adapter", "metadata_only"}
    assert (target / ".metadata").exists() == (name in readable)


def test_lookalikes_with_a_checkpoint_below(tmp_path: Path) -> None:
    below = {
        name: sorted(
            str(path.parent.relative_to(tmp_path / name))
            for path in getattr(lookalikes, name)(tmp_path / name).rglob(".metadata")
        )
        for name in ("steps", "accelerate", "veomni")
    }
    assert below == {
        "steps": ["global_step_10", "global_step_9", "step-100"],
        "accelerate": ["optimizer_0", "pytorch_model_fsdp_0"],
        "veomni": ["global_step_10"],
    }
    assert (lookalikes.interrupted(tmp_path / "interrupted") / ".metadata.tmp").exists()
    assert list(lookalikes.distcp_only(tmp_path / "distcp_only").glob("*.distcp"))
    assert list(lookalikes.metadata_only(tmp_path / "metadata_only").iterdir()) == [
        tmp_path / "metadata_only" / ".metadata"
    ]


def test_flat_parameters_have_no_names(tmp_path: Path) -> None:
    entries = tensor_entries(load_metadata(lookalikes.flat_parameters(tmp_path / "a")))
    assert all(key.endswith("_flat_param") and len(entry.size) == 1 for key, entry in entries.items())


def test_no_maker_is_forgotten() -> None:
    counts = [len(makers(module)) for module in (saved, broken, lookalikes)]
    assert all(count > 15 for count in counts), counts
    assert len(set(itertools.chain.from_iterable(map(makers, (saved, broken, lookalikes))))) == sum(counts)
