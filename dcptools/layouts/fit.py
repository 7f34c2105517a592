"""How well names and shapes give the expected model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from dcptools._text import counted
from dcptools.expected import Naming, Shape

# What can be said about a weight.
STATES = ("fits", "missing", "unexpected", "shape differs")


class Difference(NamedTuple):
    """A weight that is not as the model expects it."""

    name: str
    found: Shape | None  # None: it is missing
    expected: Shape | None  # None: the model has no such weight
    tied: str = ""  # a name that the model ties it to, and that has the expected shape

    @property
    def state(self) -> str:
        """One of :data:`STATES`, in a word or two."""
        return "missing" if self.found is None else "unexpected" if self.expected is None else "shape differs"


@dataclass(frozen=True)
class Fit:
    """Which of a model's weights a reading gives; tied weights count once."""

    title: str  # of the model
    reading: str  # how the checkpoint was read, in words
    naming: Naming = field(repr=False, hash=False)  # of the model's weights
    fitting: int  # weights that the model needs, with the expected shape
    missing_names: tuple[str, ...]
    misshapen: tuple[Difference, ...]
    unexpected: tuple[Difference, ...]

    @cached_property
    def missing(self) -> tuple[Difference, ...]:
        """Made when it is first used: a reading that is not chosen may lack all of very many weights."""
        return tuple(Difference(name, None, self.naming.shapes[name]) for name in self.missing_names)

    @property
    def differences(self) -> tuple[Difference, ...]:
        return (*self.missing, *self.misshapen, *self.unexpected)

    @property
    def weights(self) -> int:
        """How many the model needs."""
        return len(self.naming.needed)

    @property
    def shapes_known(self) -> bool:
        """Of all weights; otherwise some were compared by name alone."""
        return self.naming.shapes_known

    @property
    def complete(self) -> bool:
        """Whether it is the model, whatever is beside it."""
        return self.weights > 0 and not self.missing_names and not self.misshapen

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        if self.complete:
            beside = f", and {counted(len(self.unexpected), 'tensor')} beside it" if self.unexpected else ""
            how = "every shape fits" if self.shapes_known else "compared by name alone"
            return f"This is {self.title}: {self.weights:,} of {counted(self.weights, 'weight')}, {how}{beside}"
        found = (self.missing_names, "missing"), (self.misshapen, "of another shape"), (self.unexpected, "unexpected")
        said = ", ".join(f"{len(which):,} {what}" for which, what in found if which)
        return f"This is not {self.title}: {self.fitting:,} of {counted(self.weights, 'weight')} fit, {said}"

    def scores(self) -> dict[str, Any]:
        """How the checkpoint was read, and how well that gives the model, in numbers."""
        return {
            "reading": self.reading,
            "weights": self.weights,
            "fitting": self.fitting,
            "missing": len(self.missing_names),
            "misshapen": len(self.misshapen),
            "complete": self.complete,
        }

    def to_json(self) -> dict[str, Any]:
        differences = [
            {"name": each.name, "found": each.found, "expected": each.expected, "state": each.state}
            for each in self.differences
        ]
        return {"model": self.title, **self.scores(), "differences": differences}


def fit(title: str, reading: str, shapes: Mapping[str, Shape], naming: Naming) -> Fit:
    """Compare names and shapes with a naming of the model's weights."""
    written, wanted, needed = naming.written, naming.shapes, naming.needed
    if shapes == wanted:  # usually; and with very many weights, it takes a tenth of the time
        return Fit(title, reading, naming, len(needed), (), (), ())
    right: dict[str, str] = {}  # a name that has the expected shape, by the one that is written
    wrong: dict[str, Difference] = {}  # likewise, but what is tied to a right one counts by itself
    copies, unexpected = [], []
    for name, shape in shapes.items():
        if (one := written.get(name)) is None:
            unexpected.append(Difference(name, shape, None))
        elif (expected := wanted[name]) == shape or expected is None:
            right[one] = name
        else:
            copies.append(Difference(name, shape, expected))
    for each in copies:
        tied = right.get(written[each.name], "")
        wrong[each.name if tied else written[each.name]] = each._replace(tied=tied)
    lacking = [name for name in needed if name not in right]
    missing = tuple(name for name in lacking if name not in wrong)
    fitting = len(needed) - len(lacking)
    return Fit(title, reading, naming, fitting, missing, tuple(wrong.values()), tuple(unexpected))
