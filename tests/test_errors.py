"""Errors derive from the builtins that a caller would catch, and survive the way from another process."""

from __future__ import annotations

import errno
import os
import pickle
from typing import Any

import pytest

from dcptools import errors
from dcptools.errors import (
    DcptoolsError,
    FindingsError,
    NoModelWeights,
    NotACheckpoint,
    UnknownKey,
    UsageError,
    system_errors,
)
from dcptools.findings import Finding

BUILTINS: dict[str, type[Exception]] = {
    "UsageError": ValueError,
    "UnknownKey": KeyError,
    "NotACheckpoint": FileNotFoundError,
    "NotAModel": FileNotFoundError,
    "UnsupportedCheckpoint": NotImplementedError,
    "NotEnoughMemory": MemoryError,
    "TargetError": OSError,
    "OutputExists": FileExistsError,
}
ALL: dict[str, Any] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, DcptoolsError)
}


@pytest.mark.parametrize("name", ALL)
def test_an_error_says_what_it_was_given(name: str) -> None:
    assert str(ALL[name]("what was found.\nWhat to do.")) == "what was found.\nWhat to do."


@pytest.mark.parametrize("name", ALL)
def test_every_error_is_ours_and_the_builtin(name: str) -> None:
    assert issubclass(ALL[name], BUILTINS.get(name, DcptoolsError))
    assert issubclass(ALL[name], Exception)  # `except Exception` catches it
    assert ALL[name].__doc__


@pytest.mark.parametrize("name", ALL)
def test_an_error_can_be_sent_from_another_process(name: str) -> None:
    copy = pickle.loads(pickle.dumps(ALL[name]("text")))
    assert (type(copy), str(copy)) == (ALL[name], "text")


def test_findings_travel_with_their_error() -> None:
    finding = Finding("hole", "w", "rows are missing")
    error = NoModelWeights("none", [finding])
    assert error.findings == (finding,)
    assert pickle.loads(pickle.dumps(error)).findings == (finding,)
    assert FindingsError("none").findings == ()


def test_kinds_that_a_caller_may_treat_as_one() -> None:
    assert issubclass(errors.UnsafeMetadata, errors.BrokenCheckpoint)
    assert issubclass(errors.ChecksumError, errors.BrokenCheckpoint)
    assert issubclass(errors.OutputExists, errors.TargetError)


def test_an_unknown_key_is_not_shown_as_its_repr() -> None:
    assert str(UnknownKey("There is no key 'a'.")) == "There is no key 'a'."


def test_an_error_of_the_system_becomes_ours_with_path_and_reason() -> None:
    with pytest.raises(NotACheckpoint) as caught, system_errors(NotACheckpoint, "a/b cannot be read"):
        raise PermissionError(errno.EACCES, "Permission denied", "a/b/c")
    assert str(caught.value) == "a/b cannot be read: Permission denied (a/b/c).\nCheck the permissions."
    with pytest.raises(UsageError) as other, system_errors(UsageError, "a cannot be read"):
        os.stat("a\0b")
    assert str(other.value) == "a cannot be read: embedded null byte.\nCheck the path."
    with pytest.raises(UsageError) as text, system_errors(UsageError, "a cannot be read"):
        b"ab\xff".decode()
    assert str(text.value) == "a cannot be read: byte 2 is not UTF-8.\nSave it as UTF-8."


@pytest.mark.parametrize("ours", [UsageError("mine"), errors.TargetError("mine")])  # a ValueError, and an OSError
def test_an_error_that_is_ours_already_stays_as_it_is(ours: DcptoolsError) -> None:
    with pytest.raises(type(ours)) as caught, system_errors(NotACheckpoint, "a cannot be read"):
        raise ours
    assert caught.value is ours


@pytest.mark.parametrize("name", ALL)
def test_a_message_cannot_drive_a_terminal(name: str) -> None:
    assert str(ALL[name]("a\x1b[31mb\nc")) == "a\\x1b[31mb\nc"
