"""A source in an object store or another file system that fsspec knows."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from dcptools.errors import BrokenCheckpoint
from dcptools.storage.ahead import Ahead
from dcptools.storage.ranges import Range
from dcptools.storage.source import FileState
from dcptools.storage.urls import CONNECT_ADVICE, as_system_errors, open_url, said

# What libraries call the value that changes when a file is written anew
_VERSIONS = ("ETag", "etag", "generation", "blob_id", "LastModified", "last_modified", "mtime", "created")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


class RemoteSource:
    """The files below a URL. Nothing is kept on the disk; what is announced is read ahead."""

    ahead = True  # what is announced is fetched

    def __init__(self, url: str) -> None:
        self._fs, self._root = open_url(url)
        self._url = url.rstrip("/") if self._root else url
        self._ahead = Ahead(self._fetch)

    def __reduce__(self) -> tuple[type[RemoteSource], tuple[str]]:
        return type(self), (self._url,)

    @property
    def location(self) -> str:
        return self._url

    def path(self, name: str) -> str:
        return f"{self._url}/{name}" if name else self._url

    def kind(self, name: str = "") -> str | None:
        try:
            with as_system_errors(self.path(name)):
                found = self._fs.info(self._inside(name))["type"]
        except FileNotFoundError:
            return None
        return found if found in ("file", "directory") else "other"

    def entries(self, name: str = "") -> list[str]:
        return sorted(self._listed(name))

    def folders(self) -> list[str]:
        return sorted(name for name, info in self._listed("").items() if info["type"] == "directory")

    def state(self, name: str) -> FileState | None:
        return self.states([name])[name]

    def states(self, names: Iterable[str]) -> dict[str, FileState | None]:
        """One listing for all files of a directory."""
        wanted, listed = list(names), dict[str, Mapping[str, Mapping[str, Any]]]()
        found: dict[str, FileState | None] = {}
        for name in wanted:
            directory, _, last = name.rpartition("/")
            if directory not in listed:
                try:
                    listed[directory] = self._listed(directory)
                except FileNotFoundError:
                    listed[directory] = {}
            info = listed[directory].get(last)
            found[name] = _state(info) if info is not None and info["type"] == "file" else None
        return found

    def content(self, name: str) -> bytes:
        with as_system_errors(self.path(name)):
            return bytes(self._fs.cat_file(self._inside(name)))

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        try:
            with as_system_errors(self.path(name)):
                done = self._ahead.read_into(name, start, out)
        except OSError as error:
            raise BrokenCheckpoint(f"{self.path(name)} cannot be read: {said(error)}.\n{CONNECT_ADVICE}") from error
        if done < out.nbytes:
            raise BrokenCheckpoint(
                f"{self.path(name)} ends at byte {start + done:,}, {out.nbytes - done:,} bytes too early.\n"
                "The file is truncated, or still being written. Copy the checkpoint again."
            )

    def will_read(self, ranges: Iterable[Range]) -> None:
        self._ahead.announce(ranges)

    def close(self) -> None:
        self._ahead.close()

    def _inside(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _listed(self, name: str) -> dict[str, Mapping[str, Any]]:
        """What is in a directory, by name."""
        place = self._inside(name)
        with as_system_errors(self.path(name)):
            found = self._fs.ls(place, detail=True)
        prefix = place.strip("/") + "/"
        infos = [(info["name"].strip("/"), info) for info in found]
        return {path.removeprefix(prefix): info for path, info in infos if path.startswith(prefix)}

    def _fetch(self, name: str, start: int, stop: int) -> bytes:
        return self._fs.cat_file(self._inside(name), start=start, end=stop)  # type: ignore[no-any-return]


def _state(info: Mapping[str, Any]) -> FileState:
    version = next((info[name] for name in _VERSIONS if info.get(name)), "")
    time = next((info[name] for name in _TIMES if info.get(name)), 0)
    seconds = time.timestamp() if isinstance(time, datetime.datetime) else time
    modified_ns = int(seconds * 1e9) if isinstance(seconds, (int, float)) else 0
    return FileState(int(info["size"] or 0), modified_ns, f"{info['size']}-{version}")
