"""What was written, how fast, in how much memory."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcptools._display import Shown, Table
from dcptools._table import SHOWN_ROWS, frame
from dcptools._text import counted, format_bytes
from dcptools.assets import CONFIG
from dcptools.findings import Finding, HasFindings
from dcptools.shards import INDEX, ShardPlan
from dcptools.tensors import Checksums

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Report(Shown, HasFindings):
    """What was written, how fast, in how much memory."""

    save_dir: str
    files: tuple[tuple[str, int], ...]  # name and bytes of each weight file
    index: str  # name of the index; "" for a single file
    assets: tuple[str, ...]  # names of the copied files
    others: tuple[tuple[str, int], ...]  # name and bytes of each file that holds no weights: the index and the assets
    taken_over: tuple[str, ...]  # names of the weight files that an earlier run, which was stopped, had finished
    tensors: int
    total_bytes: int  # of values
    total_parameters: int
    seconds: float  # of the whole write
    peak_bytes: int  # of the whole process so far; 0 if the system does not tell
    items_checked: int  # stored items whose checksum was right; what was taken over was checked by the earlier run
    items_unchecked: int  # items of which only a part was read
    items_without_checksum: int
    workers: int
    fingerprint: str  # of the plan
    findings: tuple[Finding, ...]
    was_complete: bool = False  # the model was there and is what the plan gives, so nothing was written

    @property
    def found_while_writing(self) -> tuple[Finding, ...]:
        """The findings that the plan could not have: about values and the output directory, not names and sizes."""
        return tuple(f for f in self.findings if f.code in ("all-nan", "cast-overflow", "no-checksum", "stale-file"))

    @property
    def file_bytes(self) -> int:
        """Bytes of all weight files, headers included."""
        return sum(nbytes for _, nbytes in self.files)

    @property
    def bytes_per_second(self) -> float:
        """Of the weight files that were not taken over."""
        new = sum(nbytes for name, nbytes in self.files if name not in self.taken_over)
        return new / self.seconds if self.seconds else 0.0

    def to_frame(self) -> pd.DataFrame:
        """One row per weight file: file, nbytes."""
        return frame(("file", "nbytes"), self.files)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "findings": [finding.to_json() for finding in self.findings]}

    def headline(self) -> str:
        what = f"{counted(self.tensors, 'tensor')} in {counted(len(self.files), 'file')}"
        if self.was_complete:
            return f"The model in {self.save_dir} is already complete, {what}: nothing was written"
        rate = f"{self.seconds:.2f} s ({format_bytes(self.bytes_per_second)}/s)"
        return f"Wrote {what}, {format_bytes(self.file_bytes)} in total, to {self.save_dir} in {rate}"

    def _tables(self, most: int | None = SHOWN_ROWS) -> list[Table]:
        return [Table(("file", "bytes"), [(name, format_bytes(nbytes)) for name, nbytes in self.files + self.others])]

    def _footer(self) -> str:
        warnings = f"; {counted(len(self.warnings), 'warning')}" if self.warnings else ""
        return f"{self.facts()}{warnings}"

    def _shown_findings(self) -> tuple[Finding, ...]:
        return self.found_while_writing

    def facts(self) -> str:
        if self.was_complete:
            return f"every value compared with the checkpoint in {self.seconds:.2f} s"
        parts = [f"checksums of {counted(self.items_checked, 'stored item')} verified"]
        parts += [f"{self.items_unchecked:,} read only in part"] if self.items_unchecked else []
        parts += [f"{self.items_without_checksum:,} without checksum"] if self.items_without_checksum else []
        if self.taken_over:
            parts = [f"{len(self.taken_over)} of {counted(len(self.files), 'file')} taken over; {parts[0]}", *parts[1:]]
        memory = f"peak memory {format_bytes(self.peak_bytes)} with {counted(self.workers, 'worker')}"
        return f"{', '.join(parts)}; {memory}"


def report_of(
    plan: ShardPlan,
    save_dir: Path | str,
    sums: Checksums,
    found: Iterable[Finding],
    taken_over: tuple[str, ...],
    *,
    workers: int,
    seconds: float,
) -> Report:
    """The report of a plan that was written."""
    return Report(
        save_dir=str(save_dir),
        files=tuple((file.filename, file.nbytes) for file in plan.files),
        index=INDEX if plan.index is not None else "",
        assets=tuple(asset.name for asset in plan.assets.files) if plan.assets else (),
        others=tuple(_others(plan)),
        taken_over=taken_over,
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


def nothing_written(plan: ShardPlan, save_dir: Path | str, *, workers: int, seconds: float) -> Report:
    """The report of a plan whose model was already complete."""
    taken_over = tuple(file.filename for file in plan.files)
    report = report_of(plan, save_dir, Checksums(), (), taken_over, workers=workers, seconds=seconds)
    return replace(report, was_complete=True)


def _others(plan: ShardPlan) -> Iterator[tuple[str, int]]:
    if plan.index is not None:
        yield INDEX, len(plan.index)
    for asset in plan.assets.files if plan.assets else ():
        config = plan.assets.config_for(plan.written_dtype) if plan.assets and asset.name == CONFIG else None
        yield asset.name, asset.nbytes if config is None else len(config)


def _peak_bytes() -> int:
    """The largest resident memory of this process so far; 0 where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status", encoding="ascii") as status:
        # not what getrusage says: on Linux that includes the memory of the process that started this one
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
