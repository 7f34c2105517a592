"""Work on a thread of its own that follows the latest request."""

from __future__ import annotations

import threading
from collections.abc import Callable

MANY_KEYS = 5_000  # at which a mapping, a plan or a figure takes a good part of a second


class Latest:
    """Does its work once at a time, and again if that was requested meanwhile; the work itself shows its errors."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._asked = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None

    @property
    def asked(self) -> bool:
        """Whether the work that is being done is that of an older request."""
        return self._asked

    def ask(self, *, at_once: bool = False) -> None:
        """Begin, or have it done again; with ``at_once``, on the thread of the caller if nothing is being done."""
        with self._lock:
            if self._thread is not None or not at_once:
                self._asked = True
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="dcptools-latest", daemon=True)
                    self._thread.start()
                return
        self._work()

    def join(self, timeout: float | None = None) -> None:
        """Wait until everything that was requested is done; the work itself does not wait for itself."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._thread = None
                    return
                self._asked = False
            self._work()
