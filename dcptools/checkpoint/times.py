"""Whether files of another save are beside ``.metadata``, by the times at which they were written.

A save writes ``.metadata`` last, so what is newer by more than the save took does not belong to it, or a save is still
running. But a copy (``cp -r``, a download) gives all files new times, in any order: there each follows the one before
it by the time that copying takes, and no gap stands out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from dcptools._text import counted, some
from dcptools.checkpoint.lookalikes import METADATA
from dcptools.findings import Finding
from dcptools.storage import FileState

MIN_SECONDS = 60  # clocks that differ, a copy that pauses for a while
SLOW = 10_000_000  # bytes per second: a file may be later than the one before by what copying it takes at this rate


def about_times(metadata: FileState | None, files: Mapping[str, FileState | None]) -> Iterator[Finding]:
    """A warning if the files newer than ``.metadata`` begin after a gap in which each of the two saves would fit."""
    if metadata is None:
        return
    found = [(state.modified_ns / 1e9, state.nbytes, name) for name, state in files.items() if state is not None]
    times = sorted([*found, (metadata.modified_ns / 1e9, 0, METADATA)])  # seconds
    first, saved, last = times[0][0], metadata.modified_ns / 1e9, times[-1][0]
    for (before, _, _), (after, nbytes, _) in pairwise(times):
        taken = max(MIN_SECONDS + nbytes / SLOW, before - first, last - after)
        if after > saved and after - before > taken:
            newer = some(name for time, _, name in times if time >= after)
            late = counted(round((after - saved) / 60), "minute")
            yield Finding(
                "newer-file", "", f"written {late} after {METADATA}, which a save writes last: {newer}",
                "check whether files of two saves are mixed, or a save is still running",
            )  # fmt: skip
            return
