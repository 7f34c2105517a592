"""The command line: the same four functions, with click. Exit status 0, 1 for a problem, 2 for usage, 130 for Ctrl-C.

Results go to stdout; findings, progress and errors to stderr. With ``--json`` stdout is one JSON object. Everything
goes through ``_print`` and ``_tell``: what files are called must not drive a terminal, and a stream that cannot be
written to must not stop a conversion.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast

import click

from dcptools import _start
from dcptools._text import counted, printable_lines
from dcptools.errors import DcptoolsError, FindingsError, UsageError, system_errors
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


class _Path(click.Path):
    """A path; an empty word, which a shell makes of a variable that is not set, does not mean the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) if value else self.fail("The path is empty.", param, ctx)


class _Text(click.types.StringParamType):
    """A name or pattern, which is compared with names in UTF-8 whatever the locale is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            value.encode()
        except UnicodeEncodeError:  # bytes that are no text in this locale
            try:
                return os.fsencode(value).decode()
            except UnicodeError:
                self.fail(f"{value!r} is not UTF-8.", param, ctx)
        return value


_PATH, _TEXT = _Path(path_type=Path), _Text()
source_options = _options(
    click.argument("directory", metavar="[LOAD_DIR]", required=False, type=_PATH),
    click.option("--load-dir", type=_PATH, help="Directory of the checkpoint, the one that holds .metadata."),
)
mapping_options = _options(
    click.option(
        "--model-assets-dir",
        type=_PATH,
        help="Directory with config.json and the tokenizer; they are copied to the result.",
    ),
    click.option(
        "--layout",
        type=click.Choice(LAYOUTS),
        default="auto",
        show_default=True,
        help="How HuggingFace names are found in the keys: container takes the leading 'model.' away, bare keeps them.",
    ),
    click.option(
        "--root", type=_TEXT, metavar="NAME", help="Convert this container instead of 'model', for example ema."
    ),
    click.option(
        "--include",
        type=_TEXT,
        multiple=True,
        metavar="GLOB",
        help="Convert only checkpoint keys that match; repeatable.",
    ),
    click.option(
        "--exclude",
        type=_TEXT,
        multiple=True,
        metavar="GLOB",
        help="Leave out checkpoint keys that match; repeatable.",
    ),
    click.option(
        "--rename",
        type=_TEXT,
        multiple=True,
        metavar="REGEX=REPLACEMENT",
        help="Rename HuggingFace names that match as a whole; the first rule wins; repeatable.",
    ),
    click.option(
        "--rename-file",
        type=_PATH,
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
        type=_TEXT,
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
        _print(f"{checkpoint}\n\n{tree(checkpoint) if show_tree else checkpoint.keys_table(None if show_all else 20)}")


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
        _print(f"{mapping}{_leftovers(mapping, list_leftovers)}")
    if mapping.errors:  # shown above unless quiet; --json promises one object
        _tell_findings(mapping.errors if quiet else ())
        _tell(f"Error: {counted(len(mapping.errors), 'error')}; this checkpoint cannot be converted so.")
        raise click.exceptions.Exit(1)


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
        _tell_findings(planned.findings)
        _print(str(planned))


@click.command(name="convert", context_settings=HELP)
@source_options
@click.option("--save-dir", type=_PATH, help="Output directory.  [default: <load-dir>/hf_ckpt]")
@mapping_options
@plan_options
@click.option("--overwrite", is_flag=True, help="Replace the model that is in the output directory.")
@click.option("--no-fsync", is_flag=True, help="Do not wait until the bytes are on the disk; for scratch file systems.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Threads.  [default: the CPUs, 2 to 8]")
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
        _tell_findings(planned.findings)
    if dry_run:
        check_target(planned, target, overwrite=overwrite)
        if as_json:
            _print_json({"mapping": planned.mapping.to_json(), "plan": planned.to_json(), "save_dir": str(target)})
        elif not quiet:
            text = f"{planned.mapping.table()}\n\n{planned}\n\nDry run: nothing was written to {target}."
            _print(text + _leftovers(planned.mapping, list_leftovers))
        return
    report = write(planned, target, overwrite=overwrite, fsync=not no_fsync, workers=workers, progress=not quiet)
    try:
        if as_json:
            _print_json(report.to_json())
        elif not quiet:
            _print(f"{report}{_leftovers(planned.mapping, list_leftovers)}")
    except DcptoolsError as error:
        raise DcptoolsError(f"{error}\nThe model is complete in {target}; only this report is lost.") from None


@click.group(name="dcptools", context_settings=HELP)
@click.version_option(package_name="dcptools")
def main_group() -> None:
    """PyTorch distributed checkpoints (DCP): look into them, review the conversion, convert to HuggingFace."""


for _command in (inspect_command, preview_command, plan_command, convert_command):
    main_group.add_command(_command)


def run(command: click.Command, name: str | None = None) -> NoReturn:
    """Run a command; every problem ends in a message of a few lines and an exit status."""
    signal.signal(signal.SIGTERM, _terminate)  # a batch system's stop: clean up as for Ctrl-C
    if signal.getsignal(signal.SIGINT) is _start.leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _open_closed_streams()
    with contextlib.redirect_stderr(cast(TextIO, _Stderr(sys.stderr))):
        status = _status(command, name)
    sys.exit(status)


def _status(command: click.Command, name: str | None) -> int:
    try:
        status: int | None = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return status or 0
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        _tell(shown.getvalue().rstrip("\n"))
        _print_error(error, error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not break into what is said here
        _tell("Interrupted; what was half-written is removed.")
        _print_error("Interrupted", "Interrupted; what was half-written is removed.")
        return 130
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        _let_go(sys.stdout)
        return 0
    except _Stopped as stop:
        _print_error("Stopped", "Stopped by a signal; what was half-written is removed.")
        return int(str(stop.code))
    except SystemExit as stop:
        if stop.code != 1:
            raise
        return 0  # of its own accord click exits in this mode for a closed pipe only
    except DcptoolsError as error:
        if isinstance(error, FindingsError) and "--quiet" not in sys.argv:  # a pattern that matched nothing says why
            _tell_findings(finding for finding in error.findings if finding.severity == "warning")
        _tell(f"Error: {error}")
        _print_error(error, str(error), error.findings if isinstance(error, FindingsError) else ())
        return 2 if isinstance(error, UsageError) else 1
    except Exception as error:
        if os.environ.get("DCPTOOLS_TRACEBACK"):
            raise
        text = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
        _tell(f"Error: {text}\nDCPTOOLS_TRACEBACK=1 shows where this happened.")
        _print_error(error, text)
        return 1


class _Stopped(SystemExit):
    """A signal of a batch system; its code is the exit status."""


def _terminate(signum: int, frame: Any) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # some batch systems send it again and again; cleaning up goes on
    _tell("Stopped by a signal; what was half-written is removed.")
    raise _Stopped(128 + signum)


class _Stderr:
    """Stderr that takes everything: a log on a full disk, or a reader who is gone, is no reason to stop."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(ValueError):  # closed
            try:
                self._stream.write(text)
            except OSError:
                _let_go(self._stream)
        return len(text)

    def flush(self) -> None:
        self.write("")


def _open_closed_streams() -> None:
    """Let nothing else take the descriptors of streams that were closed (``>&-``), or messages get into its file."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the file that is opened gets the lowest free number, and that is its
            nowhere = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)


def _let_go(stream: Any) -> None:
    """Send what is still in the buffer of a broken stream nowhere, so that Python does not fail with it at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


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
    with system_errors(UsageError, f"The file of rename rules {path} cannot be read"):
        lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _leftovers(mapping: Any, wanted: bool) -> str:
    return "".join(f"\nleft out: {left.key} ({left.reason})" for left in mapping.leftovers) if wanted else ""


def _tell_findings(findings: Iterable[Finding]) -> None:
    for line in summary_lines(findings):
        _tell(line)


def _tell(text: str) -> None:
    """Lines for stderr."""
    print(_encodable(printable_lines(text), sys.stderr), file=sys.stderr)


def _print(text: str) -> None:
    """Lines for stdout."""
    try:
        print(_encodable(printable_lines(text), sys.stdout), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _let_go(sys.stdout)
        raise DcptoolsError(f"The result cannot be written to stdout: {error.strerror or error}.") from None


def _encodable(text: str, stream: TextIO) -> str:
    """With escapes for what the stream's encoding lacks: a name must not look like another one."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _print_json(value: dict[str, Any]) -> None:
    _print(json.dumps(value, indent=2).replace("\x7f", r"\u007f"))  # all other control characters are escaped


def _print_error(error: Exception | str, message: str, findings: Iterable[Finding] = ()) -> None:
    """The object that ``--json`` promises, after the message on stderr."""
    if "--json" in sys.argv:
        kind = error if isinstance(error, str) else type(error).__name__
        found = [finding.to_json() for finding in findings]
        with contextlib.suppress(OSError, DcptoolsError):  # stdout itself may be the problem
            _print_json({"error": kind, "message": message, "findings": found})
