"""The notebooks as they are committed: thin, numbered, without outputs, and the same on every machine.

That they run is tested by ``pytest --nbmake notebooks``, which ``make test`` does too.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest

from dcptools.demo import Demo
from dcptools.errors import OutputExists

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
NAMES = [
    "1-explore",
    "2-review-mapping",
    "3-shard-plan",
    "4-convert",
    "5-wizard",
    "6-compare",
    "dcptools",
]  # the last is make app
MACHINE = re.compile(r"(?<![\w.<:/])/\w+/|\b[A-Za-z]:\\|~/|\w+://")  # absolute paths, and addresses
MAX_LINES = 16  # of a cell; what is longer belongs into the library

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in load(path)["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_they_are_numbered_in_the_order_of_the_steps() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@each
def test_the_format_is_valid(path: Path) -> None:
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))


@each
def test_nothing_of_a_run_is_kept(path: Path) -> None:
    assert [cell["outputs"] for cell in code(path)] == [[]] * len(code(path))
    assert [cell["execution_count"] for cell in code(path)] == [None] * len(code(path))
    assert "widgets" not in load(path)["metadata"]


@each
def test_cell_ids_are_fixed(path: Path) -> None:
    ids = [cell["id"] for cell in load(path)["cells"]]
    assert ids == [f"{path.stem}-{number:02d}" for number in range(len(ids))]


@each
def test_the_kernel_is_python3_and_nothing_says_which_one(path: Path) -> None:
    assert load(path)["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


@each
def test_the_first_code_cell_has_the_parameters(path: Path) -> None:
    first, *others = code(path)
    assert first["metadata"] == {"tags": ["parameters"]}
    assert all(cell["metadata"] == {} for cell in others)
    names: dict[str, Any] = {}
    exec(source(first), names)
    assert names["load_dir"] == names["model_assets_dir"] == ""  # the demo


@each
def test_no_path_or_address_of_a_machine(path: Path) -> None:
    found = [match.group() for cell in load(path)["cells"] if (match := MACHINE.search(source(cell)))]
    assert found == []


@each
def test_it_begins_with_a_heading_and_cells_are_short(path: Path) -> None:
    first, *_ = load(path)["cells"]
    assert first["cell_type"] == "markdown" and source(first).startswith("# ")
    assert [cell["id"] for cell in code(path) if len(source(cell).splitlines()) > MAX_LINES] == []


def test_nothing_of_a_persons_own_is_overwritten() -> None:
    assert [path.stem for path in NOTEBOOKS if any("overwrite" in source(cell) for cell in code(path))] == []


def test_what_the_notebook_wrote_does_not_stop_the_first_click(demo: Demo, tmp_path: Path) -> None:
    path = ROOT / "notebooks" / "4-convert.ipynb"
    given = f"load_dir, save_dir = {str(demo.checkpoint)!r}, {str(tmp_path / 'model')!r}"
    first, *others = code(path)
    names: dict[str, Any] = {}
    exec(f"{source(first)}\n{given}", names)
    wanted = ("import dcptools", "mapping =", "dcptools.convert(", "widgets.Convert(")
    for cell in others:
        if any(word in source(cell) for word in wanted):
            exec(source(cell), names)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    converter = names["converter"]
    converter.job.start.click()
    converter.job.join(60)
    assert converter.report is not None, converter.message.value
    with pytest.raises(OutputExists):  # what is there stays, if the cells are run again
        exec(next(source(cell) for cell in others if "dcptools.convert(" in source(cell)), names)


def test_the_app_speaks_of_itself_and_asks_for_a_path() -> None:
    (path,) = [path for path in NOTEBOOKS if path.stem == "dcptools"]
    text = "".join(source(cell) for cell in load(path)["cells"])
    assert not re.search("demo|cell|notebook", text)
    names: dict[str, Any] = {}
    for cell in code(path)[:-1]:
        exec(source(cell), names)
    from dcptools import widgets

    assert widgets.Wizard(names["load_dir"] or None).open_step.path.value == ""


def test_make_test_runs_them() -> None:
    dry = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "-m pytest -q -rs --nbmake --nbmake-timeout=600 notebooks" in dry.stdout
