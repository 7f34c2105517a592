"""`dcptools.convert`, with everything imported before the clock starts, as :mod:`tests.bench.loop` has it.

``python -m tests.bench.ours LOAD_DIR SAVE_DIR SHARD_SIZE DTYPE WORKERS sync|nosync`` prints ``{"seconds": ...}``.
"""

from __future__ import annotations

import json
import sys
import time

import torch  # noqa: F401  (the conversion imports it when it casts)

import dcptools

if __name__ == "__main__":
    load_dir, save_dir, shard_size, dtype, workers, sync = sys.argv[1:]
    size, threads, fsync = int(shard_size), int(workers), sync == "sync"
    start = time.perf_counter()
    dcptools.convert(load_dir, save_dir, shard_size=size, dtype=dtype, workers=threads, fsync=fsync)
    print(json.dumps({"seconds": time.perf_counter() - start}))
