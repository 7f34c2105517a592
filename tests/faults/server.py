"""Runs conversions in processes that are forked from this one, which has all imported, and in which things go wrong.

Each line on stdin is a list of jobs, which run at once; each line on stdout what became of them. A job is the words of
``python -m dcptools.convert``, and what goes wrong: see ``harness.Job``.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import safetensors.numpy  # noqa: F401  # before there are limits and faults

from dcptools import _start, verifying, writer  # noqa: F401
from dcptools.cli import convert_command
from dcptools.cli.running import run
from dcptools.storage import LocalSink
from dcptools.writer import cut, engine

Answer = dict[str, Any]
SHIM = ctypes.CDLL(None)
FIRED = mmap.mmap(-1, mmap.PAGESIZE)
ADDRESS = ctypes.addressof(ctypes.c_char.from_buffer(FIRED))
engine.Sizes = lambda: cut.Sizes(slab_bytes=1 << 14)  # type: ignore[misc, assignment]  # some writes for each file
NOBODY = 65534


def child(job: dict[str, Any]) -> int:
    """Be the command line; the exit status."""
    for stream, name in ((1, "out"), (2, "err")):
        descriptor = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    signal.signal(signal.SIGINT, _start.leave)
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if job["nobody"] and os.getuid() == 0:
        os.setuid(NOBODY)
    sys.argv = ["dcptools.convert", *job["words"]]
    if job["signal"]:
        slow_down()
    if fault := job["fault"]:
        words = [fault[name].encode() for name in ("kind", "action", "below")]
        shared = ctypes.c_void_p(ADDRESS)
        SHIM.fault_arm(
            words[0], ctypes.c_long(fault["nth"]), words[1], fault["value"], fault["again"], words[2], shared
        )
    try:
        run(convert_command)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def slow_down() -> None:
    """Let filling take most of the time, so that most signals come while it is done."""
    write = LocalSink.write

    def slow(self: LocalSink, name: str, start: int, data: memoryview) -> None:
        time.sleep(0.003)
        write(self, name, start, data)

    LocalSink.write = slow  # type: ignore[method-assign]


def start(job: dict[str, Any]) -> int:
    if pid := os.fork():
        return pid
    status = 70
    try:
        status = child(job)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(pid: int, job: dict[str, Any]) -> int:
    """The exit status; what stopped itself for a change goes on after that."""
    if job["signal"]:
        time.sleep(job["after"])
        os.kill(pid, signal.SIGSTOP)
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        if job["signal"]:  # the harness looks how far it is
            print('{"stopped": true}', flush=True)
            sys.stdin.readline()
            os.kill(pid, job["signal"])
        else:
            change(job["change"], job["changed"])
        os.kill(pid, signal.SIGCONT)


def change(how: str, what: str) -> None:
    """Change a file of the checkpoint, or the size of the disk, while it is being converted."""
    path = Path(what)
    if how == "the disk shrinks":
        size, place = what.split(" ", 1)
        subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)
    elif how == "shrinks":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "disappears":
        path.unlink()
    elif how == "is overwritten":
        content = path.read_bytes()
        path.write_bytes(bytes(byte ^ 0x55 for byte in content))
    elif how == "is replaced":
        shutil.copy(path, path.with_name("other"))
        path.with_name("other").replace(path)


def main() -> None:
    os.umask(0o022)
    for line in sys.stdin:
        jobs = json.loads(line)
        FIRED[0] = 0
        begun = time.monotonic()
        pids = [start(job) for job in jobs]
        answers = [{"status": wait(pid, job)} for pid, job in zip(pids, jobs, strict=True)]
        print(json.dumps({"answers": answers, "fired": FIRED[0], "seconds": time.monotonic() - begun}), flush=True)


if __name__ == "__main__":
    main()
