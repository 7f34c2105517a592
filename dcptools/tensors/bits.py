"""Values as bits: unsigned integers of the dtype's width, so that nothing is rounded and NaN payloads survive."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dcptools.dtypes import DType
from dcptools.tensors.geometry import is_row_major, span

Bits = npt.NDArray[Any]
BITS: dict[int, np.dtype[Any]] = {  # by the bytes of a value
    1: np.dtype("u1"),
    2: np.dtype("u2"),
    4: np.dtype("u4"),
    8: np.dtype("u8"),
    16: np.dtype("c16"),
}
SCRATCH_BYTES = 1 << 20  # the most that is read at once to be rearranged
SMALL_GAP = 4096  # bytes; reading across such a gap is cheaper than a second read


def gather(
    read: Callable[[int, Bits], None],
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int,
    out: Bits,
    scratch_bytes: int = SCRATCH_BYTES,
) -> None:
    """Fill ``out`` with the elements at ``offset`` and these strides of a long row of elements.

    ``read(start, target)`` fills a contiguous array with elements from number ``start`` on. Elements that lie close
    together are read at once, with what is between them; otherwise the view is halved, and its halves are gathered.

    >>> row = np.arange(12, dtype="u4")
    >>> def read(start, target): target[:] = row[start : start + len(target)]
    >>> out = np.empty((4, 3), "u4")
    >>> gather(read, (4, 3), (1, 4), 0, out)  # the transpose of three rows of four
    >>> out[0].tolist()
    [0, 4, 8]
    """
    if not out.size:
        return
    if out.flags.c_contiguous and is_row_major(shape, strides):
        read(offset, out.reshape(-1))
        return
    nbytes, itemsize = span(tuple(shape), tuple(strides)) * out.itemsize, out.itemsize
    if nbytes <= scratch_bytes and nbytes <= max(out.nbytes + SMALL_GAP, 2 * out.nbytes):
        row = np.empty(nbytes // itemsize, out.dtype)
        read(offset, row)
        out[...] = np.ndarray(tuple(shape), out.dtype, row.data, 0, tuple(stride * itemsize for stride in strides))
        return
    dim = max((dim for dim, size in enumerate(shape) if size > 1), key=lambda dim: strides[dim])
    half = shape[dim] // 2
    for low, high in ((0, half), (half, shape[dim])):
        part = [high - low if d == dim else size for d, size in enumerate(shape)]
        target = out[(slice(None),) * dim + (slice(low, high),)]
        gather(read, part, strides, offset + low * strides[dim], target, scratch_bytes)


def fill(regions: Sequence[Sequence[tuple[int, int]]], out: Bits, read: Callable[[Any, Bits], None]) -> None:
    """Read regions that follow each other in row-major order into a contiguous array."""
    at = 0
    for region in regions:
        shape = [stop - start for start, stop in region]
        count = math.prod(shape)
        read(region, out[at : at + count].reshape(shape))
        at += count


def resolve(values: Bits, dtype: DType, *, conjugate: bool, negative: bool) -> None:
    """Apply the conjugate and negative bits in place, as torch's ``resolve_conj`` and ``resolve_neg`` do."""
    if dtype.kind == "complex":
        if negative:
            _flip_sign(_part(values, imaginary=False))
        if negative != conjugate:
            _flip_sign(_part(values, imaginary=True))
    elif negative and dtype.kind == "int":
        np.negative(values, out=values)
    elif negative:
        _flip_sign(values)


def _flip_sign(words: Bits) -> None:
    words ^= words.dtype.type(1 << (8 * words.itemsize - 1))


def _part(values: Bits, *, imaginary: bool) -> Bits:
    """The real or the imaginary parts of complex values as bits, in the same memory, whatever its strides."""
    nbytes = values.itemsize // 2
    pair = np.dtype(
        {"names": ["part"], "formats": [f"u{nbytes}"], "offsets": [nbytes * imaginary], "itemsize": values.itemsize}
    )
    return values.view(pair)["part"]
