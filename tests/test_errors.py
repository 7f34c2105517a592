"""Errors derive from the builtins that a caller would catch, and survive the way from another process."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from dcptools import errors
from dcptools.errors import DcptoolsError, FindingsError, NoModelWeights, UnknownKey
from dcptools.findings import Finding

BUILTINS: dict[str, type[Exception]] = {
    "UsageError": ValueError,
    "UnknownKey": KeyError,
    "NotACheckpoint": FileNotFoundError,
    "UnsupportedCheckpoint": NotImplementedError,
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
    finding = Finding("hole", "error", "w", "rows are missing")
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
