"""What a plan is: every file of the result, complete except for the values."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dcptools._display import Shown, Table
from dcptools._parallel import default_workers
from dcptools._table import SHOWN_ROWS, frame
from dcptools._text import counted, format_bytes, format_count, some
from dcptools.assets import Assets
from dcptools.checkpoint import Checkpoint
from dcptools.dtypes import DType
from dcptools.findings import Finding, HasFindings
from dcptools.mapping import KeyMapping, Output
from dcptools.shards.memory import peak_bytes
from dcptools.storage import is_url

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_SHARD_SIZE = 2_000_000_000  # bytes of the written dtype
INDEX = "model.safetensors.index.json"
SINGLE_FILE = {"model": "model.safetensors", "adapter": "adapter_model.safetensors"}  # by the kind of the result


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What ``plan`` was asked for, to do the same again."""

    shard_size: int = DEFAULT_SHARD_SIZE  # bytes
    dtype: str = "bfloat16"  # "keep" too
    dtype_for: tuple[tuple[str, str], ...] = ()  # glob and dtype of each exception
    strict: bool = False  # whether warnings are errors, including those that only writing can find

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``plan``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """An output at its place in a file."""

    output: Output
    dtype: DType  # that is written
    start: int  # bytes from the start of the file
    nbytes: int

    @property
    def cast(self) -> bool:
        return self.dtype != self.output.dtype


@dataclass(frozen=True)
class ShardFile:
    """One output file, complete except for the values."""

    filename: str
    header: bytes  # the length field, the JSON, and its padding
    tensors: tuple[PlannedTensor, ...]  # in the order of their places
    nbytes: int  # of the whole file

    @property
    def data_nbytes(self) -> int:
        return self.nbytes - len(self.header)


@dataclass(frozen=True, repr=False)
class ShardPlan(Shown, HasFindings):
    """Everything about the result except the values, which ``write`` only fills in."""

    mapping: KeyMapping
    files: tuple[ShardFile, ...]
    options: PlanOptions
    findings: tuple[Finding, ...]  # of the mapping and of the plan

    @property
    def checkpoint(self) -> Checkpoint:
        return self.mapping.checkpoint

    @property
    def assets(self) -> Assets | None:
        return self.mapping.assets

    @property
    def kind(self) -> str:
        """What is written: "model" or "adapter"."""
        return self.mapping.kind

    @property
    def found_while_planning(self) -> tuple[Finding, ...]:
        """The findings that the mapping could not have: about dtypes and sizes, not about names."""
        known = set(self.mapping.findings)
        return tuple(finding for finding in self.findings if finding not in known)

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all written values (the index calls it ``total_size``)."""
        return sum(file.data_nbytes for file in self.files)

    @cached_property
    def file_bytes(self) -> int:
        """Bytes of all files, headers included."""
        return sum(file.nbytes for file in self.files)

    @cached_property
    def total_parameters(self) -> int:
        """Elements of all written tensors."""
        return sum(tensor.output.numel for tensor in self._tensors())

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory of the whole process, in bytes, with the default number of workers and output."""
        return self.peak_bytes_with(default_workers())

    def peak_bytes_with(self, workers: int, save_dir: str | os.PathLike[str] | None = None) -> int:
        """Predicted peak memory of the whole process; neither the shard size nor tensor sizes matter.

        Uploads to a URL count; by default the output is where the checkpoint is.
        """
        casts = any(tensor.cast for tensor in self._tensors())
        there = is_url(self.checkpoint.path if save_dir is None else save_dir)
        uploads = max((file.nbytes for file in self.files), default=0) if there else 0
        return peak_bytes(self.mapping, casts=casts, workers=workers, uploads=uploads)

    def _tensors(self) -> Iterable[PlannedTensor]:
        return (tensor for file in self.files for tensor in file.tensors)

    @cached_property
    def written_dtype(self) -> str:
        """The floating-point dtype of the most written bytes, for config.json; ``float32`` if there is none."""
        return next((dtype.name for dtype in self._dtypes if dtype.kind == "float"), "float32")

    @cached_property
    def _dtypes(self) -> list[DType]:
        """The dtypes that are written, that of the most bytes first."""
        counts: Counter[DType] = Counter()
        for tensor in self._tensors():
            counts[tensor.dtype] += tensor.nbytes
        return [dtype for dtype, _ in counts.most_common()]

    @cached_property
    def index(self) -> bytes | None:
        """The content of the index, or None for a single file, which has none."""
        if len(self.files) == 1:
            return None
        weight_map = {t.output.name: file.filename for file in self.files for t in file.tensors}
        metadata = {"total_parameters": self.total_parameters, "total_size": self.total_bytes}
        return (json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n").encode()

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits that change with the checkpoint, the names, the dtypes or the cut into files."""
        digest = hashlib.sha256(self.checkpoint.digest.encode())
        for file in self.files:
            digest.update(json.dumps([file.filename, file.nbytes]).encode() + file.header)
            for tensor in file.tensors:
                views = [(v.key, v.shape, v.strides, v.offset) for v in tensor.output.sources]
                digest.update(repr((tensor.output.dtype.name, views)).encode())  # half of the time of JSON
        return digest.hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """One row per tensor in the order of the files: file, name, dtype, shape, start, nbytes."""
        rows = (
            (file.filename, t.output.name, t.dtype.name, t.output.shape, t.start, t.nbytes)
            for file in self.files
            for t in file.tensors
        )
        return frame(("file", "name", "dtype", "shape", "start", "nbytes"), rows)

    def files_frame(self) -> pd.DataFrame:
        """One row per file: file, tensors, nbytes, first and last name."""
        return frame(("file", "tensors", "nbytes", "first", "last"), map(_file_row, self.files))

    def to_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "kind": self.kind,
            "dtype": self.options.dtype,
            "shard_size": self.options.shard_size,
            "total_bytes": self.total_bytes,
            "total_parameters": self.total_parameters,
            "peak_bytes": self.peak_bytes,
            "files": [{"filename": f.filename, "nbytes": f.nbytes, "tensors": len(f.tensors)} for f in self.files],
            "findings": [finding.to_json() for finding in self.findings],
        }

    def headline(self) -> str:
        files = counted(len(self.files), "file")
        dtypes = some([dtype.name for dtype in self._dtypes], 3) or self.options.dtype
        elements = f"{format_count(self.total_parameters)} elements as {dtypes}"
        return (
            f"{files}, {format_bytes(self.file_bytes)} in total ({elements}), "
            f"at most {format_bytes(self.options.shard_size)} of values per file; "
            f"about {format_bytes(self.peak_bytes)} of memory"
        )

    def _tables(self, most: int | None = SHOWN_ROWS) -> list[Table]:
        rows = map(_file_row, self.files)
        shown = [(name, f"{count:,}", format_bytes(nbytes), *names) for name, count, nbytes, *names in rows]
        return [Table(("file", "tensors", "bytes", "first", "last"), shown)]

    def _shown_findings(self) -> tuple[Finding, ...]:
        return ()  # whoever prints a plan has reported them before

    def _footer(self) -> str:
        return f"fingerprint {self.fingerprint[:16]}"


def _file_row(file: ShardFile) -> tuple[str, int, int, str, str]:
    """Name, number of tensors, bytes, first and last name."""
    names = sorted(tensor.output.name for tensor in file.tensors)
    return file.filename, len(names), file.nbytes, names[0] if names else "", names[-1] if names else ""
