"""What is announced before values are read: what items are opened from, or items as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dcptools.storage import Range, spread
from dcptools.tensors.archive import HEAD_BYTES, TAIL_BYTES
from dcptools.tensors.reader import MOST_FRAMES, WHOLE_BYTES, TensorReader

SMALL_BYTES = 1 << 16  # an item of at most so many is announced whole, also where what was announced takes memory


def frames(readers: Iterable[TensorReader]) -> Iterator[Range]:
    """What is read before the values: file, first byte, count. Of what is small, the values too.

    The first ones are from all over the tensors, so that looking at those tells whether the others are at hand.
    """
    items = [
        (reader, number)
        for reader in readers
        if len(reader.chunks.boxes) <= MOST_FRAMES
        for number, _, _ in reader.chunks.boxes
    ]
    for reader, number in spread(items):
        file, start, nbytes = reader.tensor.place(number)
        if not file:
            continue
        if reader.announced_whole:
            yield file, start, min(nbytes, WHOLE_BYTES)  # an item may claim to have any size
        elif reader.tensor.chunk(number).encoding == "torch":
            if nbytes <= SMALL_BYTES:
                yield file, start, nbytes
            else:
                yield file, start, HEAD_BYTES
                yield file, start + nbytes - TAIL_BYTES, TAIL_BYTES
