"""How the values of one tensor are distributed."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dcptools.checkpoint import Checkpoint, StoredTensor, as_checkpoint
from dcptools.errors import UnsupportedCheckpoint, UsageError
from dcptools.plots import _figure as page
from dcptools.values import Index, load_tensor, region_of

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]
MOST_VALUES = 1 << 22  # 32 MiB of float64; of larger tensors a sample is read
BLOCK = 1 << 14  # values that are read at once for a sample
MOST_BLOCKS = 1024
MOST_BINS = 10_000
MOST_TOLD = 500  # bins that have a tooltip; narrower ones could not be pointed at
WIDEST = 1e300  # beyond, the width of a bin would overflow


def histogram(
    checkpoint: Checkpoint | str | os.PathLike[str], key: str, *, index: Index = ..., bins: int = 100
) -> Figure:
    """Draw how often which values occur in a tensor, with counts on a logarithmic axis.

    NaN, infinities and zeros are counted in the title, and NaN and infinities are not drawn. Of complex values the
    magnitudes are drawn. Of more than about 4 million values a sample is read, in evenly spaced blocks of rows, and the
    title says so; memory stays below some 100 MB.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or a path.
    key
        A tensor's key.
    index
        A slice of it, as for :func:`dcptools.load_tensor`.
    bins
        How many, up to 10,000; integers of a small range get one each.

    Raises
    ------
    UnknownKey
        There is no such tensor.
    UsageError
        The index does not fit the shape, or ``bins`` is not such a number.
    UnsupportedCheckpoint
        The dtype has no numbers.
    BrokenCheckpoint
        What is stored is damaged.

    Examples
    --------
    >>> from dcptools import plots
    >>> figure = plots.histogram(demo.checkpoint, "model.lm_head.weight", bins=50)
    >>> print(plots.describe(figure))  # doctest: +ELLIPSIS
    Histogram of model.lm_head.weight: float32, 65,920 values; 0 NaN, 0 Inf, ...
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= MOST_BINS:
        raise UsageError(f"bins={bins!r} cannot be used.\nExpected a number from 1 to {MOST_BINS:,}.")
    checkpoint = as_checkpoint(checkpoint)
    tensor = checkpoint[key]
    if tensor.dtype.kind == "opaque":
        raise UnsupportedCheckpoint(f"{key!r} is {tensor.dtype.name}, which has no numbers to draw.")
    axes_of = _picked(tensor, index)
    asked = math.prod(len(r) for r in axes_of if isinstance(r, range))
    blocks = list(_blocks(axes_of, MOST_VALUES))
    values = np.concatenate([_numbers(load_tensor(checkpoint, key, block)) for block in blocks])
    which = page.plural(asked, "value")
    if len(values) < asked:
        which = f"a sample of {len(values):,} from {which}, in {len(blocks):,} evenly spaced blocks"
    return _draw(tensor, values, which, bins)


def _picked(tensor: StoredTensor, index: Index) -> list[int | range]:
    """What an index picks from each dimension."""
    region, picks = region_of(tensor.shape, index)
    return [
        start if pick == 0 else range(start, stop, pick.step or 1)
        for (start, stop), pick in zip(region, picks, strict=True)
    ]


def _blocks(picked: list[int | range], most: int) -> Iterator[tuple[int | slice, ...]]:
    """Indices that pick about ``most`` of the values at most, in evenly spaced blocks; all, if there are no more."""
    whole = tuple(slice(p.start, p.stop, p.step) if isinstance(p, range) else p for p in picked)
    dim, rows = next(((d, p) for d, p in enumerate(picked) if isinstance(p, range) and len(p) > 1), (0, None))
    if rows is None or _span(picked) <= most:
        yield whole
        return
    inner = picked[dim + 1 :]
    if _span(inner) > BLOCK:  # long rows, of which a part is enough
        chosen = _spread(len(rows), max(1, min(16, most // BLOCK), most // _span(inner)))
        for row in chosen:
            yield from ((*whole[:dim], rows[row], *rest) for rest in _blocks(inner, most // len(chosen)))
        return
    run = max(1, BLOCK // max(1, rows.step * _span(inner)))  # rows that are read at once
    values = run * math.prod(len(p) for p in inner if isinstance(p, range))
    for number in _spread(-(-len(rows) // run), min(MOST_BLOCKS, most // max(1, values))):
        block = rows[number * run : (number + 1) * run]
        yield (*whole[:dim], slice(block.start, block.stop, block.step), *whole[dim + 1 :])


def _span(picked: list[int | range]) -> int:
    """How many values are read for the picked ones: a slice is read with what lies between its steps."""
    return math.prod((len(p) - 1) * p.step + 1 if p else 0 for p in picked if isinstance(p, range))


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``count``, evenly spaced.

    >>> _spread(9, 3)
    [0, 4, 8]
    """
    return [int(i) for i in np.linspace(0, count - 1, min(count, max(1, most))).round()]


def _numbers(values: torch.Tensor) -> Floats:
    import torch

    real = values.to(torch.complex128).abs() if values.is_complex() else values
    return real.to(torch.float64).reshape(-1).numpy()


def _draw(tensor: StoredTensor, values: Floats, which: str, bins: int) -> Figure:
    drawn = values[np.abs(values) < WIDEST]  # neither NaN nor Inf
    nan, infinite, zeros = int(np.isnan(values).sum()), int(np.isinf(values).sum()), int((values == 0).sum())
    counted = f"{nan:,} NaN, {infinite:,} Inf, {page.plural(zeros, 'zero')}"
    huge = len(values) - nan - infinite - len(drawn)
    if huge:
        counted += f"; {huge:,} beyond {WIDEST:.0e} are not drawn"

    figure, axes = page.new_figure(4.2)
    whole_numbers = tensor.dtype.kind in ("bool", "int")
    counts, edges = _count(drawn, bins, whole_numbers=whole_numbers)
    most = max(1, counts.max())
    axes.stairs(counts, edges, baseline=0.5, fill=True, color=page.BLUE, label="values")
    axes.set_yscale("log")
    axes.set_ylim(0.6, 2 * most)
    if len(counts) <= MOST_TOLD:
        columns = [[(a, 0.6), (a, 2 * most), (b, 2 * most), (b, 0.6)] for a, b in itertools.pairwise(edges.tolist())]
        clear = PolyCollection(columns, facecolors=(1, 1, 1, 0), label="bins")
        axes.add_collection(clear, autolim=False)
        page.explain(figure, clear, "bins", _tips(counts.tolist(), edges.tolist(), whole_numbers=whole_numbers))
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if most < 50 else (1,), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}" if n < 1e6 else f"{n / 1e6:,.0f} M"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=page.GRID, linewidth=0.8)
    page.value_axis(axes, edges[0], edges[-1], whole_numbers=whole_numbers)
    axes.set_xlabel("magnitude" if tensor.dtype.kind == "complex" else "value", color=page.INK, fontsize=9)
    axes.set_ylabel("values per bin (log scale)", color=page.INK, fontsize=9)
    if not len(drawn):
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", color=page.INK)
    name = page.name_label(tensor.key)
    notes = [f"{tensor.dtype.name}, {which}", counted]
    page.titled(figure, name, notes)
    extent = f"from {drawn.min():.3g} to {drawn.max():.3g}" if len(drawn) else "no finite values"
    return page.finished(figure, f"Histogram of {name}: {'; '.join(notes)}; {extent}.")


def _tips(counts: list[int], edges: list[float], *, whole_numbers: bool) -> list[str]:
    """How many values are in each bin."""
    whole = whole_numbers and edges[1] - edges[0] == 1
    spans = [f"{a + 0.5:.0f}" if whole else f"{a:.4g} to {b:.4g}" for a, b in itertools.pairwise(edges)]
    return [f"{span}\n{page.plural(count, 'value')}" for span, count in zip(spans, counts, strict=True)]


def _count(values: Floats, bins: int, *, whole_numbers: bool) -> tuple[npt.NDArray[np.intp], Floats]:
    """Counts and edges; the range is widened where its bins would be narrower than floats are apart."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if whole_numbers and high - low < bins and max(-low, high) < 2**50:
        low, high, bins = low - 0.5, high + 0.5, round(high - low) + 1
    largest = max(abs(low), abs(high))
    if high - low < max(4 * bins * np.spacing(largest), 1e-280):
        pad = max(0.5 * largest, 1e-280) if largest else 0.5
        low, high = low - pad, high + pad
    counts, edges = np.histogram(values, bins, (low, high))
    return counts, edges
