"""Where bytes come from and where they go, the same for a local directory and for an object store.

``Source``: positional reads of named files. ``Sink``: writes at any place of files that show up when they are whole.
"""

from __future__ import annotations

from dcptools.storage.sink import TEMPORARY, LocalSink, Sink
from dcptools.storage.source import MORE_DESCRIPTORS, NO_DESCRIPTOR, FileState, LocalSource, Source, open_regular

__all__ = [
    "MORE_DESCRIPTORS",
    "NO_DESCRIPTOR",
    "TEMPORARY",
    "FileState",
    "LocalSink",
    "LocalSource",
    "Sink",
    "Source",
    "open_regular",
]
