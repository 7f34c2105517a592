"""Builds the model of a config in a process that is forked from this one, which has the libraries."""

from __future__ import annotations

import json
import os
from typing import Any

from dcptools.expected import Expected, building
from dcptools.findings import Finding

from .guard import Violation, check_text

MOST_BYTES = 1 << 30  # that such a process may take, libraries included


def built(config: str) -> dict[str, Any]:
    """What a process of its own says of it; it may do what a process of dcptools may, and no more."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        _answer(config, write)
    os.close(write)
    with open(read, "rb") as stream:
        said = stream.read()
    _, status, used = os.wait4(pid, 0)
    if status or not said:
        raise Violation(f"the process that builds it ended with {os.waitstatus_to_exitcode(status)}")
    if used.ru_maxrss * 1024 > MOST_BYTES:
        raise Violation(f"building took {used.ru_maxrss >> 10} MB")
    answer: dict[str, Any] = json.loads(said)
    return answer


def _answer(config: str, descriptor: int) -> None:
    """As ``python -m dcptools.expected.building`` does, and end."""
    status = 1
    try:
        said = json.dumps(building.answer(json.loads(config))).encode()
        while said:
            said = said[os.write(descriptor, said) :]
        status = 0
    finally:
        os._exit(status)


def outcome_of(config: str) -> str:
    """One word for what became of it; a reason must be one that can be shown."""
    answer = built(config)
    if answer.get("broken", "").startswith("Violation"):  # what the guard has raised in that process
        raise Violation(answer["broken"])
    for kind in ("unknown", "broken"):
        if kind in answer:
            check_text(str(Finding("model-unknown", "config.json", answer[kind])))
            return "too big" if "it takes more than" in answer[kind] else kind
    Expected.from_json(answer)
    return "built"
