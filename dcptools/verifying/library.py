"""A model's values as the safetensors library gives them to whoever loads the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from dcptools.comparing import Piece, Read
from dcptools.errors import BrokenModel
from dcptools.hf import Model, Weight
from dcptools.tensors import BITS, Bits

MAPPED_BYTES = 32 << 20  # of a file that are looked at before it is mapped anew, so that the others can be let go


class Opened:
    """A file of the model, opened with the library; used by one thread at a time."""

    def __init__(self, model: Model, file: str, *, mapped_bytes: int = MAPPED_BYTES) -> None:
        self._path, self._most = model.source.path(file), mapped_bytes
        self._looked_at = 0  # bytes since it was mapped
        self._mapped: Any = None

    def values(self, weight: Weight, count: int) -> Bits:
        """All values of a weight as bits, of which ``count`` will be looked at; they are not read yet."""
        import torch

        nbytes = count * weight.dtype.itemsize
        if self._mapped is None or self._looked_at + nbytes > self._most:
            self._mapped, self._looked_at = self._map(), 0
        self._looked_at += nbytes
        signed: torch.dtype = getattr(torch, f"int{8 * weight.dtype.itemsize}")
        values = self._mapped.get_tensor(weight.name).reshape(-1).view(signed).numpy()
        return values.view(BITS[weight.dtype.itemsize])  # type: ignore[no-any-return]

    def said(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Code of the dtype and shape of each tensor, as the library reads the header."""
        mapped = self._map()
        slices = {name: mapped.get_slice(name) for name in mapped.keys()}
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}

    def _map(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self._path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise BrokenModel(
                f"{self._path} cannot be read: {error}.\nCopy it again, or write the model again."
            ) from None


class LibrarySide:
    """A weight, as the library gives it."""

    def __init__(self, opened: Opened, weight: Weight) -> None:
        self._opened, self._weight = opened, weight

    def reading(self, piece: Piece) -> Read:
        values = self._opened.values(self._weight, piece.numel)
        strides = tuple(stride * values.itemsize for stride in piece.strides)

        def read(_: Bits) -> Bits:
            return np.ndarray(piece.shape, values.dtype, values.data, piece.offset * values.itemsize, strides)

        return read
