"""What the command line says: results on stdout, all else on stderr.

Everything goes through ``print_lines`` and ``tell``: names of files must not control a terminal, and a stream that
cannot be written to must not stop a conversion.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TextIO

from dcptools._text import printable_lines
from dcptools.errors import DcptoolsError
from dcptools.findings import Finding, summary_lines


def tell_findings(findings: Iterable[Finding]) -> None:
    for line in summary_lines(findings):
        tell(line)


def tell(text: str) -> None:
    """Lines for stderr."""
    print(_encodable(printable_lines(text), sys.stderr), file=sys.stderr)


def print_lines(text: str) -> None:
    """Lines for stdout."""
    try:
        print(_encodable(printable_lines(text), sys.stdout), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        let_go(sys.stdout)
        raise DcptoolsError(f"The result cannot be written to stdout: {error.strerror or error}.") from None


class Output(NamedTuple):
    """Which parts of a result a person or a program wants."""

    as_json: bool
    quiet: bool  # errors alone
    show_all: bool = False  # every row of a table

    @property
    def rows(self) -> dict[str, Any]:
        """How much of a table is shown, as ``Shown.table`` and ``text`` take it."""
        return {"most": None} if self.show_all else {"rest": "--all prints every row"}

    @property
    def speaks(self) -> bool:
        """Whether a person reads it."""
        return not (self.as_json or self.quiet)

    def show(self, value: Callable[[], dict[str, Any]], text: Callable[[], str]) -> None:
        """The result: its value for a program, its text for a person."""
        if self.as_json:
            print_json(value())
        elif not self.quiet:
            print_lines(text())


def tell_verified(found: Any, output: Output) -> None:
    """What a verification found; without errors, nothing is said if it is to be quiet."""
    tell_findings(found.findings if output.speaks else found.errors if output.quiet else ())
    output.show(found.to_json, lambda: found.table(**output.rows))
    if output.quiet and not found.ok:
        tell(f"Error: {found.headline()}")


def _encodable(text: str, stream: TextIO) -> str:
    """With escapes for what the stream's encoding lacks: one name must not look like another."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_json(value: dict[str, Any]) -> None:
    print_lines(json.dumps(value, indent=2).replace("\x7f", r"\u007f"))  # all other control characters are escaped


def print_error(error: Exception | str, message: str, findings: Iterable[Finding] = ()) -> None:
    """The object that ``--json`` promises, after the message on stderr."""
    if "--json" in sys.argv:
        kind = error if isinstance(error, str) else type(error).__name__
        found = [finding.to_json() for finding in findings]
        with contextlib.suppress(OSError, DcptoolsError):  # stdout itself may be the problem
            print_json({"error": kind, "message": message, "findings": found})


class Stderr:
    """Stderr that accepts everything: a log on a full disk, or a reader that is gone, is no reason to stop."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(ValueError):  # closed
            try:
                self._stream.write(text)
            except OSError:
                let_go(self._stream)
        return len(text)

    def flush(self) -> None:
        self.write("")


def open_closed_streams() -> None:
    """Let nothing else take the descriptors of closed streams (``>&-``), or messages would get into its file."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the file that is opened gets the lowest free number, which is the stream's
            nowhere = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)


def let_go(stream: Any) -> None:
    """Send what is still in the buffer of a broken stream nowhere, so that Python does not fail with it on exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
