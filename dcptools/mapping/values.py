"""What a mapping is: every output with its name and sources, every key that is left out, every finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from dcptools._display import Shown, Table
from dcptools._table import SHOWN_ROWS, frame, frame_of
from dcptools._text import counted, format_bytes, format_count, format_shape
from dcptools.assets import Assets
from dcptools.checkpoint import Checkpoint, StoredTensor
from dcptools.errors import UsageError
from dcptools.expected import Expected, Shape
from dcptools.findings import Finding, HasFindings
from dcptools.layouts import Fit, Leftover, Output
from dcptools.mapping.rename import Rename
from dcptools.mapping.weights import Measured, Weight
from dcptools.tensors import View

if TYPE_CHECKING:
    import pandas as pd


SHOWN_READINGS = 5
# What an option can be; the first is its default.
CHOICES = {
    "mode": ("auto", "full", "lora"),
    "names": ("stored", "published"),
    "tied": ("auto", "keep", "drop"),
    "unexpected": ("keep", "drop"),
}


@dataclass(frozen=True, slots=True)
class MappingOptions:
    """What ``preview`` was asked for, to do the same again."""

    model_assets_dir: str | None = None
    reference: str | None = None
    family: str | None = None
    layout: str = "auto"
    root: str | None = None
    mode: str = "auto"
    adapter: str | None = None
    adapter_config_path: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    names: str = "stored"
    tied: str = "auto"
    unexpected: str = "keep"
    allow_mismatch: bool = False
    rename: tuple[Rename, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``preview``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, repr=False)
class KeyMapping(Shown, HasFindings):
    """Which tensors will be written under which names; every checkpoint key is a source or a leftover."""

    checkpoint: Checkpoint
    outputs: tuple[Output, ...]  # sorted by name
    leftovers: tuple[Leftover, ...]  # sorted by key
    findings: tuple[Finding, ...]
    layout: str  # "container", "bare", or "" if none was found
    root: str  # the container
    assets: Assets | None
    options: MappingOptions
    expected: Expected | None = None  # the model that it must be; None if nothing is known of it
    measured: Measured | None = None  # how well it is that model, weight by weight
    readings: tuple[Fit, ...] = ()  # those that were tried, the chosen one first
    kind: str = "model"  # or "adapter", which is another kind of result

    def __post_init__(self) -> None:
        """Enforce the law: each key of the checkpoint is either used, or left out with a reason, never both."""
        tensors, used = self.checkpoint.tensors, set()
        for output in self.outputs:
            for view in output.sources:
                tensor = tensors.get(view.key) or self.checkpoint[view.key]  # which says that there is none
                used.add(tensor.key)
                if output.dtype is not tensor.dtype or not (view.is_whole(tensor.shape) or view.end <= tensor.numel):
                    raise _not_of(output, view, tensor)
        left, keys = {leftover.key for leftover in self.leftovers}, (tensors, self.checkpoint.objects)
        once = len(left) == len(self.leftovers) and left.isdisjoint(used)
        if not once or len(left) + len(used) != sum(map(len, keys)) or left.difference(*keys):
            raise AssertionError("a key is neither used nor left out, or both; this is a bug in dcptools")

    @property
    def fit(self) -> Fit | None:
        """How well it is the model; None if nothing is known about that."""
        return self.measured.fit if self.measured else None

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The model beside the checkpoint, sorted by name; none if nothing is known about it."""
        return self.measured.weights if self.measured else ()

    def to_frame(self) -> pd.DataFrame:
        """One row per output: name, key (comma-separated), rule, shape, dtype, numel, state, expected_shape, findings.

        The state is "fits", "unexpected" or "shape differs", and empty if nothing is known about the model.
        """
        codes: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.key:
                codes.setdefault(finding.key, []).append(finding.code)
        outputs, held = self.outputs, list(map(self._held, self.outputs))
        columns: dict[str, list[Any]] = {
            "name": [output.name for output in outputs],
            "key": [output.key for output in outputs],
            "rule": [output.rule for output in outputs],
            "shape": [output.shape for output in outputs],
            "dtype": [output.dtype.name for output in outputs],
            "numel": [output.numel for output in outputs],
            "state": [state for state, _ in held],
            "expected_shape": [expected for _, expected in held],
            "findings": [_codes_of(output, codes) for output in outputs] if codes else [""] * len(outputs),
        }
        return frame_of(columns)

    def _held(self, output: Output) -> tuple[str, Shape | None]:
        """The state of an output, and the shape that is expected.

        What has no weight of its own is published as a part of weights that fit, or was not compared with a model.
        """
        if self.measured is None:
            return "", None
        odd = self.measured.odd
        weight = odd.get(output.sources) if odd else None
        return ("fits", output.shape) if weight is None else (weight.state, weight.expected)

    def model_frame(self) -> pd.DataFrame:
        """The model beside the checkpoint: name, key, shape, expected_shape, state.

        One row per weight that the model needs, and one per tensor that it does not expect; none if nothing is known
        about the model. The state is "fits", "missing" (it has no key and no shape), "unexpected" or "shape differs".
        """
        columns = {"name": "name", "key": "key", "shape": "shape", "expected_shape": "expected", "state": "state"}
        return frame_of({column: [getattr(each, of) for each in self.weights] for column, of in columns.items()})

    def readings_frame(self) -> pd.DataFrame:
        """One row per reading, the chosen one first: reading, weights, fitting, missing, misshapen, complete."""
        columns = ("reading", "weights", "fitting", "missing", "misshapen", "complete")
        return frame(columns, ([fit.scores()[column] for column in columns] for fit in self.readings))

    def leftovers_frame(self) -> pd.DataFrame:
        """One row per key that is left out: key, kind, reason, nbytes."""
        rows = ((left.key, left.kind, left.reason, left.nbytes) for left in self.leftovers)
        return frame(("key", "kind", "reason", "nbytes"), rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "layout": self.layout,
            "root": self.root,
            "model": self.fit.to_json() if self.fit else None,
            "readings": [fit.scores() for fit in self.readings],
            "outputs": [
                {
                    "name": o.name,
                    "keys": [view.key for view in o.sources],
                    "shape": o.shape,
                    "dtype": o.dtype.name,
                    "rule": o.rule,
                }
                for o in self.outputs
            ],
            "leftovers": [{"key": left.key, "kind": left.kind, "reason": left.reason} for left in self.leftovers],
            "findings": [finding.to_json() for finding in self.findings],
        }

    def leftover_counts(self) -> list[tuple[str, int, int]]:
        """One row per reason: reason, keys, bytes."""
        counts: dict[str, list[int]] = {}
        for left in self.leftovers:
            row = counts.setdefault(left.reason, [0, 0])
            row[0] += 1
            row[1] += left.nbytes
        return [(reason, keys, nbytes) for reason, (keys, nbytes) in sorted(counts.items())]

    def headline(self) -> str:
        """The verdict on the model, or how much is written if nothing is known about it."""
        return self.fit.sentence if self.fit else self.counts()

    def counts(self) -> str:
        """How much is written, and how much is not."""
        parameters = sum(output.numel for output in self.outputs)
        outputs = f"{counted(len(self.outputs), 'output')} with {format_count(parameters)} elements"
        return f"{outputs}; {counted(len(self.leftovers), 'key')} left out"

    def _tables(self, most: int | None = SHOWN_ROWS) -> Iterator[Table]:
        title = self.counts() if self.fit else ""
        if self.fit and self.readings:
            tried = [
                (
                    each.reading,
                    f"{each.fitting:,} of {each.weights:,}",
                    f"{len(each.missing_names):,}",
                    f"{len(each.misshapen):,}",
                )
                for each in self.readings[: most and SHOWN_READINGS]
            ]
            yield Table(("reading", "weights that fit", "missing", "other shapes"), tried, total=len(self.readings))
        if self.outputs:
            rows = [(o.key, o.name, format_shape(o.shape), o.dtype.name, o.rule) for o in self.outputs[:most]]
            yield Table(("key", "name", "shape", "dtype", "rule"), rows, total=len(self.outputs), title=title)
        if self.leftovers:
            counts = [(reason, f"{keys:,}", format_bytes(nbytes)) for reason, keys, nbytes in self.leftover_counts()]
            yield Table(("left out because", "keys", "bytes"), counts, title="" if self.outputs else title)


def _codes_of(output: Output, codes: Mapping[str, Sequence[str]]) -> str:
    """The findings about an output, by its name or one of its keys."""
    keys = (output.name, *(view.key for view in output.sources))
    return ", ".join(dict.fromkeys(code for key in keys for code in codes.get(key, ())))


def _not_of(output: Output, view: View, tensor: StoredTensor) -> UsageError:
    """What is written must be what the checkpoint has, and nothing else."""
    if view.end > tensor.numel:
        return UsageError(
            f"A source of the output {output.name!r} reaches to element {view.end:,} of {view.key!r}.\n"
            f"Expected at most {tensor.numel:,}, those of its shape {tensor.shape}."
        )
    return UsageError(
        f"The output {output.name!r} is said to be stored as {output.dtype.name}.\n"
        f"Expected {tensor.dtype.name}, as {view.key!r} is."
    )
