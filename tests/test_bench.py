"""The benchmarks measure what they say, on a checkpoint that is too small for their numbers to mean anything."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

import dcptools
from tests.bench import checkpoints, far, maker, scale, sections
from tests.bench.__main__ import main
from tests.bench.process import ROOT, Crashed, Program, module, run, run_in_turn
from tests.bench.report import Row, Section, Settings, at_least, at_most, below

PARAMETERS = 2_000_000
ROWS = {
    "speed": [
        "loop / ours, fsync off",
        "loop (never syncs) / ours, durable",
        "ours / floor, bf16, fsync off",
        "ours / floor, bf16, durable",
        "ours / floor, keep, fsync off",
    ],
    "experts": ["published / stored names, bfloat16", "published / stored names, keep"],
    "expected": [
        f"{model}: {what} / limit"
        for model in ("30 B parameters, 48 layers of 128 experts", "671 B parameters, 58 layers of 256 experts")
        for what in ("time", "peak")
    ],
    "metadata": [
        "dcptools / torch, time",
        "dcptools / torch, memory afterwards",
        "dcptools / torch, memory at the peak",
    ],
    "memory": [
        "a decoder in one file: peak / limit",
        "a decoder in one file: peak / predicted",
        "one large tensor: peak / limit",
        "one large tensor: peak / predicted",
        "one tensor cut along dim 1 by 8 ranks: peak / limit",
        "one tensor cut along dim 1 by 8 ranks: peak / predicted",
    ],
    "scale": [
        *(
            f"{what}: {stage} / limit"
            for what in ("200,000 small tensors", "200,000 split experts")
            for stage in scale.BEFORE
        ),
        *(f"{what}: write / limit" for what in scale.CASES),
        "each of 200,000 / each of 20,000",
    ],
    "orders": ["dim-1 shards of 64 ranks / rows of 8 ranks", "column-major / rows of 8 ranks"],
    "processes": [
        f"alone / torchrun -n {count}" for count in sections.PROCESSES if count <= max(2, os.cpu_count() or 1)
    ],
    "far": ["5 ms: one after another / ours", "50 ms: one after another / ours"],
    "command": ["true {load} {save}"],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def measure(directory: Path, *only: str, commands: tuple[str, ...] = ()) -> dict[str, Any]:
    json_file = directory / "numbers.json"
    options = ["--dir", directory, "--parameters", PARAMETERS, "--rounds", 1, "--json", json_file]
    options += [word for name in only for word in ("--only", name)]
    options += [word for command in commands for word in ("--command", command)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *map(str, options)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    numbers: dict[str, Any] = json.loads(json_file.read_text())
    assert all(row["name"] in done.stdout for section in numbers["sections"] for row in section["rows"])
    return numbers


def assert_measured(numbers: dict[str, Any], *names: str) -> None:
    assert {s["name"]: [row["name"] for row in s["rows"]] for s in numbers["sections"]} == {n: ROWS[n] for n in names}
    for row in (row for section in numbers["sections"] for row in section["rows"]):
        assert min(row["first"] + row["second"]) > 0, row


def test_speed_measures_every_row_and_both_wrote_the_same_bytes(directory: Path) -> None:
    numbers = measure(directory, "speed", "command", commands=("true {load} {save}",))
    assert_measured(numbers, "speed", "command")
    assert numbers["sections"][0]["notes"][0] == "loop and ours wrote the same bytes: 2 files"
    assert not (directory / "out").exists()


def test_metadata_measures_every_row(directory: Path) -> None:
    assert_measured(measure(directory, "metadata"), "metadata")


@pytest.mark.long
def test_experts_and_processes_measure_every_row(directory: Path) -> None:
    assert_measured(measure(directory, "experts", "processes"), "experts", "processes")


@pytest.mark.long
def test_scale_measures_every_row(directory: Path) -> None:
    assert_measured(measure(directory, "scale", "orders"), "scale", "orders")


@pytest.mark.parametrize("kind", ["small", "cut", "ranks", "rows", "columns-of-64", "column-major"])
def test_stamped_checkpoints_are_what_torch_loads(tmp_path: Path, kind: str) -> None:
    maker.KINDS[kind](tmp_path, 20_000 if kind in ("rows", "columns-of-64", "column-major") else 300)
    stored = FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    state = {key: torch.empty(entry.size) for key, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    load(state, storage_reader=FileSystemReader(tmp_path), no_dist=True)
    loaded = dcptools.load_tensor(tmp_path, min(state))
    assert torch.equal(loaded, state[min(state)])
    assert len(dcptools.preview(tmp_path).outputs) == len(state)


def test_reads_that_are_announced_wait_together_and_others_one_by_one() -> None:
    place = far.Far(60.0)
    first = place.request("a", 0, 10_000)
    assert place.request("a", 4096, 4096) == first  # on its way already
    assert place.request("a", 8192, 8192) > first
    assert place.request("b", 0, 1) > first


@pytest.mark.long
def test_far_and_cold_measure_every_row(directory: Path) -> None:
    numbers = measure(directory, "far", "cold")
    far_rows, cold_rows = numbers["sections"]
    assert_measured({"sections": [far_rows]}, "far")
    names = [row["name"].partition(" MB: ")[2] for row in cold_rows["rows"]]
    assert [name.partition(", ")[0] for name in names] == ["ours / the best", "ours / cp"] * 2


@pytest.mark.long
def test_memory_measures_every_row(directory: Path) -> None:
    assert_measured(measure(directory, "memory"), "memory")


def test_the_floor_moves_as_many_bytes_as_the_others(tmp_path: Path) -> None:
    load_dir = tmp_path / "in"
    load_dir.mkdir()
    for rank in range(3):
        (load_dir / f"__{rank}_0.distcp").write_bytes(bytes(5_000_000))
    run(module("floor", load_dir, tmp_path / "half", 2_100_000, 2, 2, "sync"))
    run(module("floor", load_dir, tmp_path / "all", 100_000_000, 1, 2, "nosync"))
    halves = [path.stat().st_size for path in (tmp_path / "half").iterdir()]
    assert sum(halves) == 7_500_000
    assert max(halves) <= 2_100_000
    assert [path.stat().st_size for path in (tmp_path / "all").iterdir()] == [15_000_000]


def test_files_that_differ_or_are_missing_are_told(tmp_path: Path) -> None:
    for name in ("loop", "ours"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.safetensors").write_bytes(b"same")
        (tmp_path / name / "b.safetensors").write_bytes(name.encode())
    (tmp_path / "loop" / "c.safetensors").write_bytes(b"")
    told = sections.same_files(tmp_path / "loop", tmp_path / "ours")
    assert told == "loop and ours DIFFER in b.safetensors, c.safetensors"


def test_programs_run_in_turn_after_their_output_was_removed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import os, sys; os.mkdir(sys.argv[2]); open(sys.argv[3], 'a').write(sys.argv[1])"

    def program(name: str) -> Program:
        output = tmp_path / "out" / name
        return Program(name, (sys.executable, "-c", code, name, str(output), str(log)), output)

    runs = run_in_turn([program("a"), program("b")], 2, warm=tmp_path)
    assert log.read_text() == "abab"
    assert {name: len(of) for name, of in runs.items()} == {"a": 2, "b": 2}


def test_the_peak_is_that_of_the_child_alone() -> None:
    code = """
import sys
from tests.bench.process import run
for program in ("x = bytearray(b'x') * 200_000_000", ""):
    print(run([sys.executable, "-c", program]).peak_bytes)
"""
    # Not in this process: it may be large itself, which its children would inherit.
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    big, small = map(int, done.stdout.split())
    assert big > 200_000_000 > 50_000_000 > small > 1_000_000


def test_seconds_are_what_a_program_says_of_itself_or_else_those_of_the_process() -> None:
    assert run((sys.executable, "-c", "print('{\"seconds\": 1234}')")).seconds == 1234
    assert 0.2 < run((sys.executable, "-c", "import time; time.sleep(0.2)")).seconds < 100


def test_a_program_that_crashes_is_shown_with_its_stderr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def speed(settings: Settings) -> Section:
        run((sys.executable, "-c", "raise SystemExit('the disk is on fire')"))
        raise AssertionError("not reached")

    monkeypatch.setitem(sections.SECTIONS, "speed", speed)
    result = CliRunner().invoke(main, ["--only", "speed", "--dir", str(tmp_path), "--json", str(tmp_path / "json")])
    assert result.exit_code == 1
    assert "exit status 1" in result.output
    assert "the disk is on fire" in result.output
    assert json.loads((tmp_path / "json").read_text())["sections"] == []


def test_a_checkpoint_that_was_not_finished_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unknown = checkpoints.Maker("no-such-kind", ranks=0)
    with pytest.raises(Crashed, match="no-such-kind"):
        checkpoints.get(tmp_path, unknown, 1)
    assert not (tmp_path / "no-such-kind-1").exists()


def test_a_section_shows_medians_spread_ratio_target_and_verdict() -> None:
    rows = (
        Row("loop / ours", "s", (4.0, 8.0, 5.0), (0.5, 0.25, 1.0), at_least(8)),
        Row("ours / floor", "s", (0.5, 0.25, 1.0), (0.5,), at_most(0.9)),
        Row("memory", "MB", (1500.0,), (3000.0,), below(0.5)),
        Row("peak", "MB", (1.0,), (2.0,)),
    )
    lines = str(Section("speed", "3 rounds", rows, ("a note",))).splitlines()
    assert lines == [
        "speed: 3 rounds",
        "  first / second  first                  second                 ratio  target",
        "  loop / ours     5.000 s (4.000-8.000)  0.500 s (0.250-1.000)  10.00  >= 8    ok",
        "  ours / floor    0.500 s (0.250-1.000)  0.500 s                1.00   <= 0.9  missed",
        "  memory          1500 MB                3000 MB                0.50   < 0.5   missed",
        "  peak            1 MB                   2 MB                   0.50",
        "a note",
    ]


def test_the_page_says_when_the_machine_was_shared_and_what_was_missed() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "scripts" / "speed.py"))["page"]
    row = Row("ours / floor", "s", (2.0, 3.0, 4.0), (1.0,), at_most(1.25))
    machine = {"date": "2026-01-02 03:04 UTC", "system": "Linux", "python": "3.11", "cpus": 2, "load_average": 0.1}
    old, new = (
        {
            "machine": {**machine, "load_average": load},
            "parameters": 1000,
            "rounds": 3,
            "sections": [Section(name, "x", (row,)).to_json()],
        }
        for load, name in ((0.1, "cold"), (9.0, "far"))
    )
    text = page([old, old, new])
    assert text.count("## Cold") == text.count("## Far") == 1
    assert "| ours / floor | 3.000 s | 1.000 s | 3.00 | `<= 1.25` | missed |" in text
    assert text.count("Why something is missed") == 1  # of a section that has something to say about it
    assert text.count("2026-01-02 03:04 UTC") == text.count("in 3 rounds with models of 1,000 parameters") == 2
    assert text.index("## Cold") < text.index("**The machine was shared**: 9.0 programs") < text.index("## Far")
