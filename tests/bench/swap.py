"""How long a directory has no model, neither the old nor the new one, while the one takes the place of the other.

``python -m tests.bench.swap [DIR]``: DIR on the file system that is of interest.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict_saver import save

import dcptools
from dcptools.shards import ShardPlan
from dcptools.storage import LocalSink
from dcptools.writer.swap import Swap

ROUNDS = 20
SHARDS = (1, 5, 100)


def gap(plan: ShardPlan, target: Path, *, fsync: bool) -> float:
    """Seconds from before the first old file is put aside until the last new file has its name."""
    times = []
    put_aside, commit = Swap.put_aside, LocalSink.commit

    def first(self: Swap, *names: list[str]) -> None:
        times.append(time.perf_counter())
        put_aside(self, *names)

    def last(self: LocalSink, name: str) -> None:
        commit(self, name)
        times.append(time.perf_counter())

    Swap.put_aside, LocalSink.commit = first, last  # type: ignore[method-assign, assignment]
    try:
        dcptools.write(plan, target, overwrite=True, fsync=fsync)
    finally:
        Swap.put_aside, LocalSink.commit = put_aside, commit  # type: ignore[method-assign]
    return times[-1] - times[0]


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        for shards in SHARDS:
            state = {f"model.layers.{number}.w": torch.zeros(250) for number in range(shards)}
            save({"model": state}, checkpoint_id=Path(name, f"step-{shards}"), no_dist=True)
            plan = dcptools.plan(Path(name, f"step-{shards}"), shard_size=1000, dtype="keep")
            target = Path(name, "out")
            dcptools.write(plan, target, overwrite=True)
            for fsync in (True, False):
                gaps = sorted(1000 * gap(plan, target, fsync=fsync) for _ in range(ROUNDS))
                waits = "waits for the disk" if fsync else "does not wait"
                print(
                    f"{len(plan.files)} shards, {waits}: {statistics.median(gaps):.2f} ms "
                    f"({gaps[0]:.2f} to {gaps[-1]:.2f}) without a model, {ROUNDS} rounds"
                )


if __name__ == "__main__":
    main()
