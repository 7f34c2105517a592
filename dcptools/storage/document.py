"""A file on the disk for people and programs to read: a report, a review, a table. Written whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from dcptools.errors import UsageError, system_errors
from dcptools.storage.urls import path_on_disk


def check_document(path: str | os.PathLike[str], what: str) -> Path:
    """The path, unless a file cannot be written there: to be called before the work that the file is about.

    Parameters
    ----------
    what
        What the file is, as at the beginning of a sentence: ``The report``.

    Raises
    ------
    UsageError
        It is at a URL, is a directory, or is not in a directory that can be written to.
    """
    target = path_on_disk(path, what)
    with system_errors(UsageError, f"{what} {target} cannot be written"):
        hindrance = _hindrance(target)
    if hindrance:
        raise UsageError(f"{what} {target} {hindrance}.\nGive the name of a file in an existing directory.")
    return target


def write_document(path: str | os.PathLike[str], what: str, text: str) -> Path:
    """Write such a file; an existing one is replaced, and a device or a pipe is written to.

    Raises
    ------
    UsageError
        As ``check_document``; or the disk is full.
    """
    target = check_document(path, what)
    with system_errors(UsageError, f"{what} {target} cannot be written"):
        try:
            if target.exists() and not target.is_file():
                target.write_text(text, encoding="utf-8")
            else:
                _replace(Path(os.path.realpath(target)), text)
        except OSError as error:
            error.filename = None  # it was named, and the temporary file's name means nothing to anybody
            raise
    return target


def takes_no_files(directory: Path) -> bool:
    """Whether its file system has no room for files, like ``/proc`` and ``/sys``, whatever the permissions say."""
    return hasattr(os, "statvfs") and os.statvfs(directory).f_blocks == 0


def _hindrance(target: Path) -> str:
    """Why no file can be written there; "" if nothing is known to be in the way."""
    directory = target.parent
    if target.is_dir():
        return "is a directory"
    if not directory.is_dir():
        why = f"{directory} is a file" if directory.exists() else f"there is no directory {directory}"
    elif target.exists() and not target.is_file():
        return ""  # a device or a pipe, whose directory does not matter
    elif not os.access(directory, os.W_OK | os.X_OK):
        why = f"you may not write to the directory {directory}"
    elif takes_no_files(directory):
        why = f"the file system of {directory} has no room for files"
    else:
        return ""
    return f"cannot be written: {why}"


def _replace(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
