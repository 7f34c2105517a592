"""What torch and safetensors make of a checkpoint: the truth that results are compared with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from checkpoints.edit import load_metadata
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dcptools.shards import ShardPlan


def full_load(directory: Path, fill: float = 0.0) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by ``dcp.load``, into buffers that held ``fill``."""
    entries = load_metadata(directory).state_dict_metadata
    buffers: dict[str, Any] = {
        key: torch.full(tuple(entry.size), fill).to(entry.properties.dtype)
        for key, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.distributed is disabled, ... assuming a single process"
        state_dict_loader.load(buffers, storage_reader=FileSystemReader(directory), no_dist=True)
    return buffers


def plain(tensor: Tensor) -> Tensor:
    """The same values in row-major order, without conjugate and negative bits."""
    values = tensor.detach().resolve_conj().resolve_neg()
    return torch.empty(values.shape, dtype=values.dtype).copy_(values)


def raw(tensor: Tensor) -> bytes:
    """The values' bytes in row-major order; NaN payloads and the sign of zero count."""
    return plain(tensor).reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Names, dtypes, shapes, bits."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw(found[name]) == raw(tensor), name


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """What ``--dtype`` promises: torch's own cast for the four floating dtypes, and nothing for the others."""
    castable = tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    return tensor.to(getattr(torch, dtype)) if castable and dtype != "keep" else tensor


def saved_files(tensors: Mapping[str, Tensor], plan: ShardPlan) -> dict[str, bytes]:
    """The files of a plan as ``safetensors.torch.save_file`` writes them, from HuggingFace names to tensors."""
    files = {}
    for file in plan.files:
        part = {t.output.name: plain(cast(tensors[t.output.name], plan.options.dtype)) for t in file.tensors}
        files[file.filename] = safetensors.torch.save(part, {"format": "pt"})
    return files


def read_files(directory: Path) -> dict[str, bytes]:
    """Everything that lies in a directory: hidden files too."""
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.is_dir() else {}
