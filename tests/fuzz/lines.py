"""Which lines of dcptools are reached for the first time: so a fuzzer knows that a file is worth changing further."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = str(Path(__file__).parents[2] / "dcptools")


class Lines:
    """Counts them; with ``sys.monitoring``, which Python has from 3.12 on, at no cost once a line was seen."""

    def __init__(self) -> None:
        self.count = 0
        self._left: dict[CodeType, set[int]] = {}  # lines that were not reached yet
        if sys.version_info >= (3, 12):
            sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "dcptools fuzzers")
            sys.monitoring.register_callback(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE, self._line)

    @contextmanager
    def watching(self) -> Iterator[None]:
        if sys.version_info >= (3, 12):
            sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE)
            try:
                yield
            finally:
                sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, 0)
        else:
            sys.settrace(self._call)
            try:
                yield
            finally:
                sys.settrace(None)

    def _line(self, code: CodeType, _number: int) -> Any:
        self.count += code.co_filename.startswith(ROOT)
        return sys.monitoring.DISABLE  # type: ignore[attr-defined,unused-ignore]

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        """Lines are only followed in functions of which some are left."""
        code = frame.f_code
        left = self._left.get(code)
        if left is None:
            # the loop over opcodes turns too often to be followed; what they do are functions of their own
            ours = code.co_filename.startswith(ROOT) and code.co_name != "_steps"
            left = self._left[code] = {line for *_, line in code.co_lines() if line} if ours else set()
        return self._trace if left else None

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        left = self._left[frame.f_code]
        if event == "line" and frame.f_lineno in left:
            left.discard(frame.f_lineno)
            self.count += 1
        return self._trace if left else None
