"""Who does what: things in a row, cut into one stretch for each rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

Thing = TypeVar("Thing")


def shares(things: Sequence[Thing], nbytes: Sequence[int], count: int) -> list[list[Thing]]:
    """Cut things into ``count`` stretches, so that the heaviest is as light as can be; some may be empty.

    Things that follow each other stay together: neighbouring files need bytes of the same stored items.

    Parameters
    ----------
    things
        What is shared out, in order.
    nbytes
        The weight of each.
    count
        How many stretches.

    Examples
    --------
    >>> shares(["a", "b", "c", "d"], [5, 5, 5, 9], 3)
    [['a', 'b'], ['c'], ['d']]
    >>> shares(["a"], [5], 2)
    [['a'], []]
    """
    low, high = max(nbytes, default=0), sum(nbytes)
    while low < high:
        middle = (low + high) // 2
        if sum(1 for _ in _stretches(nbytes, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    found = [list(things[start:stop]) for start, stop in _stretches(nbytes, low)]
    return found + [[] for _ in range(count - len(found))]


def _stretches(nbytes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """The first number of each stretch of at most that weight, and the one after its last; none alone weighs more."""
    start = total = 0
    for number, weight in enumerate(nbytes):
        if number > start and total + weight > most:
            yield start, number
            start, total = number, 0
        total += weight
    if start < len(nbytes):
        yield start, len(nbytes)
