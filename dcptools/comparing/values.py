"""What a comparison of two models or checkpoints found."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dcptools._display import Shown, Table
from dcptools._option import option
from dcptools._table import SHOWN_ROWS, frame
from dcptools._text import counted, format_shape, printable

if TYPE_CHECKING:
    import pandas as pd

# How a sentence calls tensors by their state
STATES = {
    "equal": "equal",
    "values": "with other values",
    "dtype": "of another dtype",
    "shape": "of another shape",
    "only a": "only in A",
    "only b": "only in B",
}
# How far apart tensors are, as a picture can show it; `unequal` is one minus `equal`
STATISTICS = {
    "relative": "norm of the difference, relative to that of A",
    "max_abs": "largest absolute difference",
    "max_rel": "largest relative difference of two values",
    "norm": "norm of the difference",
    "unequal": "share of values that differ",
}
COLUMNS = (
    *("name", "state", "shape_a", "shape_b", "dtype_a", "dtype_b", "numel"),
    *("equal", "max_abs", "max_rel", "norm", "relative", "cosine"),
)


@dataclass(frozen=True, slots=True)
class ComparedTensor:
    """A tensor of A, of B, or of both; the statistics are NaN where values were not compared."""

    name: str
    state: str  # "equal", "values", "dtype", "shape", "only a" or "only b"
    shape_a: tuple[int, ...] | None  # None: A does not have it
    shape_b: tuple[int, ...] | None
    dtype_a: str  # "": A does not have it
    dtype_b: str
    numel: int
    equal: float = math.nan  # share of the values that are equal, from 0 to 1
    max_abs: float = math.nan  # largest absolute difference of two values
    max_rel: float = math.nan  # the largest relative to the larger of both values, from 0 to 2
    norm: float = math.nan  # Euclidean norm of the difference
    relative: float = math.nan  # that norm relative to the norm of A
    cosine: float = math.nan  # of the angle between both


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Two models or checkpoints, tensor by tensor."""

    a: str  # path
    b: str
    by: str  # "keys" of the checkpoints, or "names" of the model
    cast: bool  # whether values of A were cast to the dtypes of B first
    tensors: tuple[ComparedTensor, ...]  # sorted by name
    seconds: float

    @property
    def same(self) -> bool:
        """Whether both have the same tensors with the same values."""
        return all(tensor.state == "equal" for tensor in self.tensors)

    def to_frame(self) -> pd.DataFrame:
        """One row per tensor, with the fields of :class:`ComparedTensor` as columns."""
        return frame(COLUMNS, ([getattr(t, name) for name in COLUMNS] for t in self.tensors))

    def to_json(self) -> dict[str, Any]:
        rows = [
            {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row}
            for row in (asdict(tensor).items() for tensor in self.tensors)
        ]
        return {
            **{name: getattr(self, name) for name in ("same", "a", "b", "by", "cast", "seconds")},
            "sentence": self.headline(),
            "tensors": rows,
        }

    def worst_first(self) -> list[ComparedTensor]:
        """The tensors that are not equal, those whose difference is largest relative to A first."""
        return sorted(
            (tensor for tensor in self.tensors if tensor.state != "equal"),
            key=lambda tensor: (math.isnan(tensor.relative), -tensor.relative, tensor.name),
        )

    def headline(self) -> str:
        count = counted(len(self.tensors), "tensor")
        if self.same:
            after = ", after a cast to the dtypes of B" if self.cast else ""
            return f"A and B are equal: {count}, bit for bit{after}."
        states = Counter(tensor.state for tensor in self.tensors)
        parts = ", ".join(f"{states[state]:,} {text}" for state, text in STATES.items() if states[state])
        worst = next((tensor for tensor in self.worst_first() if tensor.relative > 0), None)
        largest = f" The largest relative difference, {worst.relative:.2g}, is that of {worst.name}." if worst else ""
        hint = f" To compare after a cast: {option('cast', True)}." if states["dtype"] and not self.cast else ""
        return printable(f"A and B differ: of {count}, {parts}.{largest}{hint}")

    def _tables(self, most: int | None = SHOWN_ROWS) -> list[Table]:
        sides = Table(("", "path"), [("A", self.a), ("B", self.b)])
        worst = self.worst_first()
        header = ("tensor", "what differs", "A", "B", "equal", "largest", "relative", "cosine")
        return [sides, Table(header, [_row(t) for t in worst[:most]], total=len(worst))] if worst else [sides]


def _row(tensor: ComparedTensor) -> tuple[str, ...]:
    a, b = ((format_shape(shape) if shape is not None else "") for shape in (tensor.shape_a, tensor.shape_b))
    if tensor.state != "shape":
        a, b = tensor.dtype_a, tensor.dtype_b
    numbers = (f"{tensor.max_abs:.3g}", f"{tensor.relative:.3g}", f"{tensor.cosine:.6f}")
    shown = ("", "", "", "") if math.isnan(tensor.equal) else (_share(tensor.equal), *numbers)
    return (tensor.name, STATES[tensor.state].removeprefix("with ").removeprefix("of "), a, b, *shown)


def _share(share: float) -> str:
    """A share as a percentage, which says 100 % only for all values and 0 % only for none."""
    if share in (0, 1):
        return f"{share:.0%}"
    return "<0.1%" if share < 0.001 else f"{min(100 * share, 99.9):.1f}%"
