"""Directories that people point at by mistake: no DCP, half a DCP, or a DCP one level below."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .models import QWEN3_CONFIG
from .saved import State, model_state, optimizer_state, save, trained


def empty(directory: Path) -> Path:
    """Nothing in it."""
    directory.mkdir(parents=True)
    return directory


def plain_file(directory: Path) -> Path:
    """Not a directory at all."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.write_bytes(b"hello")
    return directory


def interrupted(directory: Path) -> Path:
    """A save that was killed: ``.distcp`` files, and ``.metadata.tmp`` in place of ``.metadata``."""
    (trained(directory) / ".metadata").rename(directory / ".metadata.tmp")
    return directory


def metadata_only(directory: Path) -> Path:
    """``.metadata`` alone: somebody copied ``.*``, or the storage dropped the large files."""
    for path in trained(directory).glob("*.distcp"):
        path.unlink()
    return directory


def distcp_only(directory: Path) -> Path:
    """The reverse: ``cp run/* there`` leaves hidden files behind, and ``.metadata`` is one."""
    (trained(directory) / ".metadata").unlink()
    return directory


def steps(directory: Path, names: tuple[str, ...] = ("global_step_10", "global_step_9", "step-100")) -> Path:
    """A run's directory: the checkpoints are its children. Sorted as strings, step 9 comes last."""
    for name in names:
        save(directory / name, {"model": {"model.norm.weight": torch.ones(4)}})
    return directory


def accelerate(directory: Path) -> Path:
    """accelerate with FSDP ``SHARDED_STATE_DICT``: ``pytorch_model_fsdp_0/`` and ``optimizer_0/`` are two DCPs."""
    state = model_state(layers=1)
    save(directory / "pytorch_model_fsdp_0", {"model": state})
    save(directory / "optimizer_0", {"optimizer": optimizer_state(state)})
    (directory / "random_states_0.pkl").write_bytes(b"\x80\x04N.")
    torch.save({}, directory / "scheduler.bin")
    return directory


def lightning(directory: Path) -> Path:
    """Lightning's ``FSDPStrategy``: a ``.ckpt`` directory that is a DCP with a ``meta.pt`` in it."""
    trained(directory)
    torch.save({"epoch": 1, "global_step": 10}, directory / "meta.pt")
    return directory


def veomni(directory: Path) -> Path:
    """VeOmni's ``global_step_10``: the DCP lies here, other ranks' state in ``extra_state/``, assets beside."""
    trained(directory / "global_step_10")
    (directory / "global_step_10" / "extra_state").mkdir()
    torch.save({}, directory / "global_step_10" / "extra_state" / "extra_state_rank_0.pt")
    (directory / "model_assets").mkdir()
    (directory / "model_assets" / "config.json").write_text("{}")
    return directory


def torchtitan(directory: Path) -> Path:
    """torchtitan's ``step-10``: its own names at the top (``tok_embeddings``, ``layers.0.attention.wq``), no prefix."""
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (16, 8), "layers.0.attention.wq.weight": (8, 8),
        "layers.0.attention.wk.weight": (4, 8),
        "layers.0.attention.wv.weight": (4, 8), "layers.0.attention.wo.weight": (8, 8),
        "layers.0.feed_forward.w1.weight": (16, 8), "layers.0.feed_forward.w2.weight": (8, 16),
        "layers.0.feed_forward.w3.weight": (16, 8), "layers.0.attention_norm.weight": (8,),
        "layers.0.ffn_norm.weight": (8,), "norm.weight": (8,), "output.weight": (16, 8),
    }  # fmt: skip
    state: dict[str, Any] = {name: torch.randn(shape) for name, shape in shapes.items()}
    return save(directory, {**state, "optimizer": optimizer_state(state), "train_state": {"step": torch.tensor(10)}})


def huggingface(directory: Path, state: State | None = None) -> Path:
    """A HuggingFace model already: ``config.json`` and ``model.safetensors``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**QWEN3_CONFIG, "torch_dtype": "float32"}))
    save_file(model_state() if state is None else state, directory / "model.safetensors", {"format": "pt"})
    return directory


def pytorch_bin(directory: Path) -> Path:
    """A HuggingFace model before safetensors: ``pytorch_model.bin``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    torch.save(model_state(layers=1), directory / "pytorch_model.bin")
    return directory


def verl(directory: Path) -> Path:
    """verl's own FSDP checkpoint: a ``torch.save`` a rank, ``model_world_size_4_rank_<n>.pt``."""
    directory.mkdir(parents=True, exist_ok=True)
    for rank in range(4):
        torch.save({"model.norm.weight": torch.ones(2)}, directory / f"model_world_size_4_rank_{rank}.pt")
        torch.save({}, directory / f"optim_world_size_4_rank_{rank}.pt")
    (directory / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 4}')
    return directory


def deepspeed(directory: Path) -> Path:
    """DeepSpeed ZeRO: ``latest`` names the step, whose parameters lie flat in the ranks' optimizer states."""
    step = directory / "global_step5"
    step.mkdir(parents=True)
    (directory / "latest").write_text("global_step5")
    (directory / "zero_to_fp32.py").write_text("")
    torch.save({"module": {}}, step / "mp_rank_00_model_states.pt")
    for rank in range(2):
        torch.save({}, step / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return directory


def megatron_legacy(directory: Path) -> Path:
    """Megatron-LM before distributed checkpoints: ``iter_0000010/mp_rank_00/model_optim_rng.pt``."""
    rank = directory / "iter_0000010" / "mp_rank_00"
    rank.mkdir(parents=True)
    (directory / "latest_checkpointed_iteration.txt").write_text("10")
    torch.save({"model": {}}, rank / "model_optim_rng.pt")
    return directory


def flat_parameters(directory: Path) -> Path:
    """FSDP1 ``LOCAL_STATE_DICT`` in a DCP: one-dimensional ``_flat_param`` a wrapped module, with padding.

    Neither names nor shapes of the model's tensors are in it.
    """
    layers = {
        f"_fsdp_wrapped_module.model.layers.{n}._fsdp_wrapped_module._flat_param": torch.randn(104) for n in range(2)
    }
    return save(directory, {"model": {"_fsdp_wrapped_module._flat_param": torch.randn(128), **layers}})


def consolidated(directory: Path) -> Path:
    """A ``torch.save`` of the whole state dict: ``consolidated.pth`` (or what ``dcp_to_torch_save`` makes)."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model_state(layers=1)}, directory / "consolidated.pth")
    return directory


def lora_adapter(directory: Path) -> Path:
    """A DCP of a PEFT model with nothing but LoRA weights in it: ``base_model.model.`` is in each name."""
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    return save(
        directory,
        {
            "model": {
                f"{stem}.lora_A.default.weight": torch.randn(2, 8),
                f"{stem}.lora_B.default.weight": torch.zeros(8, 2),
            }
        },
    )
