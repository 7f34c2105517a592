"""The command line of the benchmarks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from tests.bench.process import Crashed
from tests.bench.report import Section, Settings, machine
from tests.bench.sections import SECTIONS


class Count(click.ParamType[int]):
    """A whole number that may be typed as 50e6."""

    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(float(str(value)))
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path("build/bench"),
    show_default=True,
    help="Where the checkpoints are made and kept, and the output is written.",
)
@click.option(
    "--parameters",
    type=Count(),
    default=500_000_000,
    show_default=True,
    help="Size of the model; everything else shrinks with it. The targets hold for the default.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each program.")
@click.option("--shard-size", type=Count(), help="Bytes in an output file.  [default: a byte for each parameter]")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=max(2, min(8, os.cpu_count() or 1)),
    show_default=True,
    help="Threads of ours and of the floor.",
)
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Measure this section. Repeatable.")
@click.option(
    "--command",
    "commands",
    multiple=True,
    metavar="TEMPLATE",
    help="Also time this command, with {load} and {save} in it, as a whole process. Repeatable.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here too."
)
def main(
    directory: Path,
    parameters: int,
    rounds: int,
    shard_size: int | None,
    workers: int,
    only: tuple[str, ...],
    commands: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Measure dcptools against what people run today, against a floor, and against its own predictions.

    Missed targets are shown and do not fail the run; a program that crashes does.
    """
    settings = Settings(directory.resolve(), parameters, rounds, shard_size or parameters, workers, commands)
    names = only or tuple(name for name in SECTIONS if name != "command" or commands)
    about = machine()
    click.echo(", ".join(f"{key} {value}" for key, value in about.items()))
    sections: list[Section] = []
    try:
        for name in names:
            sections.append(SECTIONS[name](settings))
            click.echo(f"\n{sections[-1]}")
    except Crashed as error:
        raise click.ClickException(str(error)) from None
    finally:
        if json_file is not None:
            measured = {"machine": about, "parameters": parameters, "rounds": rounds}
            measured["sections"] = [section.to_json() for section in sections]
            json_file.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
