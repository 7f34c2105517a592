"""Write docs/cli.md, the command-line reference, from the live `--help` of every command.

python docs/scripts/cli.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from dcptools.cli import convert_command, main_group
from dcptools.demo.__main__ import main as demo_command

PAGE = Path(__file__).resolve().parents[1] / "cli.md"
WIDTH = 100  # characters of a line of help
INTRODUCTION = """\
# Command line

`dcptools` and `python -m dcptools` are the same, and so are `dcptools convert` and `python -m dcptools.convert`.

Results go to stdout; findings, progress and errors to stderr. With `--json` stdout is one JSON object, also where a
problem ended the run. The exit status is 0 for success, 1 for a problem, 2 for wrong usage, 130 after Ctrl-C, 143 after
SIGTERM. That of `dcptools diff` is as `diff` has it: 0 for equal, 1 for different, 2 for a problem.
"""


def commands() -> Iterator[tuple[str, click.Command]]:
    """What a person types, and the command behind it."""
    yield "dcptools", main_group
    for name, command in main_group.commands.items():
        if command is not convert_command:
            yield f"dcptools {name}", command
    yield "python -m dcptools.convert", convert_command
    yield "python -m dcptools.demo", demo_command


def render() -> str:
    """The text of the page."""
    parts = [INTRODUCTION]
    for name, command in commands():
        result = CliRunner().invoke(command, ["--help"], prog_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
        if result.exit_code:
            raise SystemExit(f"{name} --help failed:\n{result.output}")
        parts.append(f"## {name}\n\n```text\n{result.output.rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
