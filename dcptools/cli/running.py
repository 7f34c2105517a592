"""Runs a command: every problem ends in a message of a few lines and an exit status.

0, 1 for a problem, 2 for usage, 130 for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import click

from dcptools import _start
from dcptools._option import in_shell, speaking
from dcptools.cli.output import Stderr, let_go, open_closed_streams, print_error, tell, tell_findings
from dcptools.errors import MORE_MEMORY, DcptoolsError, FindingsError, notes_of, too_little_memory

AGAIN_SECONDS = 0.05  # until a signal that was lost is sent again


def run(command: click.Command, name: str | None = None) -> NoReturn:
    """Run a command; every problem ends in a message of a few lines and an exit status."""
    signal.signal(signal.SIGTERM, _terminate)  # a batch system's stop: clean up as for Ctrl-C
    if signal.getsignal(signal.SIGINT) is _start.leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    open_closed_streams()
    with _none_lost(), speaking(in_shell), contextlib.redirect_stderr(cast(TextIO, Stderr(sys.stderr))):
        status = _status_of_ranks(command, name) if _is_one_of_many() else _status(command, name)
    sys.exit(status)


def _is_one_of_many() -> bool:
    """Whether torchrun started this process, beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def _status_of_ranks(command: click.Command, name: str | None) -> int:
    """Run a command on rank 0, with the others at its service; returns the exit status."""
    from dcptools.ranks import together

    return together(lambda team: _status(command, name, team), tell)


def _status(command: click.Command, name: str | None, team: Any = None) -> int:
    """Run a command to its end; returns the exit status."""
    try:
        status: int | None = command.main(prog_name=name, standalone_mode=False, obj=team)
        sys.stdout.flush()
        return status or 0
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        tell(shown.getvalue().rstrip("\n"))
        print_error(error, error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not break into what is said here
        _tell_end("Interrupted", stop)
        return 130
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        let_go(sys.stdout)
        return 0
    except _Stopped as stop:
        _tell_end("Stopped", stop)
        return int(str(stop.code))
    except SystemExit as stop:
        if stop.code != 1:
            raise
        return 0  # in this mode click exits of its own accord only for a closed pipe
    except DcptoolsError as error:
        if isinstance(error, FindingsError) and "--quiet" not in sys.argv:  # a pattern that matched nothing says why
            tell_findings(finding for finding in error.findings if finding.severity == "warning")
        tell(f"Error: {error}")
        print_error(error, str(error), error.findings if isinstance(error, FindingsError) else ())
        return error.exit_status
    except Exception as error:
        if os.environ.get("DCPTOOLS_TRACEBACK"):
            raise
        text = "\n".join([_text_of(error), *notes_of(error)])
        tell(f"Error: {text}\nDCPTOOLS_TRACEBACK=1 shows where this happened.")
        print_error(error, text)
        return 1


def _text_of(error: Exception) -> str:
    """What to say about an error that is not ours."""
    if isinstance(error, MemoryError):
        return too_little_memory(error)
    if isinstance(error, ImportError):
        return f"A library cannot be loaded: {error}\nInstall it again, or {MORE_MEMORY}"
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def shared_by(team: Any, resume: bool) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What makes writing, comparing and checksums the work of all ranks; nothing if this process is alone."""
    if team is None:
        return {}, {}, {}
    from dcptools.ranks import SharedChecks, SharedEngine

    checks = SharedChecks(team)
    return (
        {"make_engine": partial(SharedEngine, team, keep=resume)},
        {"compare": checks.compare},
        {"sum_up": checks.sum_up},
    )


@contextlib.contextmanager
def model_is_written(target: Path | str) -> Iterator[None]:
    """Ctrl-C or a signal leaves the model, and says so."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(f"The model is complete in {target}, but what follows (--verify, --report) was not finished.")
        raise


class _Stopped(SystemExit):
    """A signal of a batch system; its code is the exit status."""


def _terminate(signum: int, frame: Any) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # some batch systems send it again and again; cleaning up goes on
    raise _Stopped(128 + signum)


@contextlib.contextmanager
def _none_lost() -> Iterator[None]:
    """A signal that comes where Python lets no error out, as in what a weak reference calls, is sent again."""
    before = sys.unraisablehook

    def again(lost: Any) -> None:
        stop = lost.exc_value
        if not isinstance(stop, _Stopped | KeyboardInterrupt):
            before(lost)
            return
        number = signal.SIGINT
        if isinstance(stop, _Stopped):
            number = signal.SIGTERM
            signal.signal(number, _terminate)
        sending = threading.Timer(AGAIN_SECONDS, os.kill, [os.getpid(), number])
        sending.daemon = True
        sending.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _tell_end(what: str, stop: BaseException) -> None:
    """Say what became of the output: what the writer noted on the interruption, or that nothing is left of it."""
    notes = notes_of(stop)
    said = "Interrupted" if what == "Interrupted" else "Stopped by a signal"
    text = "\n".join([f"{said}.", *notes]) if notes else f"{said}; what was half-written is removed."
    tell(text)
    print_error(what, text)
