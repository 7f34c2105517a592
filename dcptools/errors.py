"""Every error that dcptools raises on purpose.

A message has a few lines: what was found, what was expected, what to do. Errors that have a natural
builtin parent derive from it too, so ``except FileNotFoundError`` works as a caller expects.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dcptools._text import printable_lines

if TYPE_CHECKING:
    from dcptools.findings import Finding


class DcptoolsError(Exception):
    """Base of all errors of this package; ``str(error)`` is meant to be read by a person, in a terminal too."""

    exit_status = 1  # of a command that ends with it

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class UsageError(DcptoolsError, ValueError):
    """An option has a value that cannot be used: a size, a pattern, a dtype name."""

    exit_status = 2


class UnknownKey(DcptoolsError, KeyError):
    """The checkpoint has no entry of that name."""

    def __str__(self) -> str:  # KeyError would show the repr
        return printable_lines(str(self.args[0]))


class NotACheckpoint(DcptoolsError, FileNotFoundError):
    """The path is not the directory of a distributed checkpoint."""


class NotAModel(DcptoolsError, FileNotFoundError):
    """The path is not that of a HuggingFace model in safetensors files."""


class BrokenModel(DcptoolsError):
    """A file of a HuggingFace model is damaged or contradicts itself."""


class BrokenCheckpoint(DcptoolsError):
    """The checkpoint contradicts itself: garbage metadata, an impossible size, an item that is not as announced."""


class UnsafeMetadata(BrokenCheckpoint):
    """A pickle in the checkpoint asks for something that no checkpoint needs. Nothing of it was run."""


class UnsupportedCheckpoint(DcptoolsError, NotImplementedError):
    """A valid checkpoint in an encoding that dcptools does not read."""


class ChecksumError(BrokenCheckpoint):
    """Stored bytes do not have the CRC-32 that was stored with them."""


class FindingsError(DcptoolsError):
    """Findings of severity ``error`` stop here; ``findings`` holds all of them."""

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class NoModelWeights(FindingsError):
    """No key of the checkpoint is a model weight under the chosen layout."""


class NotVerified(FindingsError):
    """A model that was written is not what the checkpoint gives; ``findings`` says where it differs."""


class TargetError(DcptoolsError, OSError):
    """The output directory cannot be used: it is the input, it is locked, the disk is too small."""


class OutputExists(TargetError, FileExistsError):
    """The output directory already holds a model, and ``overwrite`` was not given."""


class NotEnoughMemory(DcptoolsError, MemoryError):
    """There is too little memory; for what was to be loaded, ``needed`` and ``available`` say how much, in bytes."""

    def __init__(self, message: str, needed: int = 0, available: int = 0) -> None:
        super().__init__(message)
        self.needed, self.available = needed, available


class Cancelled(DcptoolsError):
    """The caller's cancel event was set; everything half-written was removed."""


_MADE_BY = {"Checkpoint": "read(load_dir)", "KeyMapping": "preview(checkpoint)", "ShardPlan": "plan(mapping)"}
_GOES_ON = {
    "Checkpoint": "preview(checkpoint).",
    "KeyMapping": "plan(mapping). What it was made of is mapping.checkpoint.",
    "ShardPlan": "write(plan, save_dir). What it was made of is plan.mapping.",
}


def check_stage(given: object, *expected: str) -> None:
    """Refuse what a step does not begin with; ``expected`` are the classes of stages' values, or "path".

    >>> check_stage("step-100", "ShardPlan")
    Traceback (most recent call last):
        ...
    dcptools.errors.UsageError: A ShardPlan is expected here, and a str was given.
    Make one: plan(mapping).
    """
    found = type(given).__name__
    if found in expected or ("path" in expected and isinstance(given, (str, os.PathLike))):
        return
    what = f"A {' or a '.join(expected)} is expected here, and {'None' if given is None else f'a {found}'} was given."
    if found in _GOES_ON:
        advice = f"Go on with the {found}: {_GOES_ON[found]}"
    else:
        advice = f"Make one: {_MADE_BY[expected[0]]}." if expected[0] in _MADE_BY else f"Give a {expected[0]}."
    raise UsageError(f"{what}\n{advice}")


MORE_MEMORY = "give the process more memory (ulimit -a shows the limits of a shell)."


def too_little_memory(error: MemoryError, advice: str = MORE_MEMORY.capitalize()) -> str:
    """What is said about a MemoryError, which often says nothing itself."""
    what = f": {error}" if str(error) else ""
    return str(error) if isinstance(error, NotEnoughMemory) else f"There is too little memory{what}.\n{advice}"


_ADVICE = {
    errno.ENOMEM: MORE_MEMORY.capitalize(),
    errno.EACCES: "Check the permissions.",
    errno.EPERM: "Check the permissions.",
    errno.EIO: "Check the disk.",
    errno.ENETUNREACH: "Check the network, the endpoint and the credentials in the library's configuration.",
    errno.ELOOP: "Check the path: a symlink in it leads back to itself.",
}


@contextmanager
def system_errors(kind: type[DcptoolsError], what: str) -> Iterator[None]:
    """Make one of our errors from what the operating system says about a path: ``what`` was not possible, and why.

    >>> with system_errors(NotACheckpoint, "nowhere cannot be read"):
    ...     open("nowhere")
    Traceback (most recent call last):
        ...
    dcptools.errors.NotACheckpoint: nowhere cannot be read: No such file or directory.
    Check the path.
    """
    try:
        yield
    except DcptoolsError:  # some of ours are OSErrors and ValueErrors too
        raise
    except UnicodeEncodeError as error:
        raise kind(
            f"{what}: the encoding of this locale, {error.encoding}, has no such characters.\nSet LC_ALL=C.UTF-8."
        ) from None
    except UnicodeDecodeError as error:
        raise kind(f"{what}: byte {error.start:,} is not UTF-8.\nSave it as UTF-8.") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a path
        number, reason = (error.errno or 0, error.strerror) if isinstance(error, OSError) else (0, None)
        other = getattr(error, "filename", None)
        where = f" ({other})" if isinstance(other, str) and other not in what else ""
        advice = _ADVICE.get(number, "Check the path.")
        raise kind(f"{what}: {reason or error}{where}.\n{advice}") from None


def notes_of(error: BaseException | None) -> list[str]:
    """The notes of an exception and of those that led to it: a second Ctrl-C breaks into what the first one did."""
    return [*getattr(error, "__notes__", ()), *notes_of(error.__cause__ or error.__context__)] if error else []
