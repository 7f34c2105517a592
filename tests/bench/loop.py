"""What people run today: load the tensors of one shard with `dcp.load`, cast, save with `safetensors`, next shard.

``python -m tests.bench.loop LOAD_DIR SAVE_DIR SHARD_SIZE``. It never syncs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from tests.bench.clock import timed

DTYPE = torch.bfloat16


def convert(load_dir: Path, save_dir: Path, shard_size: int) -> None:
    save_dir.mkdir(parents=True)
    stored = tensors(load_dir)
    shards = pack(stored, shard_size)
    weight_map = {}
    for number, keys in enumerate(shards, start=1):
        filename = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        save_file(load_shard(load_dir, stored, keys), save_dir / filename, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(map(hf_name, keys), filename))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(map(nbytes, stored.values()))}, "weight_map": weight_map}
        (save_dir / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def tensors(load_dir: Path) -> dict[str, TensorStorageMetadata]:
    entries = FileSystemReader(load_dir).read_metadata().state_dict_metadata
    return {k: entry for k, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def hf_name(key: str) -> str:
    return key.removeprefix("model.")


def nbytes(entry: TensorStorageMetadata) -> int:
    return entry.size.numel() * DTYPE.itemsize


def pack(stored: dict[str, TensorStorageMetadata], shard_size: int) -> list[list[str]]:
    """The keys in the order of their output names, cut where the next tensor would pass the shard size."""
    shards: list[list[str]] = []
    room = 0
    for key in sorted(stored, key=hf_name):
        size = nbytes(stored[key])
        if not shards or size > room:
            shards.append([])
            room = shard_size
        shards[-1].append(key)
        room -= size
    return shards


def load_shard(load_dir: Path, stored: dict[str, TensorStorageMetadata], keys: list[str]) -> dict[str, torch.Tensor]:
    state = {key: torch.empty(stored[key].size, dtype=stored[key].properties.dtype) for key in keys}
    load(state, storage_reader=FileSystemReader(load_dir), no_dist=True)
    return {hf_name(key): state.pop(key).to(DTYPE) for key in keys}


if __name__ == "__main__":
    load_dir, save_dir, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    timed(load_dir, save_dir, lambda: convert(load_dir, save_dir, size))
