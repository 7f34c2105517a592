"""Conversions to a bucket, and comparisons from afar.

``python -m tests.bench.bucket [PARAMETERS]`` prints two tables. The first, which docs/remote.md has too, is the peak
memory of conversions to moto's S3 server on the loopback with 1, 2 and 4 workers, beside what the plan predicts. The
second is how much faster ``verify`` and ``diff`` are than one read after another, from :mod:`tests.bench.far`.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.process import MAXRSS_UNIT, module

WORKERS = (1, 2, 4)
LATENCY = 0.05  # seconds
ROUNDS = 5  # of which the one that was disturbed least counts
SHARD_SIZE = "64MB"
MB = 1_000_000


def main(parameters: int) -> None:
    with tempfile.TemporaryDirectory(prefix="dcptools-bucket-") as name, _server() as environment:
        place = Path(name)
        step, model, there = place / "step", place / "model", "s3://bucket/step"
        _child({}, "make", step, parameters)
        _child(environment, "put", step, there)
        print("| from | workers | peak, of which libraries | predicted |\n| --- | --- | --- | --- |")
        for source in (step, there):
            for workers in WORKERS:
                found = _child(environment, "convert", source, "s3://bucket/out", workers)
                peak, libraries, predicted = (f"{found[key] / MB:.0f}" for key in ("peak", "libraries", "predicted"))
                where = "the disk" if source == step else "the bucket"
                print(f"| {where} | {workers} | {peak} MB, {libraries} MB | {predicted} MB |", flush=True)
        _child({}, "convert", step, model, 2)
        print("\n| 50 ms a read | one after another | ours | ratio |\n| --- | --- | --- | --- |")
        for what in ("verify", "diff"):
            runs = [_child({}, what, step, model) for _ in range(ROUNDS)]
            found = min(runs, key=lambda run: float(run["seconds"]))
            alone, ours = found["reads"] * LATENCY, found["seconds"]
            print(f"| `{what}` | {alone:.1f} s | {ours:.1f} s | {alone / ours:.1f} |", flush=True)


def _child(environment: dict[str, str], *words: object) -> dict[str, Any]:
    """One measurement, in a process of its own; what it prints."""
    done = subprocess.run(
        module("bucket", *words), env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE
    )
    found: dict[str, Any] = json.loads(done.stdout or b"{}")
    return found


@contextmanager
def _server() -> Iterator[dict[str, str]]:
    """The environment in which S3 is a server on the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.2)
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        yield {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        server.terminate()


def make(step: str, parameters: str) -> None:
    """A file for each tensor: the server reads the whole of a file for each range of it."""
    import torch
    from torch.distributed.checkpoint import FileSystemWriter, save

    rows = 3072
    layers = max(8, int(parameters) // (rows * 1024))
    state = {f"model.layers.{n:03}.weight": torch.rand(rows, 1024) for n in range(layers)}
    save({"model": state}, storage_writer=FileSystemWriter(step, single_file_per_rank=False), no_dist=True)


def put(step: str, there: str) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.mkdir("bucket")
    fs.put(step, there, recursive=True)


def convert(load_dir: str, save_dir: str, workers: str) -> dict[str, Any]:
    import safetensors  # noqa: F401
    import torch  # noqa: F401

    import dcptools

    if "s3://" in save_dir:
        import s3fs  # noqa: F401
    libraries = _peak()
    plan = dcptools.plan(load_dir, SHARD_SIZE)
    dcptools.write(plan, save_dir, workers=int(workers), overwrite=True)
    return {
        "libraries": libraries,
        "peak": _peak(),
        "predicted": plan.peak_bytes_with(int(workers), save_dir),
    }


def verify(step: str, model: str) -> dict[str, Any]:
    import dcptools

    return _from_afar(lambda: dcptools.verify(model, step).ok)


def diff(step: str, model: str) -> dict[str, Any]:
    import dcptools

    return _from_afar(lambda: dcptools.diff(step, model, cast=True).same)


def _from_afar(compare: Callable[[], bool]) -> dict[str, Any]:
    from tests.bench.far import Far, install  # torch is imported with it

    far = Far(LATENCY)
    install(far)
    start = time.perf_counter()
    assert compare()
    return {"seconds": time.perf_counter() - start, "reads": far.reads}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


if __name__ == "__main__":
    if len(sys.argv) > 2:
        roles = {"make": make, "put": put, "convert": convert, "verify": verify, "diff": diff}
        print(json.dumps(roles[sys.argv[1]](*sys.argv[2:]) or {}))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 150_000_000)
