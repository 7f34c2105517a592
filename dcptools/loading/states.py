"""``load_state_dict``: name to tensor, straight from the checkpoint, with the values that ``write`` would write."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dcptools._globs import matching
from dcptools._parallel import Progress, default_workers
from dcptools._progress import bar
from dcptools._text import counted, format_bytes
from dcptools.checkpoint import Checkpoint
from dcptools.errors import UsageError
from dcptools.loading.memory import MemorySink, check_fits
from dcptools.mapping import KeyMapping
from dcptools.shards import PlannedTensor, ShardFile, ShardPlan, plan
from dcptools.writer import Engine, refuse_changes

if TYPE_CHECKING:
    import torch

CHANGED = ("changed since it was read", "Read it again when nothing is writing to it.")


def load_state_dict(
    mapping: KeyMapping | Checkpoint | str | os.PathLike[str],
    keys: Sequence[str] | str | None = None,
    *,
    dtype: str | torch.dtype = "bfloat16",
    dtype_for: Mapping[str, str | torch.dtype] | Iterable[str | tuple[str, str | torch.dtype]] = (),
    lazy: bool = False,
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
) -> Mapping[str, torch.Tensor]:
    """The tensors that :func:`dcptools.write` would write, by name, in memory. Nothing is written.

    The values are the same bit for bit, except NaN in the casts of some dtypes: they are read and cast by the same
    code.

    Parameters
    ----------
    mapping
        What :func:`dcptools.preview` returned; or a checkpoint or a path, previewed with the defaults.
    keys
        Globs on the names of the result; all of them by default.
    dtype, dtype_for
        As in :func:`dcptools.plan`.
    lazy
        Read nothing now. The returned mapping reads a tensor each time it is looked up, and keeps none.
    workers, progress, cancel
        As in :func:`dcptools.write`; bytes are those of the loaded tensors.

    Raises
    ------
    NotEnoughMemory
        It does not fit; nothing was read.
    FindingsError
        There are findings of severity ``error``.
    UsageError
        An option cannot be used, or no name matches.
    BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint
        A stored item is damaged, or in an encoding that is not read; or a file has changed since it was read.
    Cancelled
        The event was set.

    Examples
    --------
    >>> state = load_state_dict(demo.checkpoint, "model.layers.0.*norm.weight", dtype="keep")
    >>> state["model.layers.0.input_layernorm.weight"].dtype
    torch.float32
    """
    planned = plan(mapping, dtype=dtype, dtype_for=dtype_for)
    tensors = chosen(planned, keys)
    return LazyStateDict(planned, tensors, workers) if lazy else load(planned, tensors, workers, progress, cancel)


class LazyStateDict(Mapping[str, "torch.Tensor"]):
    """The tensors of a plan by name, each read when it is looked up."""

    def __init__(self, planned: ShardPlan, tensors: Sequence[PlannedTensor], workers: int | None = None) -> None:
        self._plan, self._workers = planned, workers
        self._tensors = {tensor.output.name: tensor for tensor in tensors}

    def __getitem__(self, name: str) -> torch.Tensor:
        return load(self._plan, [self._tensors[name]], self._workers)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # that of Mapping would read the tensor

    def __repr__(self) -> str:
        nbytes = sum(tensor.nbytes for tensor in self._tensors.values())
        return (
            f"<{counted(len(self), 'tensor')} of {self._plan.checkpoint.path}, {format_bytes(nbytes)}, read when used>"
        )


def chosen(planned: ShardPlan, keys: Sequence[str] | str | None) -> list[PlannedTensor]:
    """The tensors whose names match, sorted by name; raises UsageError if there are none."""
    tensors = {tensor.output.name: tensor for file in planned.files for tensor in file.tensors}
    names = sorted(tensors)
    found = matching(names, keys, "No name matches", f"Give names of the result, such as {names[0]!r}.")
    return [tensors[name] for name in found]


def load(
    planned: ShardPlan,
    tensors: Sequence[PlannedTensor],
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, torch.Tensor]:
    """Tensors of a plan by name, each in memory of its own."""
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers cannot read anything.\nGive 1 or more.")
    check_fits(sum(tensor.nbytes for tensor in tensors))
    refuse_changes(planned.checkpoint, *CHANGED)
    sink = MemorySink()
    files = [_alone(tensor) for tensor in tensors]
    engine = Engine(planned, sink, files, workers=workers or default_workers(), sync=False)
    try:
        with bar(progress, "loading") as report:
            engine.run(report, cancel)
    finally:
        planned.checkpoint.source.close()
    refuse_changes(planned.checkpoint, *CHANGED)
    return {tensor.output.name: _typed(sink.values[tensor.output.name], tensor) for tensor in tensors}


def _alone(tensor: PlannedTensor) -> ShardFile:
    """A tensor as a file that contains nothing but its values."""
    output = tensor.output
    return ShardFile(output.name, b"", (PlannedTensor(output, tensor.dtype, 0, tensor.nbytes),), tensor.nbytes)


def _typed(values: torch.Tensor, tensor: PlannedTensor) -> torch.Tensor:
    import torch

    dtype: torch.dtype = getattr(torch, tensor.dtype.name)
    return values.view(dtype).reshape(tensor.output.shape)
