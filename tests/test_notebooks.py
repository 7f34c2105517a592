"""The notebooks as they are committed; `make test` also runs every one of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Any:
    return json.loads(request.param.read_text())


def test_they_are_numbered() -> None:
    names = ["1-explore", "2-review-mapping", "3-shard-plan", "4-convert", "5-wizard"]
    assert [path.stem for path in NOTEBOOKS] == names


def test_no_outputs_and_a_plain_kernel(notebook: Any) -> None:
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[0-9a-z-]+", cell) for cell in ids)


def test_the_first_code_cell_takes_parameters(notebook: Any) -> None:
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert first["metadata"]["tags"] == ["parameters"]
    assert 'load_dir = ""' in "".join(first["source"])


def test_each_is_thin_and_names_no_place_of_a_machine(notebook: Any) -> None:
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users)\b", text)
        if cell["cell_type"] == "code":
            assert len(text.splitlines()) <= 15
