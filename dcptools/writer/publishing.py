"""The last step: complete files become a model, if the checkpoint is still the one that was read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dcptools._text import some
from dcptools.assets import CONFIG, Asset
from dcptools.checkpoint import Checkpoint
from dcptools.errors import BrokenCheckpoint, TargetError, system_errors
from dcptools.shards import INDEX, ShardFile, ShardPlan
from dcptools.storage import LocalSink, Sink, Source, open_regular, open_source, pieces
from dcptools.writer.swap import Swap, old_model
from dcptools.writer.target import planned_names

SINCE = ("changed since it was read", "Nothing was written. Read it again when nothing is writing to it.")
DURING = (
    "changed while it was converted",
    "Nothing was kept. Convert again when nothing is writing to it, or convert a copy.",
)


def check_file(file: ShardFile, path: str) -> None:
    """Open a finished file with safetensors, which checks all places in it, and compare its header with the plan.

    Raises
    ------
    BrokenCheckpoint
        They differ: a bug, or a disk that loses writes.
    """
    from safetensors import SafetensorError, safe_open

    opens = False
    try:
        with contextlib.suppress(SafetensorError), safe_open(path, framework="numpy"):
            opens = True
    except FileNotFoundError:  # it says so, whatever the reason
        os.close(open_regular(Path(path)))
        raise
    with open(path, "rb") as written:
        header = written.read(len(file.header))
    if not opens or header != file.header or os.path.getsize(path) != file.nbytes:
        raise BrokenCheckpoint(f"{file.filename} was written, but is not what was planned. Nothing was kept.")


def refuse_changes(checkpoint: Checkpoint, what: str, advice: str) -> None:
    """Compare the checkpoint's files with what was read.

    Raises
    ------
    BrokenCheckpoint
        One was written to, replaced or removed: what is converted may be from two saves.
    """
    with system_errors(BrokenCheckpoint, f"The checkpoint {checkpoint.path} can no longer be read"):
        changed = checkpoint.changed_files()
    if changed:
        raise BrokenCheckpoint(
            f"The checkpoint {checkpoint.path} {what}: {some(changed)} "
            f"{'was' if len(changed) == 1 else 'were'} written to, replaced or removed.\n{advice}"
        )


def publish(plan: ShardPlan, save_dir: Path, sink: LocalSink, *, sync: bool) -> list[tuple[str, OSError]]:
    """Make the staged files a model, in place of an old one; returns what is left of the old one, and why.

    At no moment does an old index name new shards. If a step fails, the old files are put back. What interrupts the
    removal of the old files gets a note that the new model is complete.
    """
    stage_others(plan, sink, sync=sync)
    refuse_changes(plan.checkpoint, *DURING)
    *others, last = planned_names(plan)
    swap, whole = Swap(save_dir), False
    try:
        swap.put_aside(old_model(save_dir, plan.kind), (*others, last))
        for name in others:
            sink.commit(name)
        if sync:
            _sync_directory(save_dir)
        sink.commit(last)
        if sync:
            _sync_directory(save_dir)
        whole = True
        return swap.clean()
    except BaseException as error:
        if whole:
            left = f"; the next run there removes what is left of the old one in {swap.before}." if swap.begun else "."
            error.add_note(f"The new model is complete in {save_dir}{left}")
        else:
            _undo(swap, error)
        raise


def _undo(swap: Swap, error: BaseException) -> None:
    """Put the old files back, or say where they are."""
    try:
        swap.undo()
    except OSError as second:
        raise TargetError(
            f"Writing to {swap.directory} failed: {reason(error)}.\nThe old files are in {swap.before}, and "
            f"could not be restored: {reason(second)}.\nThe next run into this directory tries again."
        ) from error
    except BaseException as second:  # Ctrl-C once more
        second.add_note(f"The old files are in {swap.before}; the next run into this directory restores them.")
        raise


def reason(error: BaseException) -> str:
    """What went wrong, in the system's words if it is a system error, with the file concerned."""
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    return (error.strerror or str(error)) + (f": {error.filename}" if error.filename else "")


def stage_others(plan: ShardPlan, sink: Sink, *, sync: bool) -> None:
    """Stage everything that is not weights: the assets, with the written dtype in the config, and the index."""
    assets = plan.assets
    for file in assets.files if assets else ():
        assert assets is not None
        content = assets.config_for(plan.written_dtype) if file.name == CONFIG else file.content
        if content is not None:
            _stage(sink, file.name, content, sync=sync)
        else:
            _copy(sink, file, open_source(assets.directory), sync=sync)
    if plan.index is not None:
        _stage(sink, INDEX, plan.index, sync=sync)


def _copy(sink: Sink, file: Asset, source: Source, *, sync: bool) -> None:
    start, state = 0, source.state(file.name)
    sink.create(file.name, state.nbytes if state else 0)
    for piece in pieces(source, file.name):
        sink.write(file.name, start, memoryview(piece))
        start += len(piece)
    sink.finish(file.name, sync=sync)


def _stage(sink: Sink, name: str, content: bytes, *, sync: bool) -> None:
    sink.create(name, len(content))
    sink.write(name, 0, memoryview(content))
    sink.finish(name, sync=sync)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
