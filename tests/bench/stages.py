"""What each stage takes of a checkpoint with very many keys, chunks or outputs: CPU time, which others that are at work
on the machine disturb least, and the peak of memory.

``python -m tests.bench.stages LOAD_DIR SAVE_DIR WORKERS [NAMES]``. With names, the model of the ``config.json`` in
LOAD_DIR is known before the clock starts. Prints ``{"inspect": seconds, ...}``.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas  # noqa: F401  (a frame imports it)
import safetensors  # noqa: F401  (the writer imports it when it looks at what was written)
import torch  # noqa: F401  (... when it casts)

import dcptools
from tests.bench.known import know
from tests.bench.process import MAXRSS_UNIT

if TYPE_CHECKING:
    from dcptools.widgets._table import Table

Value = TypeVar("Value")


def measure(load_dir: str, save_dir: str, workers: int, names: str | None) -> dict[str, Any]:
    taken: dict[str, Any] = {}

    def timed(stage: str, work: Callable[[], Value]) -> Value:
        gc.collect()
        start = time.process_time()
        value = work()
        taken[stage] = time.process_time() - start
        return value

    model = {"model_assets_dir": load_dir, "names": names} if names else {}
    if names:
        know(Path(load_dir), Path(save_dir))
    checkpoint = timed("read", lambda: dcptools.read(load_dir))
    timed("inspect", lambda: dcptools.inspect(checkpoint))
    mapping = timed("preview", lambda: dcptools.preview(checkpoint, **model))
    timed("text and HTML", lambda: (str(mapping), mapping._repr_html_()))
    plan = timed("plan", lambda: dcptools.plan(mapping))
    timed("write", lambda: dcptools.write(plan, save_dir, workers=workers, fsync=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
    keys, found = tables(checkpoint, **model)
    timed("first rows of the keys", lambda: keys.receive({"kind": "look"}))
    timed("first rows of the mapping", lambda: found.receive({"kind": "look"}))
    timed("a search", lambda: found.ask(search="experts.7."))
    return {**taken, "outputs": len(mapping.outputs), "items": checkpoint.chunk_count, "peak_bytes": peak}


def tables(checkpoint: dcptools.Checkpoint, model_assets_dir: str = "", names: str = "stored") -> tuple[Table, Table]:
    """What the wizard shows of the keys, and of the mapping; nobody has looked at it yet."""
    from dcptools import widgets  # only now, when the peak is known

    step = widgets.Mapping(checkpoint, model_assets_dir)
    step.rules.fields["names"].value = names
    step.join()
    return widgets.Inspect(checkpoint).key_table, step.weights if step.mapping.fit else step.outputs


if __name__ == "__main__":
    load_dir, save_dir, workers, *names = sys.argv[1:]
    print(json.dumps(measure(load_dir, save_dir, int(workers), names[0] if names else None)))
