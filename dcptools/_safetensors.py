"""The header of a safetensors file: which tensors it has, what they are parts of, and where their bytes are.

The format is that of the safetensors project: 8 bytes of length (little-endian), a JSON object, values. torch's writers
say in ``DCP_SHARDING_INFO`` of its ``__metadata__`` where in the whole tensor each part lies (``_hf_utils.py``). A
header is untrusted: the rules that are checked are those of the safetensors library, that no name occurs twice, and
that a tensor has no other fields, in which Python would take for JSON what that library refuses. How an error reads is
for the caller to say, who knows what the file is for.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from dcptools._fields import REPR, TOO_LARGE, Wrong, expected, is_integers, text_of
from dcptools.dtypes import TABLE, DType
from dcptools.storage import Source

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
# Brackets in a header: a tensor has three in 45 bytes or more, and two in what says where its part lies. A list or dict
# takes far more memory than its two bytes.
BYTES_PER_BRACKET = 8
SHARDING = "DCP_SHARDING_INFO"
_FIELDS = {"dtype", "shape", "data_offsets"}  # what is said about a tensor
_BY_CODE = {dtype.code: dtype for dtype in TABLE.values() if dtype.code}


class Part(NamedTuple):
    """What a file holds of one tensor, in row-major order."""

    dtype: DType
    shape: tuple[int, ...]
    offsets: tuple[int, ...] | None  # where it begins in the whole tensor, elements; None: the file does not say
    start: int  # bytes from the start of the file
    nbytes: int


class Header(NamedTuple):
    """What a header says, checked."""

    nbytes: int  # with its length field
    parts: dict[str, Part]  # by their keys, in the order of their places
    metadata: dict[str, str]


def header_bytes(source: Source, file: str, start: int = 0) -> bytes:
    """The header that begins at that byte of a file, with its length field, unchecked.

    Raises
    ------
    Wrong
        It has an impossible length.
    BrokenCheckpoint
        The file cannot be read, or ends too early.
    """
    length = bytearray(LENGTH_BYTES)
    source.read_into(file, start, memoryview(length))
    nbytes = int.from_bytes(length, "little")
    if not 2 <= nbytes <= MAX_HEADER_BYTES:
        raise expected("the header", f"2 to {MAX_HEADER_BYTES:,} bytes", nbytes)
    text = bytearray(nbytes)
    source.read_into(file, start + LENGTH_BYTES, memoryview(text))
    return bytes(length + text)


def parse_header(data: bytes, start: int = 0) -> Header:
    """What these bytes, which begin at that byte of their file, say. Whether the values are there is not checked.

    Raises
    ------
    Wrong
        This is not a header, or it contradicts itself.
    """
    found = _json(data[LENGTH_BYTES:], "the header")
    said = found.pop("__metadata__", None)
    if not isinstance(said, dict | None):
        raise expected("__metadata__", "an object", said)
    metadata = said or {}
    for key, value in metadata.items():
        text_of(key, "__metadata__, a key", longest=None)
        text_of(value, f"__metadata__[{REPR.repr(key)}]", longest=None)
    sharding = _json(metadata[SHARDING].encode(), SHARDING) if SHARDING in metadata else None
    parts = _parts(found, sharding, start + len(data))
    return Header(len(data), parts, metadata)


def _json(text: bytes, field: str) -> dict[str, Any]:
    """A JSON object in which no name occurs twice."""
    if text.count(b"{") + text.count(b"[") > 100 + len(text) // BYTES_PER_BRACKET:
        raise Wrong(field, "it nests more deeply than any tensors need")
    try:
        value = json.loads(text.decode(), object_pairs_hook=_once, parse_int=_integer if b"-0" in text else int)
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise Wrong(field, f"it is not JSON: {error}") from None
    if not isinstance(value, dict) or text[:1] != b"{":
        raise expected(field, "an object", value)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs in it twice")
    return found


def _integer(digits: str) -> int:
    if digits == "-0":  # an integer to Python alone
        raise ValueError("it contains -0")
    return int(digits)


def _parts(entries: dict[str, Any], sharding: dict[str, Any] | None, values_at: int) -> dict[str, Part]:
    parts = {}
    for key, entry in entries.items():
        try:
            text_of(key, ", a key")
            parts[key] = _part(entry, values_at, None if sharding is None else _offsets(sharding, key))
        except Wrong as wrong:
            raise wrong.inside(f"[{key[:200]!r}]") from None
    end = values_at
    parts = dict(sorted(parts.items(), key=lambda item: (item[1].start, item[1].nbytes)))
    for part in parts.values():
        if part.start != end:
            raise Wrong("data_offsets", f"the values do not follow each other at byte {end - values_at:,}")
        end += part.nbytes
    return parts


def _part(entry: Any, values_at: int, offsets: tuple[int, ...] | None) -> Part:
    if not isinstance(entry, dict):
        raise expected("", "an object", entry)
    if more := sorted(entry.keys() - _FIELDS):
        raise expected("", f"{', '.join(sorted(_FIELDS))} and nothing else", more[0])
    code, shape, place = entry.get("dtype"), _sizes(entry, "shape"), _sizes(entry, "data_offsets")
    dtype = _BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise expected(".dtype", "a dtype of safetensors that dcptools knows", code)
    nbytes = math.prod(shape) * dtype.itemsize
    if not nbytes and math.prod(filter(None, shape)) >= TOO_LARGE:  # also a product that a 0 ends must be a number
        raise expected(".shape", "sizes whose product is below 2**62", list(shape))
    if len(place) != 2 or place[1] - place[0] != nbytes:
        raise expected(".data_offsets", f"two places that are {nbytes:,} bytes apart", entry.get("data_offsets"))
    if offsets is not None and len(offsets) != len(shape):
        raise expected(".saved_offsets", f"{len(shape)} numbers", list(offsets))
    return Part(dtype, shape, offsets, values_at + place[0], nbytes)


def _offsets(sharding: dict[str, Any], key: str) -> tuple[int, ...]:
    entry = sharding.get(key)
    if not isinstance(entry, dict):
        raise expected(f" in {SHARDING}", "saved_offsets", entry)
    return _sizes(entry, "saved_offsets")


def _sizes(entry: dict[str, Any], name: str) -> tuple[int, ...]:
    value = entry.get(name)
    numbers = tuple(value) if isinstance(value, list) else None
    if not is_integers(numbers) or numbers is None or not all(0 <= n < TOO_LARGE for n in numbers):
        raise expected(f".{name}", "a list of numbers below 2**62", value)
    return numbers
