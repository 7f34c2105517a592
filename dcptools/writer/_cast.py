"""Casting a slab, with torch's own kernels so that the bits are torch's; torch is imported only if a cast is needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from dcptools.dtypes import DType
from dcptools.tensors import BITS, Bits

# The bits of Inf. As integers, all values from this one on are Inf or NaN (of either sign: its bit is the highest).
# The other fp8 formats have no Inf.
_INF = {
    "float64": 0x7FF0_0000_0000_0000,
    "float32": 0x7F80_0000,
    "bfloat16": 0x7F80,
    "float16": 0x7C00,
    "float8_e5m2": 0x7C,
}


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
    return _infinities(out, target) - _infinities(values, source)  # a cast gives Inf of Inf, and NaN of NaN


def _may_have_inf(out: Bits, target: DType) -> bool:
    """A quick look: two maxima, at the speed of the cache, and no memory."""
    inf = _INF[target.name]
    return bool(out.size and (_signed(out).max() >= inf or out.max() >= _sign(target) + inf))


def _infinities(values: Bits, dtype: DType) -> int:
    inf = _INF.get(dtype.name)
    if inf is None:
        return 0
    return int(np.count_nonzero(values == inf) + np.count_nonzero(values == _sign(dtype) + inf))


def _sign(dtype: DType) -> int:
    return 1 << (8 * dtype.itemsize - 1)


def _signed(bits: Bits) -> np.ndarray[Any, Any]:
    """Signed integers of the same width: torch knows them in all versions."""
    return bits.view(np.dtype(f"i{bits.dtype.itemsize}"))


def buffer(itemsize: int, elements: int) -> Bits:
    values: Bits = np.empty(elements, BITS[itemsize])
    return values
