"""Tiny models of transformers, sharded by FSDP2 over two real processes and saved by DCP, in one launch.

Imported, this file starts itself as a program. For each model it leaves: ``<name>/`` (the checkpoint),
``<name>.config/`` (the assets), ``<name>.published/`` and ``<name>.stored/`` (what ``save_pretrained`` of the live
model writes, in the original format and not).
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

_SIZES: dict[str, Any] = {
    **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
_MOE: dict[str, Any] = {
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
_VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4}
_QWEN_VISION = {**_VISION, "out_hidden_size": 16, "spatial_merge_size": 2, "fullatt_block_indexes": [0]}
_CLIP_VISION: dict[str, Any] = {
    **{"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "image_size": 8, "patch_size": 4},
}
_ENDLESS = {"time_step_limit": [0.0, float("inf")]}  # which JSON has no number for
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 10000.0}

# Architecture, model_type, what makes it tiny, and how it is saved: in a container, bare, or in an AppState.
LIVE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "llama", _SIZES, "model"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {**_SIZES, "tie_word_embeddings": False}, "app.model"),
    "qwen3-tied": ("Qwen3ForCausalLM", "qwen3", {**_SIZES, "tie_word_embeddings": True}, ""),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text", {**_SIZES, "sliding_window": 8}, "model"),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "qwen3_moe", {**_SIZES, **_MOE}, "model"),
    "mixtral": ("MixtralForCausalLM", "mixtral", {**_SIZES, **_MOE}, "model"),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM", "deepseek_v3",
        {
            **_SIZES, **_MOE, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4, "v_head_dim": 4, "head_dim": 4,
        },
        "model",
    ),
    "gpt-oss": ("GptOssForCausalLM", "gpt_oss", {**_SIZES, **_MOE, "sliding_window": 8}, "model"),
    "olmoe": ("OlmoeForCausalLM", "olmoe", {**_SIZES, **_MOE}, ""),
    "glm4-moe": ("Glm4MoeForCausalLM", "glm4_moe", {**_SIZES, **_MOE}, "model"),
    "qwen2.5-vl": (
        "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl",
        {
            "text_config": {**_SIZES, "model_type": "qwen2_5_vl_text", "rope_parameters": _ROPE},
            "vision_config": _QWEN_VISION, "tie_word_embeddings": False,
        },
        "",
    ),
    "llava": (
        "LlavaForConditionalGeneration", "llava",
        {
            "text_config": {**_SIZES, "model_type": "llama"}, "vision_config": _CLIP_VISION,
            "image_token_index": 31, "tie_word_embeddings": False,
        },
        "model",
    ),
    "bert": ("BertForMaskedLM", "bert", _SIZES, ""),
    "t5": (
        "T5ForConditionalGeneration", "t5",
        {
            "vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        "",
    ),
    "bamba": (
        "BambaForCausalLM", "bamba",
        {
            **_SIZES, **_ENDLESS, "num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 4,
            "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
        },
        "model",
    ),
    "nemotron-h": (
        "NemotronHForCausalLM", "nemotron_h",
        {
            **_SIZES, **_MOE, **_ENDLESS, "layers_block_type": ["mamba", "moe", "attention", "mlp"],
            "num_hidden_layers": 4, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1,
            "chunk_size": 8, "moe_shared_expert_intermediate_size": 8,
        },
        "model",
    ),
    "classifier": ("Qwen3ForSequenceClassification", "qwen3", {**_SIZES, "num_labels": 3}, "model"),
}  # fmt: skip


def config_of(name: str) -> dict[str, Any]:
    """What ``config.json`` of a model says."""
    architecture, model_type, sizes, _ = LIVE[name]
    return {"architectures": [architecture], "model_type": model_type, **sizes}


def build(config: dict[str, Any]) -> Any:
    """The model with values that all differ: those of norms and biases, which start as ones and zeros, too."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    made: Any = getattr(transformers, config["architectures"][0])
    model = made(transformers.AutoConfig.for_model(**config)).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) / 8)
    return model


def logits_of(model: Any) -> torch.Tensor:
    """What the model says to a fixed input."""
    ids = torch.arange(3, 11).reshape(1, 8)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, **more).logits
    return logits


# --- the side that starts the processes -------------------------------------------------------------------------


def save_models(directory: Path, timeout: float = 300.0) -> Path:
    """All models; a directory that already has them is taken as it is. A lock lets test workers share it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "done").exists():
            environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, __file__, str(directory)]
            done = subprocess.run(command, env=environment, timeout=timeout, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"saving failed with status {done.returncode}:\n{done.stderr[-6000:]}")
            (directory / "done").touch()
    return directory


# --- the side of each process -----------------------------------------------------------------------------------


def _save_model(directory: Path, name: str) -> None:
    model, root = build(config_of(name)), LIVE[name][3]
    if dist.get_rank() == 0:
        (directory / f"{name}.config").mkdir()
        (directory / f"{name}.config" / "config.json").write_text(_config_text(name))
        (directory / f"{name}.config" / "tokenizer.json").write_text("{}")
        model.save_pretrained(directory / f"{name}.published")
        model.save_pretrained(directory / f"{name}.stored", save_original_format=False)
    for module in model.modules():
        for layer in module if isinstance(module, torch.nn.ModuleList) else ():
            if not any(isinstance(parameter, DTensor) for parameter in layer.parameters()):
                fully_shard(layer)
    fully_shard(model)
    state: dict[str, Any] = model.state_dict()
    for container in reversed(root.split(".") if root else []):
        state = {container: state}
    if root:
        state["step"] = 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, storage_writer=FileSystemWriter(directory / name, sync_files=False))


def _config_text(name: str) -> str:
    """As ``save_pretrained`` writes what JSON has no number for."""
    return json.dumps(config_of(name)).replace("Infinity", '{"__float__": "Infinity"}')


def _rank_main(rank: int, directory: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    for name in LIVE:
        _save_model(directory, name)
        dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    import transformers  # noqa: F401  (once, before the fork)

    torch.set_num_threads(1)  # before the fork: a thread pool would not survive it
    start: Any = start_processes  # has no annotations
    start(_rank_main, (Path(sys.argv[1]).resolve(),), 2, start_method="fork")


if __name__ == "__main__":
    main()
