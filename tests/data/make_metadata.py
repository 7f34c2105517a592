"""Makes a small ``.metadata`` with the torch that is installed: ``python make_metadata.py OUT`` writes OUT/<version>.

It was run in a virtual environment for each of the versions in ``metadata/``, with ``torchrun``'s own launcher: two
processes, whose tensors are cut along dimension 0, and an optimizer's state. The values are not kept.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp

try:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
except ImportError:
    from torch.distributed._tensor import Shard, distribute_tensor
    from torch.distributed.device_mesh import init_device_mesh


def save(rank: int, directory: str) -> None:
    store = dist.FileStore(f"{directory}-store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    names = [f"layers.{layer}.{name}.weight" for layer in range(6) for name in ("q_proj", "o_proj")]
    model = {name: distribute_tensor(torch.zeros(8, 4), mesh, [Shard(0)]) for name in names}
    moments = {f"state.{name}.exp_avg": distribute_tensor(torch.zeros(8, 4), mesh, [Shard(0)]) for name in names}
    state = {"model": model, "optimizer": {**moments, "lr": 1e-3}, "step": 7}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(directory))
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        mp.spawn(save, (f"{name}/checkpoint",), nprocs=2)
        version = torch.__version__.partition("+")[0]
        shutil.copy(f"{name}/checkpoint/.metadata", Path(sys.argv[1], version))
