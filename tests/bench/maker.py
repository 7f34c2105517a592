"""Writes the checkpoints of the benchmarks; :mod:`tests.bench.checkpoints` runs it, in processes of its own.

``python -m tests.bench.maker KIND DIR AMOUNT``, under ``torch.distributed.run`` where there are several ranks.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from tests.bench import many_chunks, stamped

LAYERS = 24
Shapes = dict[str, tuple[int, ...]]


def qwen(parameters: int) -> Shapes:
    """A decoder of about so many parameters: tensors of all sizes, as real models have them."""
    # A layer has 11.5 h^2 parameters and each of the two embeddings 48 h^2, so h follows from their sum.
    h = max(64, round(math.sqrt(parameters / (11.5 * LAYERS + 96)) / 64) * 64)
    shapes: Shapes = {"model.embed_tokens.weight": (48 * h, h)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in qwen_layer(h).items()}
    return shapes | {"model.norm.weight": (h,), "lm_head.weight": (48 * h, h)}


def qwen_layer(h: int) -> Shapes:
    return {
        "self_attn.q_proj.weight": (h, h),
        "self_attn.q_proj.bias": (h,),
        "self_attn.k_proj.weight": (h // 4, h),
        "self_attn.k_proj.bias": (h // 4,),
        "self_attn.v_proj.weight": (h // 4, h),
        "self_attn.v_proj.bias": (h // 4,),
        "self_attn.o_proj.weight": (h, h),
        "mlp.gate_proj.weight": (3 * h, h),
        "mlp.up_proj.weight": (3 * h, h),
        "mlp.down_proj.weight": (h, 3 * h),
        "input_layernorm.weight": (h,),
        "post_attention_layernorm.weight": (h,),
    }


def save_experts(path: Path, parameters: int) -> None:
    """A mixture of experts, with those of a layer in one tensor, and the ``config.json`` of it."""
    layers, experts, h = 4, 64, 512
    f = max(16, round(parameters / (layers * experts * 3 * h) / 16) * 16)
    config = {
        **{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 1024, "hidden_size": h},
        **{"num_hidden_layers": layers, "num_experts": experts, "moe_intermediate_size": f, "head_dim": 64},
        **{"num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False},
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    shapes: Shapes = {"model.embed_tokens.weight": (1024, h), "model.norm.weight": (h,), "lm_head.weight": (1024, h)}
    for layer in range(layers):
        block: Shapes = {f"self_attn.{name}_proj.weight": (h, h) for name in "qkvo"}
        block |= {f"self_attn.{name}_norm.weight": (64,) for name in "qk"}
        block |= {"input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,), "mlp.gate.weight": (64, h)}
        block |= {"mlp.experts.gate_up_proj": (experts, 2 * f, h), "mlp.experts.down_proj": (experts, h, f)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    save_sharded(path, shapes, dim=0)


def one_tensor(parameters: int) -> Shapes:
    side = round(math.sqrt(parameters) / 64) * 64
    return {"model.embed_tokens.weight": (side, side)}


def save_sharded(path: Path, shapes: Shapes, *, dim: int) -> None:
    """Save random fp32 tensors as ``model``, each of them cut along ``dim`` by all ranks."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(dist.get_rank())

    def tensor(shape: tuple[int, ...]) -> DTensor:
        local = list(shape)
        local[dim] //= mesh.size()
        return DTensor.from_local(torch.randn(local), mesh, [Shard(dim)], run_check=False)

    save({"model": {name: tensor(shape) for name, shape in shapes.items()}}, checkpoint_id=path)
    dist.destroy_process_group()


KINDS: dict[str, Callable[[Path, int], None]] = {
    "qwen": lambda path, parameters: save_sharded(path, qwen(parameters), dim=0),
    "one-tensor": lambda path, parameters: save_sharded(path, one_tensor(parameters), dim=0),
    "columns": lambda path, parameters: save_sharded(path, one_tensor(parameters), dim=1),
    "many-chunks": many_chunks.save,
    "experts": save_experts,
    "small": stamped.save_small,
    "cut": stamped.save_cut,
    "ranks": stamped.save_ranks,
    "stacks": stamped.save_stacks,
    "rows": stamped.save_layers,
    "columns-of-64": lambda path, parameters: stamped.save_layers(path, parameters, parts=64, dim=1),
    "column-major": lambda path, parameters: stamped.save_layers(path, parameters, column_major=True),
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
