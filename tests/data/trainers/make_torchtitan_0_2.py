"""Makes the checkpoints ``torchtitan-0.2-*`` with the checkpoint manager of torchtitan 0.2.2, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==5.23.0 torchtitan==0.2.2
    venv/bin/python -m pip install --no-deps triton  # it is imported, and not used
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_torchtitan_0_2.py

Its keys are not those of torchtitan 0.3. The models are built, sharded and saved by torchtitan: its model arguments,
its ``parallelize_*`` (Llama 3 by tensor parallelism, the others by FSDP2, with experts over both processes) and its
``CheckpointManager``. What is expected is what its ``StateDictAdapter.to_hf`` gives. For a machine without an
accelerator the device is the CPU.
"""

# ruff: noqa: E402 - torchtitan asks for the device while it is imported

from __future__ import annotations

import copy
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
    qwen_moe_config,
    random_weights,
)
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import build_optimizers
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.deepseek_v3.infra.parallelize import parallelize_deepseekv3
from torchtitan.models.deepseek_v3.model.args import DeepSeekV3ModelArgs
from torchtitan.models.deepseek_v3.model.model import DeepSeekV3Model
from torchtitan.models.deepseek_v3.model.state_dict_adapter import DeepSeekV3StateDictAdapter
from torchtitan.models.llama3.infra.parallelize import parallelize_llama
from torchtitan.models.llama3.model.args import TransformerModelArgs
from torchtitan.models.llama3.model.model import Transformer
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.models.moe import MoEArgs
from torchtitan.models.qwen3.infra.parallelize import parallelize_qwen3
from torchtitan.models.qwen3.model.args import Qwen3ModelArgs
from torchtitan.models.qwen3.model.model import Qwen3Model
from torchtitan.models.qwen3.model.state_dict_adapter import Qwen3StateDictAdapter

HISTC = torch.histc
torch.histc = lambda values, **options: HISTC(values.float(), **options).to(values.dtype)  # a CPU counts no integers


def llama() -> tuple[Any, ...]:
    titan = TransformerModelArgs(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=VOCABULARY, multiple_of=32, max_seq_len=128
    )
    titan.rope_scaling_args.scaling_factor = 1.0
    return titan, Transformer, llama_config(2, 96, 10000.0), parallelize_llama, Llama3StateDictAdapter


def qwen() -> tuple[Any, ...]:
    titan = Qwen3ModelArgs(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        vocab_size=VOCABULARY,
        head_dim=16,
        max_seq_len=128,
        moe_enabled=True,
        moe_inter_dim=24,
        moe_args=MoEArgs(
            num_experts=4,
            num_shared_experts=0,
            score_func="softmax",
            route_norm=True,
            score_before_experts=False,
            top_k=2,
            use_grouped_mm=False,
        ),
    )
    return titan, Qwen3Model, qwen_moe_config(), parallelize_qwen3, Qwen3StateDictAdapter


def deepseek() -> tuple[Any, ...]:
    titan = DeepSeekV3ModelArgs(
        vocab_size=VOCABULARY,
        dim=32,
        inter_dim=40,
        moe_inter_dim=24,
        n_layers=2,
        n_dense_layers=1,
        n_heads=2,
        norm_eps=1e-6,
        max_seq_len=128,
        q_lora_rank=0,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        moe_args=MoEArgs(
            num_experts=4,
            num_shared_experts=2,
            score_func="sigmoid",
            route_norm=True,
            route_scale=2.5,
            score_before_experts=False,
            top_k=2,
            use_grouped_mm=False,
        ),
    )
    titan.moe_impl = "standard"  # as `update_from_config` sets it
    return titan, DeepSeekV3Model, deepseek_config(query_rank=None), parallelize_deepseekv3, DeepSeekV3StateDictAdapter


def make(name: str, parts: tuple[Any, ...], tensors: bool = False, experts: bool = False) -> None:
    titan, kind, config, parallelize, adapter = parts
    job = JobConfig()
    job.training.mixed_precision_param = "float32"
    job.activation_checkpoint.mode = "none"
    job.optimizer.implementation = "for-loop"
    job.checkpoint.enable = True
    job.checkpoint.interval = 1
    job.checkpoint.last_save_model_only = True

    alone = kind(titan)
    with torch.no_grad():
        alone.init_weights(torch.device("cpu"))  # the buffers, too
    alone.load_state_dict(random_weights(alone, config))

    dims = ParallelDims(
        dp_replicate=1,
        dp_shard=1 if tensors else WORLD,
        cp=1,
        tp=WORLD if tensors else 1,
        pp=1,
        ep=WORLD if experts else 1,
        etp=1,
        world_size=WORLD,
    )
    dims.build_mesh()
    model = copy.deepcopy(alone)
    parallelize(model, dims, job)
    optimizers = build_optimizers([model], job.optimizer, dims)
    schedulers = build_lr_schedulers(optimizers, job.lr_scheduler, 10)
    folder = shared_directory()
    manager = CheckpointManager(
        dataloader=None,
        model_parts=[model],
        optimizers=optimizers,
        lr_schedulers=schedulers,
        states={"train_state": TrainState()},
        checkpoint_config=job.checkpoint,
        sd_adapter=None,
        base_folder=folder,
    )
    manager.save(1, last_step=True)
    manager.close()
    keep_step(name, folder, config, adapter(titan, None), gathered(model), alone)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    make("torchtitan-0.2-llama3", llama(), tensors=True)
    make("torchtitan-0.2-qwen3-moe", qwen(), experts=True)
    make("torchtitan-0.2-deepseek-v3", deepseek(), experts=True)
    dist.destroy_process_group()
