"""Makes the checkpoint ``composer-qwen2`` with the trainer of Composer 0.32.1, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==4.57.6
    venv/bin/python -m pip install --no-deps mosaicml==0.32.1
    venv/bin/python -m pip install torchmetrics==1.7.4 pyyaml tqdm torch-optimizer coolname==2.2.0 tabulate==0.9.0 \\
        py-cpuinfo importlib_metadata requests psutil pillow mosaicml-cli
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_composer.py

Composer 0.32.1, its last release, asks for torch 2.7.0 at most, and for torchvision, which fails to import beside the
CPU build of torch 2.13. It imports torchvision for its vision algorithms only, so an empty module stands in for it,
with which transformers 5 would not work. It takes FSDP to mean CUDA: it is told that the CPU is the current device.
"""

# ruff: noqa: E402 - the stand-in comes first

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path


class Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any module of torchvision, with any class in it."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("torchvision") else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = self.attribute
        return module

    def exec_module(self, module): ...

    @staticmethod
    def attribute(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


sys.meta_path.insert(0, Torchvision())

import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from composer.utils import dist
from keeping import SIZES, TOKENS, check_stored, keep, randomise
from transformers import AutoModelForCausalLM, Qwen2Config

torch.cuda.current_device = lambda: torch.device("cpu")  # where Composer's FSDP is to be

CONFIG = Qwen2Config(**SIZES, num_hidden_layers=1, tie_word_embeddings=False)

if __name__ == "__main__":
    dist.initialize_dist("cpu")
    model = AutoModelForCausalLM.from_config(CONFIG)
    randomise(model.state_dict())
    for layer in model.model.layers:
        layer._fsdp_wrap = True
    with torch.no_grad():
        logits = model.eval()(TOKENS).logits
    exported = {key: value.clone() for key, value in model.state_dict().items()}
    directory = Path(dist.all_gather_object(tempfile.mkdtemp())[0])
    trainer = Trainer(
        model=HuggingFaceModel(model, use_logits=True),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
        parallelism_config={"fsdp": {"state_dict_type": "sharded", "use_orig_params": True}},
        device="cpu",
        dist_timeout=60,
        max_duration="1ba",
        progress_bar=False,
    )
    trainer.save_checkpoint(f"{directory}/__{{rank}}_0.distcp")  # it adds a directory
    dist.barrier()
    if dist.get_global_rank() == 0:
        check_stored(directory / "ep0-ba0", {f"state.model.model.{key}": value for key, value in exported.items()})
        keep(
            "composer-qwen2",
            directory / "ep0-ba0",
            CONFIG,
            exported,
            logits,
            trainer="composer",
            version=version("mosaicml"),
            how="Trainer.save_checkpoint with FSDP and state_dict_type sharded, save_pretrained of the model",
        )
    dist.barrier()
