"""What a layout makes of a checkpoint: outputs, leftovers, and what it noticed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, final

from dcptools._frozen import set_class, unfrozen
from dcptools.checkpoint import Checkpoint, StoredTensor
from dcptools.dtypes import DType
from dcptools.errors import UsageError
from dcptools.findings import Finding
from dcptools.layouts.keys import Key
from dcptools.tensors import View


@final
@dataclass(frozen=True, slots=True, init=False)
class Output:
    """A tensor of the result: its name, and the views of stored tensors that it is made of.

    The values of the sources follow each other in row-major order: one whole tensor, one expert of a stack, or all
    experts of a layer that become one stack.

    Raises
    ------
    UsageError
        The sources do not have exactly as many elements as the shape.
    """

    name: str
    sources: tuple[View, ...]
    shape: tuple[int, ...]
    dtype: DType  # as stored; the plan says what is written
    rule: str  # which rule gave the name

    def __init__(self, name: str, sources: tuple[View, ...], shape: tuple[int, ...], dtype: DType, rule: str) -> None:
        set_class(self, _Unfrozen)
        made: Any = self
        made.name, made.sources, made.shape, made.dtype, made.rule = name, sources, shape, dtype, rule
        made.__class__ = Output
        if len(sources) == 1 and sources[0].shape == shape:
            return
        found = 0
        for view in sources:
            found += _elements(view.shape)
        if not sources or found != _elements(shape):
            raise UsageError(
                f"The sources of the output {name!r} have {found:,} elements.\n"
                f"Expected {self.numel:,}, those of its shape {shape}."
            )

    @classmethod
    def whole(cls, name: str, tensor: StoredTensor, rule: str) -> Output:
        """All of a stored tensor, under a name of its own."""
        made = _Unfrozen()
        made.name, made.sources, made.shape = name, (View.whole(tensor),), tensor.shape
        made.dtype, made.rule = tensor.dtype, rule
        made.__class__ = Output
        return made  # type: ignore[no-any-return]

    @property
    def key(self) -> str:
        """The keys of the checkpoint that it is made of, comma-separated."""
        return self.sources[0].key if len(self.sources) == 1 else ", ".join(view.key for view in self.sources)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as they are stored."""
        return self.numel * self.dtype.itemsize


_Unfrozen = unfrozen(Output)


@lru_cache(maxsize=1024)  # a model has many tensors of few shapes
def _elements(shape: tuple[int, ...]) -> int:
    """How many it has; -1 if a size is negative."""
    return math.prod(shape) if min(shape, default=0) >= 0 else -1


@dataclass(frozen=True, slots=True)
class Leftover:
    """A key of the checkpoint that is not converted, and why."""

    key: str
    kind: str  # "tensor" or "object"
    reason: str
    nbytes: int
    part: str = ""  # of a tensor that is not training state: what it is in beside the model, such as ``ema``

    @classmethod
    def of(cls, tensor: StoredTensor | Output, reason: str, part: str = "") -> Leftover:
        key = tensor.sources[0].key if isinstance(tensor, Output) else tensor.key
        return cls(key, "tensor", reason, tensor.nbytes, part)


@dataclass(frozen=True, slots=True)
class Reading:
    """A checkpoint as one layout reads it. Each tensor is a source of an output or a leftover."""

    outputs: tuple[Output, ...]
    leftovers: tuple[Leftover, ...]
    findings: tuple[Finding, ...]  # of the layout itself, and of single keys


class Layout(Protocol):
    """A way to lay out a model in a checkpoint; one file each."""

    @property
    def name(self) -> str:
        """The value of ``--layout``; "" if the layout is not known."""

    @property
    def root(self) -> str:
        """The container that holds the model; "" if there is none."""

    def read(self, checkpoint: Checkpoint, keys: Mapping[str, Key]) -> Reading:
        """What becomes of each tensor; ``keys`` are those of the checkpoint, by what they are called in it."""
