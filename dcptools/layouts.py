"""Which keys are the model, and what each trainer calls them: the choice of a layout.

A layout says how to get from a checkpoint key to the HuggingFace name. Two families are known:

``container``
    The model's state dict was saved under a container, by default ``model``: ``model.model.layers.0...``,
    ``model.lm_head.weight``. The name is what stands after the container.
``bare``
    ``dcp.save(model.state_dict())``: the keys are the HuggingFace names already.

Only names are looked at, and the paths of ``planner_data`` (torch's ``_nested_dict.py``), never values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dcptools._table import some
from dcptools.errors import UsageError

LAYOUTS = ("auto", "container", "bare")
CONTAINER = "model"

# Modules that wrap the model and add a segment to every key below them:
# torch.compile, FSDP1, activation checkpointing, DistributedDataParallel
WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"))

# top-level segments of a training state that is not the model, for checkpoints without planner_data
TRAINING_STATE = frozenset(
    {
        *("optimizer", "optim", "optimizers", "lr_scheduler", "scheduler", "dataloader", "train_state", "extra_state"),
        *("rng_state", "rng", "step", "global_step", "iteration", "epoch"),
    }
)
_HEADS = ("lm_head.", "score.")
_BODIES = ("model.layers.", "model.embed_tokens.")


class Key(NamedTuple):
    """A tensor's key, without wrapper segments, and its path in the saved state dict (() if unknown)."""

    name: str
    path: tuple[str, ...]

    @property
    def container(self) -> str:
        return ".".join(self.path[:-1])


@dataclass(frozen=True, slots=True)
class Choice:
    """The layout that applies, and why."""

    layout: str  # "container" or "bare"
    root: str  # the container; "" for bare
    reason: str
    unusual: bool = False  # found in another container than usual


def strip_wrappers(key: str) -> tuple[str, tuple[str, ...]]:
    """The key without wrapper segments, and the segments that were taken out.

    >>> strip_wrappers("model._orig_mod.model.norm.weight")
    ('model.model.norm.weight', ('_orig_mod',))
    """
    if "_" not in key and "module." not in key:
        return key, ()
    parts = key.split(".")
    removed = tuple(part for part in parts if part in WRAPPERS)
    return (".".join(part for part in parts if part not in WRAPPERS), removed) if removed else (key, ())


def choose(keys: Sequence[Key], layout: str = "auto", root: str | None = None) -> Choice | None:
    """Choose the layout; None if no rule finds a model.

    The rules are tried in this order: names that only a container gives; a container ``model`` in ``planner_data``;
    bare names with a head at the top level; another container that holds a model (after the bare names, so that an
    ``ema`` beside them is not taken for the model); any ``model.*``.

    Raises
    ------
    UsageError
        The layout is not known, or no key stands under the given root.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"There is no layout {layout!r}.\nKnown layouts: {', '.join(LAYOUTS)}.")
    if root is not None and layout == "bare":
        raise UsageError("Bare names have no root.\nLeave out --root or --layout bare.")
    if root is not None:
        if not any(key.name.startswith(root + ".") for key in keys):
            raise UsageError(
                f"No tensor's key starts with {root + '.'!r}.\nTop-level keys: {some(top_level(keys), 10)}."
            )
        return Choice("container", root, f"the root {root!r} was asked for")
    if layout == "bare":
        return Choice("bare", "", "the layout 'bare' was asked for")
    if layout == "container":
        return Choice("container", CONTAINER, "the layout 'container' was asked for")
    return _by_names(keys) or _by_container(keys) or _bare(keys) or _by_other_container(keys) or _any_model(keys)


def _by_names(keys: Sequence[Key]) -> Choice | None:
    sign = ("model.model.", "model.base_model.")
    found = next((k.name for k in keys if k.name.startswith(sign) or k.name == "model.lm_head.weight"), None)
    return Choice("container", CONTAINER, f"there is a key {found!r}") if found else None


def _by_container(keys: Sequence[Key]) -> Choice | None:
    if any(len(key.path) > 1 and key.path[0] == CONTAINER for key in keys):
        return Choice("container", CONTAINER, "the saved state dict has a container 'model'")
    return None


def _by_other_container(keys: Sequence[Key]) -> Choice | None:
    others = sorted({key.container for key in keys if len(key.path) > 1 and _holds_model(key)})
    if len(others) == 1:
        return Choice("container", others[0], f"the saved state dict has a model in the container {others[0]!r}", True)
    return None


def _holds_model(key: Key) -> bool:
    container, rest = key.container, key.path[-1]
    if "optim" in container:
        return False
    return container.endswith(f".{CONTAINER}") or rest.startswith((*_HEADS, *_BODIES))


def _bare(keys: Sequence[Key]) -> Choice | None:
    head = next((k.name for k in keys if k.name.startswith(_HEADS)), None)
    body = next((k.name for k in keys if k.name.startswith(_BODIES)), None)
    if head and body:
        return Choice("bare", "", f"{head!r} stands beside {body!r}, so the keys are HuggingFace names already")
    return None


def _any_model(keys: Sequence[Key]) -> Choice | None:
    found = next((key.name for key in keys if key.name.startswith(CONTAINER + ".")), None)
    return Choice("container", CONTAINER, f"there is a key {found!r}, and no other sign") if found else None


def name_of(key: Key, choice: Choice) -> tuple[str | None, bool]:
    """The HuggingFace name of a key (None: it is not the model's), and whether the key is of the usual form."""
    if choice.layout == "bare":
        is_state = len(key.path) > 1 or key.name.partition(".")[0] in TRAINING_STATE
        return (None, True) if is_state else (key.name, True)
    prefix = choice.root + "."
    if not key.name.startswith(prefix):
        return None, True
    name = key.name[len(prefix) :]
    return name, name.startswith("model.") or name == "lm_head.weight"


def top_level(keys: Sequence[Key]) -> list[str]:
    """The first segments of the keys, each once."""
    return sorted({key.name.partition(".")[0] for key in keys})
