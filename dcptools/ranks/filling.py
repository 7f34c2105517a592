"""The files of a plan, filled by all ranks; ``write`` of rank 0 publishes them, as it does alone."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from dcptools._parallel import Progress
from dcptools._text import some
from dcptools.errors import BrokenCheckpoint, Cancelled, DcptoolsError
from dcptools.ranks.share import shares
from dcptools.ranks.team import Team
from dcptools.shards import ShardFile, ShardPlan
from dcptools.storage import OutputSink, commit_all
from dcptools.tensors import ItemPart
from dcptools.writer import Engine, Finish, Noticed, OutputEngine, Sizes

Seen = Mapping[str, tuple[int, int] | None]  # by file of the checkpoint: bytes, and when it was written to


@dataclass(frozen=True)
class Order:
    """What a rank fills, and how."""

    files: tuple[str, ...]
    sink: OutputSink
    seen: Seen  # by rank 0
    workers: int
    sync: bool
    sizes: Sizes | None
    keep: bool  # what is finished, whatever happens, for a run that continues with it


@dataclass(frozen=True)
class Filled:
    """What a rank counted."""

    noticed: dict[str, Noticed]  # by output name
    checked: int  # stored items
    without: int
    parts: list[ItemPart]  # of items that others read too


class SharedEngine(OutputEngine):
    """Fills its files together with all other ranks; made by rank 0."""

    def __init__(
        self,
        team: Team,
        plan: ShardPlan,
        sink: OutputSink,
        files: Sequence[ShardFile] | None = None,
        *,
        workers: int,
        sync: bool,
        sizes: Sizes | None = None,
        finished: Finish | None = None,
        keep: bool = False,
    ) -> None:
        self._tell, self._keep, self._output = finished, keep, sink
        self._team, self._all = team, plan.files if files is None else tuple(files)
        self._shares = shares(self._all, [file.nbytes for file in self._all], team.size)
        own = self._shares[0]
        super().__init__(plan, sink, own, workers=workers, sync=sync, sizes=sizes, finished=finished)

    def run(self, progress: Progress | None, cancel: threading.Event | None) -> None:
        total = sum(file.data_nbytes for file in self._all)

        def report(done: int, _: int, current: str) -> None:
            self._hear()
            if cancel is not None and cancel.is_set():
                raise Cancelled("Cancelled.")
            if progress is not None:
                progress(done, total, current)

        _send_plan(self._team, self.plan)
        seen = _seen(self.plan, self._all)
        parts = [
            Order(tuple(f.filename for f in share), self._output, seen, self.workers, self.sync, self.sizes, self._keep)
            for share in self._shares
        ]
        for file in self._all[len(self._shares[0]) :]:
            self._output.adopt(file.filename)  # to publish it, or to remove it if this fails
        try:
            _, *others = self._team.each(fill_part, parts, self._run_own, report)
        finally:
            self._hear()
        self._add(others)
        if progress is not None:
            progress(total, total, "")  # the last word of another rank may have been missed
        self.files = self._all  # so that the others' files are looked at here too before they are published

    def commit(self, names: Sequence[str]) -> None:
        """Give files their names: those that only another rank can commit are committed by that rank."""
        theirs = [[file.filename for file in share if file.filename in names] for share in self._shares[1:]]
        if self.sink.shared or not any(theirs):
            super().commit(names)
            return
        own = [name for name in names if not any(name in share for share in theirs)]
        self._team.each(commit_part, [own, *theirs], lambda progress: commit_all(self.sink, own))

    def _run_own(self, progress: Progress) -> None:
        super().run(progress, self._team.pulse.stopped)

    def _hear(self) -> None:
        """Pass on which files the others have finished."""
        files = {file.filename: file for file in self._all}
        for filename, crc, noticed in self._team.heard():
            if self._tell is not None:
                self._tell(files[filename], crc, noticed)

    def _add(self, others: Sequence[Filled]) -> None:
        """Count what the others have counted, and check the items that several ranks have read parts of."""
        for filled in others:
            self.tally.noticed.update(filled.noticed)
            self.checksums.checked += filled.checked
            self.checksums.without += filled.without
        self.checksums.join(part for filled in others for part in filled.parts)


def fill_part(team: Team, order: Order, progress: Progress) -> Filled:
    """Fill some files, and leave them for rank 0 under their temporary names."""
    assert team.plan is not None
    files = [file for file in team.plan.files if file.filename in set(order.files)]
    _refuse_other_files(team, team.plan, files, order.seen)

    def finished(file: ShardFile, crc: int, noticed: dict[str, Noticed]) -> None:
        team.tell((file.filename, crc, noticed))

    running: dict[str, Any] = {"workers": order.workers, "sync": order.sync, "sizes": order.sizes}
    engine = Engine(team.plan, order.sink, files, **running, finished=finished)
    team.sink = None if order.sink.shared else order.sink
    try:
        engine.run(progress, team.pulse.stopped)
    except BaseException:
        if order.keep:
            order.sink.close()
        else:
            order.sink.discard()
        raise
    finally:
        team.plan.checkpoint.source.close()
    sums = engine.checksums
    return Filled(engine.tally.noticed, sums.checked, sums.without, sums.parts())


def commit_part(team: Team, names: Sequence[str], progress: Progress) -> None:
    """Give files that were filled here their names."""
    if names:
        assert team.sink is not None
        commit_all(team.sink, names)


def _send_plan(team: Team, plan: ShardPlan) -> None:
    """Give the plan to all ranks, and hear from each that it has the same one.

    Raises
    ------
    DcptoolsError
        One does not: the ranks have different versions of something.
    """
    said = team.each(take_plan, [(os.getcwd(), plan)] * team.size, lambda progress: _known(team, plan))
    others = [f"{name}: {versions}" for name, versions, fingerprint in said if fingerprint != plan.fingerprint]
    if others:
        name, versions, _ = said[0]
        raise DcptoolsError(
            f"{some(others)} makes another plan from the same metadata than {name}: {versions}.\nNothing was written. "
            "Give all machines the same environment."
        )


def take_plan(team: Team, part: tuple[str, ShardPlan], progress: Progress) -> tuple[str, str, str]:
    """Keep the plan for what comes next; says what is made of it here."""
    directory, plan = part
    team.plan = replace(plan)  # without what rank 0 had worked out already, such as its fingerprint
    with contextlib.suppress(OSError):  # paths mean what they mean for rank 0
        os.chdir(directory)
    return _known(team, team.plan)


def _known(team: Team, plan: ShardPlan) -> tuple[str, str, str]:
    versions = ", ".join(f"{package} {version(package)}" for package in ("dcptools", "torch", "numpy"))
    return team.name, versions, plan.fingerprint


def _sources(plan: ShardPlan, files: Iterable[ShardFile]) -> list[str]:
    """The files of the checkpoint that have values for those files."""
    keys = {view.key for file in files for tensor in file.tensors for view in tensor.output.sources}
    return sorted({name for key in keys for name in plan.checkpoint[key].files})


def _seen(plan: ShardPlan, files: Iterable[ShardFile]) -> Seen:
    states = plan.checkpoint.source.states(_sources(plan, files))
    return {name: (state.nbytes, state.modified_ns) if state else None for name, state in states.items()}


def _refuse_other_files(team: Team, plan: ShardPlan, files: Sequence[ShardFile], seen: Seen) -> None:
    """Compare the files that this rank will read with those that rank 0 sees under the same names."""
    others = [name for name, state in _seen(plan, files).items() if state != seen[name]]
    if others:
        raise BrokenCheckpoint(
            f"{team.name} does not see the same files in {plan.checkpoint.path} as rank 0: {some(others)}.\n"
            "Give all machines "
            "the same directory, or copies with the same times (cp -a, rsync -a)."
        )
