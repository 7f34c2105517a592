"""``write``: fill a plan's files with values, then publish them. There is no second way to the disk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcptools._parallel import Progress, default_workers
from dcptools._progress import bar
from dcptools.checkpoint import Checkpoint
from dcptools.errors import BrokenCheckpoint, Cancelled, TargetError, UsageError
from dcptools.findings import Finding
from dcptools.shards import ShardPlan, refuse_errors
from dcptools.storage import LocalSink, RemoteSink, is_url
from dcptools.writer.cut import Sizes
from dcptools.writer.engine import Engine
from dcptools.writer.lock import clear_remains, locked
from dcptools.writer.publishing import DURING, SINCE, check_file, publish, reason, refuse_changes
from dcptools.writer.remote import publish_to_url
from dcptools.writer.report import Report, report_of
from dcptools.writer.swap import Swap
from dcptools.writer.target import check_target


def write(
    plan: ShardPlan,
    save_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    fsync: bool = True,
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
    sizes: Sizes | None = None,
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

    Raises
    ------
    OutputExists, TargetError
        The directory cannot be used, or the disk is too small; nothing was written.
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
        return _write_to_url(plan, str(save_dir), overwrite, workers, progress, cancel, sizes)
    target, count, start = Path(save_dir), workers or default_workers(), time.perf_counter()
    check_target(plan, target, overwrite=overwrite or Swap(target).begun)
    refuse_changes(plan.checkpoint, *SINCE)
    with locked(target):
        check_target(plan, target, overwrite=overwrite)  # again: another run has finished, or a killed one is undone
        clear_remains(target)
        sink = LocalSink(target, plan.fingerprint[:12])
        engine = Engine(plan, sink, workers=count, sync=fsync, sizes=sizes)
        try:
            with _explained(target, plan.checkpoint):
                found = fill(engine, progress, cancel)
                left = publish(plan, target, sink, sync=fsync)
        finally:
            sink.discard()
            plan.checkpoint.source.close()
    seconds = time.perf_counter() - start
    return report_of(plan, target, engine.checksums, (*found, *_stale(left)), workers=count, seconds=seconds)


def fill(
    engine: Engine, progress: Progress | bool | None = None, cancel: threading.Event | None = None
) -> tuple[Finding, ...]:
    """Fill the engine's files under their temporary names, and check them; returns what was found.

    Raises
    ------
    BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint, FindingsError, Cancelled
        As :func:`write`.
    """
    with bar(progress, "writing") as report:
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
    return report_of(plan, url, engine.checksums, (*found, *_stale(left)), workers=count, seconds=seconds)


@contextmanager
def _explained(target: Path | str, checkpoint: Checkpoint) -> Iterator[None]:
    """Errors say what became of the output, and a checkpoint that changed is told as the cause of what it broke."""
    try:
        yield
    except Cancelled:
        raise Cancelled("Cancelled; what was half-written is removed.") from None
    except BrokenCheckpoint:
        refuse_changes(checkpoint, *DURING)
        raise
    except OSError as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(f"Writing to {target} failed: {reason(error)}.\nNothing was kept.") from error


def _found(engine: Engine) -> Iterator[Finding]:
    """What the engine noticed."""
    for name, count in sorted(engine.tally.overflows.items()):
        yield Finding(
            "cast-overflow", name, f"{count:,} finite values became Inf in the cast",
            "write it wider: --dtype-for",
        )  # fmt: skip
    if engine.checksums.without:
        yield Finding(
            "no-checksum", "", f"{engine.checksums.without:,} items were stored without a checksum",
            "safetensors files have none; torch computes them otherwise, unless it is told not to",
        )  # fmt: skip


def _stale(left: list[tuple[str, OSError]]) -> Iterator[Finding]:
    """Files of the old model that are still there."""
    for name, error in left:
        yield Finding(
            "stale-file", name, f"a file of the old model could not be removed: {error.strerror or error}",
            "the new model is complete; remove the file by hand",
        )  # fmt: skip
