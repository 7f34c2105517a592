"""The output directory: what may be there, the lock, and the last step that makes files a model."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dcptools._table import format_bytes, some
from dcptools.assets import CONFIG
from dcptools.checkpoint import Checkpoint
from dcptools.errors import BrokenCheckpoint, OutputExists, TargetError, system_errors
from dcptools.shards import INDEX, ShardFile, ShardPlan
from dcptools.storage import TEMPORARY, LocalSink
from dcptools.writer._swap import Swap, is_file, old_model

LOCK = f"{TEMPORARY}lock"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
SPARE_BYTES = 16 << 20  # for directory entries and a neighbour's log
COPY_BYTES = 1 << 20  # of an asset at a time
SINCE = ("changed since it was read", "Nothing was written. Read it again when nothing writes there any more.")
DURING = (
    "changed while it was converted",
    "Nothing was kept. Convert again when nothing writes there any more, or a copy.",
)


def check_target(plan: ShardPlan, save_dir: Path, *, overwrite: bool) -> None:
    """Refuse a directory that must not be written to. Nothing is created yet.

    Raises
    ------
    OutputExists, TargetError
    """
    checkpoint = Path(plan.checkpoint.path)
    there = _existing(save_dir)
    if not there.is_dir():
        what = "is a file" if there == save_dir else f"cannot be made: {there} is a file"
        raise TargetError(f"The output {save_dir} {what}.\nGive a directory, new or without a model in it.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise TargetError(f"{there} cannot be written to: permission denied.\nGive a directory of yours.")
    for file in plan.checkpoint.files:
        if _same(save_dir, (checkpoint / file.name).parent):
            raise TargetError(
                f"The output {save_dir} is where the checkpoint's own files are.\nGive another directory."
            )
    if plan.assets is not None and _same(save_dir, Path(plan.assets.directory)):
        raise TargetError(f"The output {save_dir} is the assets directory itself.\nGive another directory.")
    existing = existing_weights(save_dir)
    if existing and not overwrite:
        raise OutputExists(
            f"{save_dir} already holds {some(existing, 3)}.\nNothing was written. Give another directory, or overwrite "
            "(--overwrite, overwrite=True): that replaces a model, and leaves weights of something else."
        )
    _refuse_what_is_in_the_way(plan, save_dir)
    _check_space(plan, save_dir)


def existing_weights(save_dir: Path) -> list[str]:
    """The names in the directory that are weights of any kind or an index of weights.

    More than what is replaced (``old_model``): who names a directory with weights in it may mean another one.
    """
    if not save_dir.is_dir():
        return []
    names = {entry.name for entry in save_dir.iterdir() if is_file(entry) and not entry.name.startswith(TEMPORARY)}
    found = Swap(save_dir).after_recovery(names)
    return sorted(name for name in found if any(fnmatch(name, pattern) for pattern in _WEIGHTS))


def _refuse_what_is_in_the_way(plan: ShardPlan, save_dir: Path) -> None:
    swap = Swap(save_dir)
    if os.path.lexists(swap.before) and not swap.begun:
        raise TargetError(f"{swap.before} is in the way.\nNothing was written. Remove it, or give another directory.")
    for path in (save_dir / name for name in _names(plan)):
        if os.path.lexists(path) and not is_file(path):
            raise TargetError(
                f"{path} is a directory, and a file of that name is to be written.\nNothing was written. Remove it, or "
                "give another directory."
            )


def _names(plan: ShardPlan) -> list[str]:
    """The files that are written, in the order in which they get their names; the last one makes them a model."""
    assets = plan.assets.files if plan.assets else ()
    index = [INDEX] if plan.index is not None else []
    return [asset.name for asset in assets] + [file.filename for file in plan.files] + index


def free_bytes(save_dir: Path) -> int:
    """Free bytes on the file system of a directory that need not exist yet."""
    return shutil.disk_usage(_existing(save_dir)).free


def _existing(save_dir: Path) -> Path:
    """The directory itself, or the nearest above it that is there."""
    with system_errors(TargetError, f"The output {save_dir} cannot be used"):
        return next(path for path in (save_dir, *save_dir.absolute().parents) if _is_there(path))


def _is_there(path: Path) -> bool:
    """As ``Path.exists``, but with an OSError for a name that is too long, and for a symlink that leads to itself."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_space(plan: ShardPlan, save_dir: Path) -> None:
    assets = sum(file.nbytes for file in plan.assets.files) if plan.assets else 0
    stale = sum(path.lstat().st_blocks * 512 for path in _leftovers(save_dir))  # they go before anything is written
    needed, free = plan.file_bytes + assets + SPARE_BYTES, free_bytes(save_dir) + stale
    if needed > free:
        raise TargetError(
            f"{save_dir} has {format_bytes(free)} free, and {format_bytes(needed)} are needed.\nNothing was written. "
            "Free some space, or give a directory on another disk. (With overwrite, the old files go last.)"
        )


def _leftovers(save_dir: Path) -> list[Path]:
    """Temporary files of a run that was killed; of a run that is going on if the lock is taken."""
    return [path for path in save_dir.glob(f"{TEMPORARY}*.tmp") if is_file(path)]


@contextmanager
def locked(save_dir: Path) -> Iterator[None]:
    """Create the directory, keep other runs out of it, and put right what a killed run left there.

    Directories made here go again if they stay empty.

    Raises
    ------
    TargetError
        Another run writes there, or the directory cannot be created or put right.
    """
    missing = [path for path in (save_dir, *save_dir.parents) if not path.exists()]
    try:
        with _lock_file(save_dir):
            _put_right(save_dir)
            yield
    finally:
        for directory in missing:
            with contextlib.suppress(OSError):
                directory.rmdir()


def _put_right(save_dir: Path) -> None:
    path = save_dir
    try:
        Swap(save_dir).recover()
        for path in _leftovers(save_dir):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise TargetError(
            f"{error.filename or path} of a run that was killed is in the way: {error.strerror}.\nRemove it, or give "
            "another directory."
        ) from None


@contextmanager
def _lock_file(save_dir: Path) -> Iterator[None]:
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        lock = _acquire(save_dir / LOCK)
    except OSError as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(f"{save_dir} cannot be written to: {error.strerror}.\nGive a directory of yours.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # one that stays is in nobody's way
            (save_dir / LOCK).unlink()
        os.close(lock)


def _acquire(path: Path) -> int:
    import fcntl

    while True:
        if path.is_symlink():
            raise TargetError(
                f"{path} is a symlink, and a file of dcptools belongs there.\nRemove it, or give another directory."
            )
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise TargetError(
                f"Another run is writing to {path.parent}.\nWait for it, or give another directory."
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # the other run removed its lock file just now


def verify(file: ShardFile, path: str) -> None:
    """Open a finished file with safetensors and compare what it says with the plan.

    Raises
    ------
    BrokenCheckpoint
        They differ: a bug, or a disk that loses writes.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Any] = {}
    with contextlib.suppress(SafetensorError), safe_open(path, framework="numpy") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    wanted = {t.output.name: (t.dtype.code, t.output.shape) for t in file.tensors}
    if found != wanted or os.path.getsize(path) != file.nbytes:
        raise BrokenCheckpoint(f"{file.filename} is not what was planned after writing it. Nothing was kept.")


def refuse_changes(checkpoint: Checkpoint, what: str, advice: str) -> None:
    """Hold the checkpoint's files against what was read.

    Raises
    ------
    BrokenCheckpoint
        One was written to, replaced or removed: what is converted may be of two saves.
    """
    if changed := checkpoint.changed_files():
        raise BrokenCheckpoint(
            f"The checkpoint {checkpoint.path} {what}: {some(changed)} "
            f"{'was' if len(changed) == 1 else 'were'} written to, replaced or removed.\n{advice}"
        )


def publish(plan: ShardPlan, save_dir: Path, sink: LocalSink, *, sync: bool) -> list[tuple[str, OSError]]:
    """Make the staged files a model, in place of an old one; returns what is left of that, and why.

    At no moment does an old index name new shards. If a step fails, the old files are back.
    """
    _stage_assets(plan, sink, sync=sync)
    if plan.index is not None:
        _stage(sink, INDEX, plan.index, sync=sync)
    refuse_changes(plan.mapping.checkpoint, *DURING)
    *others, last = _names(plan)
    swap = Swap(save_dir)
    try:
        swap.put_aside(old_model(save_dir), (*others, last))
        for name in others:
            sink.commit(name)
        if sync:
            _sync_directory(save_dir)
        sink.commit(last)
        if sync:
            _sync_directory(save_dir)
    except BaseException as error:
        _undo(swap, error)
        raise
    return swap.clean()


def _undo(swap: Swap, error: BaseException) -> None:
    try:
        swap.undo()
    except OSError as second:
        raise TargetError(
            f"Writing to {swap.directory} failed: {reason(error)}.\nWhat was there before is in {swap.before}, and "
            f"could not be put back: {reason(second)}.\nThe next run into this directory tries it again."
        ) from error


def reason(error: BaseException) -> str:
    """What went wrong, in the words of the system if it is its error, with the file concerned."""
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    return (error.strerror or str(error)) + (f": {error.filename}" if error.filename else "")


def _stage_assets(plan: ShardPlan, sink: LocalSink, *, sync: bool) -> None:
    assets = plan.assets
    if assets is None:
        return
    for file in assets.files:
        rewritten = assets.config_for(plan.written_dtype) if file.name == CONFIG else None
        if rewritten is not None:
            _stage(sink, file.name, rewritten, sync=sync)
        else:
            _copy(sink, file.name, Path(assets.directory) / file.name, sync=sync)


def _copy(sink: LocalSink, name: str, path: Path, *, sync: bool) -> None:
    with open(path, "rb") as source:
        sink.create(name, os.fstat(source.fileno()).st_size)
        while piece := source.read(COPY_BYTES):
            sink.write(name, source.tell() - len(piece), memoryview(piece))
    sink.finish(name, sync=sync)


def _stage(sink: LocalSink, name: str, content: bytes, *, sync: bool) -> None:
    sink.create(name, len(content))
    sink.write(name, 0, memoryview(content))
    sink.finish(name, sync=sync)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and os.path.samefile(one, other)
