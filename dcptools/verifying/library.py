"""A model's values as the safetensors library gives them to whoever loads the model."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from dcptools.comparing import Piece, Read, Side, WeightSide
from dcptools.errors import BrokenModel
from dcptools.hf import Model, Weight, header_bytes
from dcptools.tensors import BITS, Bits

MAPPED_BYTES = 32 << 20  # of a file that are looked at before it is mapped anew, so that the others can be let go


class Opened:
    """A file of the model, opened with the library; used by one thread at a time."""

    def __init__(self, model: Model, file: str, *, mapped_bytes: int = MAPPED_BYTES) -> None:
        self._model, self._file, self._most = model, file, mapped_bytes
        self._looked_at = 0  # bytes since it was mapped
        self._mapped: Any = None

    def side(self, weight: Weight) -> Side:
        """A weight to compare: as the library gives it; that of a remote file by its place in the header."""
        return WeightSide(self._model, weight) if self.is_remote else LibrarySide(self, weight)

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
        mapped = self._map() if not self.is_remote else self._map_header()
        slices = {name: mapped.get_slice(name) for name in mapped.keys()}
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}

    @property
    def is_remote(self) -> bool:
        """Whether the library, which reads files on the disk only, cannot read the values."""
        return self._model.source.ahead

    def _map_header(self) -> Any:
        """The header alone, in a file that has no values and is as long as the whole one."""
        nbytes = next(file.nbytes for file in self._model.files if file.name == self._file) or 0
        with tempfile.NamedTemporaryFile(prefix="dcptools-", suffix=".safetensors") as copy:
            copy.write(header_bytes(self._model.source, self._file))
            copy.truncate(nbytes)
            copy.flush()
            return self._open(copy.name)

    def _map(self) -> Any:
        return self._open(self._model.source.path(self._file))

    def _open(self, path: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise BrokenModel(
                f"{self._model.source.path(self._file)} cannot be read: {error}.\n"
                "Copy it again, or write the model again."
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
