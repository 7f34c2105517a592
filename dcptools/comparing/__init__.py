"""Two tensors side by side: read a piece at a time from wherever they are, and compared.

``pieces`` knows what is compared at once; ``sides`` read it, from a checkpoint or from a model; ``streaming`` does the
work with several threads.
"""

from __future__ import annotations

from dcptools.comparing.pieces import Piece
from dcptools.comparing.sides import CutSide, Read, Readers, Side, StoredSide, WeightSide
from dcptools.comparing.streaming import Buffers, Pair, Streaming, checked_workers

__all__ = [
    "Buffers",
    "CutSide",
    "Pair",
    "Piece",
    "Read",
    "Readers",
    "Side",
    "StoredSide",
    "Streaming",
    "WeightSide",
    "checked_workers",
]
