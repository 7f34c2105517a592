"""What a conversion of ``transformers`` does to a tensor, as views: tensors without values that remember their origin.

``transformers`` splits experts, joins projections and permutes rows with torch's own operations when it saves a model.
Run on these tensors, it says which elements of which weight each saved tensor is made of; nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch

from dcptools.tensors import Composed, NotViews

aten = torch.ops.aten


class Traced(torch.Tensor):
    """A tensor with a shape and no values; ``composed`` says what they would be."""

    composed: Composed

    @staticmethod
    def __new__(cls, composed: Composed, dtype: torch.dtype = torch.float32) -> Traced:
        made: Traced = torch.Tensor._make_wrapper_subclass(
            cls, composed.shape, dtype=dtype, device=torch.device("meta")
        )
        made.composed = composed
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Traced({self.composed})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        traced = _TRACED.get(func)
        if traced is None:
            made = func.decompose(*args, **(kwargs or {}))  # made of others: inference mode gives the whole
            if made is NotImplemented:
                raise NotViews(f"The operation {func} does not make a view.")
            return made
        dtype = (args[0] if isinstance(args[0], Traced) else args[0][0]).dtype
        result = traced(*_composed(args))
        return [cls(one, dtype) for one in result] if isinstance(result, list) else cls(result, dtype)


def _composed(value: Any) -> Any:
    if isinstance(value, Traced):
        return value.composed
    return [_composed(one) for one in value] if isinstance(value, list | tuple) else value


def _dim(tensor: Composed, dim: int, extra: int = 0) -> int:
    return dim % max(len(tensor.shape) + extra, 1)


def _same(tensor: Composed, *_: Any) -> Composed:
    return tensor


def _reshape(tensor: Composed, shape: list[int]) -> Composed:
    return tensor.reshape(*shape)


def _permute(tensor: Composed, dims: list[int]) -> Composed:
    return tensor.permute(*(_dim(tensor, dim) for dim in dims))


def _transpose(tensor: Composed, dim0: int, dim1: int) -> Composed:
    dims = list(range(len(tensor.shape)))
    if dims:
        first, second = _dim(tensor, dim0), _dim(tensor, dim1)
        dims[first], dims[second] = second, first
    return tensor.permute(*dims)


def _slice(tensor: Composed, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Composed:
    dim = _dim(tensor, dim)
    first, last, by = slice(start, end, step).indices(tensor.shape[dim])
    if by != 1:
        raise NotViews("A slice with a step is not traced.")
    return tensor.narrow(dim, first, max(last - first, 0))


def _select(tensor: Composed, dim: int, index: int) -> Composed:
    dim = _dim(tensor, dim)
    return tensor.select(dim, index % tensor.shape[dim])


def _split(tensor: Composed, size: int, dim: int = 0) -> list[Composed]:
    whole = tensor.shape[_dim(tensor, dim)]
    return _split_sizes(tensor, [min(size, whole - at) for at in range(0, whole, size)], dim)


def _split_sizes(tensor: Composed, sizes: list[int], dim: int = 0) -> list[Composed]:
    starts = accumulate(sizes[:-1], initial=0)
    return [tensor.narrow(_dim(tensor, dim), start, size) for start, size in zip(starts, sizes, strict=True)]


def _unbind(tensor: Composed, dim: int = 0) -> list[Composed]:
    return [tensor.select(_dim(tensor, dim), index) for index in range(tensor.shape[_dim(tensor, dim)])]


def _squeeze(tensor: Composed, dims: int | list[int] | None = None) -> Composed:
    every = range(len(tensor.shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {_dim(tensor, dim) for dim in every}
    return tensor.reshape(*(size for dim, size in enumerate(tensor.shape) if size != 1 or dim not in gone))


def _unsqueeze(tensor: Composed, dim: int) -> Composed:
    shape = list(tensor.shape)
    shape.insert(_dim(tensor, dim, 1), 1)
    return tensor.reshape(*shape)


def _cat(tensors: list[Composed], dim: int = 0) -> Composed:
    return Composed.cat(tensors, _dim(tensors[0], dim))


def _stack(tensors: list[Composed], dim: int = 0) -> Composed:
    return _cat([_unsqueeze(tensor, dim) for tensor in tensors], _dim(tensors[0], dim, 1))


_TRACED: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((aten.detach.default, aten.alias.default, aten.clone.default, aten.contiguous.default), _same),
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default, aten.reshape.default), _reshape),
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: lambda tensor: _transpose(tensor, 0, len(tensor.shape) - 1),
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_sizes,
    aten.unbind.int: _unbind,
    **dict.fromkeys((aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims), _squeeze),
    aten.unsqueeze.default: _unsqueeze,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
}
