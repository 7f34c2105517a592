"""Progress for people: a tqdm bar in a terminal or a notebook, and an occasional line in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dcptools._parallel import Progress
from dcptools._text import format_bytes, printable

LOG_SECONDS = 30.0  # between lines where stderr is a batch job's log


@contextmanager
def bar(progress: Progress | bool | None, doing: str) -> Iterator[Progress | None]:
    """The caller's callable as it is; for True a bar, or lines in a log; otherwise None."""
    if not isinstance(progress, bool) or not progress:
        yield progress or None
    elif sys.stderr.isatty() or "ipykernel" in sys.modules:
        yield from _shown(doing)
    else:
        yield _logged(doing)


def _shown(doing: str) -> Iterator[Progress]:
    """Bytes, bytes per second, the current tensor."""
    from tqdm.auto import tqdm

    with tqdm(unit="B", unit_scale=True, desc=doing, dynamic_ncols=True) as shown:

        def report(done: int, total: int, current: str) -> None:
            shown.total = total
            shown.set_postfix_str(printable(current[-40:]), refresh=False)
            shown.update(done - shown.n)

        yield report


def _logged(doing: str) -> Progress:
    """Whole lines, so that nothing half-drawn stays in a log; none for what is done before the first is due."""
    began = said = time.monotonic()

    def report(done: int, total: int, current: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LOG_SECONDS and done < total:
            said = now
            rate = format_bytes(done / max(now - began, 1e-9))
            so_far = f"{done / total:.0%}, {format_bytes(done)} of {format_bytes(total)}, {rate}/s"
            print(f"{doing}: {so_far}", file=sys.stderr, flush=True)

    return report
