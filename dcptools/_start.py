"""Ctrl-C while the command line is still being imported: one line and status 130, as later, and no traceback.

The package imports this first. Whoever imports the package from Python keeps their own way with Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys  # nothing else: what takes time to import comes after the handler

_MODULES = ("dcptools", "dcptools.__main__", "dcptools.convert", "dcptools.convert.__main__")


def is_command_line() -> bool:
    """Whether this process was started as ``dcptools`` or ``python -m dcptools``."""
    words = getattr(sys, "argv", None) or [""]
    if words[0] == "-m":  # it stands there until Python has found the module, and for that it imports the package
        return sys.orig_argv[-len(words)].removeprefix("-m") in _MODULES
    return os.path.basename(words[0]) in ("dcptools", "dcptools.exe")


def leave(signum: int, frame: object) -> None:
    """End at once: nothing was opened or written yet, and an exception could be lost somewhere in an import."""
    try:
        os.write(2, b"Interrupted; nothing was written.\n")
        if "--json" in sys.argv:
            os.write(1, b'{"error": "Interrupted", "message": "Nothing was written.", "findings": []}\n')
    finally:
        os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler and is_command_line():
    signal.signal(signal.SIGINT, leave)
