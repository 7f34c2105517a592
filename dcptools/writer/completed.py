"""The weight files at a URL: completed together at the end or, to continue after a run is stopped, one by one.

Nothing of an upload that was stopped is visible. So with ``resume``, a shard is completed under its name as soon as it
is whole. Shards are not a model before there is an index, and the config and tokenizer come after them too. A journal
beside them says which are finished: an object that is written anew for each.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

from dcptools.errors import BrokenCheckpoint, TargetError, system_errors
from dcptools.shards import ShardFile, ShardPlan
from dcptools.storage import FileState, RemoteSink, Source, open_source
from dcptools.writer.journal import MOST_BYTES, Finished, lines_of, parse_journal, refuse_others
from dcptools.writer.staged import Files
from dcptools.writer.swap import is_shard
from dcptools.writer.tally import Noticed
from dcptools.writer.target import URL_JOURNAL


class CompletedFiles(Files):
    """The weight files at a URL; nobody else writes there."""

    def __init__(self, plan: ShardPlan, url: str, *, resume: bool) -> None:
        super().__init__(plan, resume=resume and plan.index is not None)  # a single file is a model
        self.url, self._source, self._lock = url, open_source(url), threading.Lock()
        self._names = [file.filename for file in plan.files]
        self.sink = RemoteSink(url, at_once=self._names if self.resume else ())

    def begin(self) -> None:
        """Take over what is finished, and begin the journal.

        Raises
        ------
        TargetError
            What is there belongs to another conversion, or the journal cannot be written; everything is as it was.
        """
        if not self.resume:
            return
        with system_errors(TargetError, f"The output {self.url} cannot be used"):
            self.finished = dict(_found(self.plan, self._source))
            self.sink.put(URL_JOURNAL, lines_of(self.plan, self.finished.values()))
        self.taken_over = tuple(self.finished)

    def add(self, file: ShardFile, crc: int, noticed: dict[str, Noticed]) -> None:
        """Say that a file is finished, and visible now; from several threads."""
        state = self._source.state(file.filename)
        if state is None:
            return  # that will be noticed when the model is published
        with self._lock:
            self.finished[file.filename] = Finished(file.filename, file.nbytes, crc, noticed, state.identity)
            self.sink.put(URL_JOURNAL, lines_of(self.plan, self.finished.values()))

    def end(self, error: BaseException | None) -> None:
        self.sink.discard()
        if self.resume and error is not None and not self.kept(error):
            for name in [*self._names, URL_JOURNAL]:
                with suppress(OSError):
                    self.sink.remove(name)


def _found(plan: ShardPlan, source: Source) -> Iterator[tuple[str, Finished]]:
    """What a stopped run has finished: only what is still as it was completed, and as it is planned."""
    state = source.state(URL_JOURNAL)
    content = source.content(URL_JOURNAL) if state is not None and state.nbytes <= MOST_BYTES else b""
    header, finished = parse_journal(content)
    states = source.states([one.filename for one in finished if "/" not in one.filename])
    there = {one.filename: one for one in finished if _is_there(one, states.get(one.filename))}
    if header and any(map(is_shard, source.entries())):
        refuse_others(plan, source.location, header)
    for file in plan.files:
        if file.filename in there and _header(source, file) == file.header:
            yield file.filename, there[file.filename]


def _is_there(one: Finished, state: FileState | None) -> bool:
    return state is not None and (state.nbytes, state.identity) == (one.nbytes, one.identity)


def _header(source: Source, file: ShardFile) -> bytes:
    header = bytearray(len(file.header))
    with suppress(BrokenCheckpoint):
        source.read_into(file.filename, 0, memoryview(header))
    return bytes(header)
