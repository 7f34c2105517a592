"""Write the estimate in docs/cluster.md, from what items, bytes and metadata cost on this machine.

python docs/scripts/cluster.py

Processor time is measured, which other work on the machine hardly changes, and never the disk: how fast that is, the
estimate takes as given. It needs the repository's tests beside it, which make the checkpoints, and two minutes.
"""

from __future__ import annotations

import os
import pickle
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from checkpoints import saved  # noqa: E402

import dcptools  # noqa: E402
from dcptools.shards.memory import PROCESS_BYTES, TORCH_BYTES, WORKER_BYTES, reading_bytes  # noqa: E402
from dcptools.storage import LocalSource  # noqa: E402
from tests.bench import many_chunks  # noqa: E402

PAGE = ROOT / "docs" / "cluster.md"
START, END = "<!-- estimate: begin -->", "<!-- estimate: end -->"
# What is estimated
BYTES = 10**12  # of the checkpoint, float32, written as bfloat16
RANKS, CPUS, RANKS_PER_MACHINE = 64, 4, 8  # CPUS of each rank
SAVED_BY, TENSORS = 512, 1_000  # ranks that saved it, each of which has a part of each tensor
SHARD_BYTES = 2 * 10**9
SPEEDS = (5, 20, 100)  # GB/s that the file system reads and writes together, for all machines


@dataclass(frozen=True)
class Costs:
    """What was measured, of one thread."""

    item: float  # seconds
    byte: float  # seconds for each byte that is read
    item_requests: float
    byte_requests: float
    chunk: float  # seconds to read the metadata, to preview and to plan
    chunk_bytes: float  # memory of the metadata that was read
    metadata_bytes: float  # for each chunk, of the file .metadata
    plan_bytes: float  # for each chunk, of the plan as it is sent
    plan_seconds: float  # for each chunk, to pickle and unpickle the plan


def measure(directory: Path) -> Costs:
    many, few = directory / "many", directory / "few"
    chunks = [((row * 4, 0), torch.randn(4, 16)) for row in range(16)]
    saved.save_chunks(many, {f"model.layers.{n}.weight": chunks for n in range(1_000)}, files=16)
    saved.save(few, {"model": {f"model.layers.{n}.weight": torch.randn(4_000, 2_000) for n in range(16)}})
    many_seconds, many_requests = writing(many, directory)
    few_seconds, few_requests = writing(few, directory)
    item, nbytes = many_seconds / 16_000, 16 * 32_000_000
    item_requests = many_requests / 16_000
    return Costs(
        item, (few_seconds - 16 * item) / nbytes, item_requests, (few_requests - 16 * item_requests) / nbytes,
        *metadata(directory / "metadata"),
    )  # fmt: skip


def writing(load_dir: Path, directory: Path) -> tuple[float, int]:
    """Processor time and read requests of a conversion, without the metadata; the better of two runs."""
    plan, found = dcptools.plan(load_dir), []
    for number in range(2):
        requests, into = 0, LocalSource.read_into

        def read_into(self: LocalSource, name: str, start: int, out: memoryview, into: Any = into) -> None:
            nonlocal requests
            requests += 1
            into(self, name, start, out)

        setattr(LocalSource, "read_into", read_into)  # noqa: B010  (mypy)
        seconds = spent(lambda number=number: dcptools.write(plan, directory / f"{load_dir.name}{number}", fsync=False))
        setattr(LocalSource, "read_into", into)  # noqa: B010
        found.append((seconds, requests))
    return min(found)


def metadata(load_dir: Path) -> tuple[float, ...]:
    """Of each chunk: seconds to plan; bytes in memory, in the file, and of the plan as it is sent; seconds to send."""
    chunks = 128_000
    many_chunks.save(load_dir, chunks)
    before, plans = psutil.Process().memory_info().rss, []
    seconds = spent(lambda: plans.append(dcptools.plan(load_dir)))
    resident, sent = psutil.Process().memory_info().rss - before, []
    sending = spent(lambda: sent.append(pickle.dumps(plans[0])))
    sending += spent(lambda: replace(pickle.loads(sent[0])))
    in_file = plans[0].checkpoint.metadata_nbytes
    return tuple(cost / chunks for cost in (seconds, max(0, resident), in_file, len(sent[0]), sending))


def spent(work: Callable[[], Any]) -> float:
    """Processor time of the work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def estimate(costs: Costs) -> list[tuple[str, str]]:
    """Lines of the table: what, and how much."""
    chunks = SAVED_BY * TENSORS
    items, nbytes = chunks / RANKS, BYTES / RANKS
    files = BYTES / 2 / SHARD_BYTES
    most = -(-files // RANKS) / (files / RANKS)  # whole files are shared out, so that some ranks have more
    working = most * (items * costs.item + nbytes * costs.byte) / CPUS
    first = chunks * (costs.chunk + costs.plan_seconds)
    process = PROCESS_BYTES + TORCH_BYTES
    memory = process + chunks * (costs.chunk_bytes + costs.plan_bytes) + CPUS * WORKER_BYTES
    reading = process + reading_bytes(chunks, round(chunks * costs.metadata_bytes))
    moving = [(speed, 1.5 * BYTES * most / (speed * 10**9)) for speed in SPEEDS]
    return [
        ("stored items", f"{chunks:,}; {items:,.0f} per rank"),
        ("files", f"{files:,.0f}; {-(-files // RANKS):.0f} for the ranks with the most"),
        ("read requests", f"{(chunks * costs.item_requests + BYTES * costs.byte_requests) / 1e6:.1f} million; "
         f"{(items * costs.item_requests + nbytes * costs.byte_requests):,.0f} per rank"),
        ("bytes that each rank is sent for the plan", f"{chunks * costs.plan_bytes / 1e6:,.0f} MB"),
        ("memory", f"{memory / 1e9:.1f} GB per rank, {RANKS_PER_MACHINE * memory / 1e9:.1f} GB per machine; "
         f"{max(reading, memory) / 1e9:.1f} GB for rank 0 while it reads the metadata"),
        ("before the first byte of values", f"{first:,.0f} s: metadata, plan, and sending it"),
        ("processors", f"{working:,.0f} s, with {CPUS} CPUs per rank"),
        *(
            (f"a file system that moves {speed} GB/s", f"{seconds:,.0f} s to read and write; "
             f"**{first + max(working, seconds):,.0f} s in all**")
            for speed, seconds in moving
        ),
    ]  # fmt: skip


def render(costs: Costs) -> str:
    rows = "\n".join(f"| {what} | {much} |" for what, much in estimate(costs))
    return f"""{START}
Costs of one thread, measured on {time.strftime("%Y-%m-%d")} with torch {torch.__version__.partition("+")[0]} on \
{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs: {1e6 * costs.item:.0f} µs and \
{costs.item_requests:.1f} reads per item, another {1e9 * costs.byte:.2f} s and {1e9 * costs.byte_requests:,.0f} reads \
per GB; {1e6 * costs.chunk:.0f} µs and {costs.chunk_bytes:.0f} bytes of memory per chunk in the metadata, and \
{1e6 * costs.plan_seconds:.1f} µs to send it.

| 1 TB of float32 to bfloat16, {RANKS} ranks with {CPUS} CPUs each on {RANKS // RANKS_PER_MACHINE} machines; saved by \
{SAVED_BY} ranks, {TENSORS:,} tensors | |
| --- | --- |
{rows}

{END}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        text = render(measure(Path(directory)))
    page = PAGE.read_text("utf-8")
    PAGE.write_text(re.sub(f"{START}.*{END}", lambda _: text, page, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main()
