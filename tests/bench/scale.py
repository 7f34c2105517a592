"""Sections about very many keys, chunks, files or outputs, and about files that are slow, far or cold."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median

from tests.bench import checkpoints
from tests.bench.checkpoints import Maker
from tests.bench.process import Program, Run, module, run_in_turn
from tests.bench.report import Row, Section, Settings, at_least, at_most

MB = 1e6  # bytes
ITEM, OUTPUT = 100e-6, 20e-6  # seconds of CPU for each item that is read, and for each output of a small tensor
STAGE = 1.0  # seconds of CPU for each stage before the writing, at 200,000 keys
BEFORE = (  # stages before any value is written; rows and a search are those of the wizard
    "inspect",
    "first rows of the keys",
    "preview",
    "text and HTML",
    "first rows of the mapping",
    "a search",
    "plan",
)
MOST_ROUNDS = 2
GROWTH = 1.3  # of the time for each item, from 20,000 items to 200,000

FEW, MANY = Maker("small", 0, 20_000 / 500e6), Maker("small", 0, 200_000 / 500e6)
SPLIT = Maker("stacks", 0, 200_000 / 500e6)
CHUNKS = Maker("cut", 0, 1_000_000 / 500e6)
RANKS = Maker("ranks", 0, 65_536 / 500e6)
CASES = {
    "20,000 small tensors": FEW,
    "200,000 small tensors": MANY,
    "200,000 split experts": SPLIT,
    "1 million chunks": CHUNKS,
    "4,096 ranks": RANKS,
}
ROWS_FIRST = Maker("rows", 0, 0.1)
ORDERS = {"dim-1 shards of 64 ranks": Maker("columns-of-64", 0, 0.1), "column-major": Maker("column-major", 0, 0.1)}
COLD = Maker("qwen", 4, 0.25), Maker("qwen", 4)
FAR = Maker("qwen", 4, 0.1)
IN_FLIGHT = (1, 4, 16, 64)  # of the reader that reads best: the fastest of these counts


def stages(settings: Settings, maker: Maker) -> list[Run]:
    """The stages of one checkpoint, some rounds."""
    load_dir, output = checkpoints.get(settings.directory, maker, settings.parameters), settings.out / "stages"
    names = ("published",) if maker.kind == "stacks" else ()
    program = Program("ours", module("stages", load_dir, output, settings.workers, *names), output)
    return run_in_turn([program], rounds_of(settings), warm=load_dir)["ours"]


def rounds_of(settings: Settings) -> int:
    """CPU time is disturbed little, and a round of all takes minutes."""
    return min(MOST_ROUNDS, settings.rounds)


def least(runs: list[Run], stage: str) -> float:
    """Seconds of CPU of the round that was disturbed least."""
    return min(float(each.answer[stage]) for each in runs)


def scale(settings: Settings) -> Section:
    """What each key, item and output takes."""
    found = {name: stages(settings, maker) for name, maker in CASES.items()}
    rows = []
    for name in ("200,000 small tensors", "200,000 split experts"):
        for stage in BEFORE:
            rows.append(Row(f"{name}: {stage} / limit", "s", (least(found[name], stage),), (STAGE,), at_most(1)))
    for name, runs in found.items():
        answer = runs[0].answer
        limit = answer["items"] * ITEM + answer["outputs"] * OUTPUT
        rows.append(Row(f"{name}: write / limit", "s", (least(runs, "write"),), (limit,), at_most(1)))
    each = [least(found[name], "write") / found[name][0].answer["items"] for name in list(CASES)[:2]]
    rows.append(Row("each of 200,000 / each of 20,000", "us", (each[1] * 1e6,), (each[0] * 1e6,), at_most(GROWTH)))
    peaks = ", ".join(f"{name} {max(run.peak_bytes for run in runs) / MB:.0f} MB" for name, runs in found.items())
    shutil.rmtree(settings.out)
    about = f"CPU time of the best of {rounds_of(settings)} rounds; an item may take 100 us, and an output 20"
    return Section("scale", about, tuple(rows), (f"peak memory of the process: {peaks}",))


def orders(settings: Settings) -> Section:
    """Values that lie in another order than they are written."""
    plain = least(stages(settings, ROWS_FIRST), "write")
    rows = [
        Row(f"{name} / rows of 8 ranks", "s", (least(stages(settings, maker), "write"),), (plain,))
        for name, maker in ORDERS.items()
    ]
    shutil.rmtree(settings.out)
    return Section("orders", "CPU time of writing the same values, fp32 to bf16", tuple(rows))


def far(settings: Settings) -> Section:
    """A source with a latency, read from with as many reads in flight as there may be."""
    load_dir, output, rows = checkpoints.get(settings.directory, FAR, settings.parameters), settings.out / "far", []
    for latency, target in ((0.005, None), (0.05, at_least(20))):
        program = Program("ours", module("far", load_dir, output, latency, settings.workers), output)
        [[done]] = run_in_turn([program], 1, warm=load_dir).values()
        alone = done.answer["reads"] * latency
        rows.append(Row(f"{latency * 1000:g} ms: one after another / ours", "s", (alone,), (done.seconds,), target))
    shutil.rmtree(settings.out)
    return Section("far", f"{load_dir.name}, from a source with that latency a read", tuple(rows))


def cold(settings: Settings) -> Section:
    """Files that are not in memory, against the best that reads and writes as many bytes.

    The smaller its items, the more it matters that ours reads them in the order of the output.
    """
    rows: list[Row] = []
    for maker in COLD:
        load_dir = checkpoints.get(settings.directory, maker, settings.parameters)
        taken = _cold_seconds(settings, load_dir)
        best = min((name for name in taken if name != "ours"), key=lambda name: median(taken[name]))
        size = sum(path.stat().st_size for path in load_dir.glob("*.distcp")) / MB
        rows.append(Row(f"{size:,.0f} MB: ours / the best, {best}", "s", taken["ours"], taken[best], at_most(1.15)))
        rows.append(Row(f"{size:,.0f} MB: ours / cp", "s", taken["ours"], taken["cp"]))
    shutil.rmtree(settings.out)
    return Section("cold", "pages dropped before each run; durable, values kept", tuple(rows))


def _cold_seconds(settings: Settings, load_dir: Path) -> dict[str, tuple[float, ...]]:
    output = settings.out / "cold"

    def program(name: str, kind: str, workers: int) -> Program:
        return Program(name, module("cold", kind, load_dir, output, workers), output)

    readers = [program(f"{count} in flight", "reader", count) for count in IN_FLIGHT]
    programs = [program("ours", "ours", settings.workers), program("cp", "cp", 1), *readers]
    runs = run_in_turn(programs, settings.rounds, warm=load_dir)
    return {name: tuple(each.seconds for each in of) for name, of in runs.items()}
