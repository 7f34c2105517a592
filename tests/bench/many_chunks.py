"""A checkpoint that is nearly all metadata: what `.metadata` of a large run on many ranks looks like.

To save 10,000 tensors from 128 ranks would take an hour here; the objects that `dcp.save` would have pickled are
built one by one instead. The `.distcp` files have the announced sizes, and no blocks on the disk.
"""

from __future__ import annotations

import gc
import os
import pickle
import uuid
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

RANKS = 128
CHUNK_SHAPE = (8, 64)
ITEM_BYTES = 8 * 64 * 4 + 1500  # the data and what `torch.save` puts around it


def save(path: Path, chunks: int) -> None:
    gc.disable()  # millions of objects, none of them garbage
    path.mkdir(parents=True)
    names = [f"model.layers.{n // 10}.mlp.experts.{n % 10}.gate_up_proj.weight" for n in range(max(1, chunks // RANKS))]
    metadata = Metadata(
        state_dict_metadata={f"model.{name}": entry() for name in names},
        planner_data={f"model.{name}": ("model", name) for name in names},
        storage_data=storage_data(names),
        storage_meta=StorageMeta(checkpoint_id=path, save_id=str(uuid.uuid4())),
        version=CURRENT_DCP_VERSION,
    )
    with (path / ".metadata").open("wb") as file:
        pickle.dump(metadata, file)
    for rank in range(RANKS):
        (path / distcp(rank)).touch()
        os.truncate(path / distcp(rank), ITEM_BYTES * len(names))


def entry() -> TensorStorageMetadata:
    rows, columns = CHUNK_SHAPE
    return TensorStorageMetadata(
        properties=TensorProperties(torch.float32),
        size=torch.Size((rows * RANKS, columns)),
        chunks=[ChunkStorageMetadata(offsets(rank), torch.Size(CHUNK_SHAPE)) for rank in range(RANKS)],
    )


def storage_data(names: list[str]) -> dict[MetadataIndex, _StorageInfo]:
    """As gathered from all ranks: the key and the file name are objects of their own for each rank's answer."""
    found = {}
    for rank in range(RANKS):
        relative_path = distcp(rank)
        for number, name in enumerate(names):
            index = MetadataIndex(f"model.{name}", offsets(rank), rank)
            found[index] = _StorageInfo(relative_path, number * ITEM_BYTES, ITEM_BYTES)
    return found


def offsets(rank: int) -> torch.Size:
    return torch.Size((rank * CHUNK_SHAPE[0], 0))


def distcp(rank: int) -> str:
    return f"__{rank}_0.distcp"
