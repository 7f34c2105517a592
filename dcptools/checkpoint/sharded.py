"""Checkpoints whose values are in safetensors files: shards without ``.metadata``, or with one that points into them.

Shards are what torch's ``HuggingFaceStorageWriter`` leaves (``hf_storage.py``), and transformers' distributed save: the
headers say which part of which tensor a file has, but nothing says how large the whole is. With
``SerializationFormat.SAFETENSORS`` each ``.distcp`` file is, or ends with, a safetensors file, and ``.metadata`` gives
for all its items the place at which that begins (``filesystem.py``).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dcptools._fields import TOO_LARGE, Wrong
from dcptools._option import option
from dcptools._safetensors import Header, Part, header_bytes, parse_header
from dcptools._text import counted
from dcptools.checkpoint.metadata import RawMetadata, RawTensor
from dcptools.checkpoint.storage_data import VALUES
from dcptools.errors import BrokenCheckpoint, UnsupportedCheckpoint
from dcptools.findings import Finding
from dcptools.storage import Source

SHARD = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
MOST_BYTES = 4_000_000_000  # of all headers


def shard_files(names: Sequence[str]) -> list[str]:
    """The names that are those of shards."""
    return [name for name in names if SHARD.fullmatch(name)]


def read_shards(source: Source, names: Sequence[str]) -> tuple[RawMetadata, int, str]:
    """What the headers of the shards say, their bytes, and the SHA-256 of them all.

    Raises
    ------
    BrokenCheckpoint
        A header is damaged, or two of them contradict each other.
    UnsupportedCheckpoint
        A shard does not say which parts it has.
    """
    digest, nbytes = hashlib.sha256(), 0
    found: dict[str, list[tuple[int, Part]]] = {}  # by key: the number of the file, and what is in it
    for number, name in enumerate(names):
        data, header = _header(source, name)
        nbytes += header.nbytes
        if nbytes > MOST_BYTES:
            raise BrokenCheckpoint(f"The headers of {source.location} have more than {MOST_BYTES:,} bytes.")
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0" + data)
        for key, part in header.parts.items():
            if part.offsets is None:
                raise UnsupportedCheckpoint(
                    f"{source.path(name)} does not say which parts of tensors it has: there is no DCP_SHARDING_INFO.\n"
                    "Expected shards of torch's HuggingFaceStorageWriter, as save_distributed=True writes them."
                )
            found.setdefault(key, []).append((number, part))
    return _as_metadata(source, names, found), nbytes, digest.hexdigest()


def _header(source: Source, name: str, start: int = 0) -> tuple[bytes, Header]:
    """The header that begins at that byte of a file: as it is, and what it says."""
    try:
        data = header_bytes(source, name, start)
        return data, parse_header(data, start)
    except Wrong as wrong:
        raise BrokenCheckpoint(
            f"{source.path(name)} is not a valid safetensors file: {wrong}.\n"
            "Copy the checkpoint again, use another one, or save again."
        ) from None


def _as_metadata(source: Source, names: Sequence[str], found: dict[str, list[tuple[int, Part]]]) -> RawMetadata:
    tensors: list[RawTensor] = []
    rows = [row for parts in found.values() for row in parts]
    first = 0
    for key, parts in found.items():
        tensors.append(_tensor(source, names, key, parts, first))
        first += len(parts)
    return RawMetadata(
        tensors,
        [],
        list(names),
        np.array([number for number, _ in rows], np.int32),
        np.array([part.start for _, part in rows], np.int64),
        np.array([part.nbytes for _, part in rows], np.int64),
        np.zeros(len(rows), np.int8),
        [VALUES],
        (),
        "",
    )


def _tensor(source: Source, names: Sequence[str], key: str, parts: list[tuple[int, Part]], first: int) -> RawTensor:
    """A tensor that reaches as far as its parts do."""
    number, one = parts[0]
    for other, part in parts:
        if part.dtype != one.dtype or len(part.shape) != len(one.shape):
            raise BrokenCheckpoint(
                f"{source.location}: {key!r} is {one.dtype.name} with {counted(len(one.shape), 'dimension')} in "
                f"{names[number]}, and {part.dtype.name} with {len(part.shape)} in {names[other]}.\n"
                "These are shards of two saves. Use another checkpoint, or save again into an empty directory."
            )
    dims = len(one.shape)
    offsets = np.array([part.offsets for _, part in parts], np.int64).reshape(len(parts), dims)
    sizes = np.array([part.shape for _, part in parts], np.int64).reshape(len(parts), dims)
    shape = tuple((offsets + sizes).max(axis=0).tolist())
    if math.prod(max(1, n) for n in shape) * one.dtype.itemsize >= TOO_LARGE:
        raise BrokenCheckpoint(
            f"{source.location}: {key!r} would have the shape {shape}, which is 2**62 bytes or more."
        )
    return RawTensor(key, shape, one.dtype, (), offsets, sizes, first)


def about_shards(names: Sequence[str]) -> Finding:
    return Finding(
        "no-metadata", "", f"the headers of {counted(len(names), 'shard')} say what is there: a tensor ends where its "
        "last part does, so missing shards of the last ranks go unnoticed",
        f"{option('model_assets_dir')} or {option('reference')} compares it with the model",
    )  # fmt: skip


def lies_in_safetensors(raw: RawMetadata) -> bool:
    """Whether items are exactly as long as their values: an archive around them would take more."""
    for tensor in raw.tensors:
        if math.prod(tensor.shape) and len(tensor.offsets) and raw.file[tensor.first] >= 0:
            return _is_bare(raw, tensor, 0) and bool(raw.nbytes[tensor.first] > 0)
    return False


def _is_bare(raw: RawMetadata, tensor: RawTensor, chunk: int) -> bool:
    row = tensor.first + chunk
    nbytes = math.prod(tensor.sizes[chunk].tolist()) * tensor.dtype.itemsize
    return raw.encodings[raw.encoding[row]] == "torch" and bool(raw.nbytes[row] == nbytes)


def place_items(source: Source, raw: RawMetadata) -> tuple[RawMetadata, tuple[Finding, ...]]:
    """Look up in the headers where the values of such items are. What a header does not have is stored nowhere."""
    headers = _Headers(source, raw.file_names)
    file, start, encoding = raw.file.copy(), raw.start.copy(), raw.encoding.copy()
    for tensor in raw.tensors:
        for chunk, (offsets, sizes) in enumerate(zip(tensor.offsets.tolist(), tensor.sizes.tolist(), strict=True)):
            row = tensor.first + chunk
            if file[row] < 0 or not _is_bare(raw, tensor, chunk):
                continue
            encoding[row] = len(raw.encodings)
            parts = headers.of(int(file[row]), int(start[row]))
            if parts is None:
                continue  # that the file is missing is reported for every key
            part = parts.get(tensor.key)
            if part and (part.dtype, part.shape, part.offsets) == (tensor.dtype, tuple(sizes), tuple(offsets)):
                start[row] = part.start
            else:
                file[row] = -1
    placed = replace(raw, file=file, start=start, encoding=encoding, encodings=[*raw.encodings, VALUES])
    return placed, tuple(headers.findings)


class _Headers:
    """The headers in the files that ``.metadata`` names, each read once."""

    def __init__(self, source: Source, names: Sequence[str]) -> None:
        self._source, self._names = source, names
        self._read: dict[int, tuple[int, dict[str, Part] | None]] = {}  # by file: where it begins, what it says
        self._left = MOST_BYTES
        self.findings: list[Finding] = []

    def of(self, number: int, start: int) -> dict[str, Part] | None:
        """The parts of a file whose header begins there; None if there is no such file."""
        if number not in self._read:
            self._read[number] = start, self._parts(self._names[number], start)
        begins, parts = self._read[number]
        return parts if begins == start or parts is None else {}

    def _parts(self, name: str, start: int) -> dict[str, Part] | None:
        if self._source.state(name) is None:
            return None
        try:
            if self._left < 0:
                raise BrokenCheckpoint(f"The headers have more than {MOST_BYTES:,} bytes.")
            _, header = _header(self._source, name, start)
        except BrokenCheckpoint as error:
            why = str(error).splitlines()[0]
            self.findings.append(Finding("no-storage", "", why, "copy the file again", severity="warning"))
            return {}
        self._left -= header.nbytes
        return header.parts
