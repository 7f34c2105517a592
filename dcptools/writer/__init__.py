"""``write``: fill a plan's files with values. There is no second way to the disk."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcptools._parallel import Progress, default_workers
from dcptools._progress import bar
from dcptools._table import counted, format_bytes, html_table, text_table
from dcptools.errors import BrokenCheckpoint, Cancelled, TargetError, UsageError
from dcptools.findings import Finding, HasFindings, summary_lines
from dcptools.shards import INDEX, ShardPlan, refuse_errors
from dcptools.storage import LocalSink
from dcptools.tensors import Checksums
from dcptools.writer._swap import Swap
from dcptools.writer._target import (
    DURING,
    SINCE,
    check_target,
    free_bytes,
    locked,
    publish,
    reason,
    refuse_changes,
    verify,
)
from dcptools.writer.cut import Sizes
from dcptools.writer.engine import Engine

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Progress", "Report", "check_target", "free_bytes", "write"]


@dataclass(frozen=True, eq=False)
class Report(HasFindings):
    """What was written, how fast, in how much memory."""

    save_dir: str
    files: tuple[tuple[str, int], ...]  # name and bytes of each weight file
    index: str  # name of the index; "" for a single file
    assets: tuple[str, ...]  # names of the copied files
    tensors: int
    total_bytes: int  # of values
    total_parameters: int
    seconds: float  # of the whole write
    peak_bytes: int  # of the whole process so far; 0 where the system does not tell
    items_checked: int  # stored items whose checksum was right
    items_unchecked: int  # items of which only a part was read
    items_without_checksum: int
    workers: int
    fingerprint: str  # of the plan
    findings: tuple[Finding, ...]

    @property
    def found_while_writing(self) -> tuple[Finding, ...]:
        """The findings that the plan could not have: about values and the output directory, not names and sizes."""
        return tuple(f for f in self.findings if f.code in ("cast-overflow", "no-checksum", "stale-file"))

    @property
    def bytes_per_second(self) -> float:
        return self.total_bytes / self.seconds if self.seconds else 0.0

    def to_frame(self) -> pd.DataFrame:
        """One row a weight file: file, nbytes."""
        import pandas as pd

        return pd.DataFrame(self.files, columns=["file", "nbytes"])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "findings": [finding.to_json() for finding in self.findings]}

    def headline(self) -> str:
        return (
            f"Wrote {counted(self.tensors, 'tensor')}, {format_bytes(self.total_bytes)} in "
            f"{counted(len(self.files), 'file')}, to {self.save_dir} in {self.seconds:.2f} s "
            f"({format_bytes(self.bytes_per_second)}/s)"
        )

    def _rows(self) -> list[tuple[Any, ...]]:
        extra = [(self.index, "")] if self.index else []
        return (
            [(name, format_bytes(nbytes)) for name, nbytes in self.files] + extra + [(name, "") for name in self.assets]
        )

    def facts(self) -> str:
        parts = [f"checksums: {self.items_checked:,} stored items right"]
        parts += [f"{self.items_unchecked:,} read in part"] if self.items_unchecked else []
        parts += [f"{self.items_without_checksum:,} without"] if self.items_without_checksum else []
        return ", ".join(parts) + f"; peak memory {format_bytes(self.peak_bytes)} with {self.workers} workers"

    def __str__(self) -> str:
        return "\n".join(
            [
                self.headline(),
                text_table(("file", "bytes"), self._rows()),
                self.facts(),
                *summary_lines(self.found_while_writing),
            ]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(("file", "bytes"), self._rows(), title=self.headline()) + f"<p>{self.facts()}</p>"


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
        The output directory; made if need be. One that holds a model is refused without ``overwrite``.
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
    target, count, start = Path(save_dir), workers or default_workers(), time.perf_counter()
    checkpoint = plan.checkpoint
    check_target(plan, target, overwrite=overwrite or Swap(target).begun)
    refuse_changes(checkpoint, *SINCE)
    with locked(target):
        check_target(plan, target, overwrite=overwrite)  # again: another run has finished, or a killed one is undone
        sink = LocalSink(target, plan.fingerprint[:12])
        engine = Engine(plan, sink, workers=count, sync=fsync, sizes=sizes)
        try:
            with bar(progress, "writing") as report:
                engine.run(report, cancel)
            found = tuple(_found(engine))
            if plan.options.strict:
                refuse_errors([finding.as_error() for finding in found if finding.severity == "warning"], strict=True)
            for file in plan.files:
                verify(file, sink.staged(file.filename))
            found += tuple(_stale(publish(plan, target, sink, sync=fsync)))
        except Cancelled:
            raise Cancelled("Cancelled; what was half-written is removed.") from None
        except BrokenCheckpoint:
            refuse_changes(checkpoint, *DURING)  # if that is why
            raise
        except OSError as error:
            if isinstance(error, TargetError):
                raise
            raise TargetError(f"Writing to {target} failed: {reason(error)}.\nNothing was kept.") from error
        finally:
            sink.discard()
            checkpoint.source.close()
    return _report(plan, target, engine.checksums, found, count, time.perf_counter() - start)


def _report(
    plan: ShardPlan,
    target: Path,
    sums: Checksums,
    found: tuple[Finding, ...],
    workers: int,
    seconds: float,
) -> Report:
    return Report(
        save_dir=str(target),
        files=tuple((file.filename, file.nbytes) for file in plan.files),
        index=INDEX if plan.index is not None else "",
        assets=tuple(asset.name for asset in plan.mapping.assets.files) if plan.mapping.assets else (),
        tensors=sum(len(file.tensors) for file in plan.files),
        total_bytes=plan.total_bytes,
        total_parameters=plan.total_parameters,
        seconds=seconds,
        peak_bytes=_peak_bytes(),
        items_checked=sums.checked,
        items_unchecked=sums.unchecked,
        items_without_checksum=sums.without,
        workers=workers,
        fingerprint=plan.fingerprint,
        findings=(*plan.findings, *found),
    )


def _found(engine: Engine) -> Iterator[Finding]:
    for name, count in sorted(engine.tally.overflows.items()):
        yield Finding(
            "cast-overflow", "warning", name, f"{count:,} finite values became Inf in the cast",
            "write it wider: dtype_for=, --dtype-for",
        )  # fmt: skip
    if engine.checksums.without:
        yield Finding(
            "no-checksum", "info", "", f"{engine.checksums.without:,} items were stored without a checksum",
            "torch computes them unless it is told not to",
        )  # fmt: skip


def _stale(left: list[tuple[str, OSError]]) -> Iterator[Finding]:
    for name, error in left:
        yield Finding(
            "stale-file", "warning", name, f"a file of the old model could not be removed: {error.strerror or error}",
            "the new model is complete; remove the file by hand",
        )  # fmt: skip


def _peak_bytes() -> int:
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status", encoding="ascii") as status:
        # not what getrusage says: on Linux that includes what the process that started this one had in use
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
