"""Every error that dcptools raises on purpose.

A message has a few lines: what was found, what was expected, what to do. Errors that have a natural
builtin parent derive from it too, so ``except FileNotFoundError`` works as a caller expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcptools.findings import Finding


class DcptoolsError(Exception):
    """Base of all errors of this package; ``str(error)`` is meant to be read by a person."""


class UsageError(DcptoolsError, ValueError):
    """An option has a value that cannot be used: a size, a pattern, a dtype name."""


class UnknownKey(DcptoolsError, KeyError):
    """The checkpoint has no entry of that name."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


class NotACheckpoint(DcptoolsError, FileNotFoundError):
    """The path is not the directory of a distributed checkpoint."""


class BrokenCheckpoint(DcptoolsError):
    """The checkpoint contradicts itself: garbage metadata, an impossible size, an item that is not as announced."""


class UnsafeMetadata(BrokenCheckpoint):
    """A pickle in the checkpoint asks for something that no checkpoint needs. Nothing of it was run."""


class UnsupportedCheckpoint(DcptoolsError, NotImplementedError):
    """A valid checkpoint in an encoding that dcptools does not read."""


class ChecksumError(BrokenCheckpoint):
    """Stored bytes do not have the CRC-32 that was stored with them."""


class FindingsError(DcptoolsError):
    """Findings of severity ``error`` forbid to go on; ``findings`` holds all of them."""

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class NoModelWeights(FindingsError):
    """No key of the checkpoint is a model weight under the chosen layout."""


class TargetError(DcptoolsError, OSError):
    """The output directory cannot be used: it is the input, it is locked, the disk is too small."""


class OutputExists(TargetError, FileExistsError):
    """The output directory already holds a model, and ``overwrite`` was not asked for."""


class Cancelled(DcptoolsError):
    """The caller's cancel event was set; everything half-written was removed."""
