"""Checkpoints with one fault each, and oddities that look like a fault and are none.

:func:`whole` is the ground they start from: ``model.model.w`` (6, 4) in three chunks of two rows in three files, and
``model.model.b`` (4,) in one chunk. The damage is done to the files as a disk, a copy or a person would do it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, ChunkStorageMetadata, MetadataIndex

from .edit import (
    METADATA,
    data_entry,
    data_pickle,
    dump_metadata,
    editing,
    indices,
    item_bytes,
    item_parts,
    location,
    replace_item,
    torch_item,
    zip_item,
)
from .hostile import load_from_bytes, system_pickle
from .saved import save_chunks

W, B = "model.model.w", "model.model.b"


def whole(directory: Path) -> Path:
    """Nothing is wrong with this one."""
    w = torch.arange(24.0).reshape(6, 4)
    return save_chunks(
        directory,
        {W: [((row, 0), w[row : row + 2].clone()) for row in (0, 2, 4)], B: [((0,), torch.arange(4.0))]},
        files=3,
    )


# --- files ------------------------------------------------------------------------------------------------------


def missing_file(directory: Path) -> str:
    """A ``.distcp`` file was not copied. Returns its name."""
    name = location(whole(directory), W, 2).relative_path
    (directory / name).unlink()
    return name


def truncated_file(directory: Path, drop: int = 100) -> str:
    """A ``.distcp`` file lacks its last ``drop`` bytes, as after a full disk. Returns its name."""
    name = location(whole(directory), W, 2).relative_path
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[:-drop])
    return name


def flipped_bit(directory: Path) -> tuple[str, str]:
    """One bit of the data of ``W``'s second chunk differs; its CRC-32 does not. Returns (file, key)."""
    info = location(whole(directory), W, 1)
    payload = item_bytes(directory, W, 1)
    at = payload.index(item_parts(payload)[data_entry(item_parts(payload))])
    path = directory / info.relative_path
    content = bytearray(path.read_bytes())
    content[info.offset + at + 5] ^= 0x10
    path.write_bytes(content)
    return info.relative_path, W


def linked_files(directory: Path) -> Path:
    """Every file is a symbolic link into another directory, as in a cache: not a fault."""
    store = whole(directory.with_name(directory.name + ".store"))
    directory.mkdir(parents=True)
    for path in store.iterdir():
        (directory / path.name).symlink_to(path)
    return directory


def file_is_directory(directory: Path) -> str:
    """Where a ``.distcp`` file should be there is a directory. Returns its name."""
    name = missing_file(directory)
    (directory / name).mkdir()
    return name


# --- metadata as bytes ------------------------------------------------------------------------------------------


def garbage_metadata(directory: Path) -> Path:
    """``.metadata`` is text, such as the page of an HTTP error or a Git LFS pointer."""
    whole(directory)
    (directory / METADATA).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return directory


def truncated_metadata(directory: Path) -> Path:
    """``.metadata`` ends in a file's name; torch writes it in one go and renames it, copying tools do not."""
    content = (whole(directory) / METADATA).read_bytes()
    (directory / METADATA).write_bytes(content[: content.rindex(b".distcp")])
    return directory


def empty_metadata(directory: Path) -> Path:
    """``.metadata`` has no bytes."""
    (whole(directory) / METADATA).write_bytes(b"")
    return directory


def metadata_is_directory(directory: Path) -> Path:
    """``.metadata`` is a directory."""
    (whole(directory) / METADATA).unlink()
    (directory / METADATA).mkdir()
    return directory


def unreadable_metadata(directory: Path) -> Path:
    """``.metadata`` has mode 0 (root reads it all the same)."""
    (whole(directory) / METADATA).chmod(0)
    return directory


def not_metadata(directory: Path, value: Any = (1, "two")) -> Path:
    """``.metadata`` is a sound pickle of something else."""
    whole(directory)
    dump_metadata(directory, value)
    return directory


# --- metadata that contradicts itself ---------------------------------------------------------------------------


def hole(directory: Path) -> Path:
    """The second chunk of ``W`` is not listed. ``dcp.load`` leaves rows 2 and 3 as they were in the buffer."""
    with editing(whole(directory)) as metadata:
        del metadata.state_dict_metadata[W].chunks[1]
        del metadata.storage_data[indices(metadata, W)[1]]
    return directory


def tail_hole(directory: Path) -> Path:
    """``W`` is said to have a seventh row that no chunk holds."""
    with editing(whole(directory)) as metadata:
        metadata.state_dict_metadata[W].size = torch.Size((7, 4))
    return directory


def no_chunks(directory: Path) -> Path:
    """``W`` is listed with a size, and without any chunk."""
    with editing(whole(directory)) as metadata:
        metadata.state_dict_metadata[W].chunks.clear()
        for index in indices(metadata, W):
            del metadata.storage_data[index]
    return directory


def overlap(directory: Path) -> Path:
    """The second chunk of ``W`` starts at row 1: row 1 is there twice, row 3 not at all, and the sum of sizes fits."""
    _move(directory, 1, (1, 0))
    return directory


def out_of_bounds(directory: Path) -> Path:
    """The last chunk of ``W`` reaches past the tensor's end."""
    _move(directory, 2, (5, 0))
    return directory


def negative_offset(directory: Path) -> Path:
    """The first chunk of ``W`` starts at row -1."""
    _move(directory, 0, (-1, 0))
    return directory


def _move(directory: Path, chunk: int, offsets: tuple[int, ...]) -> None:
    with editing(whole(directory)) as metadata:
        entry, index = metadata.state_dict_metadata[W].chunks[chunk], indices(metadata, W)[chunk]
        entry.offsets = torch.Size(offsets)
        metadata.storage_data[MetadataIndex(W, offsets, chunk)] = metadata.storage_data.pop(index)


def no_storage(directory: Path) -> Path:
    """``storage_data`` does not say where the second chunk of ``W`` lies."""
    with editing(whole(directory)) as metadata:
        del metadata.storage_data[indices(metadata, W)[1]]
    return directory


def no_storage_data(directory: Path) -> Path:
    """``storage_data`` is None."""
    with editing(whole(directory)) as metadata:
        metadata.storage_data = None
    return directory


def unlisted_storage(directory: Path) -> Path:
    """``storage_data`` knows a key that the state dict does not: bytes of no tensor, harmless."""
    with editing(whole(directory)) as metadata:
        metadata.storage_data[MetadataIndex("model.model.gone", (0,), 0)] = location(directory, B)
    return directory


def shifted_hints(directory: Path) -> Path:
    """The ``index`` hints of ``storage_data`` are wrong or None, which torch allows: they are not compared."""
    with editing(whole(directory)) as metadata:
        hints = [5, None, 0]
        for index, hint in zip(indices(metadata, W), hints, strict=True):
            info = metadata.storage_data.pop(index)
            metadata.storage_data[MetadataIndex(W, index.offset, hint)] = info
        metadata.state_dict_metadata[W].chunks.reverse()
    return directory


def wrong_shape(directory: Path) -> Path:
    """Metadata says (2, 2) for ``B`` whose item is (4,): as many elements, another shape."""
    with editing(whole(directory)) as metadata:
        entry = metadata.state_dict_metadata[B]
        entry.size = torch.Size((2, 2))
        entry.chunks[0] = ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((2, 2)))
        metadata.storage_data[MetadataIndex(B, (0, 0), 0)] = metadata.storage_data.pop(indices(metadata, B)[0])
    return directory


def rank_mismatch(directory: Path) -> Path:
    """A chunk of ``W`` has one dimension less than ``W``."""
    with editing(whole(directory)) as metadata:
        metadata.state_dict_metadata[W].chunks[1] = ChunkStorageMetadata(torch.Size((2,)), torch.Size((2,)))
    return directory


def sized(directory: Path, size: tuple[Any, ...]) -> Path:
    """``B`` and its only chunk are said to have ``size``."""
    with editing(whole(directory)) as metadata:
        entry = metadata.state_dict_metadata[B]
        entry.size = entry.chunks[0].sizes = size  # torch.Size would refuse what is no integer
    return directory


def negative_size(directory: Path) -> Path:
    """A dimension of -4: products and slices of it are silently wrong."""
    return sized(directory, (-4,))


def huge_size(directory: Path) -> Path:
    """2**62 elements: with four bytes each, the size in bytes does not fit in 64 bits."""
    return sized(directory, (1 << 62,))


def located(directory: Path, **fields: Any) -> Path:
    """The storage entry of ``B`` has other ``fields``: relative_path, offset, length, transform_descriptors."""
    with editing(whole(directory)) as metadata:
        info = metadata.storage_data[indices(metadata, B)[0]]
        for name, value in fields.items():
            setattr(info, name, value)
    return directory


def escaping_path(directory: Path) -> Path:
    """``B`` is said to lie in ``../outside.distcp``, which exists and has the right item. Returns the outside file."""
    payload = item_bytes(whole(directory), B)
    located(directory, relative_path="../outside.distcp", offset=0)
    outside = directory.parent / "outside.distcp"
    outside.write_bytes(payload)
    return outside


def absolute_path(directory: Path) -> Path:
    """``B`` is said to lie at an absolute path, which exists and has the right item. Returns the outside file."""
    outside = escaping_path(directory)
    located(directory, relative_path=str(outside.resolve()), offset=0)
    return outside


def negative_location(directory: Path) -> Path:
    """The item of ``B`` starts at byte -10."""
    return located(directory, offset=-10)


def huge_location(directory: Path) -> Path:
    """The item of ``B`` ends past 2**63 bytes: offset plus length overflows C's ``off_t``."""
    return located(directory, offset=(1 << 63) - 1, length=1 << 62)


def unknown_transform(directory: Path) -> Path:
    """The item of ``B`` went through a transform that torch does not have."""
    return located(directory, transform_descriptors=["stream.rot13/1"])


def wrong_types(directory: Path, what: str) -> Path:
    """One place of the metadata has a value of another type; ``what`` is a name of :data:`WRONG_TYPES`."""
    with editing(whole(directory)) as metadata:
        WRONG_TYPES[what](metadata)
    return directory


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return lambda metadata: setattr(metadata, name, value)


def _entry(name: str, value: Any) -> Callable[[Any], None]:
    return lambda metadata: setattr(metadata.state_dict_metadata[B], name, value)


def _info(name: str, value: Any) -> Callable[[Any], None]:
    return lambda metadata: setattr(metadata.storage_data[indices(metadata, B)[0]], name, value)


WRONG_TYPES: dict[str, Callable[[Any], None]] = {
    "state_dict_metadata is a list": _set("state_dict_metadata", []),
    "state_dict_metadata is None": _set("state_dict_metadata", None),
    "storage_data is a list": _set("storage_data", [1]),
    "planner_data is a string": _set("planner_data", "model"),
    "planner_data has integers": _set("planner_data", {B: 3, 4: (B,)}),
    "a key is an integer": lambda m: m.state_dict_metadata.update({7: m.state_dict_metadata[B]}),
    "a key is bytes": lambda m: m.state_dict_metadata.update({b"w": m.state_dict_metadata[B]}),
    "a key is a record": lambda m: m.state_dict_metadata.update({MetadataIndex(B): m.state_dict_metadata[B]}),
    "an entry is a string": lambda m: m.state_dict_metadata.update({B: "tensor"}),
    "an entry is a bytes entry": lambda m: m.state_dict_metadata.update({B: BytesStorageMetadata()}),
    "a size is a float": _entry("size", (4.0,)),
    "a size is a boolean": _entry("size", (True,)),
    "a size is None": _entry("size", None),
    "a size is a string": _entry("size", "4"),
    "a size has a record and a class": _entry("size", (MetadataIndex(B), MetadataIndex)),
    "chunks is None": _entry("chunks", None),
    "chunks has None": _entry("chunks", [None]),
    "properties is None": _entry("properties", None),
    "the dtype is a string": lambda m: setattr(m.state_dict_metadata[B].properties, "dtype", "float32"),
    "the path is bytes": _info("relative_path", b"__0_0.distcp"),
    "the path is None": _info("relative_path", None),
    "the path is empty": _info("relative_path", ""),
    "the path has a NUL": _info("relative_path", "__0_0\0.distcp"),
    "the offset is a float": _info("offset", 0.0),
    "the length is None": _info("length", None),
}


# --- items ------------------------------------------------------------------------------------------------------


def item(directory: Path, payload: bytes) -> Path:
    """:func:`whole` with ``payload`` for the item of ``B``, at the place that the metadata gives."""
    replace_item(whole(directory), B, payload)
    return directory


def other_shape(directory: Path) -> Path:
    """The item of ``B`` is a tensor of (5,) where the metadata says (4,); ``dcp.load`` takes the first four."""
    return item(directory, torch_item(torch.arange(5.0)))


def other_dtype(directory: Path) -> Path:
    """The item of ``B`` is int32 where the metadata says float32: as many bytes, other numbers."""
    return item(directory, torch_item(torch.arange(4, dtype=torch.int32)))


def no_tensor(directory: Path) -> Path:
    """The item of ``B`` is a sound ``torch.save`` of a dict."""
    return item(directory, torch_item({"w": torch.arange(4.0)}))


def not_a_zip(directory: Path) -> Path:
    """The item of ``B`` is not a zip archive."""
    return item(directory, b"\0" * 700)


def legacy_item(directory: Path) -> Path:
    """The item of ``B`` is in torch's format before 1.6: a stream of pickles, not a zip archive."""
    stream = io.BytesIO()
    torch.save(torch.arange(4.0), stream, _use_new_zipfile_serialization=False)
    return item(directory, stream.getvalue())


def _parts(value: object | None = None) -> dict[str, bytes]:
    return item_parts(torch_item(torch.arange(4.0) if value is None else value))


def rezipped(directory: Path) -> Path:
    """The item of ``B`` in an archive of Python's ``zipfile``: sizes in local headers, no alignment; not a fault."""
    return item(directory, zip_item(_parts()))


def deflated(directory: Path) -> Path:
    """The item of ``B`` is a compressed archive, which torch reads and never writes: the raw bytes lie nowhere."""
    return item(directory, zip_item(_parts(), zipfile.ZIP_DEFLATED))


def big_endian(directory: Path) -> Path:
    """The item of ``B`` as a big-endian machine (s390x) writes it: ``byteorder`` is ``big``; torch swaps on load."""
    parts = _parts(torch.arange(4.0).view(torch.uint8).reshape(4, 4).flip(1).reshape(-1).view(torch.float32))
    order = next(name for name in parts if name.endswith("byteorder"))
    return item(directory, zip_item(parts | {order: b"big"}))


def no_byteorder(directory: Path) -> Path:
    """The item of ``B`` has no ``byteorder``, as before torch 2.1: little-endian, and no fault."""
    parts = {name: content for name, content in _parts().items() if not name.endswith("byteorder")}
    return item(directory, zip_item(parts))


def short_data(directory: Path) -> Path:
    """The item of ``B`` has 12 bytes of data for four floats; its pickle says that the storage has four."""
    parts = _parts()
    return item(directory, zip_item(parts | {data_entry(parts): parts[data_entry(parts)][:12]}))


def no_data(directory: Path) -> Path:
    """The item of ``B`` has a ``data.pkl`` and no ``data/0``."""
    parts = _parts()
    return item(directory, zip_item({n: c for n, c in parts.items() if n != data_entry(parts)}))


def strides_past_storage(directory: Path) -> Path:
    """The item of ``B`` has strides that reach past its storage (stride 1000 of four elements)."""
    parts = _parts()
    name = data_pickle(parts)
    stride, wide = b"K\x01\x85q", b"M\xe8\x03\x85q"  # the tuple (1,) and the tuple (1000,), memoized
    assert parts[name].count(stride) == 1
    return item(directory, zip_item(parts | {name: parts[name].replace(stride, wide)}))


def no_checksums(directory: Path) -> Path:
    """Saved with ``torch.serialization.set_crc32_options(False)``."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        return whole(directory)
    finally:
        torch.serialization.set_crc32_options(before)


def item_runs_system(directory: Path) -> Path:
    """The ``data.pkl`` of ``B`` asks for ``os.system``. Returns the file that would be made."""
    marker = directory.with_name(directory.name + ".marker")
    parts = _parts()
    item(directory, zip_item(parts | {data_pickle(parts): system_pickle(marker)}))
    return marker


def item_loads_bytes(directory: Path) -> Path:
    """The ``data.pkl`` of ``B`` calls ``torch.storage._load_from_bytes``. Returns the file that would be made."""
    marker = directory.with_name(directory.name + ".marker")
    parts = _parts()
    item(directory, zip_item(parts | {data_pickle(parts): load_from_bytes(marker)}))
    return marker
