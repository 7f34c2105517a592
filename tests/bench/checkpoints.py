"""The checkpoints that are measured: each is made once, then found again in the directory given by ``--dir``."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.process import module, run


@dataclass(frozen=True)
class Maker:
    """How to make one kind of checkpoint, for :mod:`tests.bench.maker`."""

    kind: str
    ranks: int
    per_parameter: float = 1.0  # how much of it (parameters, or chunks) for each parameter that was asked for


QWEN = Maker("qwen", ranks=4)
ONE_TENSOR = Maker("one-tensor", ranks=1)
COLUMNS = Maker("columns", ranks=8, per_parameter=0.5)
EXPERTS = Maker("experts", ranks=4)
MANY_CHUNKS = Maker("many-chunks", ranks=0, per_parameter=1_280_000 / 500_000_000)


def get(directory: Path, maker: Maker, parameters: int) -> Path:
    """The checkpoint of this kind and size, made now unless it is there already."""
    amount = round(parameters * maker.per_parameter)
    path = directory / f"{maker.kind}-{amount}"
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        run(command(maker, unfinished, amount))
        unfinished.rename(path)
    return path


def command(maker: Maker, path: Path, amount: int) -> tuple[str, ...]:
    python, *arguments = module("maker", maker.kind, path, amount)
    if not maker.ranks:
        return (python, *arguments)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={maker.ranks}")
    return (*launcher, *arguments)
