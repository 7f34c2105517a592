"""Looking at values: one tensor or a slice of it, and statistics of many, reading no more than is needed."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dcptools._globs import matching
from dcptools._parallel import Progress, default_workers, one_thread_each, run
from dcptools._progress import bar
from dcptools._table import frame
from dcptools._text import counted, format_bytes
from dcptools.checkpoint import Checkpoint, StoredTensor, as_checkpoint
from dcptools.dtypes import DType
from dcptools.errors import UnsupportedCheckpoint, UsageError
from dcptools.tensors import Bits, Region, TensorReader, read_region

if TYPE_CHECKING:
    import pandas as pd
    import torch

__all__ = ["STATISTICS", "load_tensor", "stats"]

SLAB_ELEMENTS = 1 << 18  # 2 MiB of float64, which is what is computed in
STATISTICS = ("min", "max", "mean", "std", "norm", "zeros", "nan", "inf")
Index = int | slice | tuple[Any, ...] | Any  # Any: an ellipsis


def load_tensor(checkpoint: Checkpoint | str | os.PathLike[str], key: str, index: Index = ...) -> torch.Tensor:
    """One tensor of a checkpoint, or a slice of it, as a torch tensor. Only the bytes under the slice are read.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or a path.
    key
        A tensor's key.
    index
        Integers, slices with positive steps, and one ellipsis, as in ``tensor[index]``.

    Raises
    ------
    UnknownKey
        There is no such tensor.
    UsageError
        The index does not fit the shape, or is of another kind, or there is no memory for what it selects.
    BrokenCheckpoint
        What is stored is damaged.

    Examples
    --------
    >>> load_tensor(demo.checkpoint, "model.lm_head.weight", np.s_[:2, 0]).shape
    torch.Size([2])
    """
    tensor = as_checkpoint(checkpoint)[key]
    region, picks = region_of(tensor.shape, index)
    try:
        picked = read_region(tensor, region)[(*picks, ...)]
        return as_torch(np.ascontiguousarray(picked).reshape(picked.shape), tensor.dtype)  # it makes (1,) of ()
    except MemoryError:
        numel = math.prod(stop - start for start, stop in region)
        size = format_bytes(numel * tensor.dtype.itemsize)
        raise UsageError(
            f"{key!r}: {counted(numel, 'value')} of {tensor.dtype.name}, {size}, do not fit into memory{_memory()}.\n"
            "Take a slice of it, with an index such as np.s_[:1000]."
        ) from None


def _memory() -> str:
    """The memory of this machine, if that is known."""
    try:
        return f" (this machine has {format_bytes(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))})"
    except (AttributeError, OSError, ValueError):  # not a POSIX system, or one without that number
        return ""


def region_of(shape: tuple[int, ...], index: Index) -> tuple[Region, list[Any]]:
    """The box under an index, and what is left to pick inside it: 0 drops a dimension, a slice steps."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, part in enumerate(parts) if part is ...]
    if len(dots) > 1 or len(parts) - len(dots) > len(shape):
        raise UsageError(f"The index {index!r} does not fit the shape {shape}.\nGive at most one entry per dimension.")
    at = dots[0] if dots else len(parts)
    parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + len(dots))
    region: list[tuple[int, int]] = []
    picks: list[Any] = []
    for size, part in zip(shape, parts, strict=True):
        if isinstance(part, (int, np.integer)) and not isinstance(part, bool) and -size <= part < size:
            start = int(part) % size
            region.append((start, start + 1))
            picks.append(0)
        elif isinstance(part, slice) and (part.step is None or part.step > 0):
            start, stop, step = part.indices(size)
            region.append((start, max(start, stop)))
            picks.append(slice(None, None, step))
        else:
            raise UsageError(
                f"The index {part!r} does not fit a dimension of size {size}.\n"
                "Expected an integer within it, or a slice with a positive step."
            )
    return region, picks


def as_torch(values: Bits, dtype: DType) -> torch.Tensor:
    """Bits as a tensor of that dtype, in the same memory."""
    import torch

    signed = values if dtype.itemsize == 16 else values.view(np.dtype(f"i{dtype.itemsize}"))
    kind: torch.dtype = getattr(torch, dtype.name)
    return torch.from_numpy(signed).view(kind)


def stats(
    checkpoint: Checkpoint | str | os.PathLike[str],
    keys: Sequence[str] | str | None = None,
    *,
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
) -> pd.DataFrame:
    """Statistics of stored values, one row per tensor: key, dtype, numel, min, max, mean, std, norm, zeros, nan, inf.

    ``min`` to ``norm`` are of the finite values, in float64 (of magnitudes, for complex dtypes); ``std`` divides by the
    number of values, not one less. ``zeros``, ``nan`` and ``inf`` are counts. Tensors are streamed: memory is a few MiB
    per worker.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or a path.
    keys
        Globs on keys; all tensors by default.
    workers
        Threads, as in :func:`dcptools.write`.
    progress, cancel
        As in :func:`dcptools.write`; bytes are those of the stored values.

    Raises
    ------
    UsageError
        No key matches.
    BrokenCheckpoint, UnsupportedCheckpoint
        What is stored is damaged, or in an encoding or dtype that cannot be read.
    Cancelled
        The event was set.

    Examples
    --------
    >>> stats(demo.checkpoint, "model.*norm.weight")["nan"].sum()
    np.int64(0)
    """
    stored = as_checkpoint(checkpoint).tensors
    wanted = matching(stored, keys, "No tensor's key matches", "inspect() lists all keys.")
    tensors = [stored[key] for key in wanted]
    total, lock = sum(tensor.nbytes for tensor in tensors), threading.Lock()
    parts: dict[str, dict[int, _Part]] = {tensor.key: {} for tensor in tensors}
    done, current = 0, ""

    def make_worker() -> Callable[[tuple[TensorReader, int, Region]], None]:
        def do(work: tuple[TensorReader, int, Region]) -> None:
            nonlocal done, current
            reader, number, region = work
            values = reader.region(region)
            part = _part(as_torch(values.reshape(-1), reader.tensor.dtype))
            with lock:
                parts[reader.tensor.key][number] = part
                done += values.nbytes
                current = reader.tensor.key

        return do

    with bar(progress, "reading") as shown, one_thread_each():

        def report() -> None:
            if shown is not None:
                shown(done, total, current)

        run([_pieces(tensors)], make_worker, workers=workers or default_workers(), report=report, cancel=cancel)
    rows = [(t.key, t.dtype.name, t.numel, *_row([part for _, part in sorted(parts[t.key].items())])) for t in tensors]
    return frame(("key", "dtype", "numel", *STATISTICS), rows)


def _pieces(tensors: Sequence[StoredTensor]) -> Iterator[tuple[TensorReader, int, Region]]:
    """All values of the tensors, a slab at a time."""
    for tensor in tensors:
        if tensor.dtype.kind == "opaque":
            raise UnsupportedCheckpoint(f"{tensor.key!r} is {tensor.dtype.name}, which has no values to count.")
        reader = TensorReader(tensor)
        for number, region in enumerate(reader.regions(SLAB_ELEMENTS)):
            yield reader, number, region


@dataclass(frozen=True, slots=True)
class _Part:
    """The statistics of some values; two parts add up without losing precision (Chan, Golub, LeVeque 1979)."""

    count: int  # finite values
    low: float
    high: float
    mean: float
    squares: float  # sum of squared differences from the mean
    norm2: float  # sum of squares
    zeros: int
    nan: int
    inf: int


def _part(values: torch.Tensor) -> _Part:
    """The statistics of some values."""
    import torch

    wide = values.abs() if values.is_complex() else values
    wide = wide.to(torch.float64)
    nan, inf = int(torch.isnan(wide).sum()), int(torch.isinf(wide).sum())
    if nan or inf:
        wide = wide[torch.isfinite(wide)]
    if not wide.numel():
        return _Part(0, math.inf, -math.inf, 0.0, 0.0, 0.0, 0, nan, inf)
    low, high = (float(x) for x in torch.aminmax(wide))
    mean = float(wide.mean())
    zeros = int((wide == 0).sum())
    return _Part(
        wide.numel(), low, high, mean, float((wide - mean).square().sum()), float(wide.square().sum()), zeros, nan, inf
    )


def _row(parts: Sequence[_Part]) -> tuple[float, float, float, float, float, int, int, int]:
    """The statistics of a tensor, from those of its slabs in their order."""
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        if part.count:
            delta, count = part.mean - mean, count + part.count
            squares += part.squares + delta * delta * (count - part.count) * part.count / count
            mean += delta * part.count / count
    none = math.nan if not count else 0.0
    low, high = min((p.low for p in parts), default=0.0), max((p.high for p in parts), default=0.0)
    return (
        low + none, high + none, mean + none, math.sqrt(squares / count) if count else math.nan,
        math.sqrt(sum(p.norm2 for p in parts)),
        sum(p.zeros for p in parts), sum(p.nan for p in parts), sum(p.inf for p in parts),
    )  # fmt: skip
