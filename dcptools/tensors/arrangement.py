"""How ``data.pkl`` says that values lie in a storage: dtype, shape, strides and flags.

It tells how torch would rebuild the tensor (``torch/_utils.py``: ``_rebuild_tensor_v2``, ``_rebuild_tensor_v3``,
``_rebuild_parameter``). The strides are not always those of row-major order: a saved ``w.t()`` keeps them, and its
bytes lie transposed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcptools._fields import MOST_DIMS
from dcptools._pickle import loads, ordered_dict, size
from dcptools._text import some
from dcptools.dtypes import TABLE, DType, by_name
from dcptools.errors import UnsupportedCheckpoint
from dcptools.tensors.geometry import is_row_major, row_major, span


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What ``data.pkl`` says."""

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements
    offset: int  # elements from the start of the storage
    storage: str  # the name of the storage, "0"
    conjugate: bool
    negative: bool
    row_major: bool  # whether the values lie one after the other in row-major order
    end: int  # bytes from the start of the storage to the end of the last value

    @property
    def plain(self) -> bool:
        """Whether the stored bytes are the values in row-major order, as they are."""
        return self.row_major and not (self.conjugate or self.negative)


@functools.lru_cache(maxsize=4096)
def in_order(dtype: DType, shape: tuple[int, ...]) -> Arrangement:
    """That of values that follow each other in row-major order, from the start of the storage."""
    nbytes = math.prod(shape) * dtype.itemsize
    return Arrangement(dtype, shape, row_major(shape), 0, "", False, False, True, nbytes)


@functools.lru_cache(maxsize=4096)
def parse_arrangement(data: bytes) -> Arrangement:
    """What a ``data.pkl`` says. The same few occur again and again, so they are remembered.

    Raises
    ------
    UnsupportedCheckpoint
        It is something other than a plain tensor.
    """
    value, foreign = loads(data, what="data.pkl", allowed=_NAMES, persistent=_storage)
    if foreign or not isinstance(value, Arrangement):
        raise UnsupportedCheckpoint(f"data.pkl holds {some(foreign) or type(value).__name__}, not a plain tensor.")
    return value


@dataclass(frozen=True, slots=True)
class _Storage:
    name: str
    dtype: str | None  # None: untyped


def _storage(pid: Any) -> _Storage:
    """Stands for a storage: its name and dtype, from a persistent id."""
    kind, dtype, name, _location, _numel = pid
    if kind != "storage" or type(dtype) not in (str, type(None)) or type(name) is not str:
        raise ValueError("a persistent id is not that of a storage")
    return _Storage(name, dtype)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, *rest: Any) -> Arrangement:
    """Stands for ``_rebuild_tensor_v2``."""
    return _arrangement(storage, storage.dtype, offset, shape, strides, *rest[:1])


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> Arrangement:
    """Stands for ``_rebuild_tensor_v3``."""
    return _arrangement(storage, dtype, offset, shape, strides, *rest[:1])


def _parameter(data: Any, *_rest: Any) -> Any:
    """Stands for ``_rebuild_parameter``."""
    return data


_STORAGES = {  # torch.<name>Storage -> dtype
    "Bool": "bool", "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64",
    "Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4",
}  # fmt: skip

_NAMES: Mapping[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": ordered_dict,
    "torch.Size": size,
    "torch.storage.UntypedStorage": None,
    "torch.UntypedStorage": None,
    **{f"torch.{name}": name for name in TABLE},
    **{f"torch.{storage}Storage": dtype for storage, dtype in _STORAGES.items()},
}


def _arrangement(storage: Any, dtype: Any, offset: Any, shape: Any, strides: Any, flags: Any = None) -> Arrangement:
    """What the arguments of a tensor say, checked."""
    flags, dtype = {} if flags is None else flags, by_name(dtype) if type(dtype) is str else None
    sized = all(type(sizes) is tuple and len(sizes) <= MOST_DIMS for sizes in (shape, strides))
    if not sized or not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *shape, *strides)):
        raise ValueError("the sizes of the tensor are not as torch writes them")
    if not isinstance(storage, _Storage) or dtype is None or len(shape) != len(strides):
        raise ValueError("the arguments of the tensor are not as torch writes them")
    if type(flags) is not dict or not flags.keys() <= {"conj", "neg"}:
        raise ValueError("the flags of the tensor are not as torch writes them")
    return Arrangement(
        dtype, tuple(shape), tuple(strides), offset, storage.name,
        flags.get("conj") is True, flags.get("neg") is True, is_row_major(shape, strides),
        0 if 0 in shape else (offset + span(shape, strides)) * dtype.itemsize,
    )  # fmt: skip
