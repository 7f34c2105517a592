"""What a HuggingFace model on the disk is: weights, the files that hold them, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dcptools._display import Shown, Table
from dcptools._table import SHOWN_ROWS, frame
from dcptools._text import counted, format_bytes, format_count, format_shape
from dcptools.dtypes import DType
from dcptools.findings import Finding, HasFindings
from dcptools.storage import Source

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of a safetensors file: row-major, in one piece."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    file: str  # name in the model's directory
    start: int  # bytes from the start of the file
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file of a model."""

    name: str
    nbytes: int | None  # of the whole file; None: it is not there
    header_nbytes: int  # with its length field; 0 if it cannot be read
    metadata: tuple[tuple[str, str], ...]  # what else the header says, beside the tensors


@dataclass(frozen=True, eq=False, repr=False)
class Model(Shown, HasFindings):
    """The weights of a HuggingFace model on the disk, from the headers of its files and its index.

    What is wrong with a file or the index is a finding, of severity ``error`` where transformers would not load it.
    """

    path: str
    weights: Mapping[str, Weight]  # sorted by name
    files: tuple[WeightFile, ...]
    index: str  # name of the index; "" if there is none
    weight_map: Mapping[str, str]  # what the index says: name to file; empty if there is none
    index_metadata: Mapping[str, Any]  # what else the index says
    findings: tuple[Finding, ...]
    source: Source

    def __getstate__(self) -> dict[str, Any]:
        return {name: dict(v) if isinstance(v, MappingProxyType) else v for name, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: MappingProxyType(v) if isinstance(v, dict) else v for name, v in state.items()})

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all weights' values."""
        return sum(weight.nbytes for weight in self.weights.values())

    @cached_property
    def by_file(self) -> Mapping[str, tuple[Weight, ...]]:
        """The weights of each file, in the order of their places."""
        found: dict[str, list[Weight]] = {file.name: [] for file in self.files}
        for weight in sorted(self.weights.values(), key=lambda weight: (weight.start, weight.nbytes, weight.name)):
            found[weight.file].append(weight)
        return {name: tuple(weights) for name, weights in found.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row per weight: name, shape, dtype, numel, nbytes, file."""
        rows = ((w.name, w.shape, w.dtype.name, w.numel, w.nbytes, w.file) for w in self.weights.values())
        return frame(("name", "shape", "dtype", "numel", "nbytes", "file"), rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "weights": [
                {"name": w.name, "shape": w.shape, "dtype": w.dtype.name, "file": w.file} for w in self.weights.values()
            ],
            "files": [{"name": file.name, "nbytes": file.nbytes} for file in self.files],
            "index": self.index,
            "findings": [finding.to_json() for finding in self.findings],
        }

    def headline(self) -> str:
        elements = format_count(sum(weight.numel for weight in self.weights.values()))
        weights = f"{counted(len(self.weights), 'weight')} with {elements} elements in {format_bytes(self.nbytes)}"
        return f"{self.path}: {weights}, {counted(len(self.files), 'file')}"

    def _tables(self, most: int | None = SHOWN_ROWS) -> list[Table]:
        shown = list(self.weights.values())[:most]
        rows = [(w.name, format_shape(w.shape), w.dtype.name, format_bytes(w.nbytes), w.file) for w in shown]
        return [Table(("name", "shape", "dtype", "bytes", "file"), rows, total=len(self.weights))]
