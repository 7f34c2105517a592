"""Makes the checkpoints ``accelerate-*`` and ``transformers-trainer-*``, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_accelerate.py

``Accelerator.save_state`` with FSDP1 and FSDP2 and ``SHARDED_STATE_DICT``, and the checkpoint that the ``Trainer`` of
transformers writes with FSDP. What is expected is what ``save_pretrained`` of the same model writes. Accelerate uses
FSDP on accelerators only; it is told that its processes have one each, while the device stays the CPU.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from keeping import SIZES, TOKENS, build, keep_saved, shared_directory
from transformers import Gemma3TextConfig, LlamaConfig, Trainer, TrainingArguments

SMALL = {**SIZES, "num_hidden_layers": 1, "head_dim": 16}
INIT = PartialState.__init__


def with_accelerators(state: PartialState, *arguments: Any, **options: Any) -> None:
    INIT(state, *arguments, **options)
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = with_accelerators


def plugin(layer: str, fsdp: int) -> FullyShardedDataParallelPlugin:
    return FullyShardedDataParallelPlugin(
        fsdp_version=fsdp,
        state_dict_type="SHARDED_STATE_DICT",
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[layer],
        cpu_ram_efficient_loading=False,
        use_orig_params=True,
    )


def make(name: str, config: Any, layer: str, fsdp: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    whole = build(config)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin(layer, fsdp))
    assert accelerator.distributed_type == DistributedType.FSDP
    accelerator.state.device = torch.device("cpu")  # without an index
    model = copy.deepcopy(whole)
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
    directory = shared_directory()
    accelerator.save_state(directory)
    finish(name, directory, whole, "accelerate", f"Accelerator.save_state with FSDP{fsdp}")


def make_trainer(name: str, config: Any, layer: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    whole = build(config)
    directory = shared_directory()
    trainer = Trainer(
        model=copy.deepcopy(whole),
        args=TrainingArguments(
            directory,
            use_cpu=True,
            max_steps=1,
            learning_rate=0.0,
            optim="sgd",
            save_steps=1,
            per_device_train_batch_size=1,
            report_to=[],
            fsdp="full_shard auto_wrap",
            fsdp_config={
                "version": 2,
                "transformer_layer_cls_to_wrap": [layer],
                "state_dict_type": "SHARDED_STATE_DICT",
                "cpu_ram_efficient_loading": False,
            },
        ),
        train_dataset=[{"input_ids": TOKENS[0], "labels": TOKENS[0]}] * 4,
    )
    trainer.train()
    finish(name, f"{directory}/checkpoint-1", whole, "transformers", "Trainer.train with FSDP2")


def finish(name: str, directory: str, whole: Any, trainer: str, how: str) -> None:
    how = f"{how} and SHARDED_STATE_DICT"
    keep_saved(name, directory, whole, trainer, how, prefix="model.", inner="pytorch_model_fsdp_0")


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_CPU"] = "true"
    dist.init_process_group("gloo")
    make("accelerate-llama", LlamaConfig(**SMALL, tie_word_embeddings=False), "LlamaDecoderLayer", fsdp=1)
    make("accelerate-gemma3", Gemma3TextConfig(**SMALL), "Gemma3DecoderLayer", fsdp=2)
    make_trainer("transformers-trainer-llama", LlamaConfig(**SMALL, tie_word_embeddings=True), "LlamaDecoderLayer")
    dist.destroy_process_group()
