"""``write``: fill a plan's files with values, then publish them. There is no other way to the disk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcptools._collector import what_is_there_stays
from dcptools._option import option
from dcptools._parallel import Progress, default_workers, fewer_workers
from dcptools._paths import expanded
from dcptools._progress import bar
from dcptools._text import counted
from dcptools.checkpoint import Checkpoint
from dcptools.errors import (
    BrokenCheckpoint,
    Cancelled,
    NotEnoughMemory,
    TargetError,
    UnsupportedCheckpoint,
    UsageError,
    check_stage,
    notes_of,
    too_little_memory,
)
from dcptools.findings import Finding
from dcptools.shards import ShardPlan, refuse_errors
from dcptools.storage import TEMPORARY, LocalSink, is_url
from dcptools.writer.completed import CompletedFiles
from dcptools.writer.cut import Sizes
from dcptools.writer.engine import OutputEngine
from dcptools.writer.lock import locked
from dcptools.writer.publishing import DURING, SINCE, check_file, publish, reason, refuse_changes
from dcptools.writer.remote import publish_to_url
from dcptools.writer.report import Report, report_of
from dcptools.writer.staged import Files, StagedFiles, tag_of
from dcptools.writer.swap import Swap
from dcptools.writer.target import check_target

_NOTHING_KEPT = "\nNothing was kept."


def write(
    plan: ShardPlan,
    save_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    fsync: bool = True,
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
    sizes: Sizes | None = None,
    make_engine: Callable[..., OutputEngine] = OutputEngine,
) -> Report:
    """Write the planned model.

    Files are written under temporary names, checked, synced and renamed, the index last. If anything goes wrong,
    Ctrl-C included, what was begun is removed, and what was there is as it was. An existing model is set aside when the
    new one is complete and its files get their names; there is never a mixture.

    Parameters
    ----------
    plan
        What :func:`dcptools.plan` returned.
    save_dir
        The output directory; made if necessary. One that holds a model is refused without ``overwrite``. Or a URL that
        fsspec knows: files are uploaded in parts, and become visible when they are complete.
    overwrite
        Replace an existing model. Its files are removed when the new one is complete; all others stay.
    resume
        Continue where a run of the same plan was stopped: what it has finished is checked and not written again. If
        this run is stopped, what it has finished stays. If there is nothing to continue with, it starts from the
        beginning.
    fsync
        Wait until the bytes are on the disk. False is faster, for scratch file systems.
    workers
        Threads; by default the CPUs that this process may use, at least 2 and at most 8.
    progress
        Called as ``progress(done_bytes, total_bytes, tensor_name)`` in the calling thread, about 20 times per second.
        True shows a tqdm bar.
    cancel
        An event; when it is set, the run stops within a second and raises ``Cancelled``.
    sizes
        How the work is cut, for measurements; the result does not depend on it.
    make_engine
        What fills the files, if this process is not alone.

    Raises
    ------
    OutputExists, TargetError
        The directory cannot be used, or the disk is too small; nothing was written. Or there is nothing to continue
        with except files of another conversion.
    BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint
        A stored item is damaged, or in an encoding that is not read; or a file of the checkpoint was written to,
        replaced or removed since it was read. Nothing was kept.
    FindingsError
        The plan is strict, and values became Inf in a cast, or all of a tensor are NaN; nothing was kept.
    NotEnoughMemory
        There is too little memory, or no more threads can be started.
    Cancelled
        The event was set.

    Examples
    --------
    >>> report = write(plan(demo.checkpoint), tmp_dir / "hf")
    >>> report.files[0][0]
    'model.safetensors'
    """
    check_stage(plan, "ShardPlan")
    check_stage(save_dir, "path")
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers cannot write anything.\nGive 1 or more.")
    if is_url(save_dir):
        files = CompletedFiles(plan, str(save_dir), resume=resume)
        return _write_to_url(files, overwrite, workers, progress, cancel, sizes, make_engine)
    target, count, start = Path(expanded(save_dir)), workers or default_workers(), time.perf_counter()
    check_target(plan, target, overwrite=overwrite or Swap(target).begun)
    refuse_changes(plan.checkpoint, *SINCE)
    running: dict[str, Any] = {"workers": count, "progress": progress, "cancel": cancel}
    with _noted(target, resume=resume) as published, locked(target):
        check_target(plan, target, overwrite=overwrite)  # again: another run has finished, or a killed one is undone
        sink = LocalSink(target, tag_of(plan.fingerprint))
        staged = StagedFiles(plan, target, sink, resume=resume)
        with _left_as_it_was(target, resume=resume):
            staged.begin(**running)
        with _ended(staged), _explained(target, plan.checkpoint, staged):
            staged.record(sync=fsync)
            engine = make_engine(
                plan, sink, staged.missing, workers=count, sync=fsync, sizes=sizes, finished=staged.add
            )
            engine.tally.noticed.update(staged.noticed)
            found = fill(engine, progress, cancel)
            left = publish(plan, target, sink, sync=fsync)
            published.set()
    seconds = time.perf_counter() - start
    findings = (*found, *_stale(left))
    return report_of(plan, target, engine.checksums, findings, staged.taken_over, workers=count, seconds=seconds)


def fill(
    engine: OutputEngine, progress: Progress | bool | None = None, cancel: threading.Event | None = None
) -> tuple[Finding, ...]:
    """Fill the engine's files under their temporary names, and check them; returns what was found.

    Raises
    ------
    BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint, FindingsError, Cancelled
        As :func:`write`.
    """
    with bar(progress, "writing") as report, what_is_there_stays():
        engine.run(report, cancel)
    found = tuple(_found(engine))
    if engine.plan.options.strict:
        refuse_errors([finding.as_error() for finding in found if finding.severity == "warning"], strict=True)
    for file in engine.files:
        path = engine.sink.staged(file.filename)
        if path is not None:
            check_file(file, path)
    return found


def _write_to_url(
    files: CompletedFiles,
    overwrite: bool,
    workers: int | None,
    progress: Progress | bool | None,
    cancel: threading.Event | None,
    sizes: Sizes | None,
    make_engine: Callable[..., OutputEngine],
) -> Report:
    """The same if the target is a URL: there is no lock, and the files are checked when they are completed."""
    plan, url, count, start = files.plan, files.url, workers or default_workers(), time.perf_counter()
    check_target(plan, url, overwrite=overwrite, resume=files.resume)
    refuse_changes(plan.checkpoint, *SINCE)
    files.begin()
    with _ended(files), _explained(url, plan.checkpoint, files):
        making: dict[str, Any] = {"workers": count, "sync": False, "sizes": sizes}
        engine = make_engine(plan, files.sink, files.missing, **making, finished=files.add if files.resume else None)
        engine.tally.noticed.update(files.noticed)
        found = fill(engine, progress, cancel)
        left = publish_to_url(files, engine)
    seconds = time.perf_counter() - start
    findings = (*found, *_stale(left))
    return report_of(plan, url, engine.checksums, findings, files.taken_over, workers=count, seconds=seconds)


@contextmanager
def _noted(target: Path, *, resume: bool) -> Iterator[threading.Event]:
    """What interrupts a run gets a note if the model is published, or if hidden files are left."""
    published = threading.Event()
    try:
        yield published
    except (KeyboardInterrupt, SystemExit) as stop:
        if published.is_set():
            stop.add_note(f"The new model is complete in {target}.")
        elif not notes_of(stop) and (left := _hidden(target, resume=resume)):
            stop.add_note(left)
        raise


@contextmanager
def _left_as_it_was(target: Path, *, resume: bool) -> Iterator[None]:
    """If there is too little memory to look at what an earlier run has left there, it stays, and the error says so."""
    try:
        yield
    except MemoryError as error:
        left = _hidden(target, resume=resume)
        raise NotEnoughMemory("\n".join([too_little_memory(error, fewer_workers()), *filter(None, [left])])) from error


def _hidden(target: Path, *, resume: bool) -> str:
    """That hidden files are left, and what becomes of them; "" if there are none."""
    if not any(target.glob(f"{TEMPORARY}*")):
        return ""
    what = "takes over what is finished and removes the rest" if resume else "removes them"
    return f"Hidden files, {TEMPORARY}…, are left in {target}; the next run there {what}."


@contextmanager
def _ended(staged: Files) -> Iterator[None]:
    """Whatever happens, what does not stay is removed."""
    try:
        yield
    except BaseException as error:
        staged.end(error)
        raise
    else:
        staged.end(None)
    finally:
        staged.plan.checkpoint.source.close()


@contextmanager
def _explained(target: Path | str, checkpoint: Checkpoint, staged: Files) -> Iterator[None]:
    """Errors say what became of the output, and a checkpoint that changed is reported as the cause of what it broke."""

    def kept(error: BaseException) -> str:
        return f"\n{staged.told(error)}" if staged.kept(error) else ""

    try:
        yield
    except Cancelled as error:
        raise Cancelled(f"Cancelled; what was half-written is removed.{kept(error)}") from None
    except (BrokenCheckpoint, UnsupportedCheckpoint) as error:
        refuse_changes(checkpoint, *DURING)
        if what := kept(error):
            raise type(error)(f"{error}{what}") from error
        raise
    except MemoryError as error:  # also those of numpy, and of threads that cannot be started
        raise NotEnoughMemory(f"{too_little_memory(error, fewer_workers())}{kept(error) or _NOTHING_KEPT}") from error
    except OSError as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(f"Writing to {target} failed: {reason(error)}.{kept(error) or _NOTHING_KEPT}") from error
    except BaseException as stop:  # what interrupts it, or a library that cannot be loaded
        if (what := kept(stop)) and not notes_of(stop):
            stop.add_note(what.strip())
        raise


def _found(engine: OutputEngine) -> Iterator[Finding]:
    """What the engine noticed."""
    for name, noticed in sorted(engine.tally.noticed.items()):
        if noticed.all_nan:
            yield Finding("all-nan", name, "every value is NaN", "look at an earlier checkpoint")
        if noticed.overflows:
            yield Finding(
                "cast-overflow", name, f"{counted(noticed.overflows, 'finite value')} became Inf in the cast",
                f"write it in a wider dtype: {option('dtype_for')}",
            )  # fmt: skip
    if engine.checksums.without:
        yield Finding(
            "no-checksum", "", f"no checksum was stored with {counted(engine.checksums.without, 'item')}",
            "safetensors files have none; otherwise torch writes them unless it is told not to",
        )  # fmt: skip


def _stale(left: list[tuple[str, OSError]]) -> Iterator[Finding]:
    """Files of the old model that are still there."""
    for name, error in left:
        yield Finding(
            "stale-file", name, f"a file of the old model could not be removed: {error.strerror or error}",
            "the new model is complete; remove the file by hand",
        )  # fmt: skip
