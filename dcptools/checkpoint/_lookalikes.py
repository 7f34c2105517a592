"""Why a path is not a distributed checkpoint: each look-alike by its name, with what to do."""

from __future__ import annotations

import re
from pathlib import Path

from dcptools._table import some
from dcptools.errors import DcptoolsError, NotACheckpoint, UnsupportedCheckpoint

METADATA = ".metadata"
MAX_LISTED = 10_000  # entries of a directory that are looked at


def explain(path: Path) -> DcptoolsError:
    """The error for a path without ``.metadata``."""
    if not path.exists():
        return NotACheckpoint(f"There is no directory {path}.\nCheck the path; it must hold a {METADATA} file.")
    if not path.is_dir():
        hint = f"Give its directory, {path.parent}." if (path.parent / METADATA).exists() else "Give a directory."
        return NotACheckpoint(f"{path} is a file, and a distributed checkpoint is a directory.\n{hint}")
    names = sorted(entry.name for _, entry in zip(range(MAX_LISTED), path.iterdir(), strict=False))
    if not names:
        return NotACheckpoint(f"{path} is an empty directory.\nExpected {METADATA} and __<rank>_<n>.distcp files.")
    return _unsupported(path, names) or NotACheckpoint(_describe(path, names))


def _unsupported(path: Path, names: list[str]) -> UnsupportedCheckpoint | None:
    """Checkpoints of DCP's own that have no ``.metadata``."""
    if any(re.fullmatch(r"__\d+\.metadata", name) for name in names):
        return UnsupportedCheckpoint(
            f"{path} has one metadata file a rank ({some(_matching(names, r'__.*metadata'), 3)}) and no {METADATA}.\n"
            "It was saved with dcp.save(..., use_collectives=False), so no rank knows the whole tensors.\n"
            "Load it in the training script, with as many ranks, and save it again with use_collectives=True."
        )
    if _matching(names, r"shard-\d+-model-.*\.safetensors"):
        return UnsupportedCheckpoint(
            f"{path} holds the shards of torch's HuggingFaceStorageWriter, which have no {METADATA}.\n"
            "Merge them with torch.distributed.checkpoint._consolidate_hf_safetensors, or save the model with\n"
            "FileSystemWriter."
        )
    return None


def _describe(path: Path, names: list[str]) -> str:
    children = [name for name in names if (path / name / METADATA).is_file()]
    if children:
        return (
            f"{path} has no {METADATA} itself, but {len(children)} of its folders are distributed checkpoints:\n"
            f"{some(children, 10)}.\nGive one of them, for example {path / _likeliest(children)}."
        )
    if _matching(names, r"__\d+_\d+\.distcp"):
        return (
            f"{path} has {len(_matching(names, r'.*[.]distcp'))} .distcp files but no {METADATA}, which is written\n"
            "last: the save was interrupted, or is still running. Use an earlier checkpoint, or save again."
        )
    if names == [METADATA + ".tmp"] or _matching(names, r"\.metadata\.tmp"):
        return f"{path} has {METADATA}.tmp but no {METADATA}: the save was interrupted. Use an earlier checkpoint."
    for pattern, what in _LOOKALIKES:
        found = _matching(names, pattern)
        if found:
            return f"{path} is not a distributed checkpoint: {some(found, 3)} {what}"
    return (
        f"{path} is not a distributed checkpoint: it has no {METADATA}.\n"
        f"It has {some(names)}.\nExpected {METADATA} and __<rank>_<n>.distcp files."
    )


_LOOKALIKES = (
    (
        r"model_world_size_\d+_rank_\d+\.pt",
        "are FSDP shards as verl saves them.\nMerge them with verl's own model merger (python -m verl.model_merger).",
    ),
    (
        r"(mp_rank_\d+_model_states|(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states)\.pt|zero_to_fp32\.py|latest",
        "look like a DeepSpeed checkpoint.\nConvert it with the zero_to_fp32.py script that DeepSpeed put beside it.",
    ),
    (
        r"model\.safetensors|model-\d+-of-\d+\.safetensors|.*\.safetensors\.index\.json|pytorch_model.*\.bin",
        "say that this is a HuggingFace model already.\nNothing has to be converted: load it with from_pretrained.",
    ),
    (
        r".*rank.*\.(pt|pth|bin)|.*\.(pt|pth|ckpt)",
        "were saved with torch.save, not with torch.distributed.checkpoint.\n"
        "Load them in the training script and save with dcp.save.",
    ),
)


def _likeliest(children: list[str]) -> str:
    """The model rather than the optimizer; the latest of several steps."""
    models = [name for name in children if "model" in name and "optim" not in name]
    return max(models or children, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def _matching(names: list[str], pattern: str) -> list[str]:
    return [name for name in names if re.fullmatch(pattern, name)]
