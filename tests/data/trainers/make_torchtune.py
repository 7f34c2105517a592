"""Makes the checkpoints ``torchtune-*`` with the distributed checkpointer of torchtune 0.6.1, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==5.23.0 torchtune==0.6.1 torchao==0.15.0
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_torchtune.py

The models are built and sharded (FSDP2) by torchtune. Llama 3 is saved as during a training, by the recipes' own
``CheckpointClient`` and asynchronously; Qwen2 is saved alone. What is expected is what ``tune_to_hf`` and
``qwen2_tune_to_hf`` give.
"""

from __future__ import annotations

import copy
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from keeping import SIZES, TOKENS, check_stored, keep, randomise, shared_directory
from omegaconf import OmegaConf
from torchtune.models.convert_weights import tune_to_hf
from torchtune.models.llama3 import llama3
from torchtune.models.qwen2 import qwen2
from torchtune.models.qwen2._convert_weights import qwen2_tune_to_hf
from torchtune.training import get_shard_conditions, shard_model
from torchtune.training.checkpointing._checkpoint_client import CheckpointClient, TrainingProgress
from torchtune.training.checkpointing._checkpointer import DistributedCheckpointer
from transformers import LlamaConfig, Qwen2Config

TUNE_SIZES = {"vocab_size": 96, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 32, "intermediate_dim": 48}


def save_in_training(model: torch.nn.Module, directory: str) -> None:
    client = CheckpointClient(OmegaConf.create({"device": "cpu", "enable_async_checkpointing": True}))
    client._dcp_checkpointer = DistributedCheckpointer(directory, directory)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    progress = TrainingProgress(seed=1, epochs_run=1, total_epochs=3, max_steps_per_epoch=7)
    client.save_checkpoint(model, optimizer, progress, epoch=0)
    client._dcp_checkpointer._checkpoint_future.result()


def save_alone(model: torch.nn.Module, directory: str) -> None:
    DistributedCheckpointer(directory, directory).save_checkpoint({"model": model.state_dict()}, epoch=0)


def make(name: str, alone: torch.nn.Module, config: Any, save: Any, export: Any) -> None:
    weights = alone.state_dict()
    randomise(weights)
    model = copy.deepcopy(alone)
    condition = partial(get_shard_conditions, names_to_match=["tok_embeddings", "output"])
    shard_model(model, [condition], cpu_offload=False)
    directory = shared_directory()
    save(model, directory)
    dist.barrier()
    if dist.get_rank() == 0:
        check_stored(f"{directory}/dist_epoch_0", {f"model.{key}": value for key, value in weights.items()})
        with torch.no_grad():
            logits = alone.eval()(TOKENS)
        keep(
            name,
            f"{directory}/dist_epoch_0",
            config,
            export(weights, num_heads=4, num_kv_heads=2, dim=32),
            logits,
            trainer="torchtune",
            version=version("torchtune"),
            how=f"DistributedCheckpointer, {export.__name__}",
        )
    dist.barrier()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    make(
        "torchtune-llama3",
        llama3(**TUNE_SIZES, num_layers=1, max_seq_len=128),
        LlamaConfig(
            **SIZES,
            rms_norm_eps=1e-5,
            num_hidden_layers=1,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            tie_word_embeddings=False,
        ),
        save_in_training,
        tune_to_hf,
    )
    make(
        "torchtune-qwen2",
        qwen2(**TUNE_SIZES, num_layers=2, max_seq_len=128, tie_word_embeddings=True),
        Qwen2Config(
            **SIZES,
            rms_norm_eps=1e-5,
            num_hidden_layers=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            tie_word_embeddings=True,
        ),
        save_alone,
        qwen2_tune_to_hf,
    )
    dist.destroy_process_group()
