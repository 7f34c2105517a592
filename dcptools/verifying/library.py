"""A model's values as the safetensors library gives them to whoever loads the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from dcptools.comparing import Piece, Read, Side, WeightSide
from dcptools.errors import BrokenModel
from dcptools.hf import Model, Weight
from dcptools.storage import Range
from dcptools.tensors import BITS, Bits

MAPPED_BYTES = 32 << 20  # of a file that are looked at before it is mapped anew, so that earlier pages can go


class Opened:
    """A file of the model, opened with the library; used by one thread at a time."""

    def __init__(self, model: Model, file: str, *, mapped_bytes: int = MAPPED_BYTES) -> None:
        self._model, self._file, self._most = model, file, mapped_bytes
        self.source = model.source
        self._looked_at = 0  # bytes since it was mapped
        self._mapped: Any = None

    def side(self, weight: Weight) -> Side:
        """A weight to compare: as the library gives it; for a remote file, by its place in the header."""
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

    def said(self, header: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The dtype code and the shape of each tensor, as the library reads the header."""
        mapped = self._map() if not self.is_remote else self._map_header(header)
        slices = {name: mapped.get_slice(name) for name in mapped.keys()}
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}

    @property
    def is_remote(self) -> bool:
        """Whether the library, which only reads files on the disk, cannot read the values."""
        return self.source.ahead

    def _map_header(self, header: bytes) -> Any:
        """The header alone, in a file that has no values but is as long as the whole one."""
        nbytes = next(file.nbytes for file in self._model.files if file.name == self._file) or 0
        with tempfile.NamedTemporaryFile(prefix="dcptools-", suffix=".safetensors") as copy:
            copy.write(header)
            copy.truncate(nbytes)
            copy.flush()
            return self._open(copy.name)

    def _map(self) -> Any:
        return self._open(self.source.path(self._file))

    def _open(self, path: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise BrokenModel(
                f"{self.source.path(self._file)} cannot be read: {error}.\nCopy it again, or write the model again."
            ) from None


class LibrarySide:
    """A weight, as the library gives it."""

    def __init__(self, opened: Opened, weight: Weight) -> None:
        self._opened, self._weight = opened, weight
        self.source = opened.source

    def frames(self) -> Iterable[Range]:
        return ()

    def places(self, piece: Piece) -> Iterable[Range]:
        return ()  # the library maps the file

    def reading(self, piece: Piece) -> Read:
        values = self._opened.values(self._weight, piece.numel)
        strides = tuple(stride * values.itemsize for stride in piece.strides)

        def read(_: Bits) -> Bits:
            return np.ndarray(piece.shape, values.dtype, values.data, piece.offset * values.itemsize, strides)

        return read
