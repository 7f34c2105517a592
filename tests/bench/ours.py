"""`dcptools.convert`, with everything imported before the clock starts, as :mod:`tests.bench.loop` has it.

``python -m tests.bench.ours LOAD_DIR SAVE_DIR SHARD_SIZE DTYPE WORKERS sync|nosync [NAMES]``. With names, the model of
the ``config.json`` in LOAD_DIR is known before the clock starts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors  # noqa: F401  (the conversion imports it when it looks at what was written)
import torch  # noqa: F401  (... when it casts)

import dcptools
from tests.bench.clock import timed
from tests.bench.known import know


def convert(load_dir: str, save_dir: str, shard_size: str, dtype: str, workers: str, sync: str, *names: str) -> None:
    size, threads, fsync = int(shard_size), int(workers), sync == "sync"
    model = {"model_assets_dir": load_dir, "names": names[0]} if names else {}
    dcptools.convert(load_dir, save_dir, shard_size=size, dtype=dtype, workers=threads, fsync=fsync, **model)


if __name__ == "__main__":
    if len(sys.argv) > 7:
        know(Path(sys.argv[1]), Path(sys.argv[2]))
    timed(Path(sys.argv[1]), Path(sys.argv[2]), lambda: convert(*sys.argv[1:]))
