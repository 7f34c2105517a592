"""Values: the bytes of any region of a stored tensor, whatever its chunks, strides and encoding.

Everything that looks at values is built on :class:`TensorReader`. Values are moved as bits (unsigned integers of the
dtype's width), so nothing is rounded and NaN payloads survive. Memory is a few MiB per thread, whatever the size of the
tensor.

``geometry`` knows shapes and strides; ``chunks`` a tensor's chunks as boxes; ``item`` and ``archive`` what is stored
for one chunk; ``checksums`` their CRC-32; ``reader`` puts them together; ``frames`` announces what it reads first;
``view`` reads what an output is made of.
"""

from __future__ import annotations

from dcptools.tensors.bits import BITS, SCRATCH_BYTES, Bits, gather
from dcptools.tensors.checksums import Checksums, ItemPart, combined
from dcptools.tensors.composed import Composed, NotViews
from dcptools.tensors.frames import SMALL_BYTES, WHOLE_BYTES, frames
from dcptools.tensors.geometry import Region, boxes, ranges, row_elements, row_major, run_elements, runs, tiles
from dcptools.tensors.reader import TensorReader, read_region
from dcptools.tensors.same import same_values
from dcptools.tensors.view import View, read_elements, read_view

__all__ = [
    "BITS",
    "SCRATCH_BYTES",
    "SMALL_BYTES",
    "WHOLE_BYTES",
    "Bits",
    "Checksums",
    "Composed",
    "ItemPart",
    "NotViews",
    "Region",
    "TensorReader",
    "View",
    "boxes",
    "combined",
    "frames",
    "gather",
    "ranges",
    "read_elements",
    "read_region",
    "read_view",
    "row_elements",
    "row_major",
    "run_elements",
    "runs",
    "same_values",
    "tiles",
]
