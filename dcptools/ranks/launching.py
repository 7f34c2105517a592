"""Joins the processes of a run, and lets them go together."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

from dcptools.errors import DcptoolsError
from dcptools.ranks.pulse import Pulse
from dcptools.ranks.team import Team, ignore_signals

JOIN_SECONDS = 300  # until all must have joined; they start to load Python at the same time
LOST_SECONDS = 60  # after which a machine that does not answer counts as gone


def together(command: Callable[[Team], int], tell: Callable[[str], None]) -> int:
    """Run a command on rank 0, with all other ranks at its service; returns the exit status of this process.

    Parameters
    ----------
    command
        What rank 0 does with its team; it returns an exit status, and all ranks end with that.
    tell
        Says a line to the user.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        team = _join(rank, size)
    except (RuntimeError, ValueError) as error:
        tell(_not_joined(size, error))
        return 1
    return _lead(team, command) if rank == 0 else _follow(team, tell)


def _lead(team: Team, command: Callable[[Team], int]) -> int:
    status = 1
    try:
        status = command(team)
    finally:
        ignore_signals()
        if team.broken:
            _leave_alone(status)
        with contextlib.suppress(DcptoolsError):  # it is told how this ended, and the others see that this rank is gone
            team.end(status)
    _part()
    return status


def _follow(team: Team, tell: Callable[[str], None]) -> int:
    signal.signal(signal.SIGTERM, _stop)
    try:
        status = team.follow()
    except DcptoolsError as error:
        ignore_signals()
        if team.should_tell():
            tell(f"Error: {error}")
        _leave_alone(1)
    except (KeyboardInterrupt, SystemExit) as stop:
        _leave_alone(stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130)
    ignore_signals()
    _part()
    return status


def _join(rank: int, size: int) -> Team:
    from torch import distributed

    dist: Any = distributed  # mypy finds only some of its documented names
    with _stdout_kept():
        store, *_ = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        store = dist.PrefixStore("dcptools", store)  # its keys are not those of whatever else these processes do
        timeout = timedelta(seconds=JOIN_SECONDS)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
        pulse = Pulse(dist.new_group(backend="gloo", timeout=timedelta(seconds=LOST_SECONDS)), size)
    return Team(rank, size, pulse, store)


def _not_joined(size: int, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return (
        f"Error: The {size} processes of this run could not connect to each other: {reason}\n"
        "Check that torchrun runs on all machines, and that they reach each other over the network that "
        "GLOO_SOCKET_IFNAME names.\nIn a program that torchrun itself has started, start this command without "
        "TORCHELASTIC_RUN_ID in its environment: then it works alone."
    )


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """Some versions of gloo print to stdout whom they are connected to, but ``--json`` promises one object there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _stop(signum: int, frame: Any) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)
    raise SystemExit(128 + signum)


def _part() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()


def _leave_alone(status: int) -> NoReturn:
    """End without the others: a thread may wait for them, and so would taking the connections down in order."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
