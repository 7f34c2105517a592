"""The last step: new files take the place of old ones, all of them or none.

Every file of the old model, and every other that a new one replaces, is first set aside in a hidden directory, what
makes it a model before all else. For a name that is free, an empty directory is put there as a mark. Then the new
files get their names, last of all the one that makes them a model.

The directory alone shows how far that got. So what fails is undone, and what was killed is undone by the next run:
until the new model is complete, there is none; after that, only what was set aside is left to remove.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from dcptools.shards import INDEX, SINGLE_FILE
from dcptools.storage import TEMPORARY

BEFORE = f"{TEMPORARY}before"
INDEXES = (INDEX, "pytorch_model.bin.index.json")
# What makes files a model for transformers, or an adapter for peft
STARTS = {
    "model": (SINGLE_FILE["model"], "pytorch_model.bin", *INDEXES),
    "adapter": (SINGLE_FILE["adapter"], "adapter_model.bin"),
}
_ENTRY_POINTS = tuple(name for names in STARTS.values() for name in names)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors|pytorch_model-\d{5}-of-\d{5}\.bin", re.ASCII)
MAX_INDEX_BYTES = 64 << 20


def is_file(path: Path) -> bool:
    """Whether something that a rename replaces is there: a file, or a link to anything."""
    return os.path.islink(path) or (os.path.lexists(path) and not path.is_dir())


def is_shard(name: str) -> bool:
    """Whether a file with that name is one of several that make a model."""
    return _SHARD.fullmatch(name) is not None


def old_model(directory: Path, kind: str = "model") -> list[str]:
    """The names of an old model's files: what loading it begins with, its shards, and what its index names.

    For the kind "adapter", those of an old adapter. A model and an adapter can be in one directory.
    """
    names = [name for name in os.listdir(directory) if is_file(directory / name)] if directory.is_dir() else []
    named = {name for index in INDEXES for name in _named_by(directory / index)}
    return names_of_model(names, {name for name in named if not (directory / name).is_symlink()}, kind)


def names_of_model(names: Collection[str], named: Collection[str], kind: str) -> list[str]:
    """Those of the names that are a model's files; ``named`` is what an index there names."""
    shards = [name for name in names if is_shard(name) or name in named]
    return [name for name in STARTS[kind] if name in names] + (sorted(shards) if kind == "model" else [])


def _named_by(index: Path) -> set[str]:
    """What an index on the disk names; it may be anything."""
    try:
        if not index.is_file() or index.stat().st_size > MAX_INDEX_BYTES:
            return set()
        return named_by(index.read_bytes())
    except OSError:
        return set()


def named_by(index: bytes) -> set[str]:
    """What an index names and what may be weights; it is untrusted, and may be anything."""
    try:
        parsed = json.loads(index)
    except (ValueError, RecursionError):
        return set()
    named = parsed.get("weight_map") if isinstance(parsed, dict) else None
    names = {name for name in named.values() if isinstance(name, str)} if isinstance(named, dict) else set()
    return {name for name in names if name.endswith((".safetensors", ".bin")) and not name.startswith(".")}


class Swap:
    """What was set aside in a directory; a new object sees what another run left."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.before = directory, directory / BEFORE

    @property
    def begun(self) -> bool:
        return os.path.isdir(self.before) and not os.path.islink(self.before)

    @property
    def complete(self) -> bool:
        """Whether a new model has taken the place of what was set aside."""
        return any(map(self._is_new, _ENTRY_POINTS))

    def _is_new(self, name: str) -> bool:
        """Whether a file with that name took the place of what was set aside."""
        return os.path.lexists(self.before / name) and is_file(self.directory / name)

    def put_aside(self, old: Iterable[str], new: Iterable[str]) -> None:
        """Make room: the old model's files, entry points first, and whatever has the name of a new file."""
        self.before.mkdir()
        for name in dict.fromkeys((*old, *new)):
            if is_file(self.directory / name):
                os.rename(self.directory / name, self.before / name)
            else:
                (self.before / name).mkdir()

    def undo(self) -> None:
        """Put everything back as it was. What fails here, or is interrupted, can be started again."""
        if not self.begun:
            return
        for name in filter(self._is_new, _ENTRY_POINTS):  # first of all: it must not be a name for old shards
            (self.directory / name).unlink()
        for name in sorted(os.listdir(self.before), key=lambda name: name in _ENTRY_POINTS):
            if is_file(self.before / name):
                os.replace(self.before / name, self.directory / name)
                continue
            if is_file(self.directory / name):
                (self.directory / name).unlink()
            (self.before / name).rmdir()
        self.before.rmdir()

    def clean(self) -> list[tuple[str, OSError]]:
        """Remove what was set aside; returns what cannot be removed, and why.

        What stands for the new entry point goes last: as long as it is there, the next run sees that this is complete.
        """
        failed: list[tuple[str, OSError]] = []
        try:
            names = sorted(os.listdir(self.before), key=lambda name: (name in _ENTRY_POINTS, self._is_new(name)))
        except OSError as error:
            return [(BEFORE, error)]
        for path in (*(self.before / name for name in names), self.before):
            if failed and (path == self.before or self._is_new(path.name)):
                continue
            try:
                path.unlink() if is_file(path) else path.rmdir()
            except OSError as error:
                failed.append((str(path.relative_to(self.directory)), error))
        return failed

    def after_recovery(self, names: set[str]) -> set[str]:
        """The names that the directory will have once a killed run is undone."""
        if not self.begun or self.complete:
            return names
        aside = set(os.listdir(self.before))
        return (names - aside) | {name for name in aside if is_file(self.before / name)}

    def recover(self) -> None:
        """Undo what a killed run began, or finish it if only the old files were left to remove."""
        if not (self.begun and self.complete):
            self.undo()
        elif failed := self.clean():
            raise failed[0][1]
