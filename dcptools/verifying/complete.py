"""A run with ``resume`` that was finished before: a batch system submits a job again that had come to its end."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from dcptools._parallel import default_workers
from dcptools.errors import BrokenModel, NotAModel, OutputExists
from dcptools.hf import as_model
from dcptools.shards import ShardPlan
from dcptools.verifying.checking import compared_with_plan
from dcptools.verifying.files import about_files
from dcptools.verifying.values import Verification
from dcptools.writer import Report, nothing_written, write


def write_or_find(
    plan: ShardPlan,
    save_dir: str | os.PathLike[str],
    *,
    resume: bool = False,
    running: dict[str, Any],
    **options: Any,
) -> tuple[Report, Verification | None]:
    """Write the model; with ``resume``, one that is there stays if it is what would be written, in every bit.

    Nothing but its values says of which checkpoint it was made, so they are all compared. ``running`` has workers,
    progress and cancel, ``options`` the others of ``write``. Of several ranks, the one that writes compares alone: the
    others do not have the plan.

    Raises
    ------
    DcptoolsError
        Whatever ``write`` raises. What is there is another model: ``OutputExists``, with what differs first.
    """
    start = time.perf_counter()
    try:
        return write(plan, save_dir, resume=resume, **options, **running), None
    except OutputExists as error:
        if not resume:
            raise
        exists = error
    try:
        found = _found(plan, save_dir, running)
    except (NotAModel, BrokenModel):
        raise exists from None
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(f"Nothing was written; what is in {save_dir} was being compared with the checkpoint.")
        raise
    if isinstance(found, str):
        raise OutputExists(f"{exists}\nIt is not what this run would write: {found}") from None
    count, seconds = running.get("workers") or default_workers(), time.perf_counter() - start
    return nothing_written(plan, os.fspath(save_dir), workers=count, seconds=seconds), found


def _found(plan: ShardPlan, save_dir: str | os.PathLike[str], running: dict[str, Any]) -> Verification | str:
    """That the model there is the planned one, or what differs first; values are read only where headers are right."""
    model = as_model(save_dir)
    try:
        wrong = [finding for finding in about_files(model, plan) if finding.severity == "error"]
    finally:
        model.source.close()
    if wrong:
        return str(replace(wrong[0], hint=""))
    found = compared_with_plan(plan, save_dir, **running)
    return found if found.ok else str(replace(found.errors[0], hint=""))
