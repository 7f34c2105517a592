"""How outputs are packed into files: which file holds what, and where in it.

The format is safetensors' (8 bytes little-endian header length, JSON header, data), in the order in which
``safetensors.torch.save_file`` puts tensors: widest dtype first, then name. So a file equals, byte for byte, what that
function would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from dcptools._text import format_bytes
from dcptools.dtypes import DType
from dcptools.findings import Finding
from dcptools.mapping import Output
from dcptools.shards.values import SINGLE_FILE, PlannedTensor, ShardFile

_METADATA = '"__metadata__":{"format":"pt"}'
_quoted = json.JSONEncoder(ensure_ascii=False).encode


class Sized(NamedTuple):
    """An output, the dtype that it is written in, and the bytes that it then has."""

    output: Output
    dtype: DType
    nbytes: int


def sized(outputs: Iterable[Output], written: Mapping[str, DType]) -> list[Sized]:
    """The outputs in the dtype that each name is written in."""
    return [Sized(each, (dtype := written[each.name]), each.numel * dtype.itemsize) for each in outputs]


def pack(outputs: Iterable[Sized], size: int, kind: str) -> Iterator[ShardFile]:
    """The files, for outputs that are sorted by name, in files of ``size`` bytes of values; an adapter is one file."""
    shards: list[list[Sized]] = []
    filled = 0
    for each in outputs:
        if not shards or (filled + each.nbytes > size and shards[-1] and kind == "model"):
            shards.append([])
            filled = 0
        shards[-1].append(each)
        filled += each.nbytes
    for number, shard in enumerate(shards, start=1):
        name = SINGLE_FILE[kind] if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        yield _file(name, shard)


def _file(filename: str, outputs: Iterable[Sized]) -> ShardFile:
    """One file, for outputs that are sorted by name: its header, and where its tensors are."""
    ordered = sorted(outputs, key=lambda each: -each.dtype.rank)
    ends = list(accumulate((each.nbytes for each in ordered), initial=0))
    places = list(zip(ordered, ends, ends[1:], strict=False))  # each begins where the one before ends
    entries = (_entry(output, dtype, begin, end) for (output, dtype, _), begin, end in places)
    text = ("{" + ",".join((_METADATA, *entries)) + "}").encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    tensors = tuple(PlannedTensor(output, dtype, start + begin, nbytes) for (output, dtype, nbytes), begin, _ in places)
    return ShardFile(filename, len(text).to_bytes(8, "little") + text, tensors, start + ends[-1])


def _entry(output: Output, dtype: DType, begin: int, end: int) -> str:
    """A tensor in the header, as JSON; for very many, that is quicker than first making a dict of each."""
    return f'{_quoted(output.name)}:{{{_form(dtype.code, output.shape)},"data_offsets":[{begin},{end}]}}'


@lru_cache(maxsize=1024)  # a model has many tensors of few shapes
def _form(code: str, shape: tuple[int, ...]) -> str:
    return f'"dtype":"{code}","shape":[{",".join(map(str, shape))}]'


def about_sizes(outputs: Iterable[Sized], size: int, kind: str) -> Iterator[Finding]:
    """What is larger than a shard: tensors, or an adapter."""
    if kind == "adapter":
        nbytes = sum(each.nbytes for each in outputs)
        if nbytes > size:
            larger = f"{format_bytes(nbytes)} are more than the shard size of {format_bytes(size)}, but stay one file"
            yield Finding("adapter-not-cut", "", larger, "peft reads an adapter from one file only")
        return
    for each in outputs:
        if each.nbytes > size:
            larger = f"{format_bytes(each.nbytes)} are more than the shard size of {format_bytes(size)}"
            yield Finding("large-tensor", each.output.name, larger, "the tensor gets a file of its own")
