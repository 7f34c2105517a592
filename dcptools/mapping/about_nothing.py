"""What to say where a checkpoint has no model, or none that is clear."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress

from dcptools._option import option
from dcptools._text import counted, some
from dcptools.checkpoint import Checkpoint, is_checkpoint
from dcptools.layouts import FamilyLayout, Key, containers, is_of_optimizer, top_level
from dcptools.mapping.taking import Taken
from dcptools.storage import join, open_source, parent

MOST_BESIDE = 50  # directories that are looked at
MOST_NAMED = 3  # of more checkpoints, any may be the one that is meant


def where_to_look(checkpoint: Checkpoint, taken: Taken) -> str:
    """What may be the cause, and what to do."""
    chosen, found = taken.layout, len(taken.reading.outputs)
    if found:
        every = f"{counted(found, 'key')} of the model, but all are left out"
        return f"{every}: check {option('include')} and {option('exclude')}"
    if taken.peft.adapters and chosen.name:
        return (
            "this checkpoint has only adapters, not their base model: "
            f"leave out {option('mode', 'full')}, or give {option('root')}"
        )
    keys = taken.peft.base().values()
    tops = sorted({*top_level(keys), *(key.partition(".")[0] for key in checkpoint.objects)})
    if isinstance(chosen, FamilyLayout):
        return (
            f"no key has a name of {chosen.name}: leave out {option('family')}, or say with {option('root')} where "
            f"such keys are; top-level keys here: {some(tops, 10) or 'none'}"
        )
    if chosen.name == "bare":
        asked = option("layout", "bare")
        return (
            f"no key is the bare name of a weight; leave out {asked}; top-level keys here: {some(tops, 10) or 'none'}"
        )
    check = f"check that {checkpoint.path} is the checkpoint of the model and that its keys start with 'model.'"
    if _is_of_optimizer(keys, checkpoint.path):
        found_beside = _checkpoints_beside(checkpoint.path)
        beside = some([f"{path} beside it" for path in found_beside]) if len(found_beside) <= MOST_NAMED else ""
        check = (
            f"{checkpoint.path} holds an optimizer's state, not a model: "
            f"give the checkpoint of the model, whose keys start with 'model.'{beside and f', such as {beside}'}"
        )
    elif places := containers(keys):
        ways = " or ".join(option("root", place) for place in [*places][:2])
        where = some([f"{place} ({count:,})" for place, count in places.items()], 10)
        return f"it is not clear which model is meant; containers with weights of one: {where}; choose with {ways}"
    return (
        f"{check}; top-level keys here: {some(tops, 10) or 'none'}; if the model is there, "
        f"say where with {option('layout')} or {option('root')}"
    )


def _is_of_optimizer(keys: Collection[Key], path: str) -> bool:
    """Whether the directory is called so, or all keys are an optimizer's state, and none is a weight."""
    if keys and is_of_optimizer(os.path.basename(path.rstrip("/"))):
        return True
    kept = [is_of_optimizer(key.name.rpartition(".")[2]) or is_of_optimizer(key.first) for key in keys]
    return any(kept) and all(
        of or key.name.endswith(".step") or key.first == "param_groups" or "scheduler" in key.first
        for of, key in zip(kept, keys, strict=True)
    )


def _checkpoints_beside(path: str) -> list[str]:
    """Other checkpoints in the same directory, unless their names tell of an optimizer."""
    around, here = parent(path), os.path.basename(os.path.abspath(path))
    with suppress(OSError):
        names = [name for name in open_source(around).folders() if name != here and not is_of_optimizer(name)]
        return [place for name in names[:MOST_BESIDE] if is_checkpoint(place := join(around, name))]
    return []
