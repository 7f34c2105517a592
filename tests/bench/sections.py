"""What is compared with what, and which ratio is wanted."""

from __future__ import annotations

import filecmp
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench import checkpoints, scale
from tests.bench.process import ROOT, Program, Run, module, run, run_in_turn
from tests.bench.report import Row, Section, Settings, Target, Unit, at_least, at_most, below

MB = 1e6  # bytes
MEMORY_LIMIT = 500e6  # bytes, whatever is converted, and for each chunk that the metadata lists:
MEMORY_PER_CHUNK = 500  # bytes, those of .metadata itself included
FEW_ROUNDS = 2  # of what takes long, and is far from its limit
PROCESSES = (1, 2, 4)  # as far as there are CPUs, but at least two of them
ONE_FILE = 10_000_000_000  # bytes: a shard size that none of these checkpoints reaches


def speed(settings: Settings) -> Section:
    load_dir = checkpoints.get(settings.directory, checkpoints.QWEN, settings.parameters)
    runs = run_in_turn(speed_programs(settings, load_dir), settings.rounds, warm=load_dir)

    def row(name: str, first: str, second: str, target: Target | None) -> Row:
        return Row(name, "s", seconds(runs[first]), seconds(runs[second]), target)

    rows = (
        row("loop / ours, fsync off", "loop", "ours", at_least(8)),
        row("loop (never syncs) / ours, durable", "loop", "ours durable", at_least(4)),
        row("ours / floor, bf16, fsync off", "ours", "floor", at_most(1.25)),
        row("ours / floor, bf16, durable", "ours durable", "floor durable", at_most(1.25)),
        row("ours / floor, keep, fsync off", "ours keep", "floor keep", at_most(1.15)),
    )
    notes = (same_files(settings.out / "loop", settings.out / "ours"), peaks(runs, ("loop", "ours", "floor")))
    shutil.rmtree(settings.out)
    about = (
        f"about {settings.parameters:,} fp32 parameters of {checkpoints.QWEN.ranks} ranks, "
        f"shard size {settings.shard_size:,} bytes, {settings.rounds} rounds"
    )
    return Section("speed", about, rows, notes)


def speed_programs(settings: Settings, load_dir: Path) -> list[Program]:
    """All contenders. Only two outputs are compared in the end; the others share a place to spare the disk."""
    size, workers = settings.shard_size, settings.workers

    def program(name: str, kind: str, *arguments: object) -> Program:
        output = settings.out / (name if name in ("loop", "ours") else "other")
        return Program(name, module(kind, load_dir, output, size, *arguments), output)

    return [
        program("loop", "loop"),
        program("ours", "ours", "bfloat16", workers, "nosync"),
        program("floor", "floor", 2, workers, "nosync"),
        program("ours durable", "ours", "bfloat16", workers, "sync"),
        program("floor durable", "floor", 2, workers, "sync"),
        program("ours keep", "ours", "keep", workers, "nosync"),
        program("floor keep", "floor", 1, workers, "nosync"),
    ]


def same_files(first: Path, second: Path) -> str:
    """Whether both programs wrote the same: a fast program that writes something else wins nothing."""
    names = sorted({path.name for folder in (first, second) for path in folder.glob("*.safetensors")})
    _, different, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    if different or missing:
        return f"{first.name} and {second.name} DIFFER in {', '.join(different + missing)}"
    return f"{first.name} and {second.name} wrote the same bytes: {len(names)} files"


def peaks(runs: dict[str, list[Run]], names: Sequence[str]) -> str:
    each = (f"{name} {max(run.peak_bytes for run in runs[name]) / MB:.0f} MB" for name in names)
    return f"peak memory of the process: {', '.join(each)}"


def seconds(runs: Sequence[Run]) -> tuple[float, ...]:
    return tuple(run.seconds for run in runs)


def memory(settings: Settings) -> Section:
    cases = (
        ("a decoder in one file", checkpoints.QWEN, ONE_FILE),
        ("one large tensor", checkpoints.ONE_TENSOR, settings.shard_size),
        ("one tensor cut along dim 1 by 8 ranks", checkpoints.COLUMNS, settings.shard_size),
    )
    rows: list[Row] = []
    for name, maker, shard_size in cases:
        load_dir = checkpoints.get(settings.directory, maker, settings.parameters)
        plan = run(module("predict", load_dir, shard_size)).answer
        [[measured]] = run_in_turn([command_line(load_dir, settings, shard_size)], 1, warm=load_dir).values()
        peak, limit = measured.peak_bytes / MB, (MEMORY_LIMIT + MEMORY_PER_CHUNK * plan["chunks"]) / MB
        rows.append(Row(f"{name}: peak / limit", "MB", (peak,), (limit,), at_most(1)))
        rows.append(Row(f"{name}: peak / predicted", "MB", (peak,), (plan["peak_bytes"] / MB,), at_most(1)))
    shutil.rmtree(settings.out)
    return Section("memory", "peak of the whole process `python -m dcptools.convert`", tuple(rows))


def command_line(load_dir: Path, settings: Settings, shard_size: int) -> Program:
    output = settings.out / "command-line"
    options = ("--load-dir", str(load_dir), "--save-dir", str(output), "--shard-size", str(shard_size))
    return Program("dcptools", (sys.executable, "-m", "dcptools.convert", *options), output)


def processes(settings: Settings) -> Section:
    """One conversion in several processes that torchrun started, against the same command line alone."""
    load_dir = checkpoints.get(settings.directory, checkpoints.QWEN, settings.parameters)
    alone = command_line(load_dir, settings, settings.shard_size)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    programs = {
        count: Program(f"{count}", (*launcher, f"--nproc-per-node={count}", *alone.argv[1:]), alone.output)
        for count in PROCESSES
        if count <= max(2, os.cpu_count() or 1)
    }
    runs = run_in_turn([alone, *programs.values()], settings.rounds, warm=load_dir)
    rows = [
        Row(f"alone / torchrun -n {count}", "s", seconds(runs[alone.name]), seconds(runs[each.name]))
        for count, each in programs.items()
    ]
    shutil.rmtree(settings.out)
    return Section("processes", "the whole command, durable, with the start of Python, torch and torchrun", tuple(rows))


def experts(settings: Settings) -> Section:
    """The same bytes with the experts of a layer in one tensor, and cut to one tensor each."""
    load_dir = checkpoints.get(settings.directory, checkpoints.EXPERTS, settings.parameters)
    size, workers, output = settings.shard_size, settings.workers, settings.out / "experts"

    def program(names: str, dtype: str) -> Program:
        arguments = (load_dir, output, size, dtype, workers, "nosync", names)
        return Program(f"{names} {dtype}", module("ours", *arguments), output)

    programs = [program(names, dtype) for names in ("stored", "published") for dtype in ("bfloat16", "keep")]
    runs = run_in_turn(programs, settings.rounds, warm=load_dir)
    rows = [
        Row(
            f"published / stored names, {dtype}", "s",
            seconds(runs[f"published {dtype}"]), seconds(runs[f"stored {dtype}"]), at_most(1.3),
        )
        for dtype in ("bfloat16", "keep")
    ]  # fmt: skip
    note = peaks(runs, ("stored bfloat16", "published bfloat16"))
    shutil.rmtree(settings.out)
    return Section("experts", f"{load_dir.name}: 4 layers of 64 fused experts, fsync off", tuple(rows), (note,))


# What the models of published sizes are, as far as their weights' shapes go.
MODELS = {
    "30 B parameters, 48 layers of 128 experts": (
        {
            **{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": 48},
            **{"num_experts": 128, "vocab_size": 151_936, "hidden_size": 2048, "moe_intermediate_size": 768},
        },
        10.0,
    ),
    "671 B parameters, 58 layers of 256 experts": (
        {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"},
        60.0,
    ),
}


def expected(settings: Settings) -> Section:
    """What it takes to know a model, in the process that builds it."""
    rows = []
    for name, (config, limit) in MODELS.items():
        program, rounds = Program(name, module("expect", json.dumps(config))), min(FEW_ROUNDS, settings.rounds)
        runs = run_in_turn([program], rounds, warm=ROOT / "tests")
        rows.append(Row(f"{name}: time / limit", "s", seconds(runs[name]), (limit,), at_most(1)))
        peak = tuple(run.peak_bytes / MB for run in runs[name])
        rows.append(Row(f"{name}: peak / limit", "MB", peak, (1000.0,), at_most(1)))
    return Section("expected", "names and shapes of the model of a config.json", tuple(rows))


def metadata(settings: Settings) -> Section:
    load_dir = checkpoints.get(settings.directory, checkpoints.MANY_CHUNKS, settings.parameters)
    programs = [Program(name, module("metadata", name, load_dir)) for name in ("dcptools", "torch")]
    runs = run_in_turn(programs, settings.rounds, warm=load_dir)

    def row(name: str, unit: Unit, field: str, target: Target | None) -> Row:
        scale = MB if unit == "MB" else 1
        ours, torch = (tuple(run.answer[field] / scale for run in runs[name]) for name in ("dcptools", "torch"))
        return Row(f"dcptools / torch, {name}", unit, ours, torch, target)

    rows = (
        row("time", "s", "seconds", below(0.5)),
        row("memory afterwards", "MB", "resident_bytes", below(0.5)),
        row("memory at the peak", "MB", "peak_bytes", None),
    )
    return Section("metadata", f"reading `.metadata` of {load_dir.name}", rows)


def command(settings: Settings) -> Section:
    load_dir = checkpoints.get(settings.directory, checkpoints.QWEN, settings.parameters)
    output = settings.out / "command"
    others = [
        Program(template, tuple(shlex.split(template.format(load=load_dir, save=output))), output)
        for template in settings.commands
    ]
    ours = command_line(load_dir, settings, settings.shard_size)
    runs = run_in_turn([ours, *others], settings.rounds, warm=load_dir)
    rows = [Row(other.name, "s", seconds(runs[other.name]), seconds(runs[ours.name])) for other in others]
    shutil.rmtree(settings.out)
    return Section("command", "the whole process / `python -m dcptools.convert`, durable", tuple(rows))


SECTIONS = {
    "speed": speed, "experts": experts, "expected": expected, "metadata": metadata, "memory": memory,
    "processes": processes,
    "scale": scale.scale, "orders": scale.orders, "far": scale.far, "cold": scale.cold, "command": command,
}  # fmt: skip
