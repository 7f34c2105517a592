"""Makes the checkpoints ``nemo-automodel-*`` with the checkpointer of NeMo AutoModel 0.7.0, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0
    venv/bin/python -m pip install nemo-automodel==0.7.0 torch==2.13.0
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_nemo_automodel.py

Its own Qwen3-MoE keeps all experts in one tensor, and its checkpointer saves them under HuggingFace's names: as a
distributed checkpoint (``torch_save``, with the optimizer) or as shards in safetensors files. What is expected is what
the model's ``state_dict_adapter.to_hf`` gives.
"""

from __future__ import annotations

import copy
from importlib.metadata import version

import torch
import torch.distributed as dist
from keeping import SIZES, TOKENS, check_stored, keep, randomise, shared_directory
from nemo_automodel.components.checkpoint.checkpointing import Checkpointer, CheckpointingConfig
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.qwen3_moe import model as qwen3_moe
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Qwen3MoeConfig

CONFIG = Qwen3MoeConfig(
    **SIZES,
    num_hidden_layers=1,
    head_dim=16,
    moe_intermediate_size=24,
    num_experts=4,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    tie_word_embeddings=False,
    dtype=torch.float32,
)
BACKEND = BackendConfig(
    attn="sdpa", linear="torch", rms_norm="torch", experts="torch", dispatcher="torch", rope_fusion=False
)

ROTARY = qwen3_moe.RotaryEmbedding
qwen3_moe.RotaryEmbedding = lambda **options: ROTARY(**{**options, "device": torch.device("cpu")})
torch.cuda.current_device = lambda: 0  # it is asked, for the device that is replaced above


def make(name: str, form: str, alone: torch.nn.Module) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp_shard_cp",))
    model = copy.deepcopy(alone)
    for layer in model.model.layers.values():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    directory = shared_directory()
    checkpointer = Checkpointer(
        CheckpointingConfig(
            checkpoint_dir=directory,
            model_save_format=form,
            model_repo_id="",
            model_cache_dir=directory,
            save_consolidated=False,
        ),
        dp_rank=dist.get_rank(),
        tp_rank=0,
        pp_rank=0,
    )
    checkpointer.save_model(model, f"{directory}/epoch_0_step_1")
    dist.barrier()
    if dist.get_rank() == 0:
        exported = alone.state_dict_adapter.to_hf(alone.state_dict())
        if form == "torch_save":
            check_stored(f"{directory}/epoch_0_step_1/model", exported)
        with torch.no_grad():
            logits = alone.eval()(TOKENS)
        keep(
            name,
            f"{directory}/epoch_0_step_1/model",
            CONFIG,
            exported,
            getattr(logits, "logits", logits),
            trainer="nemo-automodel",
            version=version("nemo-automodel"),
            how=f"Checkpointer.save_model with model_save_format={form}, Qwen3MoeStateDictAdapter.to_hf",
        )
    dist.barrier()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    whole = qwen3_moe.Qwen3MoeForCausalLM(CONFIG, backend=BACKEND).float()
    randomise(whole.state_dict())
    make("nemo-automodel-qwen3-moe", "torch_save", whole)
    make("nemo-automodel-qwen3-moe-safetensors", "safetensors", whole)
    dist.destroy_process_group()
