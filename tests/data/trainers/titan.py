"""What the scripts for both versions of torchtitan share: models as transformers calls them, weights, and the end."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from keeping import SIZES, TOKENS, check_stored, keep, randomise
from transformers import DeepseekV3Config, LlamaConfig, Qwen3Config, Qwen3MoeConfig

WORLD = 2
VOCABULARY = SIZES["vocab_size"]
QWEN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "max_position_embeddings": 128,
}


class TrainState:
    """What the trainer saves of itself: ``Trainer.state_dict``."""

    def state_dict(self) -> dict[str, int]:
        return {"step": 1, "ntokens_seen": 24}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


def llama_config(layers: int, hidden: int, theta: float) -> LlamaConfig:
    return LlamaConfig(
        **{**SIZES, "intermediate_size": hidden},
        num_hidden_layers=layers,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=False,
    )


def qwen_config() -> Qwen3Config:
    return Qwen3Config(**QWEN, intermediate_size=48, tie_word_embeddings=True)


def qwen_moe_config() -> Qwen3MoeConfig:
    return Qwen3MoeConfig(**QWEN, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True)


def deepseek_config(query_rank: int | None) -> DeepseekV3Config:
    return DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=40,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=query_rank,
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


def random_weights(model: torch.nn.Module, config: Any) -> dict[str, torch.Tensor]:
    weights = {key: torch.empty_like(tensor) for key, tensor in model.state_dict().items()}
    randomise(weights)
    for key in weights:
        if "expert_bias" in key and isinstance(config, Qwen3MoeConfig):
            weights[key].zero_()  # HuggingFace's model has none
    return weights


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The whole tensors of a model that is sharded; to be called on all ranks."""
    return {
        key: value.full_tensor() if hasattr(value, "full_tensor") else value
        for key, value in model.state_dict().items()
    }


def keep_step(
    name: str,
    folder: str,
    config: Any,
    adapter: Any,
    weights: dict[str, torch.Tensor],
    run: Callable[..., torch.Tensor],
    tolerance: float = 1e-4,
) -> None:
    """Keep the one step that was saved in a folder, of which what the ``adapter`` makes of the weights is expected.

    ``run`` is the model, for its logits. To be called on all ranks.
    """
    dist.barrier()
    if dist.get_rank() == 0:
        checkpoint = f"{folder}/checkpoint/step-1"
        check_stored(checkpoint, weights)
        with torch.no_grad():
            logits = run(TOKENS)
        how = f"CheckpointManager.save, {type(adapter).__name__}.to_hf"
        about = {"trainer": "torchtitan", "version": version("torchtitan"), "how": how}
        keep(name, checkpoint, config, adapter.to_hf(weights), logits, tolerance, **about)
    dist.barrier()
