"""One conversion in several processes that torchrun starts: the model of one process, or an error and no model."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from checkpoints import models, saved
from hypothesis import given
from hypothesis import strategies as st

import dcptools
from dcptools.checkpoint import METADATA
from dcptools.ranks import shares
from dcptools.shards import ShardFile, ShardPlan

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "under_torchrun.py"
SHARD_SIZE = 160_000  # six files of four tensors each
LOST = "Error: A process of this run ended before it was done, or its machine no longer answers."


class Done(NamedTuple):
    status: int
    out: str
    err: str
    said: list[str]  # lines of stderr that are ours
    read: dict[int, Counter[str]]  # by rank: bytes of each file; not of a rank that was killed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 tensors, which are two megabytes."""
    return saved.save(tmp_path_factory.mktemp("ranks") / "checkpoint", {"model": tensors()})


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"model.{n:02}.weight": torch.randn(200, 100, generator=generator) for n in range(24)}


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    return models.assets(tmp_path / "assets")


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths}


def torchrun(directory: Path, ranks: int, *words: object, **going_wrong: str) -> Done:
    """Convert under torchrun; ``rank1="kill"`` and the like say what goes wrong on a rank (``under_torchrun``)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    command += ["--nproc-per-node", str(ranks), str(PROGRAM), str(directory), json.dumps(going_wrong), *map(str, words)]
    done = subprocess.run(command, env=environment(), cwd=directory, capture_output=True, text=True, timeout=240)
    read = {int(path.stem[4:]): Counter(json.loads(path.read_text())) for path in directory.glob("rank*.json")}
    lines = done.stderr.replace("\r", "\n").splitlines()
    said = [line for line in lines if line.startswith(("Error: ", "warning[", "info[", "Interrupted", "Stopped by"))]
    return Done(done.returncode, done.stdout, done.stderr, said, read)


def converting(checkpoint: Path) -> list[object]:
    return [checkpoint, "--save-dir", "out", "--shard-size", SHARD_SIZE, "--quiet"]


def exit_codes(done: Done) -> dict[int, int]:
    """What torchrun says of the processes that failed, by rank."""
    found = re.findall(r"rank +: (\d+) .*\n +exitcode +: (-?\d+)", done.err)
    return {int(rank): int(code) for rank, code in found}


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def stored_bytes(plan: ShardPlan, file: ShardFile) -> tuple[int, int]:
    """Of the values that a file is made of, and of the items that hold them."""
    tensors = [plan.checkpoint[view.key] for tensor in file.tensors for view in tensor.output.sources]
    return sum(t.nbytes for t in tensors), sum(chunk.nbytes for t in tensors for chunk in t.chunks)


def test_three_processes_write_the_model_of_one(assets: Path, tmp_path: Path) -> None:
    """Over an older model, compared, and with a report; only one of them speaks, also of what others noticed."""
    nan = {f"model.{n:02}.weight": torch.full((200, 100), torch.nan) for n in (0, 23)}
    checkpoint = saved.save(tmp_path / "checkpoint", {"model": tensors() | nan})
    options: dict[str, Any] = {"model_assets_dir": assets, "shard_size": SHARD_SIZE}
    alone = dcptools.convert(checkpoint, tmp_path / "alone", report=tmp_path / "alone.json", verify=True, **options)
    dcptools.convert(checkpoint, tmp_path / "out", dtype="keep", model_assets_dir=assets)
    words = [checkpoint, "--save-dir", "out", "--model-assets-dir", assets, "--shard-size", SHARD_SIZE]
    done = torchrun(
        tmp_path, 3, *words, "--overwrite", "--verify", "--report", "report.json", "--json", rank0="terminal"
    )
    assert done.status == 0, done.err
    assert files(tmp_path / "out") == files(tmp_path / "alone")

    printed = json.loads(done.out)
    assert (printed["items_checked"], printed["items_unchecked"]) == (alone.items_checked, 0) == (24, 0)
    assert printed["verification"]["ok"]
    assert [f["key"] for f in printed["findings"] if f["code"] == "all-nan"] == [*nan]
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("report.json", "alone.json"))
    assert {what: ours[what] for what in ("weights", "files", "fingerprint", "verified")} == {
        what: theirs[what] for what in ("weights", "files", "fingerprint", "verified")
    }
    for bar in ("writing: 100%", "verifying: 100%", "checksums: 100%"):
        assert bar in done.err
    assert len(done.said) == len({*done.said}) > 0


def test_each_process_reads_what_it_needs_and_some_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Two files for three ranks."""
    plan = dcptools.plan(checkpoint, 500_000)
    dcptools.write(plan, tmp_path / "alone")
    done = torchrun(tmp_path, 3, checkpoint, "--save-dir", "out", "--shard-size", 500_000, "--quiet")
    assert (done.status, done.out, done.said) == (0, "", [])
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert [done.read[rank].pop(METADATA, 0) for rank in range(3)] == [plan.checkpoint.metadata_nbytes, 0, 0]
    for rank, file in enumerate(plan.files):
        values, items = stored_bytes(plan, file)
        assert values < done.read[rank].total() < items
    assert done.read[2].total() == 0


def test_a_dry_run_is_that_of_one_process(checkpoint: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path, 2, checkpoint, "--save-dir", "out", "--dry-run", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["plan"]["fingerprint"] == dcptools.plan(checkpoint).fingerprint
    assert done.read == {0: Counter({METADATA: dcptools.read(checkpoint).metadata_nbytes}), 1: Counter()}
    assert not (tmp_path / "out").exists()


def test_an_error_of_one_process_is_told_once_and_stops_all(checkpoint: Path, tmp_path: Path) -> None:
    """The others are slow, and are stopped in the middle; no directory is left."""
    done = torchrun(tmp_path, 3, *converting(checkpoint), rank0="slow", rank1="error", rank2="slow")
    assert done.status == 1
    assert "This file cannot be read: Input/output error.\nLook after the disk.\n(Rank 1 on " in done.err
    assert len(done.said) == 1
    assert sum(done.read[2].values()) < 600_000
    assert exit_codes(done) == {0: 1, 1: 1, 2: 1}
    assert not (tmp_path / "out").exists()


def test_a_process_that_is_killed_stops_all(checkpoint: Path, tmp_path: Path) -> None:
    """What it began is removed by the first one; torchrun says which it was."""
    done = torchrun(tmp_path, 3, *converting(checkpoint), rank0="slow", rank1="kill", rank2="slow")
    assert done.status == 1
    assert exit_codes(done)[1] == -signal.SIGKILL
    assert done.said[-1:] == [LOST]
    assert sum(done.read[2].values()) < 600_000
    assert not list(tmp_path.glob("out/model*"))


def test_what_is_finished_is_taken_over_after_one_was_killed(checkpoint: Path, tmp_path: Path) -> None:
    """By fewer processes, too: which rank has finished a file does not matter."""
    alone = dcptools.convert(checkpoint, tmp_path / "alone", shard_size=SHARD_SIZE)
    words = [*converting(checkpoint), "--resume"]
    done = torchrun(tmp_path, 3, *words, rank1="slow kill")
    assert (done.status, done.said[-1:]) == (1, [LOST])
    assert not list(tmp_path.glob("out/model*"))
    again = torchrun(tmp_path, 2, *words, "--json")
    assert again.status == 0, again.err
    report = json.loads(again.out)
    assert set(report["taken_over"]) >= {alone.files[4][0], alone.files[5][0]}  # those of the last rank
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_ctrl_c_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path, 2, *converting(checkpoint), rank0="slow", rank1="slow interrupt")
    assert done.status != 0
    assert len(done.said) == 1 and done.said[0].startswith(("Interrupted", "Stopped by a signal"))
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("version", "makes another plan from the same metadata than Rank 0 on "),
        ("elsewhere", "does not see the same files in {checkpoint} as rank 0: __0_0.distcp."),
    ],
)
def test_processes_that_do_not_have_the_same_are_refused(
    what: str, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    done = torchrun(tmp_path, 2, *converting(checkpoint), rank1=what)
    assert done.status == 1
    assert [message.format(checkpoint=checkpoint) in line for line in done.said] == [True]
    assert not (tmp_path / "out").exists()


def test_the_only_process_of_torchrun_is_alone(checkpoint: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dcptools.convert", str(checkpoint), "--save-dir", "out", "--dry-run", "--quiet"]
    alone = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1", "RANK": "0"}
    assert subprocess.run(words, env=environment() | alone, cwd=tmp_path, timeout=120).returncode == 0


class TestShares:
    @given(st.lists(st.integers(0, 20), max_size=8), st.integers(1, 5))
    def test_the_heaviest_is_as_light_as_can_be(self, weights: list[int], count: int) -> None:
        numbers = list(range(len(weights)))
        found = shares(numbers, weights, count)
        assert len(found) == count
        assert [number for share in found for number in share] == numbers
        cuts = itertools.combinations_with_replacement(range(len(weights) + 1), count - 1)
        every = [itertools.pairwise((0, *cut, len(weights))) for cut in cuts]
        best = min(max(sum(weights[start:stop]) for start, stop in pairs) for pairs in every)
        assert max(sum(weights[number] for number in share) for share in found) == best
