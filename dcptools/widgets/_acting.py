"""What can be done about findings of a mapping: which rows they are about, and which globs leave those out."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Literal

from dcptools.errors import UsageError
from dcptools.findings import Group
from dcptools.mapping import KeyMapping
from dcptools.widgets._labels import LABELS

Kind = Literal["weights", "outputs", "leftovers"]  # the tables of the step
MOST_GLOBS = 20  # that are put into the field at once
# Excluding helps with these; with others it would hide that the result is not the model.
EXCLUDABLE = {
    "hole", "overlap", "no-storage", "missing-file", "truncated-file", "unsupported-encoding", "unusual-key",
    "flat-parameter", "peft", "reserved-name", "dtype-unsupported", "weight-unexpected", "left-out-tensor",
}  # fmt: skip


class Concerned:
    """The rows of a mapping's tables that findings are about; lookups are indexed once."""

    def __init__(self, mapping: KeyMapping) -> None:
        self._mapping = mapping

    def rows(self, group: Group) -> tuple[Kind, list[int]]:
        """The table that has most of the keys, and their rows in it; no rows if it is about no key."""
        if group.code == "left-out":
            return "leftovers", list(range(len(self._mapping.leftovers)))
        if group.code == "left-out-tensor":
            return "leftovers", _rows(self._parts, group.keys)
        if not group.keys:
            return "outputs", []
        tables: dict[Kind, dict[str, list[int]]] = {"outputs": self._outputs, "leftovers": self._leftovers}
        tables = {"weights": self._weights, **tables} if group.code.startswith("weight-") else tables
        found = {kind: _rows(table, group.keys) for kind, table in tables.items()}
        kind = max(found, key=lambda each: len(found[each]))
        return kind, found[kind]

    def can_exclude(self, group: Group) -> bool:
        """Whether leaving the keys out makes sense: not where they are weights that the model needs."""
        if group.severity == "info" or group.code not in EXCLUDABLE:
            return False
        if group.code == "left-out-tensor":
            return True
        return bool(group.keys) and all(self._needless(key) for key in group.keys)

    def globs(self, group: Group) -> list[str]:
        """Globs for ``exclude`` that match exactly these keys among those that are converted.

        Raises UsageError if that takes more than a few.
        """
        if group.code == "left-out-tensor":
            return [_typed(glob.escape(part)) + "*" for part in dict.fromkeys(group.keys)]
        rows = _rows(self._outputs, group.keys)
        keys = {view.key for row in rows for view in self._mapping.outputs[row].sources}
        converted = {view.key for output in self._mapping.outputs for view in output.sources}
        for globs in _candidates(keys):
            if len(globs) <= MOST_GLOBS and _matched(globs, converted) == keys:
                return globs
        raise UsageError(
            f"{len(keys):,} keys are concerned, and a few globs cannot match exactly these.\n"
            f"Write into “{LABELS['exclude']}” which of them to leave out; Show keys lists them."
        )

    def _needless(self, key: str) -> bool:
        rows = self._outputs.get(key, ())
        names = {self._mapping.outputs[row].name for row in rows}
        return bool(rows) and (self._mapping.fit is None or names <= self._unexpected)

    @cached_property
    def _outputs(self) -> dict[str, list[int]]:
        """By name and by key."""
        found: dict[str, list[int]] = {}
        for row, output in enumerate(self._mapping.outputs):
            for key in dict.fromkeys((output.name, *(view.key for view in output.sources))):
                found.setdefault(key, []).append(row)
        return found

    @cached_property
    def _leftovers(self) -> dict[str, list[int]]:
        return {left.key: [row] for row, left in enumerate(self._mapping.leftovers)}

    @cached_property
    def _parts(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, left in enumerate(self._mapping.leftovers):
            found.setdefault(left.part, []).append(row)
        return found

    @cached_property
    def _weights(self) -> dict[str, list[int]]:
        return {weight.name: [row] for row, weight in enumerate(self._mapping.weights)}

    @cached_property
    def _unexpected(self) -> set[str]:
        return {o.name for weight in self._mapping.weights if weight.state == "unexpected" for o in weight.outputs}


def _rows(table: dict[str, list[int]], keys: Sequence[str]) -> list[int]:
    return sorted({row for key in keys for row in table.get(key, ())})


def _candidates(keys: Collection[str]) -> Iterator[list[str]]:
    """From the shortest to the one that is always right: a common beginning, the same in each layer, each key."""
    ordered = sorted(keys)
    first, last = ordered[0], ordered[-1]
    same = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    beginning = first[: first.rfind(".", 0, same) + 1]
    if beginning and len(keys) > 1:
        yield [_typed(glob.escape(beginning)) + "*"]
    yield list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", _typed(glob.escape(key))) for key in ordered))
    yield [_typed(glob.escape(key)) for key in ordered]


def _typed(pattern: str) -> str:
    """In a form for a field whose globs are separated by spaces."""
    return "".join("?" if letter.isspace() else letter for letter in pattern)


def _matched(globs: Sequence[str], keys: Collection[str]) -> set[str]:
    match = re.compile("|".join(map(fnmatch.translate, globs))).match
    return {key for key in keys if match(key)}
