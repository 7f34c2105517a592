"""Checkpoints of very many items, which `dcp.save` would take an hour to write.

Each item is what `torch.save` writes for such a chunk; it is made once and stamped into the files as often as needed,
with the same values. ``.metadata`` has the objects that `dcp.save` would have pickled, built one by one.
"""

from __future__ import annotations

import gc
import io
import json
import math
import pickle
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

Shape = tuple[int, ...]
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
EXPERTS = 128  # of a layer, where each has tensors of its own
MANY_EXPERTS = 1024  # of a layer, where they are in one tensor
RANKS = 8


@dataclass(frozen=True)
class Stored:
    """A tensor, and how it is cut: in equal parts along one dimension, each by another rank."""

    shape: Shape
    parts: int = 1
    dim: int = 0
    column_major: bool = False

    @property
    def chunk(self) -> Shape:
        return (*self.shape[: self.dim], self.shape[self.dim] // self.parts, *self.shape[self.dim + 1 :])

    def offsets(self, part: int) -> Shape:
        return tuple(part * self.chunk[dim] if dim == self.dim else 0 for dim in range(len(self.shape)))


def save(path: Path, tensors: dict[str, Stored], ranks: int) -> None:
    """Write the tensors, whose names are those below ``model``; the parts of each are spread over the ranks."""
    gc.disable()  # millions of objects, none of them garbage
    path.mkdir(parents=True, exist_ok=True)
    places = [0] * ranks  # bytes that each rank's file has so far
    waiting: list[list[bytes]] = [[] for _ in range(ranks)]
    found: dict[MetadataIndex, _StorageInfo] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        data = item(tensor.chunk, tensor.column_major)
        for part in range(tensor.parts):
            rank = (number + part if tensor.parts == 1 else part) % ranks
            index = MetadataIndex(f"model.{name}", torch.Size(tensor.offsets(part)), part)
            found[index] = _StorageInfo(f"__{rank}_0.distcp", places[rank], len(data))
            places[rank] += len(data)
            waiting[rank].append(data)
    for rank, items in enumerate(waiting):
        (path / f"__{rank}_0.distcp").write_bytes(b"".join(items))
    metadata = Metadata(
        state_dict_metadata={f"model.{name}": entry(tensor) for name, tensor in tensors.items()},
        planner_data={f"model.{name}": ("model", name) for name in tensors},
        storage_data=found,
        storage_meta=StorageMeta(checkpoint_id=path, save_id=str(uuid.uuid4())),
        version=CURRENT_DCP_VERSION,
    )
    with (path / ".metadata").open("wb") as file:
        pickle.dump(metadata, file)


@cache
def item(shape: Shape, column_major: bool) -> bytes:
    values = torch.randn(shape)
    if column_major:
        values = values.t().contiguous().t()
    stream = io.BytesIO()
    torch.save(values, stream)
    return stream.getvalue()


def entry(tensor: Stored) -> TensorStorageMetadata:
    size = torch.Size(tensor.chunk)
    chunks = [ChunkStorageMetadata(torch.Size(tensor.offsets(part)), size) for part in range(tensor.parts)]
    return TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(tensor.shape), chunks)


def experts(count: int) -> Iterator[str]:
    """Names of so many tensors of experts."""
    layers = range(math.ceil(count / EXPERTS / len(PROJECTIONS)))
    for layer, expert, name in islice(product(layers, range(EXPERTS), PROJECTIONS), count):
        yield f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"


def save_small(path: Path, count: int) -> None:
    """So many small tensors, an item each."""
    save(path, {name: Stored((16, 16)) for name in experts(count)}, RANKS)


def save_cut(path: Path, count: int) -> None:
    """So many items: tensors that 128 ranks have cut."""
    save(path, {name: Stored((128 * 4, 64), 128) for name in experts(max(1, count // 128))}, 128)


def save_ranks(path: Path, count: int) -> None:
    """So many items: tensors that 4,096 ranks have cut, or fewer where there are few items."""
    ranks = min(4096, count)
    save(path, {name: Stored((ranks * 2, 128), ranks) for name in experts(max(1, count // ranks))}, ranks)


def save_layers(path: Path, parameters: int, *, parts: int = RANKS, dim: int = 0, column_major: bool = False) -> None:
    """Square tensors of together about so many parameters, cut and stored in one way."""
    side = 2048 if parameters > 2048 * 2048 else max(64, 1 << (math.isqrt(parameters).bit_length() - 1))
    count = max(1, parameters // side**2)
    save(path, {name: Stored((side, side), parts, dim, column_major) for name in experts(count)}, parts)


def save_stacks(path: Path, count: int) -> None:
    """A model whose experts are stacked: about so many tensors when they are split."""
    many = min(MANY_EXPERTS, max(4, count // 6))
    h, layers = 16, max(1, count // (3 * many))
    config = {
        **{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": h},
        **{"num_hidden_layers": layers, "num_experts": many, "moe_intermediate_size": 16, "head_dim": 8},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False},
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (64, h),
        "model.norm.weight": (h,),
        "lm_head.weight": (64, h),
    }
    for layer in range(layers):
        block: dict[str, Shape] = {f"self_attn.{name}_proj.weight": (h, h) for name in "qkvo"}
        block |= {f"self_attn.{name}_norm.weight": (8,) for name in "qk"}
        block |= {"input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,), "mlp.gate.weight": (many, h)}
        block |= {"mlp.experts.gate_up_proj": (many, 32, h), "mlp.experts.down_proj": (many, h, 16)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    save(path, {name: Stored(shape) for name, shape in shapes.items()}, RANKS)
