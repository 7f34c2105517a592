"""A command: its help, with options under headings if there are many; it also says which arguments are too many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dcptools.cli.surplus import meant, told

HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
MOST_IN_ONE_LIST = 10
NAMES_WIDTH = 30  # characters of the left column, the most that click makes it
HEADINGS = {
    "What to read": ("--load-dir", "--include", "--exclude", "--by", "--keys"),
    "The model and its names": (
        *("--model-assets-dir", "--reference", "--family", "--layout", "--root", "--names", "--rename"),
        *("--rename-file", "--tied", "--unexpected", "--allow-mismatch"),
    ),
    "LoRA adapters": ("--mode", "--adapter", "--adapter-config-path"),
    "Dtypes": ("--dtype", "--dtype-for", "--cast"),
    "What to write": ("--save-dir", "--shard-size", "--overwrite", "--resume", "--html", "--csv"),
    "Speed": ("--workers", "--no-fsync"),
    "Checks": ("--dry-run", "--strict", "--verify", "--report"),
    "What is printed": ("--all", "--list-leftovers", "--json", "--quiet", "--help"),
}


class Grouped(click.Command):
    """A command whose help lists the options under `HEADINGS`, unless they are few."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments on the command line; those that it does not take are reported in our own words."""
        words, ctx.allow_extra_args = list(args), True
        try:
            surplus = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if name := meant(ctx, error.option_name):
                what = f"No such option {error.option_name!r}. Did you mean {name!r}?"
                raise click.NoSuchOption(error.option_name, what, ctx=ctx) from None
            raise
        if surplus:
            raise click.UsageError(told(ctx, words, surplus), ctx)
        return surplus

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = {p.opts[-1]: line for p in self.get_params(ctx) if (line := p.get_help_record(ctx))}
        if len(lines) <= MOST_IN_ONE_LIST:
            return super().format_options(ctx, formatter)
        for heading, options in HEADINGS.items():
            if under := [lines[option] for option in options if option in lines]:
                with formatter.section(heading):
                    formatter.write_dl([(names.ljust(NAMES_WIDTH), text) for names, text in under])


def command(name: str, short_help: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """The decorator that makes a command from a function."""
    return click.command(name, cls=Grouped, short_help=short_help, context_settings=HELP)
