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

import tempfile
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
import torch.distributed as dist

torch._utils._get_available_device_type = lambda: "cpu"

from keeping import TOKENS, check_stored, keep, randomise
from torch.nn.attention.flex_attention import flex_attention
from torchtitan.components.checkpointer.dcp import CheckpointManager
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models import deepseek_v3, llama3, qwen3
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import FlexAttention
from transformers import DeepseekV3Config, LlamaConfig, Qwen3Config, Qwen3MoeConfig

FlexAttention._compiled_flex_attn = staticmethod(flex_attention)

WORLD = 2
VOCABULARY = 96
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
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
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
    return titan, config, llama3.parallelize_llama, llama3.Llama3StateDictAdapter


def qwen(moe: bool) -> tuple[Any, ...]:
    dim, heads, kv_heads, head_dim, hidden, layers = 32, 4, 2, 16, 24, 2
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "max_position_embeddings": 128,
    }
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
        config: Any = Qwen3MoeConfig(
            **common, moe_intermediate_size=hidden, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True
        )
        blocks = qwen3._build_qwen3_moe_layers(
            **sizes, moe_hidden_dim=hidden, num_experts=4, top_k=2, moe_comm_backend="standard"
        )
    else:
        config = Qwen3Config(**common, intermediate_size=2 * hidden, tie_word_embeddings=True)
        blocks = qwen3._build_qwen3_layers(**sizes, hidden_dim=2 * hidden)
    titan = decoder(qwen3.Qwen3Model, dim, blocks, 1e-6, enable_weight_tying=not moe)
    return titan, config, qwen3.parallelize_qwen3, qwen3.Qwen3StateDictAdapter


def deepseek() -> tuple[Any, ...]:
    dim, heads, dense, hidden, layers = 32, 2, 40, 24, 2
    config = DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=dim,
        intermediate_size=dense,
        moe_intermediate_size=hidden,
        num_hidden_layers=layers,
        first_k_dense_replace=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=12,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rope_interleave=True,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    blocks = deepseek_v3._build_dsv3_layers(
        n_layers=layers,
        n_dense_layers=1,
        dim=dim,
        n_heads=heads,
        q_lora_rank=12,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        mscale=1.0,
        dense_hidden_dim=dense,
        moe_hidden_dim=hidden,
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
    return titan, config, deepseek_v3.parallelize_deepseekv3, deepseek_v3.DeepSeekV3StateDictAdapter


class TrainState:
    """What the trainer saves of itself: ``Trainer.state_dict``."""

    def state_dict(self) -> dict[str, int]:
        return {"step": 1, "ntokens_seen": 24}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


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
    weights = {key: torch.empty_like(tensor) for key, tensor in alone.state_dict().items()}
    randomise(weights)
    for key in weights:
        if key.endswith("expert_bias_E") and isinstance(config, Qwen3MoeConfig):
            weights[key].zero_()  # HuggingFace's model has none
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
    gathered = {
        key: value.full_tensor() if hasattr(value, "full_tensor") else value
        for key, value in model.state_dict().items()
    }
    alone.load_state_dict(gathered)

    box = [tempfile.mkdtemp()]
    dist.broadcast_object_list(box)
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
        base_folder=box[0],
    )
    assert manager.save(1, last_step=dtype is not None)
    manager.close()
    dist.barrier()
    if dist.get_rank() == 0:
        if dtype is not None:
            gathered = {key: value.to(getattr(torch, dtype)) for key, value in gathered.items()}
            alone.load_state_dict(gathered)
        check_stored(f"{box[0]}/checkpoint/step-1", gathered)
        positions = torch.arange(TOKENS.shape[1])[None]
        with torch.no_grad():
            logits = alone(TOKENS, attention_masks=alone.get_attention_masks(positions), positions=positions)
        keep(
            name,
            f"{box[0]}/checkpoint/step-1",
            config,
            adapter(titan, None).to_hf(gathered),
            logits,
            tolerance=0.05 if experts else 1e-4,  # torchtitan's experts are multiplied in bfloat16
            trainer="torchtitan",
            version=version("torchtitan"),
            how=f"CheckpointManager.save, {adapter.__name__}.to_hf",
        )
    dist.barrier()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    make("torchtitan-llama3", llama(layers=2), dtype="float32")
    make("torchtitan-llama3-training", llama(layers=1))
    make("torchtitan-qwen3", qwen(moe=False), dtype="bfloat16")
    make("torchtitan-qwen3-moe", qwen(moe=True), experts=True, dtype="float32")
    make("torchtitan-deepseek-v3", deepseek(), experts=True, dtype="float32")
    dist.destroy_process_group()
