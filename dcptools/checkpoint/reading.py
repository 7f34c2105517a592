"""``read``: a directory becomes a checked, frozen :class:`Checkpoint`. No tensor data is read, no torch imported."""

from __future__ import annotations

import contextlib
import hashlib
import os
from types import MappingProxyType
from typing import TYPE_CHECKING

from dcptools._collector import no_collections
from dcptools._text import format_bytes
from dcptools.checkpoint.checks import about_foreign, about_holes, about_speed, about_storage
from dcptools.checkpoint.lookalikes import METADATA, explain
from dcptools.checkpoint.metadata import RawMetadata, parse
from dcptools.checkpoint.sharded import about_shards, lies_in_safetensors, place_items, read_shards, shard_files
from dcptools.checkpoint.stored import Columns, StoredFile, StoredObject, StoredTensor
from dcptools.checkpoint.times import about_times
from dcptools.checkpoint.values import Checkpoint
from dcptools.errors import BrokenCheckpoint, NotACheckpoint, UnsafeMetadata, check_stage, system_errors
from dcptools.findings import Finding
from dcptools.storage import FileState, Source, open_source

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 20_000_000_000  # of .metadata
_COPY_AGAIN = "Copy or download the checkpoint again, use another one, or save again."


def read(load_dir: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint's metadata; no tensor data, no torch.

    Parameters
    ----------
    load_dir
        The directory that holds ``.metadata``, or safetensors shards that say themselves what they contain; a
        path, or a URL that fsspec knows.

    Raises
    ------
    NotACheckpoint
        The path does not exist or is something else; the message says what.
    UnsupportedCheckpoint
        It is a checkpoint without ``.metadata`` that dcptools does not read.
    BrokenCheckpoint
        ``.metadata`` is damaged. What is wrong with single keys is not raised: see ``Checkpoint.findings``.
    UnsafeMetadata
        ``.metadata`` asks to run code. It was not run.

    Examples
    --------
    >>> checkpoint = read(demo.checkpoint)
    >>> checkpoint["model.lm_head.weight"].dtype.name
    'float32'
    """
    check_stage(load_dir, "path")
    source = open_source(load_dir)
    metadata = source.path(METADATA)
    with system_errors(NotACheckpoint, f"{metadata} cannot be read"):
        state = source.state(METADATA)  # before it is read: what is written to while it is read counts as changed
        if state is None:
            return _read_shards(source)
        if state.nbytes > MOST_BYTES:
            raise BrokenCheckpoint(
                f"{metadata} has {format_bytes(state.nbytes)}; that of 100 million chunks has less than "
                f"{format_bytes(MOST_BYTES)}.\n{_COPY_AGAIN}"
            )
    try:
        with system_errors(NotACheckpoint, f"{metadata} cannot be read"):
            data = source.content(METADATA)
        raw = _parse(data, metadata)
        about: tuple[Finding, ...] = ()
        if lies_in_safetensors(raw):
            with system_errors(BrokenCheckpoint, f"The files that {metadata} names cannot be read"):
                raw, about = place_items(source, raw)
        return _build(source, raw, len(data), hashlib.sha256(data).hexdigest(), state, about)
    except MemoryError:
        raise BrokenCheckpoint(
            f"{metadata} has {format_bytes(state.nbytes)}, and its contents do not fit into memory.\n"
            "Read it on a machine with more memory, if it is not damaged."
        ) from None


def _parse(data: bytes, metadata: str) -> RawMetadata:
    if not data:
        raise BrokenCheckpoint(f"{metadata} is empty: the save was interrupted.\n{_COPY_AGAIN}")
    try:
        return parse(data, metadata)
    except UnsafeMetadata:
        raise
    except BrokenCheckpoint as error:
        raise BrokenCheckpoint(f"{error}\n{_COPY_AGAIN}") from None


def _read_shards(source: Source) -> Checkpoint:
    """A checkpoint without ``.metadata``: its shards say everything. Raises an error that says why, if it is none."""
    names = shard_files(source.entries()) if source.kind() == "directory" else []
    if not names:
        raise explain(source)
    raw, nbytes, digest = read_shards(source, names)
    return _build(source, raw, nbytes, digest, None, (about_shards(names),))


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file ``.metadata`` at the path or URL; also False if that cannot be looked up."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a zero byte in a path
        return open_source(path).kind(METADATA) == "file"
    return False


def as_checkpoint(checkpoint: Checkpoint | str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint itself, or the one at that path."""
    check_stage(checkpoint, "Checkpoint", "path")
    return checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint)


def inspect(checkpoint: Checkpoint | str | os.PathLike[str]) -> pd.DataFrame:
    """What is in a checkpoint, one row per key: key, kind, root, shape, dtype, numel, nbytes, chunks, files.

    ``nbytes`` counts the values of a tensor, and the stored bytes of an object. ``root`` is the container in the state
    dict that was saved, where the metadata says so.

    Parameters
    ----------
    checkpoint
        What :func:`read` returned, or a path.

    Raises
    ------
    DcptoolsError
        What :func:`read` raises for a path.

    Examples
    --------
    >>> inspect(demo.checkpoint).query("root == 'model'")["dtype"].unique().tolist()
    ['float32']
    """
    return as_checkpoint(checkpoint).to_frame()


@no_collections()
def _build(
    source: Source,
    raw: RawMetadata,
    nbytes: int,
    digest: str,
    metadata: FileState | None,
    about: tuple[Finding, ...],
) -> Checkpoint:
    """The checkpoint, with what is wrong with it and with the files that lie there.

    ``nbytes`` and ``digest`` are those of the metadata: of the file, or of the headers.
    """
    columns = Columns(
        source, tuple(raw.file_names), tuple(raw.encodings), raw.file, raw.start, raw.nbytes, raw.encoding
    )
    with system_errors(BrokenCheckpoint, f"The files that {source.path(METADATA)} names cannot be read"):
        states = source.states(raw.file_names)
    files = tuple(StoredFile(name, state.nbytes if state else None) for name, state in states.items())
    holes = {finding.key: finding for finding in about_holes(raw.tensors)}
    tensors = {}
    for t in raw.tensors:
        problem = holes[t.key].message if t.key in holes else ""
        tensors[t.key] = StoredTensor(t.key, t.shape, t.dtype, t.path, t.offsets, t.sizes, problem, t.first, columns)
    objects = {key: _stored_object(key, path, row, columns) for key, path, row in raw.objects}
    rows = [(t.key, t.first, len(t.offsets)) for t in raw.tensors] + [(key, row, 1) for key, _, row in raw.objects]
    findings = (
        *about_foreign(raw.foreign),
        *about_speed(raw),
        *about,
        *holes.values(),
        *about_storage(rows, columns, files),
        *about_times(metadata, states),
    )
    all_states = states if metadata is None else {METADATA: metadata, **states}
    identities = {name: state.identity if state else None for name, state in all_states.items()}
    return Checkpoint(
        source.location, MappingProxyType(tensors), MappingProxyType(objects), files, findings, raw.version,
        nbytes, digest, source, MappingProxyType(identities),
    )  # fmt: skip


def _stored_object(key: str, path: tuple[str, ...], row: int, columns: Columns) -> StoredObject:
    """An object, with its place if there is one."""
    file = int(columns.file[row])
    if file < 0:
        return StoredObject(key, path, "", None)
    return StoredObject(key, path, columns.file_names[file], int(columns.nbytes[row]))
