"""Whether two stored tensors have the same values, bit for bit."""

from __future__ import annotations

from dcptools.checkpoint import StoredTensor
from dcptools.tensors.reader import TensorReader

REGION_ELEMENTS = 1 << 20  # compared at once


def same_values(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether both have the same shape, dtype and bits.

    If both are cut into the same chunks, and each was saved with its CRC-32, these are compared and no value is
    read; otherwise the values are, a few MiB at a time.

    Raises
    ------
    BrokenCheckpoint, UnsupportedCheckpoint
        One of them cannot be read.
    """
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    readers = TensorReader(first), TensorReader(second)
    checksums = [reader.checksums() for reader in readers]
    if checksums[0] and checksums[1] and checksums[0].keys() == checksums[1].keys():
        return checksums[0] == checksums[1]
    one, other = readers
    return all((one.region(region) == other.region(region)).all() for region in one.regions(REGION_ELEMENTS))
