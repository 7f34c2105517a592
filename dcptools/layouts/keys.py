"""A checkpoint's keys, without what wrappers of the model add to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dcptools.checkpoint import Checkpoint

# Modules that wrap the model and add a segment to every key below them:
# torch.compile, FSDP1, activation checkpointing, DistributedDataParallel
WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"))


def strip_wrappers(key: str) -> tuple[str, tuple[str, ...]]:
    """The key without wrapper segments, and the segments that were removed.

    >>> strip_wrappers("model._orig_mod.model.norm.weight")
    ('model.model.norm.weight', ('_orig_mod',))
    """
    if not _may_be_wrapped(key):
        return key, ()
    *modules, last = key.split(".")  # the last segment is a parameter, whatever it is called
    removed = tuple(part for part in modules if part in WRAPPERS)
    return (".".join([part for part in modules if part not in WRAPPERS] + [last]), removed) if removed else (key, ())


def _may_be_wrapped(key: str) -> bool:
    """Whether it is worth a closer look; hardly any keys are."""
    return "._" in key or "module." in key or key[:1] == "_"


class Key(NamedTuple):
    """A tensor's key, without the segments of wrappers, and its path in the saved state dict (() if unknown)."""

    name: str
    path: tuple[str, ...]
    stored: str = ""  # as the checkpoint has it, if there may be wrappers in it; nearly all have none

    @classmethod
    def of(cls, stored: str, path: tuple[str, ...]) -> Key:
        """The key with wrappers removed below its container: a container may itself be called ``module``.

        >>> Key.of("module.model._orig_mod.norm.weight", ("module", "model._orig_mod.norm.weight")).name
        'module.model.norm.weight'
        """
        if not _may_be_wrapped(stored):
            return cls(stored, path)
        container = "".join(f"{part}." for part in path[:-1])
        if not stored.startswith(container):
            container = ""
        return cls(container + strip_wrappers(stored[len(container) :])[0], path, stored)

    @property
    def container(self) -> str:
        return ".".join(self.path[:-1])

    @property
    def first(self) -> str:
        """The first segment."""
        return self.name.partition(".")[0]

    def below(self, root: str) -> str | None:
        """What is below a container, as it was stored if that says more; None if the key is not in it."""
        prefix, (name, _, stored) = root + ".", self
        if stored and stored.startswith(prefix):
            return stored[len(prefix) :]
        return name[len(prefix) :] if name.startswith(prefix) else None


def keys_of(checkpoint: Checkpoint) -> dict[str, Key]:
    """The keys of the tensors, by what they are called in the checkpoint."""
    new = tuple.__new__  # what ``Key(...)`` does takes three times as long
    return {
        stored: Key.of(stored, tensor.path) if _may_be_wrapped(stored) else new(Key, (stored, tensor.path, ""))
        for stored, tensor in checkpoint.tensors.items()
    }


def names_below(keys: Iterable[Key], root: str) -> Iterator[str | None]:
    """What each key is called below a container, without wrappers; None if it is not in it.

    >>> list(names_below([Key("model.norm.weight", ("model", "norm.weight")), Key("step", ("step",))], "model"))
    ['norm.weight', None]
    """
    prefix = f"{root}."
    first = len(prefix)
    for key in keys:
        name, _, stored = key
        if stored:
            rest = key.below(root)
            yield None if rest is None else strip_wrappers(rest)[0]
        else:  # the same without calls, which take most of the time
            yield name[first:] if name.startswith(prefix) else None


def top_level(keys: Iterable[Key]) -> list[str]:
    """The first segments of the keys, each once."""
    return sorted({key.first for key in keys})
