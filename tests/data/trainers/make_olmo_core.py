"""Makes the checkpoints ``olmo-core-*`` with the checkpointer of OLMo-core 3.0.0, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==5.23.0 ai2-olmo-core==3.0.0
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_olmo_core.py

The models are built and sharded (FSDP2) by OLMo-core. OLMo 2 is saved by its ``Checkpointer``, with the optimizer and
the files of the trainer; the others by ``save_model_and_optim_state``. What is expected, and ``config.json``, is what
its ``nn.hf`` gives.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from keeping import SIZES, TOKENS, keep, randomise, shared_directory
from olmo_core.distributed.checkpoint import load_model_and_optim_state, save_model_and_optim_state
from olmo_core.distributed.parallel import DataParallelType
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.hf.config import get_hf_config
from olmo_core.nn.hf.convert import convert_state_to_hf
from olmo_core.nn.moe import MoEConfig, MoERouterConfig, MoEType
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig, TransformerType
from olmo_core.optim import AdamWConfig
from olmo_core.train.checkpoint import Checkpointer
from olmo_core.train.train_module import TransformerDataParallelConfig, TransformerTrainModuleConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from transformers import LlamaConfig, Qwen3Config

OLMO_SIZES = {"d_model": 32, "vocab_size": 96, "n_heads": 4, "n_kv_heads": 2, "rope_theta": 10000}
REORDERED = {"block_name": TransformerBlockType.reordered_norm, "qk_norm": True, "layer_norm_eps": 1e-6}


def make(name: str, olmo: TransformerConfig, config: Any = None, train: bool = False) -> None:
    """Save the model alone or, to ``train``, after a step, with its optimizer and the files of the trainer."""
    alone = olmo.build(init_device="cpu")
    weights = alone.state_dict()
    randomise(weights)
    model = copy.deepcopy(alone)
    directory = shared_directory()
    checkpoint = inner = f"{directory}/step1"
    if train:
        module = TransformerTrainModuleConfig(
            rank_microbatch_size=64,
            max_sequence_length=64,
            optim=AdamWConfig(),
            dp_config=TransformerDataParallelConfig(name=DataParallelType.fsdp),
        ).build(model, device=torch.device("cpu"))
        take(model, weights)
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        module.optim.step()
        Checkpointer(work_dir=Path(directory, "work")).save(checkpoint, module, {"global_step": 1})
        inner = f"{checkpoint}/model_and_optim"
    else:
        model.apply_fsdp(init_device_mesh("cpu", (dist.get_world_size(),)))
        take(model, weights)
        save_model_and_optim_state(checkpoint, model)
    dist.barrier()
    randomise({f"{key} is read": tensor for key, tensor in weights.items()})
    load_model_and_optim_state(inner, alone)
    if dist.get_rank() == 0:
        weights = alone.state_dict()
        with torch.no_grad():
            logits = None if olmo.name == TransformerType.moe else alone.eval()(TOKENS)  # experts need an accelerator
        config = config or get_hf_config(alone)
        config.max_position_embeddings = 128
        keep(
            name,
            checkpoint,
            config,
            convert_state_to_hf(config, weights),
            logits,
            trainer="olmo-core",
            version=version("ai2-olmo-core"),
            how=f"{'Checkpointer' if train else 'save_model_and_optim_state'}, nn.hf.convert.convert_state_to_hf",
        )
    dist.barrier()


def take(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    for key, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(distribute_tensor(weights[key], parameter.device_mesh, parameter.placements))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    feed_forward = FeedForwardConfig(hidden_size=48, bias=False)
    make(
        "olmo-core-olmo2",
        TransformerConfig.llama_like(
            **{**OLMO_SIZES, "d_model": 16}, **REORDERED, n_layers=1, feed_forward=feed_forward
        ),
        train=True,
    )
    make(
        "olmo-core-qwen3",
        TransformerConfig.llama_like(
            **OLMO_SIZES,
            n_layers=1,
            feed_forward=feed_forward,
            qk_norm=True,
            use_head_qk_norm=True,
            layer_norm_eps=1e-6,
        ),
        Qwen3Config(
            **SIZES,
            num_hidden_layers=1,
            head_dim=8,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
        ),
    )
    make(
        "olmo-core-llama",
        TransformerConfig.llama_like(**OLMO_SIZES, n_layers=2, feed_forward=feed_forward),
        LlamaConfig(
            **SIZES,
            num_hidden_layers=2,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
        ),
    )
    make(
        "olmo-core-flex-olmo",
        TransformerConfig.llama_like(
            **OLMO_SIZES,
            **{**REORDERED, "block_name": TransformerBlockType.moe_reordered_norm},
            n_layers=2,
            name=TransformerType.moe,
            feed_forward_moe=MoEConfig(
                name=MoEType.default, num_experts=4, hidden_size=24, router=MoERouterConfig(top_k=2)
            ),
        ),
    )
    dist.destroy_process_group()
