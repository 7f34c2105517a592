"""Items that ``torch.save`` never writes: valid zip archives that are put together so as to mislead who reads them.

Those that come in pairs agree in every byte that stands in front of their values, and in all behind them that
``dcptools`` compares to know an item by another one; their ``data.pkl`` tell different strides.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .edit import item_parts, torch_item

SIDE = 8
SHAPE = (SIDE, SIDE)


class Part(NamedTuple):
    """An entry; its CRC-32 is 0, as torch writes it when it is told not to compute them."""

    name: str
    content: bytes


def values(seed: int = 0) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def pickled(strides: tuple[int, int]) -> bytes:
    """The ``data.pkl`` of a tensor of :data:`SHAPE` with these strides; (8, 1) and (1, 8) have as many bytes."""
    tensor = torch.empty_strided(SHAPE, strides)
    return item_parts(torch_item(tensor))["archive/data.pkl"]


VERSION = Part("archive/version", b"3\n")
ROWS, COLUMNS = (SIDE, 1), (1, SIDE)


def local(part: Part) -> bytes:
    """The local header and the content of an entry."""
    raw, nbytes = part.name.encode(), len(part.content)
    header = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, nbytes, nbytes, len(raw), 0)
    return header + raw + part.content


def central(part: Part, at: int) -> bytes:
    """The header of an entry in the central directory."""
    raw, nbytes = part.name.encode(), len(part.content)
    fields = (20, 20, 0, 0, 0, 0, 0, nbytes, nbytes, len(raw), 0, 0, 0, 0, 0, at)
    return struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *fields) + raw


def end(count: int, nbytes: int, start: int) -> bytes:
    """The end record."""
    return struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, nbytes, start, 0)


def end64(count: int, nbytes: int, start: int) -> bytes:
    """The second end record, for archives of more than 4 GB."""
    return struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, nbytes, start)


def locator(at: int) -> bytes:
    """It says where the second end record is."""
    return struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)


def archive(parts: Sequence[Part]) -> bytes:
    """An archive of these entries, in this order, behind the one that torch wants; names may stand twice."""
    body, directory = b"", b""
    for part in (VERSION, *parts):
        directory += central(part, len(body))
        body += local(part)
    return body + directory + end(len(parts) + 1, len(directory), len(body))


def more_entries_than_counted() -> bytes:
    """The end record does not count the last entry, a second ``data.pkl`` with the strides of :data:`COLUMNS`."""
    whole = archive([
        Part("archive/data.pkl", pickled(ROWS)),
        Part("archive/data/0", values().numpy().tobytes()),
        Part("archive/data.pkl", pickled(COLUMNS)),
    ])  # fmt: skip
    *_, count, nbytes, start, _ = struct.unpack("<4s4H2LH", whole[-22:])
    return whole[:-22] + end(count - 1, nbytes, start)


def pickle_behind_the_values(strides: tuple[int, int]) -> bytes:
    """``data.pkl`` lies behind the values, without a checksum."""
    return archive([Part("archive/data/0", values().numpy().tobytes()), Part("archive/data.pkl", pickled(strides))])


def in_order(names: Sequence[str], strides: tuple[int, int], order: bytes) -> bytes:
    """A tensor's entries in any order; their contents have the same lengths, whatever strides and order are."""
    contents = {"data.pkl": pickled(strides), "byteorder": order, "data/0": values().numpy().tobytes()}
    return archive([Part(f"archive/{name}", contents[name]) for name in names])


def byteorder_behind_the_values(order: bytes) -> bytes:
    """As before, with ``data.pkl`` at its place and ``byteorder`` behind: ``little`` or ``middle``."""
    return archive([
        Part("archive/data.pkl", pickled(ROWS)),
        Part("archive/data/0", values().numpy().tobytes()),
        Part("archive/byteorder", order),
    ])  # fmt: skip


def directory_in_the_values(strides: tuple[int, int]) -> bytes:
    """The last bytes of both archives are equal; the second end record, among the values, names the true directory.

    Both have a first directory, with the ``data.pkl`` of :data:`ROWS`, right in front of the last bytes.
    """
    first = Part("archive/data.pkl", pickled(ROWS))
    second = Part("archive/x", pickled(strides))
    data = Part("archive/data/0", values().numpy().tobytes())
    body = local(first)
    at_data = len(body)
    body += local(data)
    at_second = len(body)
    body += local(second)
    hidden = central(Part("archive/data.pkl", second.content), at_second) + central(data, at_data)
    at_hidden = len(body)
    body += hidden
    open_ = central(first, 0) + central(data, at_data)
    at_end64, at_open = len(body), len(body) + len(end64(0, 0, 0))
    true = (2, len(open_), at_open) if strides == ROWS else (2, len(hidden), at_hidden)
    return body + end64(*true) + open_ + locator(at_end64) + end(2, len(open_), at_open)


def directory_over_its_end() -> bytes:
    """The directory is said to reach into the end record."""
    parts = (Part("archive/data.pkl", pickled(ROWS)), Part("archive/data/0", values().numpy().tobytes()))
    payload = archive(parts)
    directory = sum(len(central(part, 0)) for part in (VERSION, *parts))
    return payload[:-22] + end(3, directory + 6, len(payload) - 22 - directory)


def twice(name: str, again: str | None = None) -> bytes:
    """Two entries called ``name`` (the second one ``again``): torch takes the first, and ``zipfile`` the last."""
    first = {
        "data.pkl": pickled(ROWS),
        "byteorder": b"little",
        "data/0": values().numpy().tobytes(),
    }
    second = {"data.pkl": pickled(COLUMNS), "byteorder": b"middle", "data/0": values(1).numpy().tobytes()}
    parts = [Part(f"archive/{part}", content) for part, content in first.items()]
    return archive([*parts, Part(f"archive/{again or name}", second[name])])
