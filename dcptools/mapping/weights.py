"""The model beside the checkpoint: each weight that it expects, each tensor that it does not, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dcptools._collector import no_collections
from dcptools.expected import Naming, Shape
from dcptools.layouts import Fit, Output
from dcptools.tensors import View


class Weight(NamedTuple):
    """A weight of the model, or a tensor that the model has no weight for."""

    name: str  # as the model calls it, whatever it is renamed to
    outputs: tuple[Output, ...]  # what was read for it: none if it is missing, several if tied ones are all kept
    expected: Shape | None  # None: the model has no such weight, or a reference does not say
    state: str  # one of layouts.STATES

    @property
    def key(self) -> str:
        """The keys of the checkpoint that it is made of, comma-separated."""
        return ", ".join(output.key for output in self.outputs)

    @property
    def shape(self) -> Shape | None:
        """As stored; None if it is missing."""
        return self.outputs[-1].shape if self.outputs else None


@dataclass(frozen=True)
class Measured:
    """Outputs as the model calls them, and how well they are the model."""

    outputs: tuple[Output, ...]
    fit: Fit
    naming: Naming  # of the outputs

    @cached_property
    @no_collections()
    def weights(self) -> tuple[Weight, ...]:
        """The model beside the checkpoint, sorted by name; made when it is first used, as not every preview does."""
        return weights_of(self.outputs, self.fit, self.naming)

    @cached_property
    def odd(self) -> dict[tuple[View, ...], Weight]:
        """The weights, by sources of their outputs, that do not fit or whose shape is not known: usually none."""
        if not self.fit.differences and None not in self.naming.shapes.values():
            return {}
        odd = (weight for weight in self.weights if weight.state != "fits" or weight.expected is None)
        return {output.sources: weight for weight in odd for output in weight.outputs}


def weights_of(outputs: Iterable[Output], found: Fit, naming: Naming) -> tuple[Weight, ...]:
    """Which weights of the model the outputs give, sorted by name; ``found`` is how these outputs fit it."""
    written = naming.written
    tied = {each.name: each.tied for each in found.differences if each.tied}  # of another shape than what fits

    def row(name: str) -> str:
        """Tied names share a row, except for a copy of another shape."""
        one = written.get(name, name)
        return name if name in tied else tied.get(one, one)

    made: dict[str, tuple[Output, ...]] = {}
    for output in outputs:
        one = row(output.name)
        made[one] = (*made[one], output) if one in made else (output,)
    states = {row(each.name): each.state for each in found.differences}
    return tuple(
        Weight(name, made.get(name, ()), naming.shapes.get(name), states.get(name, "fits"))
        for name in sorted({**made, **states})
    )
