"""Makes the checkpoints ``lightning-llama`` and ``fabric-qwen3`` with Lightning 2.6.6, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==5.23.0 lightning==2.6.6
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_lightning.py

``Trainer.save_checkpoint`` with ``FSDPStrategy(state_dict_type="sharded")``, where the model is the attribute ``net``
of a LightningModule, and ``Fabric.save`` with ``ModelParallelStrategy`` (FSDP2), under the key ``model``. Both write
``meta.pt`` beside ``.metadata``. What is expected is what ``save_pretrained`` of the same model writes. Lightning
refuses its own FSDPStrategy without an accelerator, but not a class that is derived from it.
"""

from __future__ import annotations

import copy
from typing import Any

import lightning
import torch
import torch.distributed as dist
from keeping import SIZES, TOKENS, build, keep_saved, shared_directory
from lightning.fabric.strategies import ModelParallelStrategy
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

SMALL = {**SIZES, "num_hidden_layers": 1, "head_dim": 16}


class CPUStrategy(FSDPStrategy): ...


class Module(lightning.LightningModule):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def configure_model(self) -> None:
        if not isinstance(self.net, FullyShardedDataParallel):
            self.net = FullyShardedDataParallel(
                self.net,
                auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
                device_id=torch.device("cpu"),
                use_orig_params=True,
            )

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def make_by_trainer(name: str, config: Any) -> None:
    whole = build(config)
    strategy = CPUStrategy(state_dict_type="sharded")
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(copy.deepcopy(whole)), torch.utils.data.DataLoader(TOKENS.repeat(4, 1), batch_size=1))
    directory = shared_directory()
    trainer.save_checkpoint(f"{directory}/step1.ckpt")
    how = "Trainer.save_checkpoint with FSDPStrategy, sharded"
    keep_saved(name, f"{directory}/step1.ckpt", whole, "lightning", how, prefix="model.net.")


def make_by_fabric(name: str, config: Any) -> None:
    def parallelize(model: torch.nn.Module, mesh: Any) -> torch.nn.Module:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh["data_parallel"])
        return fully_shard(model, mesh=mesh["data_parallel"])

    whole = build(config)
    strategy = ModelParallelStrategy(parallelize, data_parallel_size=2, tensor_parallel_size=1)
    fabric = lightning.Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    model = fabric.setup(copy.deepcopy(whole))
    optimizer = fabric.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.01))
    directory = shared_directory()
    fabric.save(f"{directory}/step1", {"model": model, "optimizer": optimizer, "step": 1})
    how = "Fabric.save with ModelParallelStrategy"
    keep_saved(name, f"{directory}/step1", whole, "lightning", how, prefix="model.")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    make_by_trainer("lightning-llama", LlamaConfig(**SMALL, tie_word_embeddings=False))
    make_by_fabric("fabric-qwen3", Qwen3Config(**SMALL, tie_word_embeddings=True))
    dist.destroy_process_group()
