"""The command line: the same four functions, with click. Exit status 0, 1 for a problem, 2 for usage, 130 for Ctrl-C.

Results go to stdout; findings, progress and errors to stderr. With ``--json`` stdout is one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from dcptools._table import counted, printable
from dcptools.errors import DcptoolsError, FindingsError, UsageError
from dcptools.findings import Finding, summary_lines
from dcptools.layouts import LAYOUTS
from dcptools.shards import DEFAULT_SHARD_SIZE, DTYPES

Command = TypeVar("Command", bound=Callable[..., Any])
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


source_options = _options(
    click.argument("directory", metavar="[LOAD_DIR]", required=False, type=click.Path(path_type=Path)),
    click.option(
        "--load-dir", type=click.Path(path_type=Path), help="Directory of the checkpoint, the one that holds .metadata."
    ),
)
mapping_options = _options(
    click.option(
        "--model-assets-dir",
        type=click.Path(path_type=Path),
        help="Directory with config.json and the tokenizer; they are copied to the result.",
    ),
    click.option(
        "--layout",
        type=click.Choice(LAYOUTS),
        default="auto",
        show_default=True,
        help="How HuggingFace names are found in the keys: container takes the leading 'model.' away, bare keeps them.",
    ),
    click.option("--root", metavar="NAME", help="Convert this container instead of 'model', for example ema."),
    click.option(
        "--include", multiple=True, metavar="GLOB", help="Convert only checkpoint keys that match; repeatable."
    ),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out checkpoint keys that match; repeatable."),
    click.option(
        "--rename",
        multiple=True,
        metavar="REGEX=REPLACEMENT",
        help="Rename HuggingFace names that match as a whole; the first rule wins; repeatable.",
    ),
    click.option(
        "--rename-file",
        type=click.Path(path_type=Path),
        help="A file of such rules, one a line; empty lines and lines that start with # do not count.",
    ),
)
plan_options = _options(
    click.option(
        "--shard-size",
        default=str(DEFAULT_SHARD_SIZE),
        show_default=True,
        metavar="BYTES",
        help="Bytes of values a file, in the written dtype; also 5GB, 500MB.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="bfloat16",
        show_default=True,
        help="Floating tensors are written as this; integers and booleans never change.",
    ),
    click.option(
        "--dtype-for",
        multiple=True,
        metavar="GLOB=DTYPE",
        help="An exception for HuggingFace names that match; the first wins; repeatable.",
    ),
    click.option("--strict", is_flag=True, help="Treat warnings as errors."),
)
output_options = _options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, for programs."),
    click.option("--quiet", is_flag=True, help="Print errors only."),
)
leftover_option = click.option("--list-leftovers", is_flag=True, help="List every key that is left out, and why.")


@click.command(name="inspect", context_settings=HELP)
@source_options
@click.option("--all", "show_all", is_flag=True, help="Print every key; otherwise the first 20 of each container.")
@click.option("--tree", "show_tree", is_flag=True, help="Print the modules as a tree, layers that are alike as one.")
@output_options
def inspect_command(
    directory: Path | None, load_dir: Path | None, show_all: bool, show_tree: bool, as_json: bool, quiet: bool
) -> None:
    """Show what is in a checkpoint: keys, shapes, dtypes, files. Reads metadata only."""
    from dcptools.checkpoint import read
    from dcptools.tree import tree

    checkpoint = read(_load_dir(directory, load_dir))
    if as_json:
        _print_json(checkpoint.to_json())
    elif not quiet:
        click.echo(checkpoint)
        click.echo()
        click.echo(tree(checkpoint) if show_tree else checkpoint.keys_table(None if show_all else 20))


@click.command(
    name="preview", short_help="Show which name every key gets, and what looks wrong.", context_settings=HELP
)
@source_options
@mapping_options
@leftover_option
@output_options
def preview_command(
    directory: Path | None, load_dir: Path | None, list_leftovers: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Show which name every key gets, what is left out, and what looks wrong. Writes nothing."""
    mapping = _preview(_load_dir(directory, load_dir), options)
    if as_json:
        _print_json(mapping.to_json())
    elif not quiet:
        click.echo(mapping)
        _list_leftovers(mapping, list_leftovers)
    if mapping.errors:  # shown above unless quiet; --json promises one object
        _print_findings(mapping.errors if quiet else ())
        raise click.ClickException(f"{counted(len(mapping.errors), 'error')}; this checkpoint cannot be converted so.")


@click.command(name="plan", short_help="Show the files of the result and the memory needed.", context_settings=HELP)
@source_options
@mapping_options
@plan_options
@output_options
def plan_command(directory: Path | None, load_dir: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Show the files of the result, their sizes, and the memory needed. Writes nothing."""
    planned = _plan(_load_dir(directory, load_dir), options)
    if as_json:
        _print_json(planned.to_json())
    elif not quiet:
        _print_findings(planned.findings)
        click.echo(planned)


@click.command(name="convert", context_settings=HELP)
@source_options
@click.option("--save-dir", type=click.Path(path_type=Path), help="Output directory.  [default: <load-dir>/hf_ckpt]")
@mapping_options
@plan_options
@click.option("--overwrite", is_flag=True, help="Replace the model that is in the output directory.")
@click.option("--no-fsync", is_flag=True, help="Do not wait until the bytes are on the disk; for scratch file systems.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads.  [default: the CPUs, 2 to 8]")
@click.option("--dry-run", is_flag=True, help="Print the mapping, the findings and the files; write nothing.")
@leftover_option
@output_options
def convert_command(
    directory: Path | None,
    load_dir: Path | None,
    save_dir: Path | None,
    dry_run: bool,
    list_leftovers: bool,
    as_json: bool,
    quiet: bool,
    overwrite: bool,
    no_fsync: bool,
    workers: int | None,
    **options: Any,
) -> None:
    """Convert a PyTorch distributed checkpoint to a HuggingFace model.

    Floating tensors are written as bfloat16 into model-*.safetensors with an index, beside the config and the
    tokenizer of --model-assets-dir. Memory stays at a few hundred MB, whatever the size of the model.
    """
    from dcptools.convert import default_save_dir
    from dcptools.writer import check_target, write

    source = _load_dir(directory, load_dir)
    target = save_dir or default_save_dir(source)
    planned = _plan(source, options)
    if not quiet:
        _print_findings(planned.findings)
    if dry_run:
        check_target(planned, target, overwrite=overwrite)
        if as_json:
            _print_json({"mapping": planned.mapping.to_json(), "plan": planned.to_json(), "save_dir": str(target)})
        elif not quiet:
            click.echo(f"{planned.mapping.table()}\n\n{planned}\n\nDry run: nothing was written to {target}.")
            _list_leftovers(planned.mapping, list_leftovers)
        return
    report = write(planned, target, overwrite=overwrite, fsync=not no_fsync, workers=workers, progress=not quiet)
    if as_json:
        _print_json(report.to_json())
    elif not quiet:
        click.echo(report)
        _list_leftovers(planned.mapping, list_leftovers)


@click.group(name="dcptools", context_settings=HELP)
@click.version_option(package_name="dcptools")
def main_group() -> None:
    """PyTorch distributed checkpoints (DCP): look into them, review the conversion, convert to HuggingFace."""


for _command in (inspect_command, preview_command, plan_command, convert_command):
    main_group.add_command(_command)


def run(command: click.Command, name: str | None = None) -> NoReturn:
    """Run a command; every problem ends in a message of a few lines and an exit status."""
    signal.signal(signal.SIGTERM, _terminate)  # a batch system's stop: clean up as for Ctrl-C
    as_json = "--json" in sys.argv
    try:
        command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        status = 0
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; what was half-written is removed.", err=True)
        status = 130
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except SystemExit as stop:
        if stop.code != 1:
            raise
        status = 0  # of its own accord click exits in this mode for a closed pipe only
    except DcptoolsError as error:
        status = _show_error(error, as_json)
    except Exception as error:
        if os.environ.get("DCPTOOLS_TRACEBACK"):
            raise
        text = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
        click.echo(f"Error: {text}\nDCPTOOLS_TRACEBACK=1 shows where this happened.", err=True)
        status = 1
    sys.exit(status)


def _show_error(error: DcptoolsError, as_json: bool) -> int:
    if isinstance(error, FindingsError) and "--quiet" not in sys.argv:  # a pattern that matched nothing says why
        _print_findings(finding for finding in error.findings if finding.severity == "warning")
    click.echo(f"Error: {error}", err=True)
    if as_json:
        findings = error.findings if isinstance(error, FindingsError) else ()
        kind = type(error).__name__
        _print_json({"error": kind, "message": str(error), "findings": [finding.to_json() for finding in findings]})
    return 2 if isinstance(error, UsageError) else 1


def _terminate(signum: int, frame: Any) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # some batch systems send it again and again; cleaning up goes on
    click.echo("Stopped by a signal; what was half-written is removed.", err=True)
    raise SystemExit(128 + signum)


def _load_dir(directory: Path | None, load_dir: Path | None) -> Path:
    if (directory is None) == (load_dir is None):
        what = "Give only one of LOAD_DIR and --load-dir." if directory else "Missing option '--load-dir'."
        raise click.UsageError(what, click.get_current_context())
    return load_dir or directory or Path()


def _preview(load_dir: Path, options: dict[str, Any]) -> Any:
    from dcptools.mapping import preview

    names = ("model_assets_dir", "layout", "root", "include", "exclude")
    rules = [*options["rename"], *(_read_rules(options["rename_file"]) if options["rename_file"] else ())]
    return preview(load_dir, rename=rules, **{name: options[name] for name in names})


def _plan(load_dir: Path, options: dict[str, Any]) -> Any:
    from dcptools.shards import plan

    mapping = _preview(load_dir, options)
    return plan(mapping, **{name: options[name] for name in ("shard_size", "dtype", "dtype_for", "strict")})


def _read_rules(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The file of rename rules {path} cannot be read: {error}.") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _print_findings(findings: Iterable[Finding]) -> None:
    for line in summary_lines(findings):
        click.echo(line, err=True)


def _list_leftovers(mapping: Any, wanted: bool) -> None:
    if wanted:
        for left in mapping.leftovers:
            click.echo(printable(f"left out: {left.key} ({left.reason})"))


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2))
