"""The weight files that wait for their names: which are finished, which another run has finished, and which stay."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

from dcptools._option import option
from dcptools._parallel import Progress, run
from dcptools._progress import bar
from dcptools._text import counted
from dcptools.errors import FindingsError
from dcptools.shards import ShardFile, ShardPlan
from dcptools.storage import LocalSink
from dcptools.writer.journal import JOURNAL, NEW_JOURNAL, Finished, Journal, read_journal, refuse_others
from dcptools.writer.lock import clear_remains
from dcptools.writer.sums import file_crc
from dcptools.writer.swap import is_file
from dcptools.writer.tally import Noticed
from dcptools.writer.target import planned_names

_FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.ASCII)


def tag_of(fingerprint: str) -> str:
    """What the temporary names of the files of a plan have in them."""
    return fingerprint[:12]


class Files:
    """The weight files of a plan while they are made, wherever they are.

    With ``resume``, what a stopped run has finished is taken over, and what is finished here stays when this
    run is stopped.
    """

    def __init__(self, plan: ShardPlan, *, resume: bool) -> None:
        self.plan, self.resume = plan, resume
        self.finished: dict[str, Finished] = {}
        self.taken_over: tuple[str, ...] = ()  # names of files

    @property
    def missing(self) -> list[ShardFile]:
        """The files that are to be filled."""
        return [file for file in self.plan.files if file.filename not in self.finished]

    @property
    def noticed(self) -> dict[str, Noticed]:
        """What was noticed about the outputs that were taken over."""
        return {name: noticed for one in self.finished.values() for name, noticed in one.noticed.items()}

    def kept(self, error: BaseException | None) -> list[str]:
        """The names of the finished files that stay after an error: none if no run can continue with them."""
        if not self.resume or error is None or isinstance(error, FindingsError) or self.plan.checkpoint.changed_files():
            return []
        return list(self.finished)

    def told(self, error: BaseException | None) -> str:
        """The same as a sentence."""
        kept = self.kept(error)
        if not kept:
            return "Nothing was kept."
        files = counted(len(self.plan.files), "file")
        be = "is" if len(kept) == 1 else "are"
        return f"{len(kept)} of {files} {be} finished and kept: continue with {option('resume', True)}."

    def end(self, error: BaseException | None) -> None:
        """Remove what does not stay; what cannot be removed is left to the next run."""
        raise NotImplementedError


class StagedFiles(Files):
    """The weight files in a locked output directory, under temporary names."""

    def __init__(self, plan: ShardPlan, save_dir: Path, sink: LocalSink, *, resume: bool) -> None:
        super().__init__(plan, resume=resume)
        self.save_dir, self.sink = save_dir, sink
        self._journal: Journal | None = None

    def begin(self, workers: int, progress: Progress | bool | None, cancel: threading.Event | None) -> None:
        """Take over what is finished, if requested, and remove all other remains.

        Raises
        ------
        TargetError
            What is there belongs to another conversion, or cannot be removed; everything is as it was.
        Cancelled
            The event was set; everything is as it was.
        """
        if self.resume:
            self.finished = self._found(workers, progress, cancel)
            self.taken_over = tuple(self.finished)
        names = {self.sink.staged(name) for name in self.finished}
        journal = {str(self.save_dir / JOURNAL)} if names else set()  # it is replaced in one step
        clear_remains(self.save_dir, but=names | journal)

    def record(self, *, sync: bool) -> None:
        """Begin the journal; raises OSError."""
        self._journal = Journal(self.save_dir, self.plan, self.finished.values(), sync=sync)

    def add(self, file: ShardFile, crc: int, noticed: dict[str, Noticed]) -> None:
        """Say that a file is finished; from several threads."""
        done = Finished(file.filename, file.nbytes, crc, noticed)
        if self._journal is not None:
            self._journal.add(done)
        self.finished[file.filename] = done

    def kept(self, error: BaseException | None) -> list[str]:
        return [name for name in super().kept(error) if os.path.lexists(self.sink.staged(name))]

    def end(self, error: BaseException | None) -> None:
        kept = self.kept(error)
        if self._journal is not None:
            self._journal.close()
        if kept:
            self.sink.close()
            self._remove(self.sink.staged(name) for name in planned_names(self.plan) if name not in kept)
            return
        self.sink.discard()
        self._remove(self.sink.staged(name) for name in self.taken_over)
        self._remove(str(self.save_dir / name) for name in (JOURNAL, NEW_JOURNAL))

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _found(
        self, workers: int, progress: Progress | bool | None, cancel: threading.Event | None
    ) -> dict[str, Finished]:
        """What a stopped run has finished, by name: only what is still, to the byte, as it was written."""
        header, finished = read_journal(self.save_dir)
        there = {one.filename: one for one in finished if _is_there(self.save_dir, header.get("fingerprint"), one)}
        if not there:
            return {}
        refuse_others(self.plan, self.save_dir, header)
        wanted = [there[f.filename] for f in self.plan.files if f.filename in there]
        sums = self._sums(wanted, workers, progress, cancel)
        return {one.filename: one for one in wanted if sums[one.filename] == one.crc32}

    def _sums(
        self,
        files: list[Finished],
        workers: int,
        progress: Progress | bool | None,
        cancel: threading.Event | None,
    ) -> dict[str, int | None]:
        """The checksums of finished files as they are now, by name; None for one that cannot be read."""
        sums: dict[str, int | None] = {}
        done, lock = [0], threading.Lock()

        def read(nbytes: int) -> None:
            with lock:
                done[0] += nbytes

        def check(one: Finished) -> None:
            sums[one.filename] = None
            with contextlib.suppress(OSError):
                sums[one.filename] = file_crc(self.sink.staged(one.filename), read)

        with bar(progress, "checking") as report:
            total = sum(one.nbytes for one in files)
            tell = (lambda: report(done[0], total, "")) if report else (lambda: None)
            run((iter([one]) for one in files), lambda: check, workers=workers, report=tell, cancel=cancel)
        return sums


def _is_there(save_dir: Path, fingerprint: object, one: Finished) -> bool:
    """Whether a file of that size is there, under the name that a run of that plan gave it; both may be anything."""
    if not (isinstance(fingerprint, str) and _FINGERPRINT.fullmatch(fingerprint)):
        return False
    path = Path(LocalSink(save_dir, tag_of(fingerprint)).staged(one.filename))
    try:
        return path.parent == save_dir and is_file(path) and path.lstat().st_size == one.nbytes
    except (OSError, ValueError):  # a zero byte
        return False
