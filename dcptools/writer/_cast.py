"""Casting a slab, with torch's own kernels so that the bits are torch's; torch is imported only if a cast is needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from dcptools.dtypes import DType
from dcptools.tensors import BITS, Bits

# As integers of 16 bits, all values from this one on are Inf or NaN (of either sign; the sign bit is the highest)
_FIRST_INF = {"bfloat16": 0x7F80, "float16": 0x7C00}


def cast(values: Bits, source: DType, out: Bits, target: DType) -> int:
    """Cast ``values`` (contiguous bits of ``source``) into ``out`` (of ``target``).

    Returns the number of finite values that became Inf.
    """
    import torch

    given = torch.from_numpy(_signed(values)).view(getattr(torch, source.name))
    cast_to = torch.from_numpy(_signed(out)).view(getattr(torch, target.name))
    cast_to.copy_(given)
    if not _may_have_inf(out, target):
        return 0
    return int((torch.isinf(cast_to) & torch.isfinite(given.to(torch.float64))).sum())


def _may_have_inf(out: Bits, target: DType) -> bool:
    """A quick look at 16-bit results: two maxima, at the speed of the cache. Others are always looked at."""
    first = _FIRST_INF.get(target.name)
    if first is None or not out.size:
        return bool(out.size)
    return bool(out.view(np.int16).max() >= first or out.max() >= 0x8000 + first)


def _signed(bits: Bits) -> np.ndarray[Any, Any]:
    """Signed integers of the same width: torch knows them in all versions."""
    return bits.view(np.dtype(f"i{bits.dtype.itemsize}"))


def buffer(itemsize: int, elements: int) -> Bits:
    values: Bits = np.empty(elements, BITS[itemsize])
    return values
