"""What a verification found."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dcptools._display import Shown, Table
from dcptools._table import SHOWN_ROWS, frame
from dcptools._text import counted, format_bytes
from dcptools.findings import Finding, HasFindings

if TYPE_CHECKING:
    import pandas as pd

# How a sentence calls weights by their state
STATES = {
    "values": "with other values",
    "shape": "of another shape",
    "dtype": "of another dtype",
    "missing": "missing",
    "unexpected": "not expected",
}


@dataclass(frozen=True, slots=True)
class VerifiedWeight:
    """A weight that the model has or should have."""

    name: str
    state: str  # "same", "values", "shape", "dtype", "missing" or "unexpected"
    shape: tuple[int, ...]  # in the model; in the checkpoint if it is missing
    stored: str  # dtype in the checkpoint; "" if that is not known
    written: str  # dtype in the model; "" if it is missing
    file: str  # of the model; "" if it is missing
    differing: int  # values that are not the expected ones; 0 if only a checksum tells


class Compared(NamedTuple):
    """What a comparison with one thing found."""

    against: str
    weights: dict[str, VerifiedWeight]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, repr=False)
class Verification(Shown, HasFindings):
    """Whether a model on the disk is what a checkpoint gives, or what a report says was written."""

    save_dir: str
    against: str  # the path of the checkpoint, or of the report
    weights: tuple[VerifiedWeight, ...]  # sorted by name
    nbytes: int  # of the model's weights
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no errors: the weights are the expected ones, and so are the files."""
        return not self.errors

    def to_frame(self) -> pd.DataFrame:
        """One row per weight: name, state, shape, stored, written, file, differing."""
        columns = ("name", "state", "shape", "stored", "written", "file", "differing")
        return frame(columns, ([getattr(w, name) for name in columns] for w in self.weights))

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "sentence": self.headline(),
            "save_dir": self.save_dir,
            "against": self.against,
            "nbytes": self.nbytes,
            "seconds": self.seconds,
            "weights": [asdict(weight) for weight in self.weights],
            "findings": [finding.to_json() for finding in self.findings],
        }

    def headline(self) -> str:
        count = len(self.weights)
        states = Counter(weight.state for weight in self.weights)
        wrong = ", ".join(f"{states[state]:,} {text}" for state, text in STATES.items() if states[state])
        if wrong:
            nothing = states.keys() <= {"missing", "unexpected"}
            hint = " No name matches: was it converted with the same options?" if nothing else ""
            return f"{self.save_dir} is not what {self.against} gives: of {counted(count, 'weight')}, {wrong}.{hint}"
        weights = (
            f"The {count:,} weights of {self.save_dir} are those" if count != 1 else f"{self.save_dir} has the weight"
        )
        sentence = f"{weights} of {self.against}{self._casts()}."
        return sentence if self.ok else f"{sentence} But its files have {counted(len(self.errors), 'error')}."

    def _casts(self) -> str:
        """How they were cast: ", cast to bfloat16"; nothing if that is not known."""
        casts = Counter(w.written for w in self.weights if w.stored and w.written != w.stored)
        if not all(weight.stored for weight in self.weights):
            return ""
        if not casts:
            return ", uncast"
        if casts.total() == len(self.weights) and len(casts) == 1:
            return f", cast to {next(iter(casts))}"
        kept = len(self.weights) - casts.total()
        parts = [f"{count:,} cast to {dtype}" for dtype, count in sorted(casts.items())]
        return f", {', '.join(parts)}" + (f" and {kept:,} uncast" if kept else "")

    def _tables(self, most: int | None = SHOWN_ROWS) -> list[Table]:
        wrong = [w for w in self.weights if w.state != "same"]
        rows = [(w.name, w.state, w.stored, w.written, f"{w.differing:,}" if w.differing else "") for w in wrong]
        return [Table(("weight", "what differs", "stored", "written", "values"), rows)] if rows else []

    def _footer(self) -> str:
        rate = f", {format_bytes(self.nbytes / self.seconds)}/s" if self.seconds else ""
        return f"{format_bytes(self.nbytes)} of weights compared in {self.seconds:.2f} s{rate}"
