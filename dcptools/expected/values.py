"""What is known about a model without its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from dcptools.tensors import Composed, View

Shape = tuple[int, ...]


class NotExpected(Exception):
    """Nothing is known about the model; the text says why. ``broken`` if it cannot be built as described."""

    def __init__(self, why: str, *, broken: bool = False) -> None:
        super().__init__(why)
        self.broken = broken


@dataclass(frozen=True)
class Naming:
    """One way of naming the weights of a model."""

    shapes: Mapping[str, Shape | None]  # by name, tied names too; None: not known
    ties: tuple[tuple[str, ...], ...] = ()  # names of one weight; the one that is written comes first
    optional: frozenset[str] = frozenset()  # what transformers does not report as missing

    @cached_property
    def written(self) -> Mapping[str, str]:
        """For each name, the one under which its weight is written: a different one only for tied names."""
        return {**{name: name for name in self.shapes}, **{name: tied[0] for tied in self.ties for name in tied}}

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The weights without which a model is incomplete; tied ones once."""
        return tuple(name for name, written in self.written.items() if name == written and name not in self.optional)

    @cached_property
    def shapes_known(self) -> bool:
        """Of all weights that are needed; otherwise some can be compared by name alone."""
        return None not in map(self.shapes.get, self.needed)

    def without(self, prefix: str) -> Naming:
        """Only what is below a prefix, by the rest of the name: the base model's own way."""
        cut = {name: name[len(prefix) :] for name in self.shapes if name.startswith(prefix)}
        ties = (tuple(cut[name] for name in tied if name in cut) for tied in self.ties)
        return Naming(
            {short: self.shapes[name] for name, short in cut.items()},
            tuple(tied for tied in ties if len(tied) > 1),
            frozenset(cut[name] for name in self.optional if name in cut),
        )


@dataclass(frozen=True)
class Expected:
    """A model's weights: their names, shapes and ties.

    A weight has a *stored* name, which the live model gives it and a trainer saves, and a *published* one, which
    ``save_pretrained`` writes. They differ where transformers fuses experts or renames towers.
    """

    title: str  # "Qwen3ForCausalLM"
    stored: Naming
    published: Naming
    conversion: Mapping[str, Composed] = field(default_factory=dict)  # published names, made of views of stored weights
    base: str = ""  # what the model calls its base model: "model"
    unsaved: frozenset[str] = frozenset()  # stored names of buffers that are in no file
    ignored: tuple[str, ...] = ()  # regular expressions of names that transformers knows to be left over
    float32: Mapping[str, frozenset[str]] = field(default_factory=dict)  # by dtype, the names that stay float32 in it
    numbers: frozenset[str] | None = None  # stored names of integers and booleans; None: not known
    linear: frozenset[str] | None = None  # the linear modules, without the head; None: not known
    sizes: Mapping[str, int] = field(default_factory=dict)  # the integers of the config
    unpublished: str = ""  # why the published names are not known

    @cached_property
    def differ(self) -> bool:
        """Whether what is published has other names than what is stored."""
        return self.published.shapes.keys() != self.stored.shapes.keys()

    @cached_property
    def based(self) -> Naming | None:
        """The stored names of the base model alone; None if there is no such model."""
        return self.stored.without(f"{self.base}.") if self.base else None

    @cached_property
    def names(self) -> frozenset[str]:
        """All names that its weights have anywhere."""
        return frozenset((*self.stored.shapes, *self.published.shapes, *(self.based.shapes if self.based else ())))

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Expected:
        """What :mod:`dcptools.expected.building` answered."""
        ties = tuple(map(tuple, answer["ties"]))
        shapes = {name: tuple(shape) for name, shape in answer["stored"].items()}
        stored = Naming(shapes, ties, frozenset(answer["optional"]))
        conversion = {name: _composed(*said) for name, said in answer["published"].get("weights", {}).items()}
        return cls(
            answer["architecture"],
            stored,
            _published(stored, conversion) if conversion else stored,
            conversion,
            answer["base"],
            frozenset(answer["unsaved"]),
            tuple(answer["ignored"]),
            {dtype: frozenset(_both_names(kept, conversion)) for dtype, kept in answer["float32"].items()},
            frozenset(_both_names(answer["numbers"], conversion)),
            None if answer["linear"] is None else frozenset(answer["linear"]),
            answer["sizes"],
            answer["published"].get("unknown", ""),
        )


def _composed(shape: Iterable[int], views: Iterable[tuple[str, list[int], list[int], int]]) -> Composed:
    made = (View(key, _shared(tuple(size)), _shared(tuple(strides)), at) for key, size, strides, at in views)
    return Composed(_shared(tuple(shape)), tuple(made))


@lru_cache(maxsize=1024)
def _shared(sizes: Shape) -> Shape:
    """One object for all that are the same: very many views have few shapes."""
    return sizes


def _published(stored: Naming, conversion: Mapping[str, Composed]) -> Naming:
    """The published names; those of tied weights are tied, and what is made of optional weights alone is optional."""
    of: dict[str, list[str]] = {}
    for name, made in conversion.items():
        if len(made.views) == 1 and made.shape == stored.shapes[made.views[0].key]:
            of.setdefault(made.views[0].key, []).append(name)
    ties = (tuple(name for one in tied for name in of.get(one, ())) for tied in stored.ties)
    optional = (n for n, made in conversion.items() if stored.optional.issuperset(v.key for v in made.views))
    shapes = {name: made.shape for name, made in conversion.items()}
    return Naming(shapes, tuple(tied for tied in ties if len(tied) > 1), frozenset(optional))


def _both_names(stored: Iterable[str], conversion: Mapping[str, Composed]) -> Iterator[str]:
    """Stored names, and the published ones of what is made of them."""
    names = set(stored)
    yield from names
    yield from (name for name, made in conversion.items() if names.issuperset(view.key for view in made.views))
