"""Tiny Qwen3 models with LoRA adapters that peft itself made; and one that two real processes sharded and saved.

Imported, this file is a maker; run as a program (:func:`save_sharded` does it) it is the processes.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
import transformers
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from . import distributed
from .models import QWEN3_CONFIG

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def base_model(*, tied: bool = False, experts: int = 0, **config: Any) -> Any:
    """A tiny model; the same one for the same arguments."""
    torch.manual_seed(0)
    sizes = {name: value for name, value in QWEN3_CONFIG.items() if name not in ("architectures", "model_type")}
    wanted = {**sizes, "tie_word_embeddings": tied, **config}
    if experts:
        moe = transformers.Qwen3MoeConfig(**wanted, num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=8)
        return transformers.Qwen3MoeForCausalLM(moe).eval()
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**wanted)).eval()


def adapted(base: Any, adapters: Mapping[str, Mapping[str, Any]]) -> Any:
    """The model with adapters, the first of them active; all that an adapter trains is made random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied embeddings
        (first, options), *others = adapters.items()
        model: Any = peft.get_peft_model(base, peft.LoraConfig(**options), adapter_name=first)
        for name, options in others:
            model.add_adapter(name, peft.LoraConfig(**options))
    randomise({n: p for n, p in model.named_parameters() if "lora_" in n or "_to_save" in n or "tokens_delta" in n})
    return model.eval()


def randomise(parameters: Mapping[str, Tensor]) -> None:
    """Small random values, whatever peft began with (which is mostly zero)."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(12).reshape(2, 6)).logits
    return found


SHARDED: dict[str, Any] = {
    "r": 3,
    "lora_alpha": 5,
    "target_modules": ["q_proj", "down_proj"],
    "use_dora": True,
    "modules_to_save": ["lm_head"],
}


def save_sharded(directory: Path) -> Path:
    """A model with an adapter under FSDP2 on two processes; beside it, in ``live``, what peft saves of it unsharded."""
    distributed.launch("checkpoints.adapters", directory, 2, timeout=240)
    return directory / "sharded"


def _save(directory: Path) -> None:
    model = adapted(base_model(), {"default": SHARDED})
    if dist.get_rank() == 0:
        model.save_pretrained(directory / "live")
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    save({"model": model.state_dict()}, checkpoint_id=str(directory / "sharded"))


if __name__ == "__main__":
    distributed.main(_save, Path(sys.argv[1]), int(sys.argv[2]))
