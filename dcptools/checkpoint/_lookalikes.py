"""Why a path is not a distributed checkpoint: each look-alike by its name, with what to do."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from dcptools._table import some
from dcptools.errors import DcptoolsError, NotACheckpoint, UnsupportedCheckpoint

METADATA = ".metadata"
MAX_LISTED = 10_000  # entries of a directory that are looked at
EXPECTED = f"A distributed checkpoint is a directory with {METADATA} and __<rank>_<n>.distcp files."


def is_file(path: Path) -> bool:
    """Whether it is a file; raises OSError where that cannot be told, which ``Path.is_file`` of some versions hides."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def explain(path: Path) -> DcptoolsError:
    """The error for a path without ``.metadata``; raises OSError where the system does not let one look."""
    mode = _mode(path)
    if mode is None:
        return NotACheckpoint(f"There is no directory {path}.\n{EXPECTED}")
    if not stat.S_ISDIR(mode):
        hint = f"Give its directory: {path.parent}" if (path.parent / METADATA).is_file() else EXPECTED
        return NotACheckpoint(f"{path} is a file.\n{hint}")
    names = _entries(path)
    if not names:
        return NotACheckpoint(f"{path} is an empty directory.\n{EXPECTED}")
    return _unsupported(path, names) or NotACheckpoint(_describe(path, names))


def _unsupported(path: Path, names: list[str]) -> UnsupportedCheckpoint | None:
    """Checkpoints of DCP's own that have no ``.metadata``."""
    ranks = _matching(names, r"__\d+\.metadata")
    if ranks:
        return UnsupportedCheckpoint(
            f"{path} has a metadata file for each rank ({some(ranks, 3)}) and no {METADATA}.\n"
            "It was saved with dcp.save(..., use_collectives=False), so nothing in it knows the whole tensors.\n"
            "Load it in the training script, with as many ranks, and save it again with use_collectives=True."
        )
    shards = _matching(names, r"shard-\d+-model-.*\.safetensors")
    if shards:
        return UnsupportedCheckpoint(
            f"{path} has shards of torch's HuggingFaceStorageWriter ({some(shards, 3)}), which keep no {METADATA}.\n"
            "Load it in the training script with HuggingFaceStorageReader, and save it with dcp.save and the default\n"
            "writer."
        )
    return None


def _describe(path: Path, names: list[str]) -> str:
    if METADATA in names:
        return f"{path / METADATA} is not a file.\n{EXPECTED}"
    below = _checkpoints_below(path, names)
    if below:
        return (
            f"{path} is no checkpoint itself, but has {len(below)} below it: {some(below, 10)}.\n"
            f"Give {'one of them, for example' if len(below) > 1 else 'that one'}: {path / _likeliest(below)}"
        )
    if METADATA + ".tmp" in names:
        return (
            f"{path} has {METADATA}.tmp and no {METADATA}: the save was interrupted, or is still running.\n"
            "Use an earlier checkpoint, or save again."
        )
    data = _matching(names, r"__\d+_\d+\.distcp")
    if data:
        return (
            f"{path} has .distcp files ({some(data, 3)}) and no {METADATA}, which is written last.\n"
            "Either the save was interrupted: use an earlier checkpoint, or save again.\n"
            f"Or it was left behind, because `cp {path.name}/*` copies no hidden files: copy {METADATA} too."
        )
    for pattern, what, hint in _LOOKALIKES:
        found = _matching(names, pattern)
        if found:
            return f"{path} is {what}, not a distributed checkpoint (it has {some(found, 3)}).\n{hint}"
    return f"{path} is no distributed checkpoint: it has {some(names)}, and no {METADATA}.\n{EXPECTED}"


_LOOKALIKES = (
    (
        r"model_world_size_\d+_rank_\d+\.pt",
        "an FSDP checkpoint of verl",
        "Merge it with verl's own model merger: python -m verl.model_merger merge --backend fsdp ...",
    ),
    (
        r"(mp_rank_\d+_model_states|(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states)\.pt|zero_to_fp32\.py",
        "a DeepSpeed checkpoint",
        "Convert it with the script zero_to_fp32.py, which DeepSpeed puts beside the checkpoint.",
    ),
    (
        r"latest_checkpointed_iteration\.txt|iter_\d+|mp_rank_\d+(_\d+)*",
        "a Megatron-LM checkpoint in its old format",
        "Convert it with Megatron's own tools, or save it with --ckpt-format torch_dist.",
    ),
    (
        r".*\.safetensors(\.index\.json)?|pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?",
        "a HuggingFace model already",
        "Nothing has to be converted: load it with from_pretrained.",
    ),
    (
        r".*\.(pt|pth|ckpt)|pytorch_model_fsdp.*\.bin|.*rank.*\.bin",
        "a checkpoint of torch.save",
        "Load it in the training script, and save it with torch.distributed.checkpoint.save.",
    ),
)


def _checkpoints_below(path: Path, names: list[str]) -> list[str]:
    """Checkpoints among the children; if there is none, among theirs (``checkpoints/global_step_10``)."""
    children = [name for name in names if os.path.isfile(path / name / METADATA)]
    if children:
        return children
    deeper = (f"{folder}/{name}" for folder in names[:100] for name in _readable_entries(path / folder))
    return [name for name in deeper if os.path.isfile(path / name / METADATA)]


def _readable_entries(path: Path) -> list[str]:
    """Nothing for what is no directory, or that of somebody else: it must not hide what the others are."""
    try:
        return _entries(path)
    except OSError:
        return []


def _likeliest(below: list[str]) -> str:
    """The model rather than the optimizer; the latest of several steps."""
    models = [name for name in below if "model" in name and "optim" not in name]
    return max(models or below, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def _entries(path: Path) -> list[str]:
    return sorted(entry.name for _, entry in zip(range(MAX_LISTED), path.iterdir(), strict=False))


def _matching(names: list[str], pattern: str) -> list[str]:
    return [name for name in names if re.fullmatch(pattern, name)]
