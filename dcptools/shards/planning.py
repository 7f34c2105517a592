"""``plan``: final file names, headers, byte offsets and peak memory. Arithmetic only: no torch, no tensor data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from dcptools._collector import no_collections
from dcptools._sizes import parse_bytes
from dcptools._text import counted
from dcptools.checkpoint import Checkpoint
from dcptools.errors import FindingsError, NoModelWeights, check_stage
from dcptools.findings import Finding, of_severity, summary_lines
from dcptools.mapping import KeyMapping, preview
from dcptools.shards.casts import about_dtypes, checked_dtype, parse_exceptions, written_dtypes
from dcptools.shards.packing import about_sizes, pack, sized
from dcptools.shards.values import DEFAULT_SHARD_SIZE, PlanOptions, ShardPlan

if TYPE_CHECKING:
    import torch

HINT_WIDTH = 120  # characters of a line


@no_collections()
def plan(
    mapping: KeyMapping | Checkpoint | str | os.PathLike[str],
    shard_size: float | str = DEFAULT_SHARD_SIZE,
    dtype: str | torch.dtype = "bfloat16",
    *,
    dtype_for: Mapping[str, str | torch.dtype] | Iterable[str | tuple[str, str | torch.dtype]] = (),
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
        Bytes of values per file, in the written dtype; also ``"5GB"``, ``"2GiB"``, ``1e9``.
    dtype
        ``bfloat16``, ``float16``, ``float32`` or ``keep``, for floating-point tensors. Integers, booleans and complex
        numbers are never cast, fp8 only if ``dtype_for`` asks for it. Also ``"bf16"`` and
        ``torch.bfloat16``.
    dtype_for
        Exceptions for HuggingFace names: ``{GLOB: DTYPE}``, pairs, or ``"GLOB=DTYPE"``, one or several; the first that
        matches wins.
    strict
        Treat warnings as errors, including those that only writing can find (``cast-overflow``, ``all-nan``).

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
    check_stage(mapping, "KeyMapping", "Checkpoint", "path")
    mapping = mapping if isinstance(mapping, KeyMapping) else preview(mapping)
    size, exceptions = parse_bytes(shard_size), parse_exceptions(dtype_for)
    options = PlanOptions(size, checked_dtype(dtype), exceptions, strict)
    written, unused = written_dtypes(mapping, dtype, exceptions)
    outputs = sized(mapping.outputs, written)
    found = [
        *mapping.findings,
        *unused,
        *about_dtypes(mapping, written),
        *about_sizes(outputs, size, mapping.kind),
    ]
    if strict:
        found = [finding.as_error() if finding.severity == "warning" else finding for finding in found]
    refuse_errors(found, strict)
    return ShardPlan(mapping, tuple(pack(outputs, size, mapping.kind)), options, tuple(found))


def refuse_errors(findings: Sequence[Finding], strict: bool) -> None:
    """Raise FindingsError, or NoModelWeights, if there are errors among the findings; all of them are named."""
    errors = of_severity(findings, "error")
    if not errors:
        return
    nothing = next((finding for finding in errors if finding.code == "no-model-weights"), None)
    if nothing:
        hint = wrap(nothing.hint, HINT_WIDTH, break_on_hyphens=False)
        others = summary_lines(finding for finding in errors if finding is not nothing)
        raise NoModelWeights("\n".join([nothing.message, *hint, *others]), findings)
    because = " (strict: warnings count as errors)" if strict else ""
    count = counted(len(errors), "error") + (" prevents" if len(errors) == 1 else " prevent")
    raise FindingsError("\n".join([f"{count} the conversion{because}:", *summary_lines(errors)]), findings)
