"""The dtypes that a checkpoint can hold, and what each is called in a safetensors file.

The order of ``TABLE`` is safetensors' own (its Rust enum): files list the last ones first. It was determined from
``safetensors.torch.save`` 0.8 by saving one tensor of each dtype; a test does that again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["bool", "int", "float8", "float", "complex", "opaque"]


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """A torch dtype by its plain name (``bfloat16``). There is one object of each, those of ``TABLE``."""

    name: str
    itemsize: int  # bytes per element
    kind: Kind
    code: str | None  # safetensors' name, or None where it has none
    rank: int  # position in safetensors' order of types

    def __reduce__(self) -> tuple[Callable[[str], DType | None], tuple[str]]:
        return by_name, (self.name,)


_STORABLE: tuple[tuple[str, int, Kind, str], ...] = (
    ("bool", 1, "bool", "BOOL"),
    ("uint8", 1, "int", "U8"),
    ("int8", 1, "int", "I8"),
    ("float8_e5m2", 1, "float8", "F8_E5M2"),
    ("float8_e4m3fn", 1, "float8", "F8_E4M3"),
    ("float8_e8m0fnu", 1, "float8", "F8_E8M0"),
    ("float8_e4m3fnuz", 1, "float8", "F8_E4M3FNUZ"),
    ("float8_e5m2fnuz", 1, "float8", "F8_E5M2FNUZ"),
    ("int16", 2, "int", "I16"),
    ("uint16", 2, "int", "U16"),
    ("float16", 2, "float", "F16"),
    ("bfloat16", 2, "float", "BF16"),
    ("int32", 4, "int", "I32"),
    ("uint32", 4, "int", "U32"),
    ("float32", 4, "float", "F32"),
    ("complex64", 8, "complex", "C64"),
    ("float64", 8, "float", "F64"),
    ("int64", 8, "int", "I64"),
    ("uint64", 8, "int", "U64"),
)
_OPAQUE = (
    *("float4_e2m1fn_x2", "qint8", "quint8", "qint32", "quint4x2", "quint2x4"),
    *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
)
_WIDER = {"qint32": 4, "bits16": 2}  # bytes; all other opaque ones have one

TABLE: dict[str, DType] = {
    **{row[0]: DType(*row, rank) for rank, row in enumerate(_STORABLE)},
    "complex32": DType("complex32", 4, "complex", None, -1),
    "complex128": DType("complex128", 16, "complex", None, -1),
    **{name: DType(name, _WIDER.get(name, 1), "opaque", None, -1) for name in _OPAQUE},
}
# torch's short names mean the same dtypes: torch.half is torch.float16
ALIASES = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "short": "int16",
    "int": "int32",
    "long": "int64",
    "bit": "uint1",
}
ALIASES |= {"cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32"}


def by_name(name: str) -> DType | None:
    """The dtype of that torch name, or None.

    >>> by_name("half")
    DType(name='float16', itemsize=2, kind='float', code='F16', rank=10)
    """
    return TABLE.get(ALIASES.get(name, name))
