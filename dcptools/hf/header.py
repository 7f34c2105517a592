"""The header of a safetensors file, untrusted until it was checked.

The format: 8 bytes with the length of the header (little-endian), the header as a JSON object, the values. The rules
that are checked are those of the safetensors library, and that no name stands twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from dcptools._text import format_bytes, printable
from dcptools.dtypes import TABLE, DType
from dcptools.errors import BrokenModel, DcptoolsError
from dcptools.hf.values import Weight
from dcptools.storage import Source

MAX_HEADER_BYTES = 100_000_000  # the safetensors library reads no longer one
_LENGTH = 8  # bytes of the length field
_BY_CODE: dict[str, DType] = {dtype.code: dtype for dtype in TABLE.values() if dtype.code is not None}


class Header(NamedTuple):
    """What a header says, checked."""

    nbytes: int  # with its length field
    weights: tuple[Weight, ...]  # in the order of their places
    metadata: dict[str, str]


def header_bytes(source: Source, name: str, nbytes: int) -> bytes:
    """The header of a file of that size, with its length field, unchecked.

    Raises
    ------
    BrokenModel
        The file cannot be read, or cannot begin with a header.
    """
    length = _read(source, name, 0, _LENGTH, nbytes)
    count = int.from_bytes(length, "little")
    if count > min(nbytes - _LENGTH, MAX_HEADER_BYTES):
        raise BrokenModel(f"its header would have {count:,} bytes, and the file has {nbytes:,}")
    return length + _read(source, name, _LENGTH, count, nbytes)


def read_header(source: Source, name: str, nbytes: int) -> Header:
    """Read and check the header of a file of that size.

    Raises
    ------
    BrokenModel
        It is not a safetensors file, or contradicts itself; the message says how, without the file's name.
    """
    data = header_bytes(source, name, nbytes)
    try:
        parsed = json.loads(data[_LENGTH:], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BrokenModel(f"its header is not JSON: {printable(str(error)[:120])}") from None
    if not isinstance(parsed, dict) or data[_LENGTH : _LENGTH + 1] != b"{":
        raise BrokenModel("its header is not a JSON object")
    metadata = parsed.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BrokenModel("the __metadata__ of its header is not text by name")
    weights = sorted(
        (_weight(key, entry, name, len(data)) for key, entry in parsed.items()),
        key=lambda weight: (weight.start, weight.nbytes),
    )
    _check_places(weights, len(data), nbytes)
    return Header(len(data), tuple(weights), metadata)


def _read(source: Source, name: str, start: int, count: int, nbytes: int) -> bytes:
    if start + count > nbytes:
        raise BrokenModel(f"it has {format_bytes(nbytes)}, too few for a header")
    out = bytearray(count)
    try:
        source.read_into(name, start, memoryview(out))
    except DcptoolsError as error:
        raise BrokenModel(str(error).replace("\n", " ")) from None
    return bytes(out)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _weight(name: str, entry: Any, file: str, data_start: int) -> Weight:
    try:
        code, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise BrokenModel(f"its header does not say dtype, shape and data_offsets of {name!r}") from None
    dtype = _BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise BrokenModel(f"{name!r} has the dtype {printable(str(code)[:40])}, which dcptools does not know")
    if not isinstance(shape, list) or not _all_sizes([*shape, start, stop]) or start > stop:
        raise BrokenModel(f"its header has an impossible shape or place for {name!r}")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise BrokenModel(
            f"{name!r} has {stop - start:,} bytes, and its shape and dtype need {math.prod(shape) * dtype.itemsize:,}"
        )
    return Weight(name, tuple(shape), dtype, file, data_start + start, stop - start)


def _all_sizes(numbers: Iterable[Any]) -> bool:
    return all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)


def _check_places(weights: Iterable[Weight], start: int, nbytes: int) -> None:
    """The values follow each other without a gap, and fill the file."""
    at = start
    for weight in weights:
        if weight.start != at:
            raise BrokenModel(f"the values of {weight.name!r} do not begin where those before them end")
        at += weight.nbytes
    if at != nbytes:
        raise BrokenModel(f"it has {nbytes:,} bytes, and its header says {at:,}")
