"""The last step if the target is a URL: full uploads are completed, what makes them a model last of all.

An object store cannot rename, so an old model cannot be set aside: what makes it a model is removed first. From then on
until the new one is complete there is none, and never a mixture. All bytes are there already, so this takes only a
moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from dcptools.errors import BrokenCheckpoint, DcptoolsError, TargetError, system_errors
from dcptools.shards import ShardPlan
from dcptools.storage import FileState, RemoteSink, Source, open_source
from dcptools.writer.completed import CompletedFiles
from dcptools.writer.engine import OutputEngine
from dcptools.writer.publishing import DURING, reason, refuse_changes, stage_others
from dcptools.writer.swap import INDEXES, MAX_INDEX_BYTES, STARTS, named_by, names_of_model
from dcptools.writer.target import URL_JOURNAL, planned_names


def publish_to_url(files: CompletedFiles, engine: OutputEngine) -> list[tuple[str, OSError]]:
    """Complete the uploads in place of an old model; returns what is left of the old one, and why.

    Raises
    ------
    TargetError, BrokenCheckpoint
        Something failed; what was completed is removed again, and an old model is gone if its removal had begun.
    """
    plan, url, sink = files.plan, files.url, files.sink
    stage_others(plan, sink, sync=False)
    refuse_changes(plan.checkpoint, *DURING)
    source = open_source(url)
    *others, last = planned_names(plan)
    with system_errors(TargetError, f"The output {url} cannot be read"):
        old = _old_model(source, plan.kind)
    gone = [name for name in old if name in STARTS[plan.kind]]
    try:
        for name in gone:
            sink.remove(name)
        engine.commit([name for name in others if name not in files.finished])
        before = _checked(plan, source, others)
        engine.commit([last])
        if _checked(plan, source, [*others, last]) != before | {last: source.state(last)}:
            raise OSError("another run writes there")
    except BaseException as error:
        kept = files.kept(error)
        _remove(sink, [name for name in (last, *others) if name not in kept])
        if isinstance(error, OSError) and not isinstance(error, DcptoolsError):
            lost = " The old model is gone: an object store cannot set it aside." if gone else ""
            raise TargetError(f"Publishing {url} failed: {reason(error)}.\n{files.told(error)}{lost}") from error
        raise
    return _remove(sink, [name for name in old if name not in {*others, last, *gone}])


def _old_model(source: Source, kind: str) -> list[str]:
    """The files of the old model, and what a stopped run left beside its own."""
    names = source.entries() if source.kind() == "directory" else []
    states = source.states([name for name in INDEXES if name in names])
    small = [name for name, state in states.items() if state is not None and state.nbytes <= MAX_INDEX_BYTES]
    old = names_of_model(names, {named for name in small for named in named_by(source.content(name))}, kind)
    return [*old, *(name for name in names if name == URL_JOURNAL)]


def _checked(plan: ShardPlan, source: Source, names: Iterable[str]) -> dict[str, FileState | None]:
    """The states of what was uploaded; shards have the planned size and header."""
    states = source.states(names)
    shards = [file for file in plan.files if file.filename in states]
    if source.ahead:
        source.will_read((file.filename, 0, len(file.header)) for file in shards)
    for file in shards:
        state, header = states[file.filename], bytearray(len(file.header))
        if state is not None and state.nbytes == file.nbytes:
            source.read_into(file.filename, 0, memoryview(header))
        if header != file.header:
            raise BrokenCheckpoint(f"{file.filename} was uploaded, but is not what was planned. Nothing was kept.")
    source.close()
    return states


def _remove(sink: RemoteSink, names: Iterable[str]) -> list[tuple[str, OSError]]:
    """Remove files; returns those that are still there, and why."""
    left = []
    for name in names:
        try:
            with contextlib.suppress(FileNotFoundError):
                sink.remove(name)
        except OSError as error:
            left.append((name, error))
    return left
