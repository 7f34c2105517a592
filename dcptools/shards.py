"""``plan``: final file names, headers, byte offsets, total and peak bytes. Pure arithmetic, no torch, no tensor data.

The format is safetensors' (8 bytes little-endian header length, JSON header, data), in the order in which
``safetensors.torch.save_file`` puts tensors: widest dtype first, then name. So a file equals, byte for byte, what that
function would write.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dcptools._parallel import default_workers
from dcptools._table import counted, format_bytes, format_count, html_table, parse_bytes, text_table
from dcptools.checkpoint import Checkpoint
from dcptools.dtypes import TABLE, DType
from dcptools.errors import FindingsError, NoModelWeights, UsageError
from dcptools.findings import Finding, HasFindings, of_severity, summary_lines
from dcptools.mapping import KeyMapping, Output, preview

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DEFAULT_SHARD_SIZE",
    "DTYPES",
    "INDEX",
    "PlannedTensor",
    "ShardFile",
    "ShardPlan",
    "plan",
]

DEFAULT_SHARD_SIZE = 2_000_000_000  # bytes of the written dtype
DTYPES = ("bfloat16", "float16", "float32", "keep")
INDEX = "model.safetensors.index.json"
# Resident memory that no buffer explains, measured with the CPU build of torch 2.13 on x86-64 Linux
PROCESS_BYTES = 45_000_000  # Python with numpy, click and this package
TORCH_BYTES = 210_000_000  # importing torch, which only casts need
CHUNK_BYTES = 300  # a chunk while .metadata is read, which is in memory too
FILE_BYTES = 600  # a file of the checkpoint
TENSOR_BYTES = 2_500  # an output in mapping, plan and header
WORKER_BYTES = 7 << 20  # a thread of the writer: stored values, a block, and what is read to be rearranged


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
    """One output file, complete but for the values."""

    filename: str
    header: bytes  # the length field, the JSON, and its padding
    tensors: tuple[PlannedTensor, ...]  # in the order of their places
    nbytes: int  # of the whole file

    @property
    def data_nbytes(self) -> int:
        return self.nbytes - len(self.header)


@dataclass(frozen=True, eq=False)
class ShardPlan(HasFindings):
    """Everything about the result but the values: ``write`` only fills it in."""

    mapping: KeyMapping
    files: tuple[ShardFile, ...]
    shard_size: int  # bytes
    dtype: str  # what was asked for; "keep" too
    dtype_for: tuple[tuple[str, str], ...]  # glob and dtype of each exception
    findings: tuple[Finding, ...]  # of the mapping and of the plan
    strict: bool = False  # whether a warning while writing counts as an error too

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
        return sum(t.output.numel for file in self.files for t in file.tensors)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory of the whole process, in bytes, with the default number of workers."""
        return self.peak_bytes_with(default_workers())

    def peak_bytes_with(self, workers: int) -> int:
        """Predicted peak memory of the whole process; neither shard size nor tensor sizes matter."""
        checkpoint = self.mapping.checkpoint
        chunks, files = checkpoint.chunk_count * CHUNK_BYTES, len(checkpoint.files) * FILE_BYTES
        reading = chunks + files + checkpoint.metadata_nbytes
        outputs = len(self.mapping.outputs) * TENSOR_BYTES
        torch = TORCH_BYTES if any(t.cast for file in self.files for t in file.tensors) else 0
        return PROCESS_BYTES + outputs + max(reading, torch + workers * WORKER_BYTES)

    @cached_property
    def written_dtype(self) -> str:
        """The floating dtype of the most written bytes, for config.json; ``float32`` if there is none."""
        counts: Counter[str] = Counter()
        for file in self.files:
            for tensor in file.tensors:
                if tensor.dtype.kind == "float":
                    counts[tensor.dtype.name] += tensor.nbytes
        return counts.most_common(1)[0][0] if counts else "float32"

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
        digest = hashlib.sha256(self.mapping.checkpoint.digest.encode())
        for file in self.files:
            digest.update(json.dumps([file.filename, file.nbytes]).encode() + file.header)
            for tensor in file.tensors:
                views = [(v.key, v.shape, v.strides, v.offset) for v in tensor.output.sources]
                digest.update(json.dumps([tensor.output.dtype.name, views]).encode())
        return digest.hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """One row a tensor in the order of the files: file, name, dtype, shape, start, nbytes."""
        import pandas as pd

        rows = [
            (file.filename, t.output.name, t.dtype.name, t.output.shape, t.start, t.nbytes)
            for file in self.files
            for t in file.tensors
        ]
        return pd.DataFrame(rows, columns=["file", "name", "dtype", "shape", "start", "nbytes"])

    def files_frame(self) -> pd.DataFrame:
        """One row a file: file, tensors, nbytes, first and last name."""
        import pandas as pd

        return pd.DataFrame(
            [_file_row(file) for file in self.files], columns=["file", "tensors", "nbytes", "first", "last"]
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "shard_size": self.shard_size,
            "total_bytes": self.total_bytes,
            "total_parameters": self.total_parameters,
            "peak_bytes": self.peak_bytes,
            "files": [{"filename": f.filename, "nbytes": f.nbytes, "tensors": len(f.tensors)} for f in self.files],
            "findings": [finding.to_json() for finding in self.findings],
        }

    def _headline(self) -> str:
        files = counted(len(self.files), "file")
        elements = f"{format_count(self.total_parameters)} elements as {self.dtype}"
        return (
            f"{files} with {format_bytes(self.total_bytes)} ({elements}), "
            f"at most {format_bytes(self.shard_size)} each; about {format_bytes(self.peak_bytes)} of memory"
        )

    def _rows(self) -> list[tuple[Any, ...]]:
        rows = (_file_row(file) for file in self.files)
        return [(name, f"{count:,}", format_bytes(nbytes), first, last) for name, count, nbytes, first, last in rows]

    def __str__(self) -> str:
        return "\n".join([self._headline(), text_table(_HEADER, self._rows()), f"fingerprint {self.fingerprint[:16]}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(_HEADER, self._rows(), title=self._headline())


_HEADER = ("file", "tensors", "bytes", "first", "last")


def plan(
    mapping: KeyMapping | Checkpoint | str | os.PathLike[str],
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    dtype: str = "bfloat16",
    *,
    dtype_for: Iterable[str | tuple[str, str]] = (),
    strict: bool = False,
) -> ShardPlan:
    """Fix every file of the result before a byte is written.

    Names are sorted as strings and packed greedily: a new file starts when the next tensor would pass the shard
    size; a larger tensor gets a file of its own.

    Parameters
    ----------
    mapping
        What :func:`dcptools.preview` returned; or a checkpoint or a path, previewed with the defaults.
    shard_size
        Bytes of values a file, in the written dtype; also ``"5GB"``, ``"500MB"``.
    dtype
        ``bfloat16``, ``float16``, ``float32`` or ``keep``, for floating tensors. Integers and booleans are never
        cast, fp8 and complex ones only if ``dtype_for`` asks (fp8) or never (complex).
    dtype_for
        Exceptions, as ``"GLOB=DTYPE"`` or pairs, on HuggingFace names; the first that matches wins.
    strict
        Treat warnings as errors, those that only writing can find (``cast-overflow``) among them.

    Raises
    ------
    FindingsError
        There are findings of severity ``error``; all of them are named. ``NoModelWeights`` if that is one of them.
    UsageError
        An option cannot be used.

    Examples
    --------
    >>> [file.filename for file in plan(demo.checkpoint, shard_size="1MB").files]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    mapping = mapping if isinstance(mapping, KeyMapping) else preview(mapping)
    size = parse_bytes(shard_size)
    exceptions = tuple(_split(exception) for exception in dtype_for)
    written, unused = written_dtypes(mapping, dtype, exceptions)
    found = [
        *mapping.findings,
        *(Finding("pattern-unused", "warning", "", f"{glob!r} of dtype_for matched no name") for glob in unused),
        *_about_dtypes(mapping, written),
        *_about_sizes(mapping, written, size),
    ]
    if strict:
        found = [finding.as_error() if finding.severity == "warning" else finding for finding in found]
    refuse_errors(found, strict)
    files = tuple(_files(mapping.outputs, written, size))
    return ShardPlan(mapping, files, size, dtype, exceptions, tuple(found), strict)


def written_dtypes(
    mapping: KeyMapping, dtype: str, exceptions: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, DType], list[str]]:
    """The dtype that each output is written in, by name, and the globs of the exceptions that matched nothing.

    Raises UsageError for a dtype that cannot be written.
    """
    default = _checked(dtype)
    rules = [(glob, re.compile(fnmatch.translate(glob)), _checked(name)) for glob, name in exceptions]
    unused = dict.fromkeys(glob for glob, _ in exceptions)
    written = {}
    for output in mapping.outputs:
        matching = [(glob, name) for glob, regex, name in rules if regex.match(output.name)]
        for glob, _ in matching:
            unused.pop(glob, None)
        asked = matching[0][1] if matching else None
        castable = output.dtype.kind == "float" or (output.dtype.kind == "float8" and asked is not None)
        name = asked or default
        written[output.name] = TABLE[name] if castable and name != "keep" else output.dtype
    return written, list(unused)


def _split(exception: str | tuple[str, str]) -> tuple[str, str]:
    glob, equals, name = exception.rpartition("=") if isinstance(exception, str) else (exception[0], "=", exception[1])
    if not equals or not glob:
        raise UsageError(
            f"{exception!r} is not an exception of the dtype.\nExpected PATTERN=DTYPE, like '*.norm.weight=float32'."
        )
    return glob, _checked(name)


def _checked(name: str) -> str:
    if name not in DTYPES:
        raise UsageError(f"{name!r} is not a dtype that can be written.\nExpected one of {', '.join(DTYPES)}.")
    return name


def _about_dtypes(mapping: KeyMapping, written: dict[str, DType]) -> Iterator[Finding]:
    for output in mapping.outputs:
        target = written[output.name]
        if target.code is None:
            yield Finding(
                "dtype-unsupported", "error", output.name, f"safetensors has no type for {target.name}",
                "leave it out with exclude=",
            )  # fmt: skip
        elif target.kind == "float8":
            yield Finding(
                "float8", "warning", output.name, f"{target.name} is written as it is; its scale must be beside it",
                "cast it with dtype_for= if there is none",
            )  # fmt: skip
    config = mapping.assets.dtype if mapping.assets else None
    names = {target.name for target in written.values() if target.kind == "float"}
    if config and names and names != {config}:
        yield Finding(
            "config-dtype",
            "info",
            "config.json",
            f"says {config}, and {', '.join(sorted(names))} is written",
            "the copy says so",
        )


def _about_sizes(mapping: KeyMapping, written: dict[str, DType], size: int) -> Iterator[Finding]:
    for output in mapping.outputs:
        nbytes = output.numel * written[output.name].itemsize
        if nbytes > size:
            larger = f"{format_bytes(nbytes)} are more than a shard of {format_bytes(size)}"
            yield Finding("large-tensor", "info", output.name, larger, "it gets a file of its own")


def refuse_errors(findings: Sequence[Finding], strict: bool) -> None:
    """Raise FindingsError, or NoModelWeights, if there are errors among the findings; all of them are named."""
    errors = of_severity(findings, "error")
    if not errors:
        return
    nothing = next((finding for finding in errors if finding.code == "no-model-weights"), None)
    if nothing:
        others = summary_lines(finding for finding in errors if finding is not nothing)
        raise NoModelWeights("\n".join([nothing.message, nothing.hint.replace("; ", ";\n"), *others]), findings)
    because = " (warnings count as errors: strict)" if strict else ""
    count = counted(len(errors), "error") + (" forbids" if len(errors) == 1 else " forbid")
    raise FindingsError("\n".join([f"{count} to convert{because}:", *summary_lines(errors)]), findings)


def _files(outputs: Sequence[Output], written: dict[str, DType], size: int) -> Iterator[ShardFile]:
    shards: list[list[Output]] = []
    filled = 0
    for output in outputs:  # sorted by name
        nbytes = output.numel * written[output.name].itemsize
        if not shards or (filled + nbytes > size and shards[-1]):
            shards.append([])
            filled = 0
        shards[-1].append(output)
        filled += nbytes
    for number, shard in enumerate(shards, start=1):
        single = "model.safetensors"
        name = single if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        yield _file(name, shard, written)


def _file(filename: str, outputs: Sequence[Output], written: dict[str, DType]) -> ShardFile:
    ordered = sorted(outputs, key=lambda output: (-written[output.name].rank, output.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for output in ordered:
        dtype = written[output.name]
        end = at + output.numel * dtype.itemsize
        header[output.name] = {"dtype": dtype.code, "shape": output.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    tensors = tuple(
        PlannedTensor(o, written[o.name], start + header[o.name]["data_offsets"][0], o.numel * written[o.name].itemsize)
        for o in ordered
    )
    return ShardFile(filename, len(text).to_bytes(8, "little") + text, tensors, start + at)


def _file_row(file: ShardFile) -> tuple[str, int, int, str, str]:
    names = sorted(tensor.output.name for tensor in file.tensors)
    return file.filename, len(names), file.nbytes, names[0] if names else "", names[-1] if names else ""
