"""``.metadata`` of torch's own classes with some field that is not as it must be: what opcodes alone seldom reach."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Sequence
from pathlib import PurePosixPath
from random import Random
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from .mutate import INTEGERS, TEXTS, of_pickle

_DTYPES = (torch.float32, torch.bfloat16, torch.bool, torch.complex128, torch.float8_e4m3fn, torch.int64)
_OURS = (
    Metadata,
    TensorStorageMetadata,
    TensorProperties,
    ChunkStorageMetadata,
    MetadataIndex,
    _StorageInfo,
    StorageMeta,
)


def of_metadata(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """As often made anew as by opcodes of what is there; then sometimes by opcodes too."""
    if random.random() < 0.4:
        return of_pickle(data, others, random)
    metadata = sound(random)
    try:
        for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
            _change(metadata, random)
        made = pickle.dumps(metadata, protocol=random.choice((2, 3, 4, 4, 4, 5)))
    except Exception:  # a tower that pickle itself cannot climb, a key that no longer has a hash
        return data
    return of_pickle(made, others, random) if random.random() < 0.15 else made


def sound(random: Random) -> Metadata:
    """A few small tensors, in chunks of rows, and perhaps an object."""
    metadata = Metadata({}, {}, {}, StorageMeta() if random.random() < 0.5 else None)
    at = 0
    for number in range(random.randrange(1, 5)):
        key = f"model.{random.choice(TEXTS)}" if random.random() < 0.2 else f"model.layers.{number}.w"
        shape = torch.Size([random.randrange(4) for _ in range(random.randrange(4))])
        dtype, chunks = random.choice(_DTYPES), []
        for row in range(shape[0]) if shape and random.random() < 0.5 else (None,):
            offsets = torch.Size([row or 0, *[0] * (len(shape) - 1)][: len(shape)])
            sizes = shape if row is None else torch.Size([1, *shape[1:]])
            chunks.append(ChunkStorageMetadata(offsets, sizes))
            nbytes = random.choice((1500, sizes.numel() * dtype.itemsize))
            metadata.storage_data[MetadataIndex(key, offsets)] = _StorageInfo("__0_0.distcp", at, nbytes)
            at += nbytes
        metadata.state_dict_metadata[key] = TensorStorageMetadata(TensorProperties(dtype), shape, chunks)
        metadata.planner_data[key] = ("model", key.removeprefix("model."))
    if random.random() < 0.3:
        metadata.state_dict_metadata["model._extra"] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex("model._extra")] = _StorageInfo("__0_0.distcp", at, 9)
    return metadata


def _change(metadata: Metadata, random: Random) -> None:
    """One field of one of its values, or one member of a container, is something else."""
    places: list[tuple[Any, Any]] = []
    _walk(metadata, places, 0)
    owner, name = random.choice(places)
    other = random.choice(places)
    value = _value(random) if random.random() < 0.8 else _get(*other)  # shared; also in itself
    with contextlib.suppress(TypeError, KeyError):  # what cannot be a key
        if isinstance(owner, dict):
            way = random.randrange(3)
            old = owner[name] if way else owner.pop(name)
            owner[value if way == 2 else name] = old if way == 2 else value
        elif isinstance(owner, list):
            owner[name] = value
        elif random.random() < 0.1:
            vars(owner).pop(name, None)
        else:
            vars(owner)[name] = value


def _get(owner: Any, name: Any) -> Any:
    return owner.get(name) if isinstance(owner, dict) else owner[name] if isinstance(owner, list) else vars(owner)[name]


def _walk(value: Any, places: list[tuple[Any, Any]], depth: int) -> None:
    """All that can be set in it."""
    if depth > 8 or len(places) > 2000:
        return
    names = list(vars(value)) if isinstance(value, _OURS) else []
    names = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else names
    for name in names:
        places.append((value, name))
        _walk(_get(value, name), places, depth + 1)
        if isinstance(name, MetadataIndex):
            _walk(name, places, depth + 1)


def _value(random: Random) -> Any:
    integer, text = random.choice(INTEGERS), random.choice(TEXTS)
    return random.choice((
        None, True, integer, random.randrange(-2, 9), text, text.encode("utf-8", "replace"), 0.5, float("nan"),
        torch.Size([min(integer, (1 << 63) - 1) if integer > -(1 << 63) else 0]), torch.Size([random.randrange(4), 2]),
        (integer,), (text, integer), ((), ((),)), [], [text], {}, {text: integer}, {integer}, frozenset([text]),
        torch.float64, torch.strided, PurePosixPath("..", "x"), slice(1, 2), ("model", text), (0, 0), [("a", 1)] * 3,
        ("stream.zstd/1",), [text] * 1001, (1,) * 65, "x" * 5000, MetadataIndex(text, torch.Size([1])),
        ChunkStorageMetadata(torch.Size([0]), torch.Size([2])), BytesStorageMetadata(), TensorProperties(torch.int8),
    ))  # fmt: skip
