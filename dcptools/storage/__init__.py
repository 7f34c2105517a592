"""Where bytes come from and where they go, the same for a local directory and for an object store.

``Source``: positional reads of named files. ``Sink``: writes anywhere in files that appear once they are complete.
"""

from __future__ import annotations

from dcptools.storage.ahead import IN_FLIGHT, MOST_FETCHED_BYTES, announced, at_once, share_of_reads
from dcptools.storage.document import check_document, takes_no_files, write_document
from dcptools.storage.place import open_source, pieces
from dcptools.storage.ranges import REQUEST_BYTES, Range, spread
from dcptools.storage.sink import TEMPORARY, LocalSink, OutputSink, Sink
from dcptools.storage.source import MORE_DESCRIPTORS, NO_DESCRIPTOR, FileState, LocalSource, Source, open_regular
from dcptools.storage.upload import RemoteSink, commit_all, uploading_bytes
from dcptools.storage.urls import is_url, join, meant_url, parent, path_on_disk, without_password

__all__ = [
    "IN_FLIGHT",
    "MORE_DESCRIPTORS",
    "MOST_FETCHED_BYTES",
    "NO_DESCRIPTOR",
    "REQUEST_BYTES",
    "TEMPORARY",
    "FileState",
    "LocalSink",
    "LocalSource",
    "OutputSink",
    "Range",
    "RemoteSink",
    "Sink",
    "Source",
    "announced",
    "at_once",
    "check_document",
    "commit_all",
    "is_url",
    "join",
    "meant_url",
    "open_regular",
    "open_source",
    "parent",
    "path_on_disk",
    "pieces",
    "share_of_reads",
    "spread",
    "takes_no_files",
    "uploading_bytes",
    "without_password",
    "write_document",
]
