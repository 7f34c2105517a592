"""Trainers' own names: tables of whole keys, and of how their values lie, in a TOML file for each family."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from dcptools.checkpoint import Checkpoint, StoredTensor
from dcptools.errors import UsageError, system_errors
from dcptools.findings import Finding
from dcptools.layouts.keys import Key
from dcptools.layouts.rearrange import Rearrangement
from dcptools.layouts.training import is_counter, is_extra_state, is_training_state
from dcptools.layouts.values import Leftover, Output, Reading
from dcptools.tensors import Composed, NotViews

_FIELDS = {"trainer", "model", "architectures", "sizes", "weights", "left_out", "signs", "refused"}
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole segment
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Weight:
    """What one template of keys becomes."""

    places: tuple[str, ...]  # what the numbers of a key are called
    name: str  # with places in braces
    rearrangement: Rearrangement | None
    left_out: str = ""  # why it is no weight of the model


@dataclass(frozen=True)
class Family:
    """How one trainer calls and stores the weights of one model."""

    trainer: str
    model: str
    architectures: tuple[str, ...]
    sizes: Mapping[str, int | str]  # of axes: numbers, or fields of the config
    weights: Mapping[str, Weight]  # by key, with # for each number
    signs: tuple[str, ...] = ()  # more such keys that only this trainer has
    refused: str = ""  # why its values cannot be arranged, and what can do it

    @property
    def title(self) -> str:
        return f"{self.trainer}, {self.model}"

    def find(self, key: str) -> tuple[Weight, tuple[str, ...]] | None:
        """What becomes of a key, and the numbers in it; None if it is none of this family's."""
        weight = self.weights.get(pattern_of(key))
        return None if weight is None else (weight, tuple(_NUMBER.findall(key)))

    @cached_property
    def telling(self) -> frozenset[str]:
        """Patterns of keys of single layers: where they occur, it is this trainer's checkpoint."""
        return frozenset({*self.signs, *(pattern for pattern in self.weights if "#" in pattern)})

    @classmethod
    def parse(cls, text: str, where: str) -> Family:
        """A family from the text of a TOML file; ``where`` is what messages call it. Raises UsageError."""
        try:
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise UsageError(f"The family file {where} is not TOML: {error}.") from None
        wrong = sorted(table.keys() - _FIELDS) or sorted({"trainer", "model"} - table.keys())
        if wrong:
            raise UsageError(
                f"The family file {where} has a wrong or missing field: {', '.join(wrong)}.\n"
                f"Expected trainer, model and weights; also architectures, sizes, left_out, signs, refused."
            )
        try:
            weights = dict(_weights(table, where))
            signs = tuple(_PLACE.sub("#", sign) for sign in table.get("signs", ()))
            return cls(
                str(table["trainer"]),
                str(table["model"]),
                tuple(map(str, table.get("architectures", ()))),
                dict(table.get("sizes", {})),
                weights,
                signs,
                str(table.get("refused", "")),
            )
        except (TypeError, AttributeError, ValueError, KeyError) as error:
            raise UsageError(f"The family file {where} cannot be used: {error}.") from None


def _weights(table: dict[str, Any], where: str) -> Iterator[tuple[str, Weight]]:
    for template, said in table.get("weights", {}).items():
        entry = {"name": said} if isinstance(said, str) else said
        rearrangement = Rearrangement.parse(entry["rearrange"]) if "rearrange" in entry else None
        places = tuple(_PLACE.findall(template))
        unknown = set(_PLACE.findall(entry["name"])) - {*places, *(rearrangement.split if rearrangement else ())}
        if unknown or entry.keys() - {"name", "rearrange"}:
            raise UsageError(
                f"{where}: what {template!r} becomes is not clear.\nExpected a name, and how to rearrange."
            )
        yield _PLACE.sub("#", template), Weight(places, entry["name"], rearrangement)
    for template, why in table.get("left_out", {}).items():
        yield _PLACE.sub("#", template), Weight(tuple(_PLACE.findall(template)), "", None, str(why))


def pattern_of(key: str) -> str:
    """The key with ``#`` for each segment that is a number.

    >>> pattern_of("layers.12.attention.wq.weight")
    'layers.#.attention.wq.weight'
    """
    return _NUMBER.sub("#", key)


@cache
def families() -> tuple[Family, ...]:
    """The families that come with dcptools."""
    tables = sorted(files(__package__).joinpath("families").iterdir(), key=lambda file: file.name)
    return tuple(Family.parse(file.read_text("utf-8"), file.name) for file in tables if file.name.endswith(".toml"))


def read_family(path: str | os.PathLike[str]) -> Family:
    """A family of one's own. Raises UsageError."""
    with system_errors(UsageError, f"The family file {path} cannot be read"):
        try:
            return Family.parse(Path(path).read_text("utf-8"), str(path))
        except UnicodeDecodeError:
            raise UsageError(f"The family file {path} is not text in UTF-8.") from None


@dataclass(frozen=True)
class FamilyLayout:
    """A trainer's own names below a container; "" is the top level."""

    family: Family
    root: str
    reason: str
    config: Mapping[str, int] = field(default_factory=dict)  # the integers of config.json

    @property
    def name(self) -> str:
        return self.family.title

    def read(self, checkpoint: Checkpoint, keys: Mapping[str, Key]) -> Reading:
        outputs: list[Output] = []
        leftovers = []
        findings = (Finding("layout", "", f"names of {self.family.title}: {self.reason}", "--layout overrules it"),)
        for stored, tensor in checkpoint.tensors.items():
            made = self.outputs_of(keys[stored], tensor)
            if isinstance(made, Leftover):
                leftovers.append(made)
            else:
                outputs += made
        return Reading(tuple(outputs), tuple(leftovers), findings)

    def outputs_of(self, key: Key, tensor: StoredTensor) -> list[Output] | Leftover:
        """What one tensor becomes, or why it is left out."""
        below = key.below(self.root) if self.root else key.name
        found = self.family.find(below) if below is not None else None
        if found is None:
            expected = is_training_state(key) or is_counter(tensor) or is_extra_state(tensor.key)
            reason = f"not among the names of {self.family.trainer} ({key.first})"
            return Leftover(tensor.key, "tensor", reason, tensor.nbytes, "" if expected else key.first)
        weight, numbers = found
        if weight.left_out:
            return Leftover(tensor.key, "tensor", weight.left_out, tensor.nbytes)
        places = dict(zip(weight.places, numbers, strict=True))
        whole = Composed.whole(tensor.key, tensor.shape)
        rule = f"{self.family.trainer}: {below}"
        if weight.rearrangement is None:
            return [_output(weight, places, whole, tensor, rule)]
        try:
            parts = weight.rearrangement.apply(whole, self._sizes())
            return [
                _output(weight, {**places, **at}, part, tensor, f"{rule}, {weight.rearrangement.text}")
                for at, part in parts
            ]
        except (ValueError, NotViews) as error:
            return Leftover(tensor.key, "tensor", f"cannot be rearranged: {error}", tensor.nbytes, key.first)

    def _sizes(self) -> dict[str, int]:
        """The sizes of axes, as far as they are known."""
        sizes = {
            axis: self.config.get(size) if isinstance(size, str) else size for axis, size in self.family.sizes.items()
        }
        return {axis: size for axis, size in sizes.items() if size is not None}


def _output(
    weight: Weight, places: Mapping[str, str | int], composed: Composed, tensor: StoredTensor, rule: str
) -> Output:
    name = _PLACE.sub(lambda place: str(places[place[1]]), weight.name)
    return Output(name, composed.views, composed.shape, tensor.dtype, rule)
