"""Trainers' own names: what a table of them makes of the keys of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dcptools._option import option
from dcptools._text import counted, some
from dcptools.checkpoint import Checkpoint, StoredTensor
from dcptools.findings import Finding
from dcptools.layouts.container import another_container
from dcptools.layouts.keys import Key, strip_wrappers
from dcptools.layouts.rearrange import Rearrangement
from dcptools.layouts.training import beside_model, is_training_state, is_usual
from dcptools.layouts.values import Leftover, Output, Reading
from dcptools.tensors import Composed, NotViews

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole segment
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Weight:
    """What one template of keys becomes."""

    places: tuple[str, ...]  # what the numbers of a key are called
    name: str  # with places in braces
    rearrangement: Rearrangement | None
    differ: tuple[str, ...] = ()  # axes: if they have the same size, nothing tells how the values lie
    left_out: str = ""  # why it is not a weight of the model


@dataclass(frozen=True)
class Family:
    """How one trainer names and stores the weights of one model."""

    trainer: str
    model: str
    architectures: tuple[str, ...]
    sizes: Mapping[str, int | str]  # of axes: numbers, or fields of the config
    weights: Mapping[str, Weight]  # by key, with # for each number
    signs: tuple[str, ...] = ()  # of those keys, the ones by which the trainer is recognized
    refused: str = ""  # why its values cannot be arranged
    exporter: str = ""  # what else can convert it

    @property
    def title(self) -> str:
        return f"{self.trainer}, {self.model}"

    def find(self, key: str) -> tuple[Weight, tuple[str, ...]] | None:
        """What becomes of a key, and the numbers in it; None if it is not one of this family."""
        weight = self.weights.get(pattern_of(key))
        return None if weight is None else (weight, tuple(NUMBER.findall(key)))

    @cached_property
    def telling(self) -> frozenset[str]:
        """Patterns of keys: if they occur, it is this trainer's checkpoint. Without signs, those of all layers."""
        return frozenset(self.signs or (pattern for pattern in self.weights if "#" in pattern))


def pattern_of(key: str) -> str:
    """The key with ``#`` for each segment that is a number.

    >>> pattern_of("layers.12.attention.wq.weight")
    'layers.#.attention.wq.weight'
    """
    return NUMBER.sub("#", key)


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
        findings = [
            Finding("layout", "", f"names of {self.family.title}: {self.reason}", f"{option('layout')} overrides it")
        ]
        if not is_usual(self.root):
            findings.append(another_container(self.root))
        wrong: dict[str, list[str]] = {}
        for stored, tensor in checkpoint.tensors.items():
            try:
                made = self.outputs_of(keys[stored], tensor)
            except (ValueError, NotViews) as error:
                wrong.setdefault(str(error), []).append(stored)
                made = Leftover.of(tensor, f"cannot be rearranged: {error}")
            if isinstance(made, Leftover):
                leftovers.append(made)
            else:
                outputs += made
        findings += (self._about_wrong(why, stored) for why, stored in wrong.items())
        return Reading(tuple(outputs), tuple(leftovers), tuple(findings))

    def outputs_of(self, key: Key, tensor: StoredTensor) -> list[Output] | Leftover:
        """What one tensor becomes, or why it is left out. Raises ValueError or NotViews if it cannot be rearranged."""
        below = key.below(self.root) if self.root else key.name
        below = None if below is None else strip_wrappers(below)[0]
        found = self.family.find(below) if below is not None else None
        if found is None:
            reason = f"not among the names of {self.family.trainer} ({key.first})"
            return beside_model(tensor, reason, key.first, training=is_training_state(key))
        weight, numbers = found
        if weight.left_out:
            return Leftover.of(tensor, weight.left_out)
        places = dict(zip(weight.places, numbers, strict=True))
        whole = Composed.whole(tensor.key, tensor.shape)
        rule = f"{self.family.trainer}: {below}"
        if weight.rearrangement is None:
            return [_output(weight, places, whole, tensor, rule)]
        parts = weight.rearrangement.apply(whole, self._sizes(), weight.differ)
        return [
            _output(weight, {**places, **at}, part, tensor, f"{rule}, {weight.rearrangement.text}")
            for at, part in parts
        ]

    def _about_wrong(self, why: str, keys: Sequence[str]) -> Finding:
        found = f"{counted(len(keys), 'tensor')} of {self.family.title} cannot be rearranged: {why}: {some(keys)}"
        return Finding("left-out-tensor", "", found, self.family.exporter and f"convert it with {self.family.exporter}")

    def _sizes(self) -> dict[str, int]:
        """The sizes of axes, as far as they are known."""
        sizes = {
            axis: self.config.get(size) if isinstance(size, str) else size for axis, size in self.family.sizes.items()
        }
        return {axis: size for axis, size in sizes.items() if size is not None and size > 0}


def _output(
    weight: Weight, places: Mapping[str, str | int], composed: Composed, tensor: StoredTensor, rule: str
) -> Output:
    name = PLACE.sub(lambda place: str(places[place[1]]), weight.name)
    return Output(name, composed.views, composed.shape, tensor.dtype, rule)
