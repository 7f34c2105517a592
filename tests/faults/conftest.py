"""What went wrong how often, by class and by the stage that it hit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.harness import COUNTS, Place, compiled


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("faults")
    library = compiled(directory)
    if library is None:
        pytest.skip("a C compiler and Linux are needed to make calls fail")
    made = Place(directory, library)
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not COUNTS:
        return
    terminalreporter.section("faults")
    kinds = sorted({kind for kind, _ in COUNTS})
    for kind in kinds:
        stages = {stage: count for (of, stage), count in sorted(COUNTS.items()) if of == kind}
        shown = ", ".join(f"{stage}: {count}" for stage, count in stages.items() if stage)
        terminalreporter.write_line(f"{sum(stages.values()):6,}  {kind}" + (f" ({shown})" if shown else ""))
    terminalreporter.write_line(f"{sum(COUNTS.values()):6,}  together")
