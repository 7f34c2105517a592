"""Makes the checkpoints ``veomni-*`` with the distributed checkpointer of VeOmni 0.1.12, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==5.9.0 veomni==0.1.12 peft
    venv/bin/python -m pip uninstall torchvision  # it fails to import beside the CPU build of torch
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_veomni.py

The models are built and sharded by VeOmni (FSDP2; experts over both processes) and saved by its
``DistributedCheckpointer``. What is expected is what ``save_pretrained`` of the same model of transformers writes, and
for LoRA what VeOmni's ``save_lora_adapter_with_dcp`` does.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from keeping import SIZES, TOKENS, build, keep_adapter, keep_saved, randomise, shared_directory
from torch.distributed.tensor import distribute_tensor
from transformers import Qwen3Config, Qwen3MoeConfig
from veomni.arguments.arguments_types import MixedPrecisionConfig, OpsImplementationConfig
from veomni.checkpoint.dcp_checkpointer import DistributedCheckpointer
from veomni.distributed.parallel_state import get_parallel_state, init_parallel_state, use_parallel_state
from veomni.distributed.torch_parallelize import build_parallelize_model
from veomni.lora import VeOmniLoraConfig, VeOmniLoraModel
from veomni.models.auto import build_foundation_model
from veomni.utils.save_safetensor_utils import save_lora_adapter_with_dcp

SMALL = {**SIZES, "num_hidden_layers": 2, "head_dim": 16}
EAGER = OpsImplementationConfig(
    attn_implementation="eager",
    moe_implementation="eager",
    **{
        f"{part}_implementation": "eager"
        for part in ("cross_entropy_loss", "rms_norm", "swiglu_mlp", "rotary_pos_emb", "load_balancing_loss")
    },
)
torch.cpu.empty_cache = lambda: None  # VeOmni calls it for any device


def build_both(config: Any, dtype: str, lora: bool = False) -> tuple[Any, torch.nn.Module]:
    """Transformers' model, and VeOmni's, sharded, with the same weights."""
    whole = build(config, getattr(torch, dtype))
    directory = shared_directory()
    if dist.get_rank() == 0:
        whole.save_pretrained(directory)
    dist.barrier()
    model = build_foundation_model(directory, torch_dtype=dtype, init_device="meta", ops_implementation=EAGER)
    if lora:
        model = VeOmniLoraModel(model, VeOmniLoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"]))
    model = build_parallelize_model(
        model,
        weights_path=directory,
        mixed_precision=MixedPrecisionConfig(enable=False),
        enable_gradient_checkpointing=False,
        init_device="meta",
        basic_modules=["Qwen3DecoderLayer", "Qwen3MoeDecoderLayer"],
        is_peft_model=lora,
    )
    return whole, model


def save(model: torch.nn.Module, **options: Any) -> str:
    directory = shared_directory()
    state: dict[str, Any] = {"model": model, "extra_state": {"global_step": 1}}
    if get_parallel_state().extra_parallel_sizes == {"ep": 1}:  # for experts it would have to be VeOmni's own
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        state["optimizer"] = torch.optim.SGD(trained, lr=0.01)
    DistributedCheckpointer.save(directory, state, global_steps=1, **options)
    dist.barrier()
    return f"{directory}/global_step_1"


def make(name: str, config: Any, dtype: str) -> None:
    whole, model = build_both(config, dtype)
    keep_saved(name, save(model), whole, "veomni", "DistributedCheckpointer.save", prefix="model.")


def make_lora(name: str, config: Any, **options: Any) -> None:
    whole, model = build_both(config, "bfloat16", lora=True)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            full = torch.empty(parameter.shape, dtype=parameter.dtype)
            randomise({key: full})
            with torch.no_grad():
                parameter.copy_(distribute_tensor(full, parameter.device_mesh, parameter.placements))
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits
    checkpoint = save(model, **options)
    adapter = f"{checkpoint}-adapter"
    save_lora_adapter_with_dcp(model, adapter)
    if dist.get_rank() == 0:
        how = "DistributedCheckpointer.save, save_lora_adapter_with_dcp"
        about = {"trainer": "veomni", "version": version("veomni"), "how": how}
        keep_adapter(name, checkpoint, whole, adapter, logits, tolerance=0.1, holds_base=not options, **about)
    dist.barrier()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    init_parallel_state(dp_size=2, dp_shard_size=2, dp_mode="fsdp2", device_type="cpu")
    make("veomni-qwen3", Qwen3Config(**SMALL, tie_word_embeddings=True), "bfloat16")
    make_lora(
        "veomni-qwen3-lora",
        Qwen3Config(**{**SMALL, "num_hidden_layers": 1}, tie_word_embeddings=False),
        trainable_only=True,
    )
    make_lora("veomni-qwen3-lora-full", Qwen3Config(**{**SMALL, "num_hidden_layers": 1}, tie_word_embeddings=False))
    parallel = init_parallel_state(
        dp_size=2, dp_shard_size=2, dp_mode="fsdp2", device_type="cpu", extra_parallel_sizes=(2,), name="experts"
    )
    with use_parallel_state(parallel):
        make(
            "veomni-qwen3-moe",
            Qwen3MoeConfig(**SMALL, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2),
            "float32",
        )
    dist.destroy_process_group()
