"""What to say about words and options that a command does not take."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

from dcptools._text import counted
from dcptools.storage import without_password

# What other programs call an option
USUAL = {
    "--save-dir": ("-o", "--out", "--output", "--output-dir", "--out-dir", "--dst"),
    "--load-dir": ("-i", "--input", "--input-dir", "--checkpoint", "--checkpoint-dir", "--ckpt", "--src"),
    "--model-assets-dir": ("--assets", "--assets-dir", "--config", "--tokenizer", "--hf-dir", "--model"),
    "--shard-size": ("--max-shard-size",),
    "--overwrite": ("-f", "--force"),
    "--workers": ("-j", "--jobs", "--threads", "--num-workers"),
    "--dry-run": ("-n",),
}


def meant(ctx: click.Context, option: str) -> str | None:
    """The option of the command that is called so in Python, or in other programs."""
    known, asked = {name for parameter in ctx.command.params for name in parameter.opts}, option.replace("_", "-")
    return next((name for name in known if name == asked or asked in USUAL.get(name, ())), None)


def told(ctx: click.Context, words: Sequence[str], surplus: Sequence[str]) -> str:
    """That there are too many ``words`` after a command, and how to type it.

    Two mistakes are recognized: a second directory for ``convert``, and a file for ``--json``.
    """
    taken = [str(ctx.params[p.name]) for p in ctx.command.params if isinstance(p, click.Argument) and p.name]
    file = words[words.index("--json") + 1] if "--json" in words[:-1] else ""
    if file.endswith(".json") and file in (*taken, *surplus):
        to_stdout = without_password(shlex.join(word for word in words if word != file))
        return (
            f"--json takes no file ({file}): it prints to stdout.\n"
            f"Send that into the file: {ctx.command_path} {to_stdout} > {shlex.quote(file)}"
        )
    given = " ".join(map(shlex.quote, [*taken, *surplus]))
    what = f"{ctx.command_path} takes {counted(len(taken), 'path')} without an option"
    found = f"{what}, and {len(taken) + len(surplus)} were given: {without_password(given)}"
    if len(surplus) == 1 and "save_dir" in ctx.params and len(taken) == 1 and ctx.params["save_dir"] is None:
        return f"{found}\n{named(ctx, taken[0], surplus[0])}"
    return f"{found}\nName the others by their options: {ctx.command_path} --help lists them."


def named(ctx: click.Context, load_dir: str, save_dir: str) -> str:
    """Both directories as options, as ``convert`` takes them."""
    directories = f"--load-dir {shlex.quote(load_dir)} --save-dir {shlex.quote(save_dir)}"
    return f"Name the directories: {ctx.command_path} {without_password(directories)}"
