"""Hostile files: a few of each class here, in bounded memory and time by the hundred thousand in ``make test-long``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcptools.mapping import expectation
from tests.fuzz import __main__ as driver
from tests.fuzz import targets
from tests.fuzz.guard import Violation, check_page, check_text
from tests.fuzz.mutate import mutated

ROOT = Path(__file__).parents[1]
SECONDS = float(os.environ.get("FUZZ_SECONDS", "3600"))
FOUND = sorted(path for path in (Path(__file__).parent / "data" / "fuzz").glob("*/*") if path.is_file())


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectation, "expect", targets.not_asked)


@pytest.fixture(scope="module", params=[name for name, kind in targets.KINDS.items() if not kind.slow])
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[targets.Kind, list[tuple[Path, str, bytes]]]:
    """A class of files, and what it begins with: the directory, the name of the file in it, and its content."""
    chosen = targets.KINDS[request.param]
    place = tmp_path_factory.mktemp("seeds")
    return chosen, [(directory, file, (directory / file).read_bytes()) for directory, file in chosen.seeds(place)]


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
@pytest.mark.filterwarnings("ignore")  # of zipfile and torch, about what is wrong with a file
def test_only_errors_of_ours_come_out_and_nothing_drives_a_terminal_or_a_page(
    seed: int, kind: tuple[targets.Kind, list[tuple[Path, str, bytes]]]
) -> None:
    chosen, cases = kind
    random = Random(seed)
    directory, file, data = random.choice(cases)
    (directory / file).write_bytes(mutated(data, [data for _, _, data in cases], chosen.mutator, random))
    targets.outcome(chosen.target, directory, file)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="models are built in processes that are forked")
def test_strange_configs_are_built_within_bounds(tmp_path: Path) -> None:
    chosen, random = targets.KINDS["architecture"], Random(4)
    for directory, file in chosen.seeds(tmp_path):
        assert targets.outcome(chosen.target, directory, file) == "built"
        (directory / file).write_bytes(mutated((directory / file).read_bytes(), [], chosen.mutator, random))
        targets.outcome(chosen.target, directory, file)


@pytest.mark.parametrize("path", FOUND, ids=[f"{path.parent.name}-{path.name}" for path in FOUND])
def test_what_once_found_something_is_refused_in_a_few_lines(path: Path, tmp_path: Path) -> None:
    chosen = targets.KINDS[path.parent.name.replace("-", " ")]
    for directory, file in chosen.seeds(tmp_path):
        (directory / file).write_bytes(path.read_bytes())
        assert not targets.outcome(chosen.target, directory, file).startswith("read")


# --- the fuzzers themselves ---------------------------------------------------------------------------------------


def test_a_class_of_files_is_tried_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its seeds, among which there are those that would run something."""
    assert driver.main(["metadata", "--inputs", "40", "--keep", str(tmp_path / "found")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("metadata: 40 (") and "UnsafeMetadata" in said
    assert said.endswith("40 files, 0 of them found something\n")
    assert not (tmp_path / "found").exists()


WRONG = """
import itertools, os, pickle, sys
from dataclasses import replace
from tests.fuzz import child, targets

turns = itertools.count(-2)  # the first two calls are to warm up

def wrong(directory, file):
    turn = next(turns)
    {}
    return "read"

targets.KINDS["index"] = replace(targets.KINDS["index"], target=wrong)
child.main(["index", "0", "600", "9", sys.argv[1]])
"""
EVILS = {
    "os.system('true')": "os.system",
    "open('/etc/hostname')": "opens /etc/hostname",
    "(directory / '../../../out').write_text('x')": "opens ",
    "eval('1')": "compile",
    "import weight_map": "imports weight_map",  # which the file names
    "pickle.loads(bytes.fromhex('636f730a73797374656d0a2e'))": "pickle.find_class",
    "{}['x']": "KeyError",
    "bytearray(1 << 31)": "MemoryError",
}


def in_a_child(statement: str, place: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WRONG.replace("{}\n", statement + "\n", 1), str(place)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_what_never_may_happen_is_seen(tmp_path: Path) -> None:
    one_by_one = "\n    ".join(f"if turn == {turn}: {statement}" for turn, statement in enumerate(EVILS))
    done = in_a_child(one_by_one, tmp_path / "place")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "place" / "report.json").read_text())
    assert report["outcomes"] == {"VIOLATION": len(EVILS), "read": 9 - len(EVILS)}
    for expected in EVILS.values():
        assert any(expected in found for found in report["found"]), expected
    assert len(list((tmp_path / "place").glob("*.bin"))) > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_who_takes_too_long_is_ended(tmp_path: Path) -> None:
    assert in_a_child("while turn >= 0: pass", tmp_path / "place").returncode < 0


def test_what_drives_a_terminal_or_a_page_is_seen() -> None:
    for text in ("\x1b[2J", "a\rb", "\u202e"):
        with pytest.raises(Violation):
            check_text(text)
    check_text("two\nlines")
    for page in ("<p><img src=x></p>", "<p onclick='x'>", "<!-- x -->", "<td style='a' id='b'>"):
        with pytest.raises(Violation):
            check_page(page)
    check_page("<p><strong>&lt;img&gt;</strong></p>")


@pytest.mark.long
def test_hundreds_of_thousands_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For an hour, or ``FUZZ_SECONDS``."""
    with capsys.disabled():
        print()
        assert driver.main(["--seconds", str(SECONDS), "--keep", str(ROOT / "build" / "fuzz")]) == 0
