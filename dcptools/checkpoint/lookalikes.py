"""Why a path is not a distributed checkpoint: each look-alike by its name, with what to do."""

from __future__ import annotations

import re
from contextlib import suppress

from dcptools._text import some
from dcptools.checkpoint.sharded import shard_files
from dcptools.errors import DcptoolsError, NotACheckpoint, UnsupportedCheckpoint
from dcptools.storage import Source, meant_url

METADATA = ".metadata"
MAX_LISTED = 10_000  # entries of a directory that are looked at
EXPECTED = f"A distributed checkpoint is a directory with {METADATA} and __<rank>_<n>.distcp files."


def explain(source: Source) -> DcptoolsError:
    """The error for a place without ``.metadata``; raises OSError if the system does not allow looking."""
    place, kind = source.location, source.kind()
    if kind is None:
        url = meant_url(place)
        return NotACheckpoint(f"There is no directory {place}.\n{f'Give a URL: {url}' if url else EXPECTED}")
    if kind != "directory":
        parent, _, name = place.rpartition("/")
        own = name == METADATA or name.endswith(".distcp")
        return NotACheckpoint(f"{place} is a file.\n{f'Give its directory: {parent}' if own else EXPECTED}")
    names = source.entries()[:MAX_LISTED]
    if not names:
        return NotACheckpoint(f"{place} is an empty directory.\n{EXPECTED}")
    if ranks := _matching(names, r"__\d+\.metadata"):
        return UnsupportedCheckpoint(
            f"{place} has a metadata file for each rank ({some(ranks, 3)}) and no {METADATA}.\n"
            "It was saved with dcp.save(..., use_collectives=False), so nothing in it describes the whole tensors.\n"
            "Load it in the training script, with as many ranks as saved it, and save it again with "
            "use_collectives=True."
        )
    return NotACheckpoint(_describe(source, names))


def _describe(source: Source, names: list[str]) -> str:
    """What the names in a directory look like; the first that fits."""
    place = source.location
    if METADATA in names:
        return f"{source.path(METADATA)} is not a file.\n{EXPECTED}"
    below = _checkpoints_below(source, names)
    if below:
        return (
            f"{place} is not a checkpoint itself, but contains {some(below, 10)}.\n"
            f"Give {'one of them, for example' if len(below) > 1 else 'that one'}: {source.path(_likeliest(below))}"
        )
    if METADATA + ".tmp" in names:
        return (
            f"{place} has {METADATA}.tmp and no {METADATA}: the save was interrupted, or is still running.\n"
            "Use an earlier checkpoint, or save again."
        )
    data = _matching(names, r"__\d+_\d+\.distcp")
    if data:
        folder = place.rpartition("/")[2]
        return (
            f"{place} has .distcp files ({some(data, 3)}) and no {METADATA}, which is written last.\n"
            "Either the save was interrupted: use an earlier checkpoint, or save again.\n"
            f"Or it was left behind, because `cp {folder}/*` copies no hidden files: copy {METADATA} too."
        )
    for pattern, what, hint in _LOOKALIKES:
        found = _matching(names, pattern)
        if found:
            return f"{place} is {what}, not a distributed checkpoint (it has {some(found, 3)}).\n{hint}"
    return f"{place} is not a distributed checkpoint: it has {some(names)} and no {METADATA}.\n{EXPECTED}"


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
        "There is nothing to convert: load it with from_pretrained.",
    ),
    (
        r".*\.(pt|pth|ckpt)|pytorch_model_fsdp.*\.bin|.*rank.*\.bin",
        "a checkpoint of torch.save",
        "Load it in the training script, and save it with torch.distributed.checkpoint.save.",
    ),
)


def _checkpoints_below(source: Source, names: list[str]) -> list[str]:
    """Checkpoints among the children; if there is none, among theirs (``checkpoints/global_step_10``)."""

    def is_checkpoint(name: str) -> bool:
        with suppress(OSError):
            return source.kind(f"{name}/{METADATA}") == "file" or bool(shard_files(source.entries(name)))
        return False

    children = [name for name in names if is_checkpoint(name)]
    if children:
        return children
    deeper = []
    for folder in names[:100]:
        with suppress(OSError):
            deeper += [f"{folder}/{name}" for name in source.entries(folder)[:MAX_LISTED]]
    return [name for name in deeper if is_checkpoint(name)]


def _likeliest(below: list[str]) -> str:
    """The model rather than the optimizer; the latest of several steps."""
    models = [name for name in below if "model" in name and "optim" not in name]
    return max(models or below, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def _matching(names: list[str], pattern: str) -> list[str]:
    return [name for name in names if re.fullmatch(pattern, name)]
