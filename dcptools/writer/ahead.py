"""The work of filling a file, announced before it is handed out, and what is announced together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from dcptools.shards import PlannedTensor
from dcptools.writer.cut import Block, Sizes, Tile

Value = TypeVar("Value")


def groups(
    tensors: Iterable[PlannedTensor], chunks: Callable[[PlannedTensor], int], sizes: Sizes
) -> Iterator[list[PlannedTensor]]:
    """Tensors that have as many chunks and bytes together as the sizes allow, or a single one that has more."""
    group: list[PlannedTensor] = []
    items = nbytes = 0
    for tensor in tensors:
        count = chunks(tensor)
        if group and (items + count > sizes.items_together or nbytes + tensor.output.nbytes > sizes.bytes_together):
            yield group
            group, items, nbytes = [], 0, 0
        group.append(tensor)
        items += count
        nbytes += tensor.output.nbytes
    if group:
        yield group


def one_ahead(values: Iterable[Value], announce: Callable[[Value], None]) -> Iterator[Value]:
    """The same, each handed out when the next one has been announced too."""
    waiting: list[Value] = []
    for value in values:
        announce(value)
        yield from waiting
        waiting = [value]
    yield from waiting


def read_ahead(work: Iterator[Block | Tile], sizes: Sizes) -> Iterator[Block | Tile]:
    """The same, cut a few at a time; the sources hear about each piece a few pieces before it is handed out."""
    waiting: deque[Block | Tile] = deque()
    while together := list(_together(work, sizes)):
        for piece in together:
            piece.will_read()
            waiting.append(piece)
            if len(waiting) > sizes.blocks_read_ahead:
                yield waiting.popleft()
    yield from waiting


def _together(work: Iterator[Block | Tile], sizes: Sizes) -> Iterator[Block | Tile]:
    """The next pieces, until they have as many items as blocks of small tensors."""
    left = sizes.blocks_together * sizes.block_items
    for piece in islice(work, sizes.blocks_together):
        yield piece
        if (left := left - piece.items) <= 0:
            return
