"""What the ``make_*.py`` scripts beside this file share: seeded weights, and checking and keeping what a trainer wrote.

Runs in each trainer's own virtual environment, so it needs torch, transformers and safetensors only.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

DATA = Path(__file__).parent
TOKENS = torch.tensor([[1, 5, 17, 33, 2, 60, 9, 41, 7, 50, 3, 26]])  # every vocabulary here has 64 entries or more


def randomise(tensors: dict[str, torch.Tensor]) -> None:
    """Fill the tensors by their names: the same on every rank, on each run, and for a tensor and its shards.

    Weights of one dimension are around one, as those of norms are.
    """
    for name, tensor in tensors.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = 0.2 * torch.randn(tensor.shape, generator=generator)
        with torch.no_grad():
            tensor.copy_((values + (tensor.ndim == 1)).to(tensor.dtype))


def check_stored(checkpoint: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    """Read the tensors back by their keys with torch, and compare them bit for bit."""
    read = {key: torch.empty_like(tensor) for key, tensor in tensors.items()}
    dcp.load(read, checkpoint_id=checkpoint, no_dist=True)
    assert all(torch.equal(read[key], tensor) for key, tensor in tensors.items())


def keep(
    name: str,
    checkpoint: str | Path,
    config: Any,
    exported: dict[str, torch.Tensor],
    logits: torch.Tensor | None,
    tolerance: float = 1e-4,
    **about: str,
) -> None:
    """Check that transformers takes the exported tensors for its model, then keep the checkpoint as ``DATA/name``.

    The model must have the trainer's ``logits`` of ``TOKENS``, up to ``tolerance`` times their standard deviation, miss
    no tensor and be given none that it doesn't know, and write the same names and bits again, but for tied tensors.
    """
    with tempfile.TemporaryDirectory() as given, tempfile.TemporaryDirectory() as again:
        config.save_pretrained(given)
        tensors = {key: tensor.detach().contiguous().clone() for key, tensor in exported.items()}
        save_file(tensors, f"{given}/model.safetensors", {"format": "pt"})
        dtype = next(iter(tensors.values())).dtype
        model, loading = AutoModelForCausalLM.from_pretrained(given, output_loading_info=True, dtype=dtype)
        bad = {kind: sorted(map(str, keys)) for kind, keys in loading.items() if keys}
        assert not bad, (name, bad)
        config.architectures = [type(model).__name__]  # what the config of a live model has
        model.save_pretrained(again)
        written = load_file(f"{again}/model.safetensors")
        tied = {key: tensors[key] for key in set(tensors) - set(written)}
        assert all(any(torch.equal(tensor, other) for other in written.values()) for tensor in tied.values())
        assert describe(written) == describe({key: tensors[key] for key in written}), name
        if logits is not None:
            with torch.no_grad():
                theirs = model.eval().float()(TOKENS).logits
            difference = ((theirs - logits.float()).abs().max() / theirs.std()).item()
            print(f"{name}: the logits differ by {difference:.1e} of their standard deviation")
            assert difference < tolerance, (name, difference)

        store(name, checkpoint, config, written, about)


def keep_adapter(
    name: str,
    checkpoint: str | Path,
    base: torch.nn.Module,
    adapter: str | Path,
    logits: torch.Tensor,
    tolerance: float = 1e-4,
    holds_base: bool = False,
    **about: Any,
) -> None:
    """Check that peft takes the ``adapter``, which the trainer exported, for the ``base``, then keep the checkpoint.

    The base with it must have the trainer's ``logits``, up to ``tolerance`` times their standard deviation, and the
    base alone must be five times as far from them. If the checkpoint ``holds_base``, its tensors are described, too.
    """
    from peft import PeftModel  # only where there is LoRA

    config = copy.deepcopy(base.config)
    if holds_base:
        with tempfile.TemporaryDirectory() as saved:
            base.save_pretrained(saved)
            about["base"] = describe(load_file(f"{saved}/model.safetensors"))
    with torch.no_grad():
        alone = copy.deepcopy(base).float().eval()(TOKENS).logits
        theirs = PeftModel.from_pretrained(base, str(adapter)).float().eval()(TOKENS).logits
    assert (alone - logits).abs().max() > 5 * tolerance * theirs.std(), name
    difference = ((theirs - logits.float()).abs().max() / theirs.std()).item()
    print(f"{name}: the logits differ by {difference:.1e} of their standard deviation")
    assert difference < tolerance, (name, difference)
    store(name, checkpoint, config, load_file(f"{adapter}/adapter_model.safetensors"), about)
    shutil.copy(f"{adapter}/adapter_config.json", DATA / name)


def store(name: str, checkpoint: str | Path, config: Any, tensors: dict[str, torch.Tensor], about: Any) -> None:
    place = DATA / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(checkpoint, place / "checkpoint")
    if config is not None:
        config.save_pretrained(place)
    about = {**about, "torch": torch.__version__, "tensors": describe(tensors)}
    (place / "expected.json").write_text(json.dumps(about, indent=1) + "\n")
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    print(f"{name}: kept, {size / 1024:.0f} KiB, {len(tensors)} tensors")


def describe(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """The shape, the dtype and the SHA-256 of the little-endian bytes of each tensor, by name."""
    return {
        name: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "sha256": hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()).hexdigest(),
        }
        for name, tensor in sorted(tensors.items())
    }
