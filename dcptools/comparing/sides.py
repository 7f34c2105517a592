"""What is compared: a weight of a model, or what a checkpoint has for it, read a piece at a time.

This is not the way in which the writer reads. From a checkpoint only ``read_region`` is used, which takes a box of one
stored tensor; which boxes a view of any strides needs is worked out here again, from the numbers of its elements.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from dcptools.checkpoint import Checkpoint
from dcptools.comparing.pieces import Piece
from dcptools.hf import Model, Weight
from dcptools.storage import Range, Source
from dcptools.tensors import (
    BITS,
    Bits,
    Checksums,
    TensorReader,
    View,
    boxes,
    frames,
    gather,
    ranges,
    run_elements,
    tiles,
)

SHORT_RUN_BYTES = 4096  # a view whose runs are shorter is read in tiles
WIDEST_GAP = 16  # runs that are this many times their length apart are read at once
Read = Callable[[Bits], Bits]  # gives the values of a piece; may put them into the array that it gets


class Side(Protocol):
    """A tensor that is compared."""

    source: Source

    def reading(self, piece: Piece) -> Read:
        """How to read a piece, which may have been cut for another side."""

    def frames(self) -> Iterable[Range]:
        """What is read before the first piece."""

    def places(self, piece: Piece) -> Iterable[Range]:
        """Where the values of a piece are stored, as far as they follow each other there."""


class CutSide(Side, Protocol):
    """A tensor that says how it is cut."""

    def cut(self, most: int) -> Iterator[tuple[Piece, Read]]:
        """The tensor in pieces of about ``most`` elements, cut as they are read best."""


class WeightSide:
    """A weight of a HuggingFace model, read from its file."""

    def __init__(self, model: Model, weight: Weight) -> None:
        self.source, self._weight = model.source, weight

    def cut(self, most: int) -> Iterator[tuple[Piece, Read]]:
        for start, stop in ranges(self._weight.shape, most):
            piece = Piece.range(start, stop)
            yield piece, self.reading(piece)

    def reading(self, piece: Piece) -> Read:
        return partial(_read_piece, self._read, piece)

    def frames(self) -> Iterable[Range]:
        return ()

    def places(self, piece: Piece) -> Iterable[Range]:
        itemsize = self._weight.dtype.itemsize
        for start, count in piece.stretches(SHORT_RUN_BYTES // itemsize):
            yield self._weight.file, self._weight.start + start * itemsize, count * itemsize

    def _read(self, start: int, out: Bits) -> None:
        at = self._weight.start + start * self._weight.dtype.itemsize
        self.source.read_into(self._weight.file, at, out.data.cast("B"))


class StoredSide:
    """What a checkpoint has for a tensor: views of stored tensors whose values follow each other."""

    def __init__(self, views: Sequence[View], readers: Readers) -> None:
        self._views = views
        ends = np.cumsum([view.numel for view in views]).tolist()
        self._starts = [end - view.numel for end, view in zip(ends, views, strict=True)]
        self._readers, self.source = [readers.get(view.key) for view in views], readers.source

    def cut(self, most: int) -> Iterator[tuple[Piece, Read]]:
        for number, (view, base) in enumerate(zip(self._views, self._starts, strict=True)):
            for region in self._regions(number, view, most):
                yield Piece.box(view.shape, region, base), partial(self._read_box, number, region)

    def _regions(self, number: int, view: View, most: int) -> Iterator[Any]:
        reader = self._readers[number]
        if view.is_whole(reader.tensor.shape):
            return reader.regions(most)
        short = run_elements(view.shape, view.strides) * reader.tensor.dtype.itemsize < SHORT_RUN_BYTES
        if short and not view.contiguous and view.numel > most:
            return tiles(view.shape, view.strides, most)
        return (region for start, stop in ranges(view.shape, most) for region in boxes(view.shape, start, stop))

    def reading(self, piece: Piece) -> Read:
        return partial(_read_piece, self._read, piece)

    def frames(self) -> Iterable[Range]:
        return frames(self._readers)

    def places(self, piece: Piece) -> Iterable[Range]:
        short = SHORT_RUN_BYTES // self._readers[0].tensor.dtype.itemsize
        for start, count in piece.stretches(short):
            for number, first, last in self._under(start, start + count):
                view, reader = self._views[number], self._readers[number]
                for at, length in view.stretches(first, last, short):
                    yield from reader.places(at, at + length)

    def _under(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The views that have elements of a range of the whole: number, and which of its own they are."""
        for number, (view, base) in enumerate(zip(self._views, self._starts, strict=True)):
            first, last = max(start - base, 0), min(stop - base, view.numel)
            if first < last:
                yield number, first, last

    def _read(self, start: int, out: Bits) -> None:
        """Elements of the whole, from number ``start`` on."""
        at = 0
        for number, first, last in self._under(start, start + len(out)):
            for region in boxes(self._views[number].shape, first, last):
                count = math.prod(stop - start for start, stop in region)
                self._read_box(number, region, out[at : at + count])
                at += count

    def _read_box(self, number: int, region: Sequence[tuple[int, int]], out: Bits) -> Bits:
        """A region of a view."""
        view, reader = self._views[number], self._readers[number]
        shape = [stop - start for start, stop in region]
        target = out.reshape(shape)
        if view.is_whole(reader.tensor.shape):
            reader.read_region(region, target)
            return target
        corner = sum(start * stride for (start, _), stride in zip(region, view.strides, strict=True))
        _read_runs(reader, shape, view.strides, view.offset + corner, out)
        return target


class Readers:
    """One reader per key, so that the chunks of a tensor that many outputs are made of are opened once."""

    def __init__(self, checkpoint: Checkpoint, keys: Iterable[str], *, check: bool = True) -> None:
        """``keys`` has each key as often as it will be requested; ``check`` compares the stored checksums."""
        self._checkpoint, self._checksums = checkpoint, Checksums() if check else None
        self.source = checkpoint.source
        self._uses, self._open = Counter(list(keys)), dict[str, TensorReader]()
        self._lock = threading.Lock()

    def get(self, key: str) -> TensorReader:
        with self._lock:
            reader = self._open.pop(key, None) or TensorReader(self._checkpoint[key], self._checksums)
            self._uses[key] -= 1
            if self._uses[key] > 0:
                self._open[key] = reader
        return reader


def _read_piece(read: Callable[[int, Bits], None], piece: Piece, out: Bits) -> Bits:
    """A piece of what ``read`` reads ranges of."""
    if piece.is_range:
        read(piece.offset, out)
    else:
        gather(read, piece.shape, piece.strides, piece.offset, out.reshape(piece.shape))
    return out.reshape(piece.shape)


def _read_range(reader: TensorReader, start: int, stop: int, out: Bits) -> None:
    """The elements ``start`` to ``stop`` of a stored tensor in row-major order, by boxes of it."""
    at = 0
    for region in boxes(reader.tensor.shape, start, stop):
        shape = [stop - start for start, stop in region]
        count = math.prod(shape)
        reader.read_region(region, out[at : at + count].reshape(shape))
        at += count


def _read_runs(reader: TensorReader, shape: Sequence[int], strides: Sequence[int], offset: int, out: Bits) -> None:
    """Elements with these strides, by the runs that lie next to each other in the stored tensor."""
    length = run_elements(shape, strides)
    starts = np.full(1, offset, np.int64)
    inner = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if inner < length or size == 1:
            inner *= size
        else:
            starts = (np.arange(size, dtype=np.int64)[:, None] * stride + starts).reshape(-1)
    if len(starts) == 1:
        _read_range(reader, offset, offset + length, out)
        return
    order = np.argsort(starts, kind="stable")
    ordered = starts[order]
    rows = out.reshape(len(starts), length)
    apart = np.flatnonzero(np.diff(ordered) > (WIDEST_GAP + 1) * length) + 1
    for group in np.split(np.arange(len(starts)), apart):
        first, last = int(ordered[group[0]]), int(ordered[group[-1]]) + length
        values = np.empty(last - first, BITS[reader.tensor.dtype.itemsize])
        _read_range(reader, first, last, values)
        windows = np.lib.stride_tricks.sliding_window_view(values, length)
        rows[order[group]] = windows[ordered[group] - first]
