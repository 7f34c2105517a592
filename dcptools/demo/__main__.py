"""``python -m dcptools.demo DIR``: make the demo checkpoint and, with ``--walk``, go through the whole line."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from dcptools.demo import make_demo
from dcptools.errors import DcptoolsError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--processes", type=click.IntRange(min=1), default=4, show_default=True, help="Number of training processes."
)
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Number of optimizer steps.")
@click.option("--force", is_flag=True, help="Make it again even if it is there.")
@click.option("--walk", "walking", is_flag=True, help="Afterwards inspect, preview, plan, convert, load and compare.")
def main(directory: Path, processes: int, steps: int, force: bool, walking: bool) -> None:
    """Train a tiny Qwen3 under FSDP2 and save its distributed checkpoint into DIRECTORY.

    DIRECTORY gets checkpoint/ (what a trainer leaves), assets/ (config and tokenizer) and live/ (the weights of
    the live model, to compare with). Nothing is downloaded and no GPU is used. A demo that is already there is used
    again if its settings are the same.

    --walk exits with 1 if the logits of a converted model differ from those of the live weights in any bit.
    """
    try:
        started = time.perf_counter()
        click.echo(f"Demo of {processes} processes and {steps} steps in {directory} ...")
        demo = make_demo(directory, processes=processes, steps=steps, force=force)
        click.echo(f"{demo}\n  in {time.perf_counter() - started:.1f} s")
        if walking:
            from dcptools.demo._walk import walk

            sys.exit(0 if walk(demo, click.echo) else 1)
    except DcptoolsError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main(prog_name="python -m dcptools.demo")
