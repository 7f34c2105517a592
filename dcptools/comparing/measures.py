"""How far apart the values of two tensors are: sums over a piece, which add up to the statistics of a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcptools.comparing.pieces import Piece
from dcptools.comparing.streaming import Buffers, Pair
from dcptools.dtypes import TABLE, DType
from dcptools.tensors import BITS, Bits
from dcptools.values import as_torch

if TYPE_CHECKING:
    import torch

# Values that are looked at together: what is computed from them in float64 stays in the cache, and is not memory that
# the system has to provide anew each time
AT_ONCE = 1 << 15
_HALF = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}


class Sums(NamedTuple):
    """Sums over some pairs of values; all but ``equal`` over the pairs in which both are finite."""

    equal: int  # pairs that are the same
    max_abs: float  # inf if only one of the two is NaN, or they are infinite in different ways
    max_rel: float
    difference: float  # sum of squares of the differences
    dot: float  # sum of products
    left: float  # sum of squares
    right: float


class Statistics(NamedTuple):
    """How far apart two tensors are."""

    equal: float  # share of the values, from 0 to 1
    max_abs: float  # largest absolute difference of two values
    max_rel: float  # the largest relative to the larger of both values, from 0 to 2
    norm: float  # Euclidean norm of the difference
    relative: float  # that norm relative to the norm of A
    cosine: float  # of the angle between both; NaN if one has no length


def castable(left: DType, right: DType) -> bool:
    """Whether values of one dtype are cast to the other, as a conversion does."""
    return left.kind in ("float", "float8") and right.kind in ("float", "float8")


def cast_to_right(pair: Pair, left: Bits, buffers: Buffers) -> Bits:
    """The left values in the dtype of the right ones, by torch's kernels."""
    if pair.left == pair.right:
        return left
    out = buffers.bits("cast", left.size, pair.right.itemsize).reshape(left.shape)
    as_torch(out, pair.right).copy_(as_torch(left, pair.left))
    return out


def sums(pair: Pair, piece: Piece, left: Bits, right: Bits, buffers: Buffers) -> Sums:
    """Sums over the values as they are."""
    return _sums(pair.left, pair.right, left, right)


def sums_after_cast(pair: Pair, piece: Piece, left: Bits, right: Bits, buffers: Buffers) -> Sums:
    """Sums over the values after the left ones were cast to the right dtype, where that can be done."""
    if not castable(pair.left, pair.right):
        return _sums(pair.left, pair.right, left, right)
    return _sums(pair.right, pair.right, cast_to_right(pair, left, buffers), right)


def _sums(left_dtype: DType, right_dtype: DType, left: Bits, right: Bits) -> Sums:
    a, b = (np.ascontiguousarray(bits).reshape(-1) for bits in (left, right))
    ranges = ((a[at : at + AT_ONCE], b[at : at + AT_ONCE]) for at in range(0, len(a), AT_ONCE))
    parts = [_sums_of_range(left_dtype, right_dtype, *each) for each in ranges]
    return Sums(
        sum(part.equal for part in parts),
        max((part.max_abs for part in parts), default=0.0),
        max((part.max_rel for part in parts), default=0.0),
        *(math.fsum(part[at] for part in parts) for at in range(3, 7)),
    )


def _sums_of_range(left_dtype: DType, right_dtype: DType, left: Bits, right: Bits) -> Sums:
    same = _same_bits(left, right) if left_dtype == right_dtype else None
    if left_dtype.kind == "opaque" or right_dtype.kind == "opaque":
        return Sums(0 if same is None else same, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
    a = _as_float64(left, left_dtype)
    squares = float(a.dot(a))
    if same == left.size:
        squares = squares if math.isfinite(squares) else _squares_of_finite(a)
        return Sums(same, 0.0, 0.0, 0.0, squares, squares, squares)
    b = _as_float64(right, right_dtype)
    if math.isfinite(squares) and math.isfinite(float(b.dot(b))):
        alike, beyond = a == b, False
    else:
        a, b, alike, beyond = _finite_pairs(a, b)
    equal = same if same is not None else _count(alike, len(alike) // left.size)
    return Sums(equal, *_apart(a, b, beyond))


def _squares_of_finite(a: torch.Tensor) -> float:
    import torch

    a = torch.where(torch.isfinite(a), a, 0.0)
    return float(a.dot(a))


def _finite_pairs(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """Both with zeros where one is not finite, which pairs are alike, and whether any others are not finite."""
    import torch

    alike = (a == b) | (torch.isnan(a) & torch.isnan(b))
    finite = torch.isfinite(a) & torch.isfinite(b)
    beyond = bool((~finite & ~alike).any())
    return torch.where(finite, a, 0.0), torch.where(finite, b, 0.0), alike, beyond


def _apart(a: torch.Tensor, b: torch.Tensor, beyond: bool) -> tuple[float, ...]:
    """The sums over finite pairs, except for ``equal``."""
    import torch

    delta = (a - b).abs_()
    scale = torch.maximum(a.abs(), b.abs())
    rel = torch.where(scale > 0, delta / scale, 0.0)
    largest = (math.inf, math.inf) if beyond else (float(delta.max()), float(rel.max()))
    return *largest, *(float(x.dot(y)) for x, y in ((delta, delta), (a, b), (a, a), (b, b)))


def _same_bits(left: Bits, right: Bits) -> int:
    if left.itemsize == 16:  # as parts, because as a number a NaN would not equal itself
        parts = (np.ascontiguousarray(bits).reshape(-1).view(BITS[8]).reshape(-1, 2) for bits in (left, right))
        one, other = parts
        return int(np.count_nonzero((one == other).all(axis=1)))
    return int(np.count_nonzero(left == right))


def _count(alike: torch.Tensor, parts: int) -> int:
    """How many values are alike in all their parts."""
    return int(alike.reshape(-1, parts).all(dim=1).sum())


def _as_float64(bits: Bits, dtype: DType) -> torch.Tensor:
    """The values in one dimension; for complex ones, the real and the imaginary parts."""
    flat = np.ascontiguousarray(bits).reshape(-1)
    if dtype.name in _HALF:
        dtype = TABLE[_HALF[dtype.name]]
        flat = flat.view(BITS[dtype.itemsize])
    return as_torch(flat, dtype).double()


def statistics(parts: Sequence[Sums], numel: int) -> Statistics:
    """The statistics of a whole tensor, from the sums over its pieces."""
    if not parts:
        return Statistics(1.0, 0.0, 0.0, 0.0, 0.0, math.nan)
    difference, dot, left, right = (math.fsum(part[at] for part in parts) for at in range(3, 7))
    norm = math.sqrt(difference)
    lengths = math.sqrt(left) * math.sqrt(right)
    return Statistics(
        sum(part.equal for part in parts) / numel,
        max(part.max_abs for part in parts),
        max(part.max_rel for part in parts),
        norm,
        norm / math.sqrt(left) if left else (math.inf if norm else 0.0),
        max(-1.0, min(1.0, dot / lengths)) if lengths else math.nan,
    )
