"""Casting with torch's own kernels, so that the bits are torch's; torch is imported only if a cast is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dcptools.dtypes import DType
from dcptools.tensors import BITS, Bits

if TYPE_CHECKING:
    import torch

# The bits of Inf; -Inf has the highest bit too. The other fp8 formats have no Inf.
_INF = {
    "float64": 0x7FF0_0000_0000_0000,
    "float32": 0x7F80_0000,
    "bfloat16": 0x7F80,
    "float16": 0x7C00,
    "float8_e5m2": 0x7C,
}
_NAN = {  # all bits that are NaN in those formats
    "float8_e4m3fn": (0x7F, 0xFF),
    "float8_e4m3fnuz": (0x80, 0x80),
    "float8_e5m2fnuz": (0x80, 0x80),
    "float8_e8m0fnu": (0xFF, 0xFF),
}


class Buffer:
    """Reused memory that can be viewed as values of any dtype."""

    def __init__(self, nbytes: int) -> None:
        self.bytes = np.empty(nbytes, np.uint8)
        self._bits: dict[int, Bits] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def bits(self, itemsize: int) -> Bits:
        """The whole memory as unsigned integers."""
        if itemsize not in self._bits:
            self._bits[itemsize] = self.bytes[: len(self.bytes) // itemsize * itemsize].view(BITS[itemsize])
        return self._bits[itemsize]

    def tensor(self, dtype: DType) -> torch.Tensor:
        """The whole memory as a tensor."""
        if dtype.name not in self._tensors:
            import torch

            signed = self.bits(dtype.itemsize).view(np.dtype(f"i{dtype.itemsize}"))  # torch knows them in all versions
            self._tensors[dtype.name] = torch.from_numpy(signed).view(getattr(torch, dtype.name))
        return self._tensors[dtype.name]


class Cast:
    """Casts the values at the start of one buffer into another one, with torch's kernel."""

    def __init__(self, given: Buffer, source: DType, out: Buffer, target: DType) -> None:
        self.source, self.target = source, target
        self._given, self._out = given, out
        self.most = len(given.bytes) // max(source.itemsize, target.itemsize)  # values at once
        self._whole: dict[int, tuple[torch.Tensor, torch.Tensor, Bits, Bits]] = {}

    def __call__(self, count: int, at: int, *, scalar: bool) -> bool:
        """Cast the first ``count`` values to the elements from number ``at`` on; whether some are Inf or NaN now.

        With ``scalar``, it is the value of a 0-dimensional tensor: there torch gives a NaN other bits than anywhere
        else.
        """
        given, out, signed, unsigned = self._views(count, at)
        if scalar:
            out[0].copy_(given[0])
        else:
            out.copy_(given)
        # as integers, all values from that of Inf on are Inf or NaN
        inf = _INF[self.target.name]
        return bool(np.maximum.reduce(signed) >= inf or np.maximum.reduce(unsigned) >= _sign(self.target) + inf)

    def became_inf(self, first: int, count: int, at: int) -> int:
        """How many of the values from number ``first`` on, which were cast to ``at``, were finite and no longer are."""
        given = self._given.bits(self.source.itemsize)[first : first + count]
        out = self._out.bits(self.target.itemsize)[at : at + count]
        return _infinities(out, self.target) - _infinities(given, self.source)  # Inf stays Inf, and NaN stays NaN

    def _views(self, count: int, at: int) -> tuple[torch.Tensor, torch.Tensor, Bits, Bits]:
        """The values, and where they go: as a tensor, as signed and as unsigned integers."""
        if count == self.most and at in self._whole:
            return self._whole[at]
        itemsize = self.target.itemsize
        unsigned = self._out.bits(itemsize)[at : at + count]
        signed = unsigned.view(np.dtype(f"i{itemsize}"))
        views = (
            self._given.tensor(self.source)[:count],
            self._out.tensor(self.target)[at : at + count],
            signed,
            unsigned,
        )
        if count == self.most:  # nearly always, and making views takes as long as everything else here in Python
            self._whole[at] = views
        return views


def nan_in(values: Any, dtype: DType) -> Any:
    """Whether values of a floating-point dtype are NaN: a bool for one value as an integer, an array for bits."""
    if dtype.name in _NAN:
        one, other = _NAN[dtype.name]
        return (values == one) | (values == other)
    return (values & (_sign(dtype) - 1)) > _INF[dtype.name]


def _infinities(values: Bits, dtype: DType) -> int:
    """How many values are Inf or -Inf."""
    inf = _INF.get(dtype.name)
    if inf is None:
        return 0
    return int(np.count_nonzero(values == inf) + np.count_nonzero(values == _sign(dtype) + inf))


def _sign(dtype: DType) -> int:
    return 1 << (8 * dtype.itemsize - 1)
