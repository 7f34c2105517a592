"""What a run has finished, beside its files on the disk, so that a later run can continue after whatever stopped it.

A file of JSON lines. The first one says what is converted. Each of the others names a file that is complete and, in a
durable run, on the disk: only then is its line written. A line that was cut off does not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcptools._option import option
from dcptools._text import some
from dcptools.errors import TargetError
from dcptools.recipe import given_options
from dcptools.shards import ShardPlan
from dcptools.storage import TEMPORARY, open_regular
from dcptools.writer.tally import Noticed

JOURNAL = f"{TEMPORARY}journal.tmp"
NEW_JOURNAL = f"{TEMPORARY}journal-new.tmp"
_FORMAT = 1
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Finished:
    """A complete weight file, under its temporary name."""

    filename: str
    nbytes: int
    crc32: int  # of all its bytes; 0 at a URL
    noticed: Mapping[str, Noticed]  # by output name
    identity: str = ""  # at a URL: it changes as soon as the file is replaced


class Journal:
    """The journal of a run that has begun."""

    def __init__(self, save_dir: Path, plan: ShardPlan, finished: Iterable[Finished], *, sync: bool) -> None:
        """Begin it anew, with what is already finished; raises OSError."""
        self.path, self._sync, self._lock = save_dir / JOURNAL, sync, threading.Lock()
        new = save_dir / NEW_JOURNAL
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        self._descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        try:
            self._write(lines_of(plan, finished))
            os.replace(new, self.path)
        except BaseException:
            self.close()
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise

    def add(self, file: Finished) -> None:
        """Say that a file is finished; from several threads."""
        with self._lock:
            self._write(_lines(asdict(file)))

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, lines: bytes) -> None:
        data = memoryview(lines)
        while data:
            data = data[os.write(self._descriptor, data) :]
        if self._sync:
            os.fsync(self._descriptor)


def read_journal(save_dir: Path) -> tuple[dict[str, Any], list[Finished]]:
    """What a stopped run left: its first line, and what it has finished; nothing if there is no journal.

    It is in somebody's directory, and may be anything.
    """
    path = save_dir / JOURNAL
    try:
        if path.is_symlink():
            return {}, []
        with open(open_regular(path), "rb") as file:
            return parse_journal(file.read(MOST_BYTES))
    except OSError:
        return {}, []


def lines_of(plan: ShardPlan, finished: Iterable[Finished]) -> bytes:
    """A journal as it is written."""
    return _lines(_header(plan), *map(asdict, finished))


def _lines(*lines: dict[str, Any]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def parse_journal(content: bytes) -> tuple[dict[str, Any], list[Finished]]:
    """The first line of a journal, and what the others say; nothing if it is not one."""
    try:
        first, *others = content.split(b"\n")[:-1]
        header = json.loads(first)
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            return {}, []
    except (ValueError, RecursionError):
        return {}, []
    finished: list[Finished] = []
    for line in others:
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            finished.append(_finished(**json.loads(line)))
    return header, finished


def _finished(
    filename: str, nbytes: int, crc32: int, noticed: dict[str, dict[str, Any]], identity: str = ""
) -> Finished:
    if not all(isinstance(text, str) for text in (filename, identity)):
        raise ValueError
    found = {name: Noticed(**fields) for name, fields in noticed.items()}
    if not all(type(count) is int for count in (nbytes, crc32, *(one.overflows for one in found.values()))):
        raise ValueError
    if not all(type(one.all_nan) is bool for one in found.values()):
        raise ValueError
    return Finished(filename, nbytes, crc32, found, identity)


def _header(plan: ShardPlan) -> dict[str, Any]:
    """What is converted, and what shows how it differs from another conversion."""
    checkpoint = plan.checkpoint
    header = {
        "format": _FORMAT,
        "fingerprint": plan.fingerprint,
        "checkpoint": checkpoint.path,
        "digest": checkpoint.digest,
        "identities": dict(checkpoint.identities),
        "options": given_options(plan),
    }
    plain: dict[str, Any] = json.loads(json.dumps(header, default=str))
    return plain


def refuse_others(plan: ShardPlan, save_dir: Path | str, header: Mapping[str, Any]) -> None:
    """Refuse to continue with files of another conversion, or of a checkpoint that has been written to since.

    Raises
    ------
    TargetError
        It says what differs.
    """
    now = _header(plan)
    if header.get("fingerprint") != now["fingerprint"]:
        differences = "\n".join(f"  {line}" for line in _differences(header, now))
        raise TargetError(
            f"The finished files in {save_dir} belong to another conversion:\n{differences}\n"
            "Give the same options to continue with them. "
            f"Without {option('resume', True)} the run starts afresh and removes them."
        )
    before = header.get("identities")
    before = before if isinstance(before, dict) else {}
    if changed := sorted(name for name in now["identities"] if before.get(name) != now["identities"][name]):
        raise TargetError(
            f"The checkpoint {plan.checkpoint.path} has changed since the finished files in {save_dir} were made:"
            f" {some(changed)} {'was' if len(changed) == 1 else 'were'} written to or replaced.\n"
            f"Without {option('resume', True)} the run starts afresh and removes them."
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was converted before and what is converted now, one line per option."""
    lines = []
    if before.get("digest") != now["digest"]:
        same = before.get("checkpoint") == now["checkpoint"]
        lines.append(
            f"checkpoint: {now['checkpoint']} was saved again"
            if same
            else f"checkpoint: {before.get('checkpoint')} before, {now['checkpoint']} now"
        )
    options = before.get("options")
    was = options if isinstance(options, dict) else {}
    for name in sorted(was.keys() | now["options"].keys()):
        if was.get(name) != now["options"].get(name):
            lines.append(f"{name}: {_said(was, name)} before, {_said(now['options'], name)} now")
    return lines or ["names, shapes or dtypes of the result: its config.json, reference or dcptools may have changed"]


def _said(options: Mapping[str, Any], name: str) -> str:
    return str(options[name]) if name in options else "the default"
