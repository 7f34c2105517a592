"""``write``: fill a plan's files with values, then publish them. There is no second way to the disk."""

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
from dcptools._parallel import Progress, default_workers
from dcptools._paths import expanded
from dcptools._progress import bar
from dcptools._text import counted
from dcptools.checkpoint import Checkpoint
from dcptools.errors import BrokenCheckpoint, Cancelled, TargetError, UnsupportedCheckpoint, UsageError, notes_of
from dcptools.findings import Finding
from dcptools.shards import ShardPlan, refuse_errors
from dcptools.storage import TEMPORARY, LocalSink, RemoteSink, is_url
from dcptools.writer.cut import Sizes
from dcptools.writer.engine import Engine
from dcptools.writer.lock import locked
from dcptools.writer.publishing import DURING, SINCE, check_file, publish, reason, refuse_changes
from dcptools.writer.remote import publish_to_url
from dcptools.writer.report import Report, report_of
from dcptools.writer.staged import StagedFiles, tag_of
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
    make_engine: Callable[..., Engine] = Engine,
) -> Report:
    """Write the planned model.

    Files are written under temporary names, checked, synced and renamed, the index last. When anything goes wrong,
    Ctrl-C included, what was begun is removed, and what was there is as it was. An existing model is put aside when the
    new one is whole and its files get their names; there is never a mixture.

    Parameters
    ----------
    plan
        What :func:`dcptools.plan` returned.
    save_dir
        The output directory; made if need be. One that holds a model is refused without ``overwrite``. Or a URL that
        fsspec knows: files are uploaded in parts, and show when they are whole.
    overwrite
        Replace the model that is there. Its files go when the new one is complete; all others stay.
    resume
        Go on where a run of the same plan was stopped: what it has finished is checked and not written again. If this
        run is stopped, what it has finished stays. Where there is nothing to go on with, it begins.
    fsync
        Wait until the bytes are on the disk. False is faster, for scratch file systems.
    workers
        Threads; by default the CPUs that this process may use, at least 2 and at most 8.
    progress
        Called as ``progress(done_bytes, total_bytes, tensor_name)`` in the calling thread, about 20 times a second.
        True shows a tqdm bar.
    cancel
        An event; when it is set, the run stops within a second and raises ``Cancelled``.
    sizes
        How the work is cut, to measure; the result does not depend on it.
    make_engine
        What fills the files, if it is not this process alone.

    Raises
    ------
    OutputExists, TargetError
        The directory cannot be used, or the disk is too small; nothing was written. Or there is nothing to go on with
        but files of another conversion.
    BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint
        A stored item is damaged, or in an encoding that is not read; or a file of the checkpoint was written to,
        replaced or removed since it was read. Nothing was kept.
    FindingsError
        The plan is strict, and values became Inf in a cast; nothing was kept.
    Cancelled
        The event was set.

    Examples
    --------
    >>> report = write(plan(demo.checkpoint), tmp_dir / "hf")
    >>> report.files[0][0]
    'model.safetensors'
    """
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers cannot write anything.\nGive 1 or more.")
    if is_url(save_dir):
        _refuse_for_url(str(save_dir), resume, make_engine)
        return _write_to_url(plan, str(save_dir), overwrite, workers, progress, cancel, sizes)
    target, count, start = Path(expanded(save_dir)), workers or default_workers(), time.perf_counter()
    check_target(plan, target, overwrite=overwrite or Swap(target).begun)
    refuse_changes(plan.checkpoint, *SINCE)
    running: dict[str, Any] = {"workers": count, "progress": progress, "cancel": cancel}
    with _noted(target, resume=resume) as published, locked(target):
        check_target(plan, target, overwrite=overwrite)  # again: another run has finished, or a killed one is undone
        sink = LocalSink(target, tag_of(plan.fingerprint))
        staged = StagedFiles(plan, target, sink, resume=resume)
        staged.begin(**running)
        with _ended(staged), _explained(target, plan.checkpoint, staged):
            staged.record(sync=fsync)
            engine = make_engine(
                plan, sink, staged.missing, workers=count, sync=fsync, sizes=sizes, finished=staged.add
            )
            engine.tally.overflows.update(staged.overflows)
            found = fill(engine, progress, cancel)
            left = publish(plan, target, sink, sync=fsync)
            published.set()
    seconds = time.perf_counter() - start
    findings = (*found, *_stale(left))
    return report_of(plan, target, engine.checksums, findings, staged.taken_over, workers=count, seconds=seconds)


def fill(
    engine: Engine, progress: Progress | bool | None = None, cancel: threading.Event | None = None
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


def _refuse_for_url(url: str, resume: bool, make_engine: Callable[..., Engine]) -> None:
    """What needs files that show before they are whole."""
    if resume:
        raise UsageError(
            f"{option('resume', True)} works for local directories: a stopped upload to {url} leaves nothing "
            "to continue with.\nConvert into a directory and copy the model, or start afresh without it."
        )
    if make_engine is not Engine:
        raise UsageError(
            f"Many processes can fill only a local directory, not {url}: no process can continue another's upload.\n"
            "Convert into a directory that all of them see, or in one process."
        )


def _write_to_url(
    plan: ShardPlan,
    url: str,
    overwrite: bool,
    workers: int | None,
    progress: Progress | bool | None,
    cancel: threading.Event | None,
    sizes: Sizes | None,
) -> Report:
    """The same where the target is a URL: there is no lock, and the files are checked when they are completed."""
    count, start = workers or default_workers(), time.perf_counter()
    check_target(plan, url, overwrite=overwrite)
    refuse_changes(plan.checkpoint, *SINCE)
    sink = RemoteSink(url)
    engine = Engine(plan, sink, workers=count, sync=False, sizes=sizes)
    try:
        with _explained(url, plan.checkpoint):
            found = fill(engine, progress, cancel)
            left = publish_to_url(plan, url, sink)
    finally:
        sink.discard()
        plan.checkpoint.source.close()
    seconds = time.perf_counter() - start
    return report_of(plan, url, engine.checksums, (*found, *_stale(left)), (), workers=count, seconds=seconds)


@contextmanager
def _noted(target: Path, *, resume: bool) -> Iterator[threading.Event]:
    """What interrupts a run gets a note if the model is published, or if hidden files are left."""
    published = threading.Event()
    try:
        yield published
    except (KeyboardInterrupt, SystemExit) as stop:
        if published.is_set():
            stop.add_note(f"The new model is complete in {target}.")
        elif not notes_of(stop) and any(target.glob(f"{TEMPORARY}*")):
            what = "takes over what is finished and removes the rest" if resume else "removes them"
            stop.add_note(f"Hidden files, {TEMPORARY}…, are left in {target}; the next run there {what}.")
        raise


@contextmanager
def _ended(staged: StagedFiles) -> Iterator[None]:
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
def _explained(target: Path | str, checkpoint: Checkpoint, staged: StagedFiles | None = None) -> Iterator[None]:
    """Errors say what became of the output, and a checkpoint that changed is told as the cause of what it broke."""

    def kept(error: BaseException) -> str:
        return f"\n{staged.told(error)}" if staged is not None and staged.kept(error) else ""

    try:
        yield
    except Cancelled as error:
        raise Cancelled(f"Cancelled; what was half-written is removed.{kept(error)}") from None
    except (BrokenCheckpoint, UnsupportedCheckpoint) as error:
        refuse_changes(checkpoint, *DURING)
        if what := kept(error):
            raise type(error)(f"{error}{what}") from error
        raise
    except OSError as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(f"Writing to {target} failed: {reason(error)}.{kept(error) or _NOTHING_KEPT}") from error
    except (KeyboardInterrupt, SystemExit) as stop:
        if (what := kept(stop)) and not notes_of(stop):
            stop.add_note(what.strip())
        raise


def _found(engine: Engine) -> Iterator[Finding]:
    """What the engine noticed."""
    for name, count in sorted(engine.tally.overflows.items()):
        yield Finding(
            "cast-overflow", name, f"{counted(count, 'finite value')} became Inf in the cast",
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
