"""What is looked at again after writing, shared out by files of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dcptools._parallel import Progress
from dcptools._progress import bar
from dcptools.checkpoint import Checkpoint
from dcptools.hf import Model, read_model
from dcptools.mapping import Output
from dcptools.ranks.share import shares
from dcptools.ranks.team import Job, Team
from dcptools.verifying import Difference, checksums, compare_values

Found = TypeVar("Found")


@dataclass(frozen=True)
class Order:
    """What a rank looks at."""

    model: str  # its path
    files: tuple[str, ...]
    names: frozenset[str]  # of the weights in them that matter
    check: bool  # the stored checksums of the checkpoint, too
    workers: int | None


class SharedChecks:
    """``compare_values`` and ``checksums`` with all ranks, which have the plan of the model."""

    def __init__(self, team: Team) -> None:
        self._team = team

    def compare(
        self,
        checkpoint: Checkpoint,
        outputs: Mapping[str, Output],
        model: Model,
        *,
        check: bool,
        workers: int | None,
        progress: Progress | bool | None,
        cancel: threading.Event | None = None,
    ) -> dict[str, list[Difference]]:
        """What differs, by name; as ``compare_values``."""
        nbytes = sum(output.nbytes + model.weights[name].nbytes for name, output in outputs.items())
        orders = self._orders(model, outputs, check, workers)

        def own(progress: Progress) -> dict[str, list[Difference]]:
            return _compare(self._team, checkpoint, outputs, model, orders[0], progress)

        return self._each(compare_part, orders, own, "verifying", nbytes, progress)

    def sum_up(
        self,
        model: Model,
        *,
        workers: int | None,
        progress: Progress | bool | None,
        cancel: threading.Event | None = None,
    ) -> dict[str, int]:
        """The CRC-32 of each weight's bytes, by name; as ``checksums``."""
        orders = self._orders(model, (), False, workers)

        def own(progress: Progress) -> dict[str, int]:
            return _sums(self._team, model, orders[0], progress)

        return self._each(sum_part, orders, own, "checksums", model.nbytes, progress)

    def _orders(self, model: Model, names: Iterable[str], check: bool, workers: int | None) -> list[Order]:
        files, wanted = list(model.by_file), set(names)
        weights = [sum(weight.nbytes for weight in model.by_file[file]) for file in files]
        return [
            Order(model.path, tuple(share), frozenset(names_in(model, share) & wanted), check, workers)
            for share in shares(files, weights, self._team.size)
        ]

    def _each(
        self,
        job: Job,
        orders: Sequence[Order],
        own: Callable[[Progress], dict[str, Found]],
        doing: str,
        total: int,
        progress: Progress | bool | None,
    ) -> dict[str, Found]:
        """Let each rank do its part; returns what all have found, by name."""
        with bar(progress, doing) as shown:

            def report(done: int, _: int, current: str) -> None:
                if shown is not None:
                    shown(done, total, current)

            parts = self._team.each(job, orders, own, report)
            report(total, 0, "")  # the last word of another rank may have been missed
        return {name: found for part in parts for name, found in part.items()}


def names_in(model: Model, files: Iterable[str]) -> set[str]:
    return {weight.name for file in files for weight in model.by_file[file]}


def compare_part(team: Team, order: Order, progress: Progress) -> dict[str, list[Difference]]:
    """Compare the values of some files with the checkpoint's."""
    assert team.plan is not None
    outputs = {tensor.output.name: tensor.output for file in team.plan.files for tensor in file.tensors}
    return _compare(team, team.plan.checkpoint, outputs, read_model(order.model), order, progress)


def _compare(
    team: Team,
    checkpoint: Checkpoint,
    outputs: Mapping[str, Output],
    model: Model,
    order: Order,
    progress: Progress,
) -> dict[str, list[Difference]]:
    mine = {name: output for name, output in outputs.items() if name in order.names}
    running: dict[str, Any] = {"workers": order.workers, "progress": progress, "cancel": team.pulse.stopped}
    return compare_values(checkpoint, mine, model, check=order.check, **running)


def sum_part(team: Team, order: Order, progress: Progress) -> dict[str, int]:
    """The checksums of the weights in some files."""
    return _sums(team, read_model(order.model), order, progress)


def _sums(team: Team, model: Model, order: Order, progress: Progress) -> dict[str, int]:
    return checksums(model, order.files, workers=order.workers, progress=progress, cancel=team.pulse.stopped)
