"""Makes the checkpoints ``transformers-distributed-*`` and ``torch-*``, whose values lie in safetensors files.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_safetensors.py

``save_pretrained(..., distributed_checkpoint=True)`` of transformers, torch's ``HuggingFaceStorageWriter`` with the
tensors over two files for each process, and torch's ``FileSystemWriter`` with ``SerializationFormat.SAFETENSORS``,
which writes a ``.metadata`` that points into safetensors files. The models are sharded by FSDP2. What is expected is
what ``save_pretrained`` of the same model writes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from keeping import SIZES, build, keep_saved, shared_directory
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig
from transformers.distributed import DistributedConfig

SMALL = {**SIZES, "num_hidden_layers": 1, "head_dim": 16}


def shard_by_transformers(whole: Any) -> Any:
    directory = shared_directory()
    if dist.get_rank() == 0:
        whole.save_pretrained(directory)
    dist.barrier()
    return AutoModelForCausalLM.from_pretrained(directory, distributed_config=DistributedConfig(fsdp_size=2))


def shard(whole: Any) -> Any:
    model = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def save_by_transformers(model: Any, directory: str) -> None:
    model.save_pretrained(directory, distributed_checkpoint=True)


def save_in_two_files(model: Any, directory: str) -> None:
    state = get_model_state_dict(model)
    files = {key: 1 + ("layers.0" in key) for key in state}
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(directory, files, save_distributed=True))


def save_with_metadata(model: Any, directory: str) -> None:
    writer = dcp.FileSystemWriter(directory, serialization_format=SerializationFormat.SAFETENSORS)
    dcp.save({"model": get_model_state_dict(model)}, storage_writer=writer)


def make(name: str, config: Any, save: Callable[[Any, str], None], how: str) -> None:
    whole = build(config)
    model = shard_by_transformers(whole) if save is save_by_transformers else shard(whole)
    directory = shared_directory()
    save(model, directory)
    keep_saved(name, directory, whole, name.partition("-")[0], how)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    dense = Qwen3Config(**SMALL, tie_word_embeddings=False)  # safetensors takes no tied tensors
    experts = Qwen3MoeConfig(**SMALL, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2)
    how = "save_pretrained with distributed_checkpoint"
    make("transformers-distributed-qwen3-moe", experts, save_by_transformers, how)
    make("torch-hf-writer-qwen3", dense, save_in_two_files, "HuggingFaceStorageWriter")
    make("torch-safetensors-qwen3", dense, save_with_metadata, "FileSystemWriter with SAFETENSORS")
    dist.destroy_process_group()
