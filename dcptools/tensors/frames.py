"""What is announced before values are read: what items are opened from, or items as a whole."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from dcptools.checkpoint import StoredTensor
from dcptools.storage import Range, spread
from dcptools.tensors.archive import HEAD_BYTES, TAIL_BYTES

if TYPE_CHECKING:
    from dcptools.tensors.reader import TensorReader

# All items of a tensor of at most so many bytes are announced whole, before they are opened; not where what was
# announced takes memory of this process until it is read: there, single items of fewer bytes
WHOLE_BYTES, SMALL_BYTES = 64 << 20, 1 << 16
MOST_FRAMES = 4096  # of a tensor that are announced at once, where that takes no memory
WINDOW = 64  # items of a tensor that are announced at once, where it does, if nobody says how many
MOST_BYTES = 4 * WHOLE_BYTES  # announced at once: an item may claim to have any size


def announced_whole(tensor: StoredTensor) -> bool:
    """Whether the items of a tensor are announced with their values."""
    few = len(tensor.offsets) <= MOST_FRAMES
    return few and tensor.nbytes <= WHOLE_BYTES and not tensor.source.ahead


def frames(readers: Iterable[TensorReader]) -> Iterator[Range]:
    """What is read before the values: file, first byte, count. Of what is small, the values too.

    The first ones are from all over the tensors, so that looking at those tells whether the others are at hand.
    """
    items = [(reader, number) for reader in readers for number in reader.first_numbers]
    left = MOST_BYTES
    for reader, number in spread(items):
        for file, start, nbytes in _frame(reader.tensor, number, whole=reader.announced_whole):
            if nbytes > left:
                return
            left -= nbytes
            yield file, start, nbytes


class Windows:
    """The items of a tensor, announced some before they are opened: where announcing all would take much memory."""

    def __init__(self, tensor: StoredTensor, numbers: Sequence[int], most: int) -> None:
        """``numbers`` are those of its chunks, ascending; at ``most`` so many are announced at once."""
        self._tensor, self._numbers, self._most = tensor, numbers, most
        self._told: set[int] = set()  # windows
        self._lock = threading.Lock()

    def opening(self, number: int) -> None:
        """To be called for each item before it is opened; in any order, by any thread."""
        here = bisect_left(self._numbers, number) // self._most
        for window in (here, here + 1):
            with self._lock:
                if window in self._told:
                    continue
                self._told.add(window)
            numbers = self._numbers[window * self._most : (window + 1) * self._most]
            ranges = (each for number in numbers for each in _frame(self._tensor, number, whole=False))
            self._tensor.source.will_read(ranges)


def _frame(tensor: StoredTensor, number: int, *, whole: bool) -> Iterator[Range]:
    file, start, nbytes = tensor.place(number)
    if not file:
        return
    if whole:
        yield file, start, nbytes
    elif tensor.chunk(number).encoding == "torch":
        if nbytes <= SMALL_BYTES:
            yield file, start, nbytes
        else:
            yield file, start, HEAD_BYTES
            yield file, start + nbytes - TAIL_BYTES, TAIL_BYTES
