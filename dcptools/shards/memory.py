"""The peak memory of a conversion, predicted.

Resident memory that no buffer explains was measured with the CPU build of torch 2.13 on x86-64 Linux.
"""

from __future__ import annotations

from dcptools.checkpoint import MOST_MEANINGS
from dcptools.mapping import KeyMapping
from dcptools.storage import MOST_FETCHED_BYTES, uploading_bytes

PROCESS_BYTES = 45_000_000  # Python with numpy, click and this package
TORCH_BYTES = 210_000_000  # importing torch, which only casts need
CHUNK_BYTES = 250  # per chunk while .metadata is read, which is in memory too
MEANING_BYTES = 300  # more per chunk as long as what is read of it is remembered
FILE_BYTES = 600  # per file of the checkpoint
TENSOR_BYTES = 2_500  # per output, in mapping, plan and header
REMOTE_BYTES = 60_000_000  # a library for URLs, with its connections
WORKER_BYTES = 7 << 20  # per thread of the writer: stored values, a block, and what is read to be rearranged


def peak_bytes(mapping: KeyMapping, *, casts: bool, workers: int, uploads: int) -> int:
    """Predicted peak memory of the whole process, in bytes; neither the shard size nor tensor sizes matter.

    What is read ahead from a URL, and what waits to be uploaded to one, count with their limits. ``uploads`` is the
    size of the largest file that is uploaded; 0 if none is.
    """
    checkpoint = mapping.checkpoint
    reading = reading_bytes(checkpoint.chunk_count, checkpoint.metadata_nbytes) + len(checkpoint.files) * FILE_BYTES
    writing = (TORCH_BYTES if casts else 0) + workers * WORKER_BYTES
    if checkpoint.source.ahead or uploads:
        writing += REMOTE_BYTES
    if checkpoint.source.ahead:
        writing += MOST_FETCHED_BYTES
    if uploads:
        writing += uploading_bytes(uploads, workers)
    return PROCESS_BYTES + len(mapping.outputs) * TENSOR_BYTES + max(reading, writing)


def reading_bytes(chunks: int, metadata_nbytes: int) -> int:
    """What so many chunks take while their ``.metadata`` is read."""
    return metadata_nbytes + chunks * CHUNK_BYTES + min(chunks, MOST_MEANINGS) * MEANING_BYTES
