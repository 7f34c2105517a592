"""What is wrong with a checkpoint, as its metadata and the sizes of its files show it: one finding per key and kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dcptools._text import some
from dcptools.checkpoint.cover import check_cover
from dcptools.checkpoint.metadata import ALIKE, RawMetadata, RawTensor
from dcptools.checkpoint.storage_data import READABLE
from dcptools.checkpoint.stored import Columns, StoredFile
from dcptools.findings import Finding

MANY = 1000  # records; this many take no time to speak of
_SAVE_AGAIN = "use another checkpoint, or save it again"


def about_foreign(names: Sequence[str]) -> Iterator[Finding]:
    """Classes that are not known, and those that are read as torch's by their names and fields."""
    alike = [name for name in names if name.rpartition(".")[2] in ALIKE]
    if alike:
        yield Finding(
            "foreign-class", "", f".metadata has {some(alike)} in place of torch's class; it was read by its "
            "fields, which are checked like torch's, and nothing of it was imported", severity="info",
        )  # fmt: skip
    names = [name for name in names if name not in alike]
    if names:
        yield Finding(
            "foreign-class", "", f".metadata names {some(names)}; nothing of it was imported",
            "harmless unless keys are missing",
        )  # fmt: skip


def about_speed(raw: RawMetadata) -> Iterator[Finding]:
    """Metadata whose records are not as torch writes them today, so that they are read one by one."""
    if raw.one_by_one > MANY and raw.one_by_one > len(raw.start) / 2:
        yield Finding(
            "metadata-slow", "", f".metadata has {raw.one_by_one:,} records in a form that is read one by one",
            "the values are right, but reading takes up to ten times as long; please report which program wrote it",
        )  # fmt: skip


def about_holes(tensors: Iterable[RawTensor]) -> Iterator[Finding]:
    """Tensors that their chunks do not cover exactly."""
    for tensor in tensors:
        if len(tensor.offsets) == 1 and not tensor.offsets.any() and tuple(tensor.sizes[0].tolist()) == tensor.shape:
            continue  # by far the most tensors; keeps 100,000 keys fast
        problem = check_cover(tensor.shape, tensor.offsets, tensor.sizes)
        if problem:
            yield Finding(problem[0], tensor.key, problem[1], _SAVE_AGAIN)


def about_storage(
    rows: list[tuple[str, int, int]], columns: Columns, files: tuple[StoredFile, ...]
) -> Iterator[Finding]:
    """Chunks whose bytes are not where the metadata says; one finding per key and kind of problem."""
    length = np.array([-1 if file.nbytes is None else file.nbytes for file in files] + [0], dtype=np.int64)
    of_chunk = length[columns.file]  # index -1, no storage info, takes the last
    no_storage = columns.file < 0
    missing = ~no_storage & (of_chunk < 0)
    truncated = ~no_storage & ~missing & (columns.start + columns.nbytes > of_chunk)
    encodings = np.array([name not in READABLE for name in columns.encodings] or [False])
    unsupported = encodings[columns.encoding] if len(columns.encoding) else no_storage
    if not (no_storage | missing | truncated | unsupported).any():
        return
    for key, first, count in rows:
        span = slice(first, first + count)
        if no_storage[span].any():
            lost = f"{no_storage[span].sum()} of its {count} chunks are" if count > 1 else "it is"
            yield Finding("no-storage", key, f"storage_data does not say where {lost} stored", _SAVE_AGAIN)
        if missing[span].any():
            names = dict.fromkeys(files[i].name for i in columns.file[span][missing[span]].tolist())
            yield Finding("missing-file", key, f"there is no file {some(names)}", "copy the missing files")
        if truncated[span].any():
            ends: dict[int, int] = {}  # of the cut file, where its last item here should end
            for row in (np.flatnonzero(truncated[span]) + first).tolist():
                file, end = int(columns.file[row]), int(columns.start[row] + columns.nbytes[row])
                ends[file] = max(end, ends.get(file, 0))
            short = some(
                f"{files[i].name} has {files[i].nbytes:,} bytes and should have {end:,}" for i, end in ends.items()
            )
            yield Finding("truncated-file", key, short, "copy the file again")
        if unsupported[span].any():
            names = dict.fromkeys(columns.encodings[i] for i in columns.encoding[span][unsupported[span]].tolist())
            yield Finding(
                "unsupported-encoding", key, f"dcptools cannot undo the {some(names)}", "save again without it"
            )
