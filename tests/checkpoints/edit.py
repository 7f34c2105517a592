"""Look into a checkpoint and change one thing in it, with torch's own classes and the zip format's own parts."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

METADATA = ".metadata"


def load_metadata(directory: Path) -> Metadata:
    """The metadata as torch reads it. For checkpoints made here only: a foreign pickle could run anything."""
    metadata = pickle.loads((directory / METADATA).read_bytes())
    assert isinstance(metadata, Metadata)
    return metadata


def dump_metadata(directory: Path, metadata: object) -> None:
    """Write it as ``FileSystemWriter.finish`` does: the default pickle protocol, 4 up to Python 3.13."""
    (directory / METADATA).write_bytes(pickle.dumps(metadata, protocol=4))


@contextmanager
def editing(directory: Path) -> Iterator[Any]:
    """``with editing(directory) as metadata:`` changes the stored metadata in place; untyped, to allow nonsense."""
    metadata = load_metadata(directory)
    yield metadata
    dump_metadata(directory, metadata)


def indices(metadata: Metadata, key: str) -> list[MetadataIndex]:
    """The storage indices of a key's chunks, ordered by their offsets in the tensor."""
    return sorted((i for i in metadata.storage_data if i.fqn == key), key=lambda i: tuple(i.offset or ()))


def location(directory: Path, key: str, chunk: int = 0) -> _StorageInfo:
    """File, offset and length of one chunk's item."""
    metadata = load_metadata(directory)
    info = metadata.storage_data[indices(metadata, key)[chunk]]
    assert isinstance(info, _StorageInfo)
    return info


def item_bytes(directory: Path, key: str, chunk: int = 0) -> bytes:
    """The stored bytes of one item: a zip archive, or what a transform made of it."""
    info = location(directory, key, chunk)
    with (directory / info.relative_path).open("rb") as file:
        file.seek(info.offset)
        return file.read(info.length)


def replace_item(directory: Path, key: str, payload: bytes, chunk: int = 0) -> None:
    """Append ``payload`` to the item's file and point the metadata at it; the old bytes stay, as dead ones."""
    with editing(directory) as metadata:
        info = metadata.storage_data[indices(metadata, key)[chunk]]
        with (directory / info.relative_path).open("ab") as file:
            info.offset, info.length = file.tell(), len(payload)
            file.write(payload)


def flip_value(directory: Path, key: str, byte: int, chunk: int = 0) -> None:
    """Flip a bit of an item's data; its CRC-32 stays."""
    info, payload = location(directory, key, chunk), item_bytes(directory, key, chunk)
    parts = item_parts(payload)
    at = info.offset + payload.index(parts[data_entry(parts)]) + byte
    content = bytearray((directory / info.relative_path).read_bytes())
    content[at] ^= 0x04
    (directory / info.relative_path).write_bytes(content)


def torch_item(value: object) -> bytes:
    """``value`` as ``torch.save`` stores it, views with the whole storage behind them."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def item_parts(payload: bytes) -> dict[str, bytes]:
    """The entries of an item's zip archive, by their names in it (``archive/data.pkl``, ``archive/data/0``, ...)."""
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_item(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of ``parts``; unlike torch's, sizes stand in the local headers and data is not aligned."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def data_pickle(parts: dict[str, bytes]) -> str:
    """The name of the entry that describes the tensor; what comes before ``data.pkl`` depends on the torch version."""
    return next(name for name in parts if name.endswith("data.pkl"))


def data_entry(parts: dict[str, bytes]) -> str:
    """The name of the entry that holds the tensor's bytes."""
    return next(name for name in parts if name.endswith("data/0"))
