"""The lock of an output directory, and what a killed run left there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dcptools.errors import TargetError
from dcptools.storage import TEMPORARY
from dcptools.writer.swap import Swap
from dcptools.writer.target import remains

LOCK = f"{TEMPORARY}lock"


@contextmanager
def locked(save_dir: Path) -> Iterator[None]:
    """Create the directory, keep other runs out of it, and undo or finish a replacement that was killed.

    Directories made here are removed again if they stay empty.

    Raises
    ------
    TargetError
        Another run writes there, or the directory cannot be created or put right.
    """
    missing = [path for path in (save_dir, *save_dir.parents) if not path.exists()]
    try:
        with _lock_file(save_dir):
            with _in_the_way(save_dir):
                Swap(save_dir).recover()
            yield
    finally:
        for directory in missing:
            with contextlib.suppress(OSError):
                directory.rmdir()


def clear_remains(save_dir: Path, but: Collection[str] = ()) -> None:
    """Remove the temporary files of a run that was killed, all ``but`` these paths.

    Raises
    ------
    TargetError
        One cannot be removed.
    """
    for path in remains(save_dir):
        if str(path) in but:
            continue
        with _in_the_way(path):
            path.unlink(missing_ok=True)


@contextmanager
def _in_the_way(path: Path) -> Iterator[None]:
    """Errors from the system say that they concern what a killed run left."""
    try:
        yield
    except OSError as error:
        raise TargetError(
            f"{error.filename or path} of a run that was killed is in the way: {error.strerror}.\nRemove it, or give "
            "another directory."
        ) from None


@contextmanager
def _lock_file(save_dir: Path) -> Iterator[None]:
    """Make the directory, and hold its lock."""
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        lock = _acquire(save_dir / LOCK)
    except OSError as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(
            f"{save_dir} cannot be written to: {error.strerror}.\nGive a directory that you may write to."
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # one that stays does no harm
            (save_dir / LOCK).unlink()
        os.close(lock)


def _acquire(path: Path) -> int:
    """A locked descriptor of the lock file, which another run may be removing at this moment."""
    import fcntl

    while True:
        if path.is_symlink() or path.is_dir():
            what = "symlink" if path.is_symlink() else "directory"
            raise TargetError(
                f"{path} is a {what} where dcptools needs a file of its own.\nRemove it, or give another directory."
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
        os.close(descriptor)  # the other run has just removed its lock file
