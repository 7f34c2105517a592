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
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from keeping import TOKENS, keep, randomise
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig
from transformers.distributed import DistributedConfig

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}


def shard_by_transformers(whole: Any) -> Any:
    box = [tempfile.mkdtemp()]
    dist.broadcast_object_list(box)
    if dist.get_rank() == 0:
        whole.save_pretrained(box[0])
    dist.barrier()
    return AutoModelForCausalLM.from_pretrained(box[0], distributed_config=DistributedConfig(fsdp_size=2))


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
    whole = AutoModelForCausalLM.from_config(config)
    randomise(dict(whole.named_parameters()))
    model = shard_by_transformers(whole) if save is save_by_transformers else shard(whole)
    box = [tempfile.mkdtemp()]
    dist.broadcast_object_list(box)
    save(model, box[0])
    dist.barrier()
    if dist.get_rank() == 0:
        with tempfile.TemporaryDirectory() as exported, torch.no_grad():
            whole.save_pretrained(exported)
            tensors = load_file(f"{exported}/model.safetensors")
            logits = whole.eval()(TOKENS).logits
        trainer = name.partition("-")[0]
        keep(name, box[0], config, tensors, logits, trainer=trainer, version=version(trainer), how=how)
    dist.barrier()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    dense = Qwen3Config(**SIZES, tie_word_embeddings=False)  # safetensors takes no tied tensors
    experts = Qwen3MoeConfig(**SIZES, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2)
    make(
        "transformers-distributed-qwen3-moe",
        experts,
        save_by_transformers,
        "save_pretrained with distributed_checkpoint, save_pretrained",
    )
    make("torch-hf-writer-qwen3", dense, save_in_two_files, "HuggingFaceStorageWriter, save_pretrained")
    make("torch-safetensors-qwen3", dense, save_with_metadata, "FileSystemWriter with SAFETENSORS, save_pretrained")
    dist.destroy_process_group()
