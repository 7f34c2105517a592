"""How outputs are packed into files: which file holds what, and where in it.

The format is safetensors' (8 bytes little-endian header length, JSON header, data), in the order in which
``safetensors.torch.save_file`` puts tensors: widest dtype first, then name. So a file equals, byte for byte, what that
function would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from dcptools._text import format_bytes
from dcptools.dtypes import DType
from dcptools.findings import Finding
from dcptools.mapping import Output
from dcptools.shards.values import SINGLE_FILE, PlannedTensor, ShardFile


def pack(outputs: Sequence[Output], written: dict[str, DType], size: int, kind: str) -> Iterator[ShardFile]:
    """The files, for outputs that are sorted by name, in files of ``size`` bytes of values; an adapter is one file."""
    shards: list[list[Output]] = []
    filled = 0
    for output in outputs:
        nbytes = output.numel * written[output.name].itemsize
        if not shards or (filled + nbytes > size and shards[-1] and kind == "model"):
            shards.append([])
            filled = 0
        shards[-1].append(output)
        filled += nbytes
    for number, shard in enumerate(shards, start=1):
        name = SINGLE_FILE[kind] if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        yield _file(name, shard, written)


def _file(filename: str, outputs: Sequence[Output], written: dict[str, DType]) -> ShardFile:
    """One file: its header, and where its tensors lie."""
    ordered = sorted(outputs, key=lambda output: (-written[output.name].rank, output.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for output in ordered:
        dtype = written[output.name]
        end = at + output.numel * dtype.itemsize
        header[output.name] = {"dtype": dtype.code, "shape": output.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    tensors = tuple(
        PlannedTensor(o, written[o.name], start + header[o.name]["data_offsets"][0], o.numel * written[o.name].itemsize)
        for o in ordered
    )
    return ShardFile(filename, len(text).to_bytes(8, "little") + text, tensors, start + at)


def about_sizes(outputs: Sequence[Output], written: dict[str, DType], size: int, kind: str) -> Iterator[Finding]:
    """What is larger than a shard: tensors, or an adapter."""
    if kind == "adapter":
        nbytes = sum(output.numel * written[output.name].itemsize for output in outputs)
        if nbytes > size:
            larger = f"{format_bytes(nbytes)} are more than the shard size of {format_bytes(size)}, but stay one file"
            yield Finding("adapter-not-cut", "", larger, "peft reads an adapter from one file only")
        return
    for output in outputs:
        nbytes = output.numel * written[output.name].itemsize
        if nbytes > size:
            larger = f"{format_bytes(nbytes)} are more than the shard size of {format_bytes(size)}"
            yield Finding("large-tensor", output.name, larger, "the tensor gets a file of its own")
