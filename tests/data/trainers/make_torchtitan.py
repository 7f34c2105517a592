"""Makes the checkpoints ``torchtitan-*`` with the checkpoint manager of torchtitan 0.3.0, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==5.23.0 torchtitan==0.3.0
    venv/bin/python -m pip install --no-deps triton  # it is imported, and not used
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_torchtitan.py

The models are built, sharded and saved by torchtitan: its configs, its ``parallelize_*`` (FSDP2; experts over both
processes, where there are any) and its ``CheckpointManager``. What is expected is what its ``StateDictAdapter.to_hf``
gives. For a machine without an accelerator the device is the CPU, and flex attention is not compiled.
"""

# ruff: noqa: E402 - torchtitan asks for the device while it is imported

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
import torch.distributed as dist

torch._utils._get_available_device_type = lambda: "cpu"

from keeping import shared_directory
from titan import (
    VOCABULARY,
    WORLD,
    TrainState,
    deepseek_config,
    gathered,
    keep_step,
    llama_config,
    qwen_config,
    qwen_moe_config,
    random_weights,
)
from torch.nn.attention.flex_attention import flex_attention
from torchtitan.components.checkpointer.dcp import CheckpointManager
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models import deepseek_v3, llama3, qwen3
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import FlexAttention

FlexAttention._compiled_flex_attn = staticmethod(flex_attention)

INIT = {"weight": torch.nn.init.ones_}


def decoder(kind: Any, dim: int, layers: list[Any], eps: float, **more: Any) -> Any:
    return kind.Config(
        dim=dim,
        vocab_size=VOCABULARY,
        tok_embeddings=Embedding.Config(num_embeddings=VOCABULARY, embedding_dim=dim, param_init=INIT),
        norm=RMSNorm.Config(normalized_shape=dim, eps=eps, param_init=INIT),
        lm_head=Linear.Config(in_features=dim, out_features=VOCABULARY, param_init=INIT),
        layers=layers,
        **more,
    )


def llama(layers: int) -> tuple[Any, ...]:
    dim, heads, kv_heads, hidden = 32, 4, 2, 48
    blocks = llama3._build_llama3_layers(
        n_layers=layers,
        dim=dim,
        n_heads=heads,
        n_kv_heads=kv_heads,
        hidden_dim=hidden,
        rope=ComplexRoPE.Config(dim=dim // heads, max_seq_len=128, theta=500000.0),
        attn_backend="flex",
    )
    for block in blocks:
        block.attention_norm.eps = block.ffn_norm.eps = 1e-5
    titan = decoder(llama3.Llama3Model, dim, blocks, 1e-5)
    return titan, llama_config(layers, hidden, 500000.0), llama3.parallelize_llama, llama3.Llama3StateDictAdapter


def qwen(moe: bool) -> tuple[Any, ...]:
    dim, heads, kv_heads, head_dim, hidden, layers = 32, 4, 2, 16, 24, 2
    sizes = {
        "n_layers": layers,
        "dim": dim,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "head_dim": head_dim,
        "rope": CosSinRoPE.Config(dim=head_dim, max_seq_len=128, theta=1000000.0),
        "attn_backend": "flex",
    }
    if moe:
        blocks = qwen3._build_qwen3_moe_layers(
            **sizes, moe_hidden_dim=hidden, num_experts=4, top_k=2, moe_comm_backend="standard"
        )
    else:
        blocks = qwen3._build_qwen3_layers(**sizes, hidden_dim=2 * hidden)
    titan = decoder(qwen3.Qwen3Model, dim, blocks, 1e-6, enable_weight_tying=not moe)
    return titan, qwen_moe_config() if moe else qwen_config(), qwen3.parallelize_qwen3, qwen3.Qwen3StateDictAdapter


def deepseek() -> tuple[Any, ...]:
    dim = 32
    blocks = deepseek_v3._build_dsv3_layers(
        n_layers=2,
        n_dense_layers=1,
        dim=dim,
        n_heads=2,
        q_lora_rank=12,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        mscale=1.0,
        dense_hidden_dim=40,
        moe_hidden_dim=24,
        num_experts=4,
        num_shared_experts=2,
        router_top_k=2,
        router_score_func="sigmoid",
        router_route_norm=True,
        router_route_scale=2.5,
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        rope=ComplexRoPE.Config(dim=8, max_seq_len=128, theta=10000.0),
    )
    for block in blocks:
        for norm in (block.attention_norm, block.ffn_norm, block.attention.q_norm, block.attention.kv_norm):
            norm.eps = 1e-6
    titan = decoder(deepseek_v3.DeepSeekV3Model, dim, blocks, 1e-6)
    return (
        titan,
        deepseek_config(query_rank=12),
        deepseek_v3.parallelize_deepseekv3,
        deepseek_v3.DeepSeekV3StateDictAdapter,
    )


def make(name: str, parts: tuple[Any, ...], experts: bool = False, dtype: str | None = None) -> None:
    """Save the model with its optimizer after one step, or, with a ``dtype``, alone, as at the end of a training."""
    titan, config, parallelize, adapter = parts
    parallelism = ParallelismConfig(
        data_parallel_shard_degree=WORLD,
        expert_parallel_degree=WORLD if experts else 1,
        spmd_backend="partial_dtensor",
    )
    titan.update_from_config(config=SimpleNamespace(parallelism=parallelism))
    alone = titan.build()
    weights = random_weights(alone, config)
    if titan.enable_weight_tying:
        weights["lm_head.weight"] = weights["tok_embeddings.weight"]
    alone.load_state_dict(weights)

    dims = ParallelDims.from_config(parallelism, WORLD)
    dims.build_mesh()
    model = titan.build()
    model.load_state_dict(weights)
    parallelize(
        model,
        parallel_dims=dims,
        training=TrainingConfig(mixed_precision_param="float32"),
        parallelism=parallelism,
        compile_config=CompileConfig(),
        ac_config=None,
        dump_folder="",
    )
    optimizers = default_adamw(lr=0.01).build(model_parts=[model])
    schedulers = LRSchedulersContainer.Config(warmup_steps=2).build(optimizers=optimizers, training_steps=10)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizers.step()
    schedulers.step()
    whole = gathered(model)

    folder = shared_directory()
    manager = CheckpointManager.Config(
        enable=True,
        interval=1,
        last_save_model_only=True,
        export_dtype=dtype or "float32",
    ).build(
        dataloader=ParallelAwareDataloader(list(range(8)), dp_rank=dist.get_rank(), dp_world_size=WORLD, batch_size=2),
        model_parts=[model],
        optimizers=optimizers,
        lr_schedulers=schedulers,
        states={"train_state": TrainState()},
        sd_adapter=None,
        base_folder=folder,
    )
    assert manager.save(1, last_step=dtype is not None)
    manager.close()
    if dtype is not None:
        whole = {key: value.to(getattr(torch, dtype)) for key, value in whole.items()}
    alone.load_state_dict(whole)

    def run(tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1])[None]
        return alone(tokens, attention_masks=alone.get_attention_masks(positions), positions=positions)

    tolerance = 0.05 if experts else 1e-4  # torchtitan's experts are multiplied in bfloat16
    keep_step(name, folder, config, adapter(titan, None), whole, run, tolerance)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    make("torchtitan-llama3", llama(layers=2), dtype="float32")
    make("torchtitan-llama3-training", llama(layers=1))
    make("torchtitan-qwen3", qwen(moe=False), dtype="bfloat16")
    make("torchtitan-qwen3-moe", qwen(moe=True), experts=True, dtype="float32")
    make("torchtitan-deepseek-v3", deepseek(), experts=True, dtype="float32")
    dist.destroy_process_group()
