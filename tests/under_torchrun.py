"""A program for ``torchrun``: the command line, with something that goes wrong on one rank.

Its words are a directory, where each rank leaves ``rank<n>.json`` with the bytes that it read of each file; what goes
wrong, as JSON (``{"rank1": "kill"}``); and those of ``python -m dcptools.convert``.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dcptools.cli import convert_command, run
from dcptools.errors import BrokenCheckpoint
from dcptools.shards import ShardPlan
from dcptools.storage import FileState, LocalSource

RANK = os.environ["RANK"]
SLOW_SECONDS = 0.02  # for each read
BYTES_BEFORE = 200_000  # that are read before it goes wrong


def main() -> None:
    directory, wrong = Path(sys.argv[1]), json.loads(sys.argv[2]).get(f"rank{RANK}", "").split()
    del sys.argv[1:3]
    read: Counter[str] = Counter()
    into, content, state = LocalSource.read_into, LocalSource.content, LocalSource.state

    def read_into(self: LocalSource, name: str, start: int, out: memoryview) -> None:
        read[name] += out.nbytes
        if "slow" in wrong:
            time.sleep(SLOW_SECONDS)
        if read.total() > BYTES_BEFORE:
            go_wrong(wrong)
        into(self, name, start, out)

    def read_whole(self: LocalSource, name: str) -> bytes:
        data = content(self, name)
        read[name] += len(data)
        return data

    def other_state(self: LocalSource, name: str) -> FileState | None:
        found = state(self, name)
        return found and found._replace(modified_ns=found.modified_ns + 1)

    if "terminal" in wrong:
        patch(sys.stderr, "isatty", lambda: True)
    patch(LocalSource, "read_into", read_into)
    patch(LocalSource, "content", read_whole)
    if "elsewhere" in wrong:
        patch(LocalSource, "state", other_state)
    if "version" in wrong:
        patch(ShardPlan, "fingerprint", "of another version")
    atexit.register(lambda: (directory / f"rank{RANK}.json").write_text(json.dumps(read)))
    leave = os._exit
    patch(os, "_exit", lambda status: (atexit._run_exitfuncs(), leave(status)))
    run(convert_command, "python -m dcptools.convert")


def patch(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def go_wrong(wrong: list[str]) -> None:
    if "kill" in wrong:
        os.kill(os.getpid(), signal.SIGKILL)
    if "interrupt" in wrong:
        os.kill(os.getppid(), signal.SIGINT)  # as a terminal does: torchrun has its processes in sessions of their own
    if "error" in wrong:
        raise BrokenCheckpoint("This file cannot be read: Input/output error.\nLook after the disk.")


if __name__ == "__main__":
    main()
