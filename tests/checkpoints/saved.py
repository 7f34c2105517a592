"""Whole checkpoints, saved in this process: every dtype, every stride, every encoding, every shape of container.

The format facts were seen with torch 2.13 on CPU unless a docstring says otherwise.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import pickle
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed._shard.sharded_tensor import metadata as torch22
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat, _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from .edit import dump_metadata, editing, load_metadata, torch_item

State = dict[str, Tensor]
Placed = tuple[Sequence[int], Tensor]  # a chunk's offsets in the whole tensor, and the chunk


def save(directory: Path, state_dict: Mapping[str, Any], **writer_options: Any) -> Path:
    """``dcp.save`` in this process alone; options are those of ``FileSystemWriter``. Not synced, to be quick."""
    writer = FileSystemWriter(directory, **{"sync_files": False, **writer_options})
    _save(state_dict, writer)
    return directory


def _save(state_dict: Mapping[str, Any], writer: FileSystemWriter, **options: Any) -> None:
    directory = Path(writer.path)
    directory.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.distributed is disabled, ... assuming a single process"
        state_dict_saver.save(dict(state_dict), storage_writer=writer, no_dist=True, **options)


def save_chunks(directory: Path, tensors: Mapping[str, Sequence[Placed]], files: int = 1) -> Path:
    """A checkpoint with chunks cut at will, as ``files`` ranks would leave it, without starting any.

    Each chunk goes through ``torch.save`` as it is: DCP would copy a view whose storage is larger than itself.
    """
    directory.mkdir(parents=True, exist_ok=True)
    metadata = Metadata({}, planner_data={}, storage_data={}, storage_meta=StorageMeta(directory), version="1.0.0")
    names = itertools.cycle(f"__{rank}_0.distcp" for rank in range(files))
    for rank in range(files):
        (directory / f"__{rank}_0.distcp").write_bytes(b"")
    for key, chunks in tensors.items():
        metadata.planner_data[key] = ("model", key.removeprefix("model.")) if key.startswith("model.") else (key,)
        metadata.state_dict_metadata[key] = _tensor_metadata(chunks)
        for number, (offsets, chunk) in enumerate(chunks):
            name, payload = next(names), torch_item(chunk)
            with (directory / name).open("ab") as file:
                info = _StorageInfo(name, file.tell(), len(payload))
                file.write(payload)
            metadata.storage_data[MetadataIndex(key, offsets, number)] = info
    dump_metadata(directory, metadata)
    return directory


def _tensor_metadata(chunks: Sequence[Placed]) -> TensorStorageMetadata:
    ends = [[o + s for o, s in zip(offsets, chunk.shape, strict=True)] for offsets, chunk in chunks]
    return TensorStorageMetadata(
        TensorProperties(dtype=chunks[0][1].dtype),
        torch.Size(max(axis) for axis in zip(*ends, strict=True)),
        [ChunkStorageMetadata(torch.Size(offsets), chunk.shape) for offsets, chunk in chunks],
    )


# --- states -----------------------------------------------------------------------------------------------------


def model_state(
    layers: int = 2,
    hidden: int = 8,
    vocab: int = 16,
    *,
    heads: int = 2,
    kv_heads: int = 1,
    dtype: torch.dtype = torch.float32,
    lm_head: bool = True,
    tied: bool = False,
    special_values: bool = False,
    seed: int = 0,
) -> State:
    """Random tensors with the names and shapes of a Qwen3 model, bare as ``model.state_dict()`` gives them.

    ``tied`` gives ``lm_head.weight`` the very tensor of the embeddings, which DCP stores twice. ``special_values``
    puts NaN, infinities, -0.0, subnormals and values that overflow a narrower type into the embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in _shapes(layers, hidden, vocab, heads=heads, kv_heads=kv_heads).items()
    }
    if special_values:
        awkward = special_floats(dtype)
        state["model.embed_tokens.weight"].view(-1)[: len(awkward)] = awkward
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    elif not lm_head:
        del state["lm_head.weight"]
    return state


def _shapes(layers: int, hidden: int, vocab: int, *, heads: int, kv_heads: int) -> dict[str, tuple[int, ...]]:
    head_dim = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        block: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (heads * head_dim, hidden),
            "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            "self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            "self_attn.o_proj.weight": (hidden, heads * head_dim),
            "self_attn.q_norm.weight": (head_dim,),
            "self_attn.k_norm.weight": (head_dim,),
            "mlp.gate_proj.weight": (2 * hidden, hidden),
            "mlp.up_proj.weight": (2 * hidden, hidden),
            "mlp.down_proj.weight": (hidden, 2 * hidden),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def special_floats(dtype: torch.dtype = torch.float32) -> Tensor:
    """NaN (also one with a payload), infinities, -0.0, subnormals, the largest values, and ties of bf16 rounding."""
    info = torch.finfo(dtype)
    tiny = info.tiny / 4
    values = [float("nan"), float("inf"), -float("inf"), -0.0, tiny, -tiny, info.max, info.min, info.tiny]
    values += [1.00390625, 1.01171875, 65520.0, 3.4e38]  # halfway between two bf16 values, twice; past fp16; near max
    special = torch.tensor(values, dtype=torch.float64).to(dtype)
    if dtype == torch.float32:
        special.view(torch.int32)[0] = 0x7F800001  # a signalling NaN, whose upper 16 bits alone would read as Inf
    return special


def random_bits(dtype: torch.dtype, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Any bit pattern a dtype can hold (0 and 1 for booleans); compare it as bytes, NaN is among it."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, tuple(shape), generator=generator).bool()
    nbytes = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(tuple(shape))


DTYPES: tuple[torch.dtype, ...] = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    torch.complex32, torch.complex64, torch.complex128,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
"""Every dtype that DCP was seen to save; safetensors 0.8 has no name for complex32 and complex128."""


def dtype_state() -> State:
    """One tensor a dtype: ``model.model.<dtype>``. Several are pickled by ``_rebuild_tensor_v3`` (uint16, fp8)."""
    return {f"model.model.{str(dtype).removeprefix('torch.')}": random_bits(dtype, (3, 4)) for dtype in DTYPES}


def shape_state() -> State:
    """0-dimensional, empty (also with a large other dimension), one element, five dimensions."""
    shapes = {"scalar": (), "empty": (0,), "empty_rows": (0, 1 << 40), "one": (1,), "five": (1, 2, 3, 2, 1)}
    return {f"model.model.{name}": torch.randn(shape) for name, shape in shapes.items()}


def strided_state() -> State:
    """Tensors whose bytes do not lie in row-major order, and whose flags say more than their bytes.

    ``overlapping`` and ``offset_by_as_strided`` are what a genuine DCP can hold: it copies a view only if the size of
    the storage differs from the size of the view, and these two fit it by chance.
    """
    base = torch.arange(24, dtype=torch.float32)
    complex_base = torch.complex(base[:12], base[12:]).reshape(3, 4)
    state = {
        "contiguous": base.reshape(4, 6).clone(),
        "transposed": base.reshape(4, 6).clone().t(),
        "permuted": base.reshape(2, 3, 4).clone().permute(2, 0, 1),
        "channels_last": base.reshape(1, 2, 3, 4).clone().to(memory_format=torch.channels_last),
        "size_one_strides": base[:4].clone().as_strided((1, 4), (77, 1)),
        "overlapping": base[:4].clone().as_strided((2, 2), (1, 1)),
        "offset_by_as_strided": base[:4].clone().as_strided((2, 2), (0, 1), 2),
        "conjugated": complex_base.clone().conj(),
        "conjugated_transposed": complex_base.clone().conj().t(),
        "negated": torch._neg_view(base.reshape(4, 6).clone()),
        "narrowed_rows": base.reshape(6, 4)[2:5],
        "narrowed_columns": base.reshape(4, 6)[:, 1:4],
        "stepped": base[1::3],
        "expanded": base[:3].clone().expand(5, 3),
        "bfloat16_transposed": base.reshape(4, 6).bfloat16().t(),
        "float8_transposed": base.reshape(4, 6).to(torch.float8_e4m3fn).t(),
        "parameter": torch.nn.Parameter(base.reshape(4, 6).clone()),
        "parameter_transposed": torch.nn.Parameter(base.reshape(4, 6).clone().t()),
    }
    return {f"model.model.{name}": tensor for name, tensor in state.items()}


def strided(directory: Path) -> Path:
    """:func:`strided_state` as DCP stores it: strides, overlaps and flags are kept, larger storages are cut down."""
    return save(directory, strided_state())


def strided_raw(directory: Path) -> Path:
    """:func:`strided_state` with every view as it is, so that ``data.pkl`` has storage offsets and ``Parameter``.

    The torch 2.13 writer copies such views; older writers and other people's need not.
    """
    return save_chunks(directory, {key: [((0,) * t.dim(), t)] for key, t in strided_state().items()})


ODD_NAMES = (
    "weight with space", "weight\nline", "weight\ttab", "größe.重み", "quote\"'", "<b>html</b>", "a/b",
    "..", "-rf", "%s", "layers.10.w", "layers.9.w", "layers.010.w", "Layers.9.W", "__metadata__",
    "emoji \N{GRINNING FACE}",
)  # fmt: skip


def odd_names(directory: Path) -> Path:
    """Names that break tables, terminals, HTML, file names, and (``__metadata__``) the header of safetensors."""
    names = [f"model.model.{name}" for name in ODD_NAMES] + ["model.__metadata__", "model.", "model", "", "."]
    return save_chunks(directory, {name: [((0,), torch.arange(2.0))] for name in names})


# --- containers -------------------------------------------------------------------------------------------------


def optimizer_state(state: State) -> dict[str, Any]:
    """What Adam keeps: two tensors a weight, a step tensor, and groups whose numbers DCP stores as bytes."""
    moments = {
        name: {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.ones_like(t)}
        for name, t in state.items()
    }
    return {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": list(state)}]}


def trained(directory: Path, state: State | None = None, *, optimizer: bool = True, **writer_options: Any) -> Path:
    """The usual container, ``{"model": ..., "optimizer": ..., "step": ...}``: keys are ``model.model.layers...``."""
    state = model_state() if state is None else state
    rest = {"optimizer": optimizer_state(state), "step": 3} if optimizer else {}
    return save(directory, {"model": state, **rest}, **writer_options)


def bare(directory: Path, state: State | None = None) -> Path:
    """``dcp.save(model.state_dict())``: HuggingFace names at the top. Stripping ``model.`` would break every name."""
    return save(directory, model_state() if state is None else state)


class AppState:
    """The container of PyTorch's own tutorial, which keeps the names right by being one ``Stateful``."""

    def __init__(self, state: State) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.state, "optim": optimizer_state(self.state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError


def app_state(directory: Path, state: State | None = None) -> Path:
    """``{"app": AppState(model)}``: keys are ``app.model.model...``, their paths ``("app", "model", ...)``."""
    return save(directory, {"app": AppState(model_state() if state is None else state)})


WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.", "_checkpoint_wrapped_module.")


def wrapped(directory: Path, wrapper: str = "_orig_mod.", state: State | None = None) -> Path:
    """Names as torch.compile, FSDP1, DDP or activation checkpointing change them: around the model and each layer."""
    state = model_state() if state is None else state
    inner = {wrapper + name.replace(".self_attn.", f".{wrapper}self_attn."): t for name, t in state.items()}
    return trained(directory, inner)


def extra_state(directory: Path) -> Path:
    """``_extra_state`` under ``model.``, beside the weights of one layer, in all the forms it was seen in.

    Bytes entries that hold a pickle (TransformerEngine's ``BytesIO``, None), a uint8 tensor (its newer form), and a
    dict, which DCP flattens: ``..._extra_state.scale`` is a bytes entry of a number.
    """
    state: dict[str, Any] = dict(model_state(layers=1))
    prefix = "model.layers.0."
    state[f"{prefix}self_attn._extra_state"] = io.BytesIO(b"scales")
    state[f"{prefix}mlp._extra_state"] = None
    state[f"{prefix}mlp.up_proj._extra_state"] = torch.arange(5, dtype=torch.uint8)
    state[f"{prefix}mlp.down_proj._extra_state"] = {"scale": 2.0}
    return save(directory, {"model": state})


def no_model(directory: Path) -> Path:
    """Optimizer and step only: a valid DCP without one model weight."""
    return save(directory, {"optimizer": optimizer_state(model_state(layers=1)), "step": 3})


def empty_state(directory: Path) -> Path:
    """``dcp.save({})``: valid metadata that lists nothing."""
    return save(directory, {})


def colliding(directory: Path) -> Path:
    """Two keys that lead to one output name: ``model.model.norm.weight`` and ``model.norm.weight``."""
    return save(
        directory,
        {
            "model": {
                "model.norm.weight": torch.ones(4),
                "norm.weight": torch.zeros(4),
                "_orig_mod.model.norm.weight": torch.zeros(4),
            }
        },
    )


def one_element_paths(directory: Path) -> Path:
    """``dcp.save({"model.model.w": ...})``: keys look nested, but ``planner_data`` has paths of one element."""
    return save(directory, {f"model.{name}": t for name, t in model_state().items()})


def planner_data(directory: Path, value: Any) -> Path:
    """:func:`trained` with another ``planner_data``: None (``flatten_state_dict=False``), empty, or nonsense."""
    trained(directory)
    with editing(directory) as metadata:
        metadata.planner_data = value
    return directory


def replicated_chunks(directory: Path) -> Path:
    """The same region listed twice with the same bytes, as savers without deduplication leave replicas: not a fault."""
    w = torch.arange(12.0).reshape(4, 3)
    return save_chunks(directory, {"model.model.w": [((0, 0), w[:2].clone()), ((2, 0), w[2:].clone())] * 2}, files=2)


# --- encodings --------------------------------------------------------------------------------------------------


def zstd(directory: Path, state: State | None = None) -> Path:
    """Items compressed by the ``stream.zstd/1`` transform. Offsets count compressed bytes; no bytes can be seeked."""
    return trained(directory, state, optimizer=False, _extensions=[ZStandard()])


def safetensors_format(directory: Path, state: State | None = None) -> Path:
    """``SerializationFormat.SAFETENSORS``: each ``.distcp`` is one safetensors file.

    In ``.metadata`` every item has offset 0 and the length of its data alone, so neither says where the bytes lie;
    the header of the file does. torch's own ``FileSystemReader`` fails on it.
    """
    return trained(directory, state, optimizer=False, serialization_format=SerializationFormat.SAFETENSORS)


def safetensors_format_with_bytes(directory: Path) -> Path:
    """The same with bytes entries: they come first, so the safetensors part starts in the middle of the file.

    All tensor items have the offset where it starts; no plain safetensors reader opens such a file.
    """
    state = {"model": {"model.norm.weight": torch.arange(4.0), "model._extra_state": io.BytesIO(b"scales")}, "step": 3}
    return save(directory, state, serialization_format=SerializationFormat.SAFETENSORS)


def hf_dcp(directory: Path, state: State | None = None) -> Path:
    """``HuggingFaceStorageWriter(save_distributed=True)`` of one rank: safetensors shards, no ``.metadata``."""
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    _save(model_state() if state is None else state, writer)
    return directory


def save_shards(
    directory: Path, tensors: Mapping[str, Sequence[Placed]], sharding: str | None = "DCP_SHARDING_INFO"
) -> Path:
    """Shards of ``HuggingFaceStorageWriter`` with tensors cut at will, each chunk on a rank of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    for rank in range(max(map(len, tensors.values()))):
        placed = {key: chunks[rank] for key, chunks in tensors.items() if rank < len(chunks)}
        offsets = {key: {"saved_offsets": list(at)} for key, (at, _) in placed.items()}
        save_file(
            {key: chunk.contiguous().clone() for key, (_, chunk) in placed.items()},
            directory / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors",
            {"format": "pt"} | ({sharding: json.dumps(offsets)} if sharding else {}),
        )
    return directory


def file_per_item(directory: Path) -> Path:
    """``single_file_per_rank=False``: a ``.distcp`` file for every item."""
    return trained(directory, optimizer=False, single_file_per_rank=False)


def empty_files(directory: Path) -> Path:
    """More writer threads than items: some ``.distcp`` files have 0 bytes, and no item is in them."""
    return save(directory, {"model": {"model.norm.weight": torch.ones(4)}}, thread_count=4)


# --- metadata of other versions ---------------------------------------------------------------------------------


@contextmanager
def module_of(cls: type, name: str) -> Iterator[None]:
    """Let ``pickle`` write ``cls`` as a member of the module ``name``, which is made for that time if need be."""
    parts = name.split(".")
    chain = [".".join(parts[: i + 1]) for i in range(len(parts))]
    fakes = {module: types.ModuleType(module) for module in chain if module not in sys.modules}
    holder = fakes[name] if name in fakes else sys.modules[name]
    with (
        patch.dict(sys.modules, fakes),
        patch.object(holder, cls.__name__, cls, create=True),
        patch.object(cls, "__module__", name),
    ):
        yield


def old_torch_metadata(directory: Path) -> Path:
    """``.metadata`` as torch 2.2 pickles it: ``TensorProperties`` and ``MEM_FORMAT_ENCODING`` of the sharded-tensor
    module, no ``storage_meta``, no ``version``."""
    trained(directory)
    with editing(directory) as metadata:
        del metadata.storage_meta, metadata.version
        for entry in metadata.state_dict_metadata.values():
            if isinstance(entry, TensorStorageMetadata):
                new: Any = torch22.TensorProperties(dtype=entry.properties.dtype)
                entry.properties = new
    return directory


def _with_checkpoint_id(directory: Path, class_name: str, module: str, *args: str) -> Path:
    def reduce(self: object) -> tuple[type, tuple[str, ...]]:
        return type(self), args

    path_class = type(class_name, (), {"__reduce__": reduce})
    trained(directory)
    metadata = load_metadata(directory)
    assert metadata.storage_meta is not None
    value: Any = path_class()
    metadata.storage_meta.checkpoint_id = value
    with module_of(path_class, module):
        dump_metadata(directory, metadata)
    return directory


def python313_paths(directory: Path) -> Path:
    """``checkpoint_id`` as Python 3.13 pickles it: ``pathlib._local.PosixPath``, and one argument, not the parts."""
    return _with_checkpoint_id(directory, "PosixPath", "pathlib._local", "/data/run/step_10")


def windows_paths(directory: Path, *, python313: bool = False) -> Path:
    """``checkpoint_id`` of a Windows machine. Building a ``WindowsPath`` elsewhere raises ``NotImplementedError``."""
    if python313:
        return _with_checkpoint_id(directory, "WindowsPath", "pathlib._local", "D:\\run\\step_10")
    return _with_checkpoint_id(directory, "WindowsPath", "pathlib", "D:\\", "run", "step_10")


@dataclass
class MCoreMetadata:
    """A class of a trainer that is not installed here."""

    iteration: int = 10


def megatron_like(directory: Path) -> Path:
    """Metadata with what Megatron-Core hangs on it: attributes that ``Metadata`` does not declare.

    ``mcore_data`` has one entry a tensor, ``all_local_plans`` the ``SavePlan`` of each rank; ``planner_data`` is None
    (it does not flatten), and there are classes of ``megatron.core``. Keys start with ``decoder.``, ``embedding.``.
    """
    state = {
        "embedding.word_embeddings.weight": torch.randn(8, 4),
        "decoder.layers.mlp.linear_fc1.weight": torch.randn(2, 6, 4),
        "decoder.final_layernorm.weight": torch.ones(4),
    }  # layers are stacked in dimension 0
    save(directory, state)
    metadata: Any = load_metadata(directory)
    metadata.planner_data = None
    metadata.mcore_data = {key: {"nd_reformulated_orig_global_shape": tuple(t.shape)} for key, t in state.items()}
    items = [_write_item(key, metadata.state_dict_metadata[key]) for key in state]
    metadata.all_local_plans = [SavePlan(items, storage_data=_StoragePrefix("__0_"))]
    metadata.extra = MCoreMetadata()
    with module_of(MCoreMetadata, "megatron.core.dist_checkpointing.core"):
        dump_metadata(directory, metadata)
    return directory


@dataclass
class OwnStorageInfo:
    """What a trainer with a writer of its own has in place of torch's class (OLMo-core): the same fields."""

    relative_path: str
    offset: int
    length: int


def own_storage_info(directory: Path, own: type = OwnStorageInfo, name: str = "_StorageInfo") -> Path:
    """A trained checkpoint whose ``storage_data`` has instances of ``trainer.filesystem.<name>``."""
    metadata, called = load_metadata(trained(directory)), type(name, (own,), {})
    metadata.storage_data = {
        index: called(info.relative_path, info.offset, info.length) for index, info in metadata.storage_data.items()
    }
    with module_of(called, "trainer.filesystem"):
        dump_metadata(directory, metadata)
    return directory


def _write_item(key: str, entry: TensorStorageMetadata) -> WriteItem:
    data = TensorWriteData(entry.chunks[0], entry.properties, entry.size)
    return WriteItem(MetadataIndex(key, entry.chunks[0].offsets, 0), WriteItemType.SHARD, tensor_data=data)


def protocol(directory: Path, number: int) -> Path:
    """``.metadata`` in another pickle protocol: 2 is what old tools write, 5 is Python 3.14's default."""
    trained(directory)
    (directory / ".metadata").write_bytes(pickle.dumps(load_metadata(directory), protocol=number))
    return directory
