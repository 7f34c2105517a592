"""What the ``make_*.py`` scripts beside this file share: sizes, seeded weights, checking and keeping what was written.

Runs in each trainer's own virtual environment, so it needs torch, transformers and safetensors only.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

DATA = Path(__file__).parent
TOKENS = torch.tensor([[1, 5, 17, 33, 2, 60, 9, 41, 7, 50, 3, 26]])  # every vocabulary here has 64 entries or more
SIZES: dict[str, Any] = {  # of most models here, as transformers calls them
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def shared_directory() -> str:
    """A new temporary directory, the same on every rank."""
    box = [tempfile.mkdtemp()]
    dist.broadcast_object_list(box)
    return box[0]


def randomise(tensors: dict[str, torch.Tensor]) -> None:
    """Fill the tensors by their names: the same on every rank, on each run, and for a tensor and its shards.

    Weights of one dimension are around one, as those of norms are.
    """
    for name, tensor in tensors.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = 0.2 * torch.randn(tensor.shape, generator=generator)
        with torch.no_grad():
            tensor.copy_((values + (tensor.ndim == 1)).to(tensor.dtype))


def build(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Transformers' model, with seeded weights."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    randomise(dict(model.named_parameters()))
    return model


def saved(model: Any) -> dict[str, torch.Tensor]:
    """What ``save_pretrained`` of a model of transformers writes."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return load_file(f"{directory}/model.safetensors")


def check_stored(checkpoint: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    """Read the tensors back by their keys with torch, and compare them bit for bit."""
    read = {key: torch.empty_like(tensor) for key, tensor in tensors.items()}
    dcp.load(read, checkpoint_id=checkpoint, no_dist=True)
    assert all(torch.equal(read[key], tensor) for key, tensor in tensors.items())


def keep_saved(
    name: str, checkpoint: str, model: Any, trainer: str, how: str, prefix: str | None = None, inner: str = ""
) -> None:
    """Keep the checkpoint of a model of transformers, of which what ``save_pretrained`` writes is expected.

    With a ``prefix`` it is checked first that the directory ``inner`` has the model's tensors, with that before their
    names. To be called on all ranks.
    """
    dist.barrier()
    if dist.get_rank() == 0:
        if prefix is not None:
            stored = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
            check_stored(f"{checkpoint}/{inner}", stored)
        tensors, how = saved(model), f"{how}, save_pretrained"
        with torch.no_grad():
            logits = model.float().eval()(TOKENS).logits
        keep(name, checkpoint, model.config, tensors, logits, trainer=trainer, version=version(trainer), how=how)
    dist.barrier()


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
    with tempfile.TemporaryDirectory() as given:
        config.save_pretrained(given)
        tensors = {key: tensor.detach().contiguous().clone() for key, tensor in exported.items()}
        save_file(tensors, f"{given}/model.safetensors", {"format": "pt"})
        dtype = next(iter(tensors.values())).dtype
        model, loading = AutoModelForCausalLM.from_pretrained(given, output_loading_info=True, dtype=dtype)
        bad = {kind: sorted(map(str, keys)) for kind, keys in loading.items() if keys}
        assert not bad, (name, bad)
        config.architectures = [type(model).__name__]  # what the config of a live model has
        written = saved(model)
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
        about["base"] = describe(saved(base))
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
