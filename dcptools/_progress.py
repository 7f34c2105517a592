"""A tqdm bar as the progress callable of ``write``: bytes, bytes per second, the current tensor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dcptools._text import printable

LOG_SECONDS = 30.0  # between lines where stderr is a batch job's log


@contextmanager
def bar(
    progress: Callable[[int, int, str], None] | bool | None, doing: str
) -> Iterator[Callable[[int, int, str], None] | None]:
    """The caller's callable as it is; for True a bar, in a terminal or a notebook; else None."""
    if not isinstance(progress, bool) or not progress:
        yield progress or None
        return
    from tqdm.auto import tqdm

    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    options: dict[str, Any] = {} if interactive else {"mininterval": LOG_SECONDS, "miniters": 1}
    with tqdm(unit="B", unit_scale=True, desc=doing, dynamic_ncols=interactive, **options) as shown:

        def report(done: int, total: int, current: str) -> None:
            shown.total = total
            if interactive:
                shown.set_postfix_str(printable(current[-40:]), refresh=False)
            shown.update(done - shown.n)

        yield report
