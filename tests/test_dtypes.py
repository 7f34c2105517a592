"""The table of dtypes against torch and safetensors as they are installed."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import safetensors.torch
import torch

from dcptools.dtypes import ALIASES, TABLE, DType, by_name

TORCH = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
STORABLE = [dtype for dtype in TABLE.values() if dtype.code is not None]


def header(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    parsed: dict[str, Any] = json.loads(data[8 : 8 + length])
    return parsed


def values(dtype: DType) -> torch.Tensor:
    """Eight elements; made from bytes, since not every dtype can be filled with numbers."""
    return torch.zeros(8 * dtype.itemsize, dtype=torch.uint8).view(TORCH[dtype.name])


def test_ranks_are_the_order_in_which_safetensors_lays_out_tensors() -> None:
    written = header(safetensors.torch.save({dtype.name: values(dtype) for dtype in STORABLE}))
    in_file = sorted(written, key=lambda name: written[name]["data_offsets"])
    assert in_file == sorted((dtype.name for dtype in STORABLE), key=lambda name: -TABLE[name].rank)


def test_codes_are_those_of_safetensors() -> None:
    written = header(safetensors.torch.save({dtype.name: values(dtype) for dtype in STORABLE}))
    assert {name: entry["dtype"] for name, entry in written.items()} == {d.name: d.code for d in STORABLE}


def test_sizes_are_those_of_safetensors_and_torch() -> None:
    written = header(safetensors.torch.save({dtype.name: values(dtype) for dtype in STORABLE}))
    for dtype in STORABLE:
        start, end = written[dtype.name]["data_offsets"]
        assert end - start == 8 * dtype.itemsize == 8 * TORCH[dtype.name].itemsize


@pytest.mark.parametrize("name", [d.name for d in TABLE.values() if d.code is None and d.kind == "complex"])
def test_what_has_no_code_cannot_be_saved(name: str) -> None:
    with pytest.raises(Exception, match="complex|dtype|invalid"):
        safetensors.torch.save({"a": values(TABLE[name])})


def test_every_dtype_of_torch_is_known_by_every_name_it_has() -> None:
    names = {name: str(dtype).removeprefix("torch.") for name, dtype in TORCH.items()}
    assert {name: getattr(by_name(name), "name", None) for name in names} == names
    assert {name: full for name, full in names.items() if name != full} == ALIASES


@pytest.mark.parametrize("name", sorted(set(TABLE) & set(TORCH)))
def test_a_row_agrees_with_torch(name: str) -> None:
    row, dtype = TABLE[name], TORCH[name]
    assert row.itemsize == dtype.itemsize
    assert (row.kind == "complex") == dtype.is_complex
    if row.kind in ("float", "float8"):
        assert dtype.is_floating_point
    if row.kind == "float8":
        assert row.itemsize == 1
    if row.kind == "int":
        torch.iinfo(dtype)


def test_floats_are_what_can_be_cast_to_each_other() -> None:
    floats = [dtype.name for dtype in TABLE.values() if dtype.kind == "float"]
    assert floats == ["float16", "bfloat16", "float32", "float64"]


def test_unknown_names_are_none() -> None:
    assert by_name("float7") is None
    assert by_name("") is None
