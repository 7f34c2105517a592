"""Fixtures that several test modules share."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
from checkpoints import distributed
from hypothesis import settings

from dcptools.demo import Demo, make_demo
from dcptools.expected import Expected, NotExpected
from dcptools.mapping import expectation
from dcptools.storage import sink

settings.register_profile("no deadline", deadline=None)  # machines that are shared stall now and then
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A checkpoint that PyTorch wrote from a real FSDP2 training run in four processes. Do not change its files."""
    return make_demo(tmp_path_factory.mktemp("demo") / "demo")


@functools.cache
def _in_process(config: str) -> Expected:
    from dcptools.expected import building

    try:
        answer = building.describe(building.build(json.loads(config)))
    except building.Unknown as error:
        raise NotExpected(str(error)) from None
    return Expected.from_json(json.loads(json.dumps(answer)))


@pytest.fixture
def expected_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question and the answer of ``expect``, without a process of seconds for each of many models."""
    monkeypatch.setattr(expectation, "expect", _in_process)


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk; tests of that put their own functions in these places."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(sink, "_sync_data", lambda descriptor: None)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that four processes saved together, by case; one launch serves the whole run. Do not change them."""
    return distributed.shared_cases(tmp_path_factory)
