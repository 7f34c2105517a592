"""The first stage, and the only room that knows DCP's files: ``read`` turns a directory into a :class:`Checkpoint`.

The facts about the format come from torch's ``distributed/checkpoint`` (``metadata.py``, ``filesystem.py``,
``_nested_dict.py``) and from files that torch 2.2 to 2.13 wrote.

``metadata`` makes plain columns of ``.metadata``, with ``batches`` of ``records`` as its fast path; ``checks`` and
``cover`` say what is wrong with them. ``sharded`` finds values in safetensors files, with or without ``.metadata``, and
``lookalikes`` says what any other directory is instead.
"""

from __future__ import annotations

from dcptools.checkpoint.cover import Ints
from dcptools.checkpoint.lookalikes import METADATA
from dcptools.checkpoint.reading import as_checkpoint, inspect, is_checkpoint, read
from dcptools.checkpoint.records import MOST_MEANINGS
from dcptools.checkpoint.stored import Chunk, StoredFile, StoredObject, StoredTensor
from dcptools.checkpoint.values import NO_ROOT, Checkpoint, rank_of

__all__ = [
    "METADATA",
    "MOST_MEANINGS",
    "NO_ROOT",
    "Checkpoint",
    "Chunk",
    "Ints",
    "StoredFile",
    "StoredObject",
    "StoredTensor",
    "as_checkpoint",
    "inspect",
    "is_checkpoint",
    "rank_of",
    "read",
]
