"""Tensors side by side: read a piece at a time from wherever they are, and compared; and ``diff``, which compares all.

``pieces`` knows what is compared at once; ``sides`` reads it, from a checkpoint or from a model; ``streaming`` does the
work with several threads. ``diffing`` pairs the tensors of two models or checkpoints, ``own`` says what a checkpoint
gives beside a model, ``measures`` how far apart the values are, and ``values`` is what came out.
"""

from __future__ import annotations

from dcptools.comparing.diffing import BY, diff
from dcptools.comparing.measures import cast_to_right
from dcptools.comparing.own import preview_beside
from dcptools.comparing.pieces import Piece
from dcptools.comparing.sides import CutSide, Read, Readers, Side, StoredSide, WeightSide
from dcptools.comparing.streaming import Buffers, Pair, Streaming, checked_workers
from dcptools.comparing.values import STATISTICS, ComparedTensor, Comparison

__all__ = [
    "BY",
    "STATISTICS",
    "Buffers",
    "ComparedTensor",
    "Comparison",
    "CutSide",
    "Pair",
    "Piece",
    "Read",
    "Readers",
    "Side",
    "StoredSide",
    "Streaming",
    "WeightSide",
    "cast_to_right",
    "checked_workers",
    "diff",
    "preview_beside",
]
