"""The values of a model, compared bit for bit with what a checkpoint gives after the cast."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dcptools._parallel import Progress
from dcptools._text import format_shape
from dcptools.checkpoint import Checkpoint
from dcptools.comparing import Buffers, Pair, Piece, Readers, Side, StoredSide, Streaming, cast_to_right
from dcptools.dtypes import DType
from dcptools.findings import Finding
from dcptools.hf import Model, Weight
from dcptools.mapping import Output
from dcptools.tensors import Bits
from dcptools.values import as_torch
from dcptools.verifying.library import Opened

# torch's kernels for these casts give a NaN other bits at the end of a tensor than in its middle
_NAN_BITS_VARY = {("float16", "float32"), ("float64", "bfloat16")}


class Expected(NamedTuple):
    """What a checkpoint gives for a weight."""

    output: Output
    dtype: DType | None  # the one that is written; None: whatever a cast can give


class Difference(NamedTuple):
    """Values of a piece that differ."""

    values: int  # how many differ
    first: int  # element of the whole weight
    expected: str
    found: str


def castable(stored: DType, written: DType) -> bool:
    """Whether a conversion can write values of one dtype as the other."""
    return stored == written or (stored.kind in ("float", "float8") and written.kind == "float")


def compare_values(
    checkpoint: Checkpoint,
    outputs: Mapping[str, Output],
    model: Model,
    *,
    check: bool = True,
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, list[Difference]]:
    """What differs, by name; each of the outputs is a weight of the model, of its shape and of a castable dtype.

    ``check`` also compares the stored checksums of the checkpoint.
    """
    keys = [view.key for output in outputs.values() for view in output.sources]
    readers = Readers(checkpoint, keys, check=check)
    streams = [
        list(_pairs(model, file, [weight for weight in weights if weight.name in outputs], outputs, readers))
        for file, weights in model.by_file.items()
    ]
    if model.source.ahead:  # one file after another, so that the start of each is on its way before its turn
        streams = [[pair for stream in streams for pair in stream]]
    streaming = Streaming(streams, _difference)
    try:
        streaming.run("verifying", workers=workers, progress=progress, cancel=cancel)
    finally:
        checkpoint.source.close()
        model.source.close()
    return {name: found for name in outputs if (found := streaming.found(name))}


def _pairs(
    model: Model, file: str, weights: list[Weight], outputs: Mapping[str, Output], readers: Readers
) -> Iterator[Pair]:
    opened = Opened(model, file)
    for weight in weights:
        output = outputs[weight.name]
        yield Pair(weight.name, weight.numel, output.dtype, weight.dtype, _opener(output, readers, opened, weight))


def _opener(output: Output, readers: Readers, opened: Opened, weight: Weight) -> Callable[[], tuple[StoredSide, Side]]:
    return lambda: (StoredSide(output.sources, readers), opened.side(weight))


def _difference(pair: Pair, piece: Piece, stored: Bits, found: Bits, buffers: Buffers) -> Difference | None:
    expected = cast_to_right(pair, stored, buffers)
    differs = expected != found
    if not differs.any():
        return None
    if (pair.left.name, pair.right.name) in _NAN_BITS_VARY:
        differs &= ~(_is_nan(expected, pair.right) & _is_nan(found, pair.right))
    numbers = np.flatnonzero(differs)
    if not len(numbers):
        return None
    elements = piece.elements(numbers)
    first = int(elements.argmin())
    values = (as_text(bits.reshape(-1)[numbers[first] :][:1], pair.right) for bits in (expected, found))
    return Difference(len(numbers), int(elements[first]), *values)


def _is_nan(bits: Bits, dtype: DType) -> Bits:
    import torch

    found: Bits = torch.isnan(as_torch(np.ascontiguousarray(bits), dtype)).numpy()
    return found


def as_text(bits: Bits, dtype: DType) -> str:
    """One value, with its bits: two that look alike when printed may differ."""
    value = as_torch(np.ascontiguousarray(bits), dtype)
    shown = f"{value.double().item():.9g}" if dtype.kind in ("float", "float8") else str(value.item())
    return f"{shown} (0x{bits.tobytes()[::-1].hex()})"


def about_values(weight: Weight, differences: list[Difference]) -> Finding:
    """Which element of a weight differs first, and how many do."""
    first = min(differences, key=lambda difference: difference.first)
    count = sum(difference.values for difference in differences)
    index = [int(i) for i in np.unravel_index(first.first, weight.shape)] if weight.shape else []
    return Finding(
        "disk-values",
        weight.name,
        f"{count:,} of {weight.numel:,} values differ, the first at {format_shape(index)}: "
        f"{first.found} in {weight.file}, not {first.expected}",
        "do not use it; check that it was made from this checkpoint, then write or copy it again",
    )
