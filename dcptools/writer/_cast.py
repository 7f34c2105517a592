"""Casting a slab, with torch's own kernels so that the bits are torch's; torch is imported only if a cast is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dcptools.dtypes import DType
from dcptools.tensors import BITS, Bits

if TYPE_CHECKING:
    import torch

# As integers, all values from this one on are Inf or NaN (of either sign; the sign bit is the highest)
_FIRST_INF = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}


def cast(values: Bits, source: DType, out: Bits, target: DType) -> int:
    """Cast ``values`` (contiguous bits of ``source``) into ``out`` (of ``target``), both of the tensor's dimensions:
    torch gives the NaN of a 0-dimensional tensor other bits than that of any other.

    Returns the number of finite values that became Inf.
    """
    import torch

    given = torch.from_numpy(_signed(values)).view(getattr(torch, source.name))
    cast_to = torch.from_numpy(_signed(out)).view(getattr(torch, target.name))
    cast_to.copy_(given)
    if not _may_have_inf(out, target):
        return 0
    return _infinities(cast_to) - _infinities(given)  # a cast gives Inf of Inf, and NaN of NaN


def _may_have_inf(out: Bits, target: DType) -> bool:
    """A quick look: two maxima, at the speed of the cache, and no memory."""
    first, sign = _FIRST_INF[target.name], 1 << (8 * target.itemsize - 1)
    return bool(out.size and (_signed(out).max() >= first or out.max() >= sign + first))


def _infinities(values: torch.Tensor) -> int:
    import torch

    known = values if values.itemsize > 1 else values.to(torch.float32)  # torch counts none of fp8
    return int(torch.isinf(known).sum())


def _signed(bits: Bits) -> np.ndarray[Any, Any]:
    """Signed integers of the same width: torch knows them in all versions."""
    return bits.view(np.dtype(f"i{bits.dtype.itemsize}"))


def buffer(itemsize: int, elements: int) -> Bits:
    values: Bits = np.empty(elements, BITS[itemsize])
    return values
