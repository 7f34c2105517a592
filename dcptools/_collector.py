"""Python's garbage collector, kept from looking through many objects of which none is garbage.

It searches all objects for cycles each time that there are a quarter more of them. Where a million values are
made that stay, and have no cycles, that takes as long as making them, and the longer the more there are.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collections() -> Iterator[None]:
    """Let it rest: for a few seconds in which many values are made, but no cycles.

    Afterwards they count as old: otherwise the next object that is made would have it look through all of them. Not
    after an error, which may hold on to files, and to itself.
    """
    resting = not gc.isenabled()
    gc.disable()
    try:
        yield
        if not gc.get_freeze_count():  # nobody has frozen anything, which would thaw too
            gc.freeze()
            gc.unfreeze()
    finally:
        if not resting:
            gc.enable()


@contextmanager
def what_is_there_stays() -> Iterator[None]:
    """Let it look only at what is made from now on: for work that takes a long time."""
    if gc.get_freeze_count():  # somebody else froze it, and decides when that ends
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
