"""What the plan says before anything is written: ``python -m tests.bench.predict LOAD_DIR SHARD_SIZE``."""

from __future__ import annotations

import json
import sys

import dcptools

if __name__ == "__main__":
    load_dir, shard_size = sys.argv[1:]
    chunks = int(dcptools.inspect(load_dir)["chunks"].sum())
    print(json.dumps({"peak_bytes": dcptools.plan(load_dir, shard_size=int(shard_size)).peak_bytes, "chunks": chunks}))
