"""What goes wrong while the command line is still being imported: a line or two, as later on, and no traceback.

Ctrl-C ends it with status 130; a library that cannot be loaded, for example in too little memory, with 1. The package
imports this first. Whoever imports the package from Python keeps their own way of handling both.
"""

from __future__ import annotations

import os
import signal
import sys  # nothing else: what takes time to import comes after the handler

TYPE_CHECKING = False  # typing takes time too
if TYPE_CHECKING:
    from types import TracebackType

_MODULES = ("dcptools", "dcptools.__main__", "dcptools.convert", "dcptools.convert.__main__")


def is_command_line() -> bool:
    """Whether this process was started as ``dcptools`` or ``python -m dcptools``."""
    words = getattr(sys, "argv", None) or [""]
    if words[0] == "-m":  # it stands there until Python has found the module, and for that it imports the package
        return sys.orig_argv[-len(words)].removeprefix("-m") in _MODULES
    return os.path.basename(words[0]) in ("dcptools", "dcptools.exe")


def leave(signum: int, frame: object) -> None:
    """Exit at once: nothing has been opened or written yet, and an exception could be lost somewhere in an import."""
    try:
        os.write(2, b"Interrupted; nothing was written.\n")
        if "--json" in sys.argv:
            os.write(1, b'{"error": "Interrupted", "message": "Nothing was written.", "findings": []}\n')
    finally:
        os._exit(130)


def fail(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Say which library could not be loaded; ``cli.running`` says what happens later."""
    if os.environ.get("DCPTOOLS_TRACEBACK") or not issubclass(kind, Exception):
        sys.__excepthook__(kind, error, where)
        return
    reason = (str(error).strip().splitlines() or ["no reason is given"])[-1]
    sys.stderr.write(
        f"Error: dcptools cannot be loaded ({kind.__name__}): {reason}\n"
        "Install it again, or give the process more memory (ulimit -a shows the limits of a shell).\n"
        "DCPTOOLS_TRACEBACK=1 shows where this happened.\n"
    )
    if "--json" in sys.argv:
        sys.stdout.write(f'{{"error": "{kind.__name__}", "message": "dcptools cannot be loaded.", "findings": []}}\n')


if is_command_line():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = fail
