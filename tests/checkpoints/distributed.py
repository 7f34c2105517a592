"""Checkpoints that four real processes save together, in one launch for all cases.

Imported, this file starts itself as a program; that imports torch once, forks the ranks, and joins them by gloo
(``torch.distributed.run`` would import torch five times, which is most of the time). Beside each checkpoint lies
``<case>.expected.pt``: the whole tensors, by their keys in the checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.multiprocessing.spawn import start_processes

State = dict[str, Any]


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every element differs, so a misplaced chunk shows (bfloat16 holds integers up to 256)."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def place(mesh: DeviceMesh, tensors: Mapping[str, tuple[Tensor, Sequence[Placement]]]) -> State:
    return {"model": {f"model.{name}": distribute_tensor(t, mesh, p) for name, (t, p) in tensors.items()}}


def mesh1d() -> DeviceMesh:
    return init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))


def mesh2d() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))


# --- the cases: each gives the state of this rank ---------------------------------------------------------------


def shard0_even() -> State:
    """FSDP: rows cut in four equal parts."""
    return place(mesh1d(), {"w": (rows(8, 6), [Shard(0)]), "b": (rows(4), [Shard(0)])})


def shard0_uneven() -> State:
    """Rows that four does not divide (3, 3, 3, 1; 2, 2, 1 and none), and fewer rows than ranks: no chunk on some."""
    tensors = {f"rows{n}": (rows(n, 6), [Shard(0)]) for n in (10, 5, 2, 1)}
    return place(mesh1d(), tensors)


def shard1() -> State:
    """Tensor parallel: columns, evenly and unevenly; bytes of one row lie in four files."""
    return place(mesh1d(), {"even": (rows(3, 8), [Shard(1)]), "uneven": (rows(5, 7), [Shard(1)])})


def shard_last_of_three() -> State:
    """Three dimensions (stacked experts), cut along the last and along the middle one."""
    return place(mesh1d(), {"last": (rows(2, 3, 6), [Shard(2)]), "middle": (rows(2, 5, 3), [Shard(1)])})


def mesh_2d() -> State:
    """FSDP and tensor parallel on a 2x2 mesh: blocks, evenly and unevenly."""
    both: Sequence[Placement] = [Shard(0), Shard(1)]
    return place(mesh2d(), {"even": (rows(4, 6), both), "uneven": (rows(5, 3), both)})


def mesh_2d_same_dimension() -> State:
    """Both mesh dimensions cut the rows, as expert parallel with FSDP does: the rows go by rank, left to right."""
    twice: Sequence[Placement] = [Shard(0), Shard(0)]
    return place(mesh2d(), {"even": (rows(8, 3), twice), "uneven": (rows(7, 3), twice)})


def fsdp_tp() -> State:
    """FSDP2 over tensor-parallel rows (``_StridedShard``): a rank's rows are not where its number suggests."""
    mesh = mesh2d()
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3))
    for parameter in model.parameters():
        parameter.data = rows(*parameter.shape)
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    return {"model": {f"model.{name}": t for name, t in model.state_dict().items()}}


def replicated() -> State:
    """Replicas as DTensor and as plain tensors: DCP keeps one copy, on a rank that it chooses."""
    state = place(mesh1d(), {"dtensor": (rows(4, 3), [Replicate()])})
    state["model"]["model.plain"] = rows(3, 4)
    return state


def hsdp() -> State:
    """Hybrid FSDP: replicated over one mesh dimension, cut over the other."""
    hybrid: Sequence[Placement] = [Replicate(), Shard(0)]
    return place(mesh2d(), {"even": (rows(8, 3), hybrid), "uneven": (rows(5, 3), hybrid)})


def dtypes() -> State:
    """0-dimensional tensors, bfloat16, int64 and booleans, cut and whole."""
    return place(mesh1d(), {
        "scalar": (torch.tensor(2.5), [Replicate()]),
        "bfloat16": (rows(9, 4, dtype=torch.bfloat16), [Shard(0)]),
        "int64": (rows(6) + (1 << 40), [Shard(0)]),
        "bool": (rows(7) % 2 == 0, [Shard(0)]),
    })  # fmt: skip


def strided() -> State:
    """Local tensors that are not contiguous, as ``.t()`` of a DTensor leaves them: (12, 8) cut along dimension 1."""
    transposed: Any = distribute_tensor(rows(8, 12), mesh1d(), [Shard(0)]).t()
    assert not transposed.to_local().is_contiguous()
    return {"model": {"model.w": transposed}}


def threads() -> State:
    """``thread_count=2``: several files per rank, some of them with 0 bytes."""
    return place(mesh1d(), {f"layers.{n}.w": (rows(6, 4) + n, [Shard(0)]) for n in range(3)})


def file_per_item() -> State:
    """``single_file_per_rank=False``: a file for every chunk."""
    return threads()


def fsdp2() -> State:
    """A model under ``fully_shard`` with Adam after one step, through ``get_state_dict``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 5), nn.LayerNorm(5))
    for layer in model:
        fully_shard(layer, mesh=mesh1d())
    fully_shard(model, mesh=mesh1d())
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(10)).sum().backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    return {"model": {f"model.{k}": v for k, v in weights.items()}, "optimizer": moments, "step": 1}


def per_rank_metadata() -> State:
    """``use_collectives=False``: ``__<rank>.metadata`` files, no ``.metadata``; a rank knows its own chunks only."""
    return shard0_uneven()


def hf_dcp() -> State:
    """``HuggingFaceStorageWriter(save_distributed=True)``: ``shard-*-model-*.safetensors`` and no ``.metadata``."""
    return shard0_uneven()


CASES: dict[str, Callable[[], State]] = {
    case.__name__: case
    for case in (
        shard0_even, shard0_uneven, shard1, shard_last_of_three, mesh_2d, mesh_2d_same_dimension, fsdp_tp, replicated,
        hsdp, dtypes, strided, threads, file_per_item, fsdp2, per_rank_metadata, hf_dcp,
    )
}  # fmt: skip
WITHOUT_METADATA = ("per_rank_metadata", "hf_dcp")
WRITER_OPTIONS: dict[str, dict[str, Any]] = {
    "threads": {"thread_count": 2},
    "fsdp2": {"thread_count": 2},
    "file_per_item": {"single_file_per_rank": False},
}


# --- the side that starts the processes -------------------------------------------------------------------------


def save_cases(directory: Path, world_size: int = 4, timeout: float = 120.0) -> dict[str, Path]:
    """All checkpoints, by the name of their case; a directory that already has them is taken as it is.

    A lock lets several test workers share ``directory``: the first one makes the checkpoints, the others wait.
    """
    if world_size != 4:
        raise ValueError("the meshes of the cases are made for 4 ranks")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "done").exists():
            launch("checkpoints.distributed", directory, world_size, timeout)
            (directory / "done").touch()
    return {name: directory / name for name in CASES}


def launch(module: str, directory: Path, world_size: int, timeout: float) -> None:
    """Run a module as a program of so many processes; it calls :func:`main`."""
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment["PYTHONPATH"] = paths
    command = [sys.executable, "-m", module, str(directory), str(world_size)]
    done = subprocess.run(command, env=environment, timeout=timeout, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"saving failed with status {done.returncode}:\n{done.stderr[-6000:]}")


def shared_cases(tmp_path_factory: Any) -> dict[str, Path]:
    """For a session fixture: one launch for a whole pytest run, also with pytest-xdist, and none left from before."""
    base: Path = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has its own base inside the one of the run
    return save_cases(base / "distributed")


def expected(checkpoint: Path) -> dict[str, Tensor]:
    """The whole tensors that the processes held, by key (model and optimizer tensors; no bytes entries)."""
    tensors: dict[str, Tensor] = torch.load(checkpoint.with_name(f"{checkpoint.name}.expected.pt"))
    return tensors


# --- the side of each process -----------------------------------------------------------------------------------


def _whole(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Gather every tensor of a nested state; all ranks must call it, in the same order."""
    if isinstance(state, DTensor):
        return {prefix: state.full_tensor().detach().contiguous()}
    if isinstance(state, Tensor):
        return {prefix: state.detach().clone()}
    if not isinstance(state, dict):
        return {}
    parts = [_whole(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in state.items()]
    return {key: tensor for part in parts for key, tensor in part.items()}


def _save_case(directory: Path, name: str) -> None:
    state = CASES[name]()
    target = directory / name
    writer: FileSystemWriter
    if name == "hf_dcp":
        state = state["model"]
        writer = HuggingFaceStorageWriter(str(target), save_distributed=True)
    else:
        writer = FileSystemWriter(target, sync_files=False, **WRITER_OPTIONS.get(name, {}))
    save(state, storage_writer=writer, use_collectives=name != "per_rank_metadata")
    tensors = _whole(state)
    if dist.get_rank() == 0:
        torch.save(tensors, directory / f"{name}.expected.pt")


def _save_all(directory: Path) -> None:
    for name in CASES:
        _save_case(directory, name)
        dist.barrier()


def _rank_main(rank: int, world_size: int, directory: Path, save_cases: Callable[[Path], None]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world_size)
    save_cases(directory)
    dist.destroy_process_group()


def main(save_cases: Callable[[Path], None], directory: Path, world_size: int) -> None:
    """Run a function in each of so many processes."""
    torch.set_num_threads(1)  # before the fork: a thread pool would not survive it
    start: Any = start_processes  # has no annotations
    start(_rank_main, (world_size, directory.resolve(), save_cases), world_size, start_method="fork")


if __name__ == "__main__":
    main(_save_all, Path(sys.argv[1]), int(sys.argv[2]))
