"""Fixtures that several test modules share."""

from __future__ import annotations

import pytest

from dcptools.demo import Demo, make_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A checkpoint that PyTorch wrote from a real FSDP2 training run in four processes. Do not change its files."""
    return make_demo(tmp_path_factory.mktemp("demo") / "demo")
