"""``diff``: what two models or checkpoints have in common, and how far apart they are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dcptools._globs import matching
from dcptools._option import option
from dcptools._parallel import Progress
from dcptools.checkpoint import Checkpoint, is_checkpoint, read
from dcptools.comparing.measures import Sums, castable, statistics, sums, sums_after_cast
from dcptools.comparing.own import preview_beside
from dcptools.comparing.sides import CutSide, Readers, StoredSide, WeightSide
from dcptools.comparing.streaming import Pair, Streaming
from dcptools.comparing.values import ComparedTensor, Comparison
from dcptools.dtypes import DType
from dcptools.errors import FindingsError, NotACheckpoint, UsageError, check_stage
from dcptools.findings import summary_lines
from dcptools.hf import Model, is_model, read_model
from dcptools.mapping import KeyMapping, preview
from dcptools.shards import refuse_errors
from dcptools.storage import Source
from dcptools.tensors import View

BY = ("auto", "keys", "names")
Given = KeyMapping | Checkpoint | Model | str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """A tensor of one of the two sides."""

    shape: tuple[int, ...]
    dtype: DType
    numel: int
    open: Callable[[], CutSide]


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """All tensors of one of the two sides."""

    path: str
    tensors: Mapping[str, _Tensor]
    source: Source


def diff(
    a: KeyMapping | Checkpoint | Model | str | os.PathLike[str],
    b: KeyMapping | Checkpoint | Model | str | os.PathLike[str],
    *,
    by: str = "auto",
    keys: Sequence[str] | str | None = None,
    cast: bool = False,
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> Comparison:
    """Compare two models or checkpoints, tensor by tensor, in little memory.

    Values are equal if they are the same bit for bit or, where dtypes differ, as numbers. Everything else is computed
    in float64, from the values that are finite on both sides; for complex values, from their parts.

    Parameters
    ----------
    a, b
        Each a distributed checkpoint or a HuggingFace model: a path, what :func:`dcptools.read` returned, or what
        :func:`dcptools.preview` returned for a checkpoint whose names need options of their own.
    by
        ``keys`` compares two checkpoints under their own keys, optimizer and all; ``names`` compares what a conversion
        would write. ``auto``: keys for two checkpoints, and names where one side is a model or a mapping.
    keys
        Globs; only tensors whose key or name matches one are compared.
    cast
        Cast floating-point values of A to the dtype of B first, as a conversion does: is B the export of A?
    workers, progress, cancel
        As in :func:`dcptools.write`; bytes are those of both sides.
    options
        Options of :func:`dcptools.preview`, for checkpoints that are compared by names. Where a checkpoint is compared
        with a model, and neither ``model_assets_dir`` nor ``reference`` is given, the model's own ``config.json`` says
        what is tied and how the checkpoint is read, where names differ.

    Raises
    ------
    NotACheckpoint, NotAModel
        A path is neither.
    FindingsError
        A mapping has errors, or a file of a model cannot be read.
    BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint
        A stored item is damaged, or in an encoding that is not read.
    UsageError
        An option cannot be used, or no tensor matches.
    Cancelled
        The event was set.

    Examples
    --------
    >>> report = convert(demo.checkpoint, tmp_dir / "model")
    >>> print(diff(demo.checkpoint, tmp_dir / "model", cast=True).headline())
    A and B are equal: 47 tensors, bit for bit, after a cast to the dtypes of B.
    """
    start = time.perf_counter()
    chosen, (left, right) = _sides(_opened(a), _opened(b), by, options)
    all_names = sorted(left.tensors.keys() | right.tensors.keys())
    names = matching(all_names, keys, "No tensor matches", "Give globs on keys or names.")
    both = [name for name in names if name in left.tensors and name in right.tensors]
    pairs = [
        Pair(name, one.numel, one.dtype, other.dtype, _opener(one, other))
        for name in both
        if (one := left.tensors[name]).shape == (other := right.tensors[name]).shape
    ]
    streaming: Streaming[Sums] = Streaming([pairs], sums_after_cast if cast else sums)
    try:
        streaming.run("comparing", workers=workers, progress=progress, cancel=cancel)
    finally:
        left.source.close()
        right.source.close()
    tensors = (_compared(n, left.tensors.get(n), right.tensors.get(n), streaming.found(n), cast) for n in names)
    return Comparison(left.path, right.path, chosen, cast, tuple(tensors), time.perf_counter() - start)


def _opened(given: Given) -> KeyMapping | Checkpoint | Model:
    """What is at a path: a checkpoint, or otherwise a model; the value itself if it is one."""
    if isinstance(given, (KeyMapping, Checkpoint, Model)):
        return given
    check_stage(given, "KeyMapping", "Checkpoint", "Model", "path")
    if not is_checkpoint(given) and is_model(given):
        return read_model(given)
    try:
        return read(given)
    except NotACheckpoint as error:
        raise NotACheckpoint(f"{error}\nOr give the directory of a HuggingFace model in safetensors files.") from None


def _sides(
    a: KeyMapping | Checkpoint | Model, b: KeyMapping | Checkpoint | Model, by: str, options: dict[str, Any]
) -> tuple[str, tuple[_Side, _Side]]:
    if by not in BY:
        raise UsageError(f"Cannot compare by {by!r}.\nExpected one of {', '.join(BY)}.")
    only_keys = isinstance(a, Checkpoint) and isinstance(b, Checkpoint)
    chosen = by if by != "auto" else "keys" if only_keys else "names"
    if chosen == "keys" and not only_keys:
        raise UsageError("A model has names but no keys.\nCompare two checkpoints by keys, anything else by names.")
    checkpoints = isinstance(a, Checkpoint) or isinstance(b, Checkpoint)
    if options and (chosen == "keys" or not checkpoints):
        raise _not_for_diff(map(option, sorted(options)), checkpoints)
    return chosen, (_side(a, b, chosen, options), _side(b, a, chosen, options))


def _not_for_diff(names: Iterable[str], checkpoints: bool) -> UsageError:
    """That options say how a checkpoint gets its names, and none is compared by them; whether there are any."""
    what = f"{', '.join(names)} cannot be used here"
    if not checkpoints:
        return UsageError(f"{what}: neither side is a checkpoint.\nThese options say how one is read: leave them out.")
    return UsageError(f"{what}: no checkpoint is compared by names.\nCompare by names: {option('by', 'names')}.")


def _side(
    given: KeyMapping | Checkpoint | Model,
    other: KeyMapping | Checkpoint | Model,
    by: str,
    options: dict[str, Any],
) -> _Side:
    if isinstance(given, Model):
        return _model_side(given)
    if isinstance(given, Checkpoint) and by == "names":
        given = preview_beside(given, other, options) if isinstance(other, Model) else preview(given, **options)
    if isinstance(given, Checkpoint):
        readers = Readers(given, given.tensors)
        tensors = {
            key: _Tensor(t.shape, t.dtype, t.numel, partial(StoredSide, (View.whole(t),), readers))
            for key, t in given.tensors.items()
        }
        return _Side(given.path, tensors, given.source)
    refuse_errors(given.findings, strict=False)
    readers = Readers(given.checkpoint, [view.key for output in given.outputs for view in output.sources])
    tensors = {
        o.name: _Tensor(o.shape, o.dtype, o.numel, partial(StoredSide, o.sources, readers)) for o in given.outputs
    }
    return _Side(given.checkpoint.path, tensors, given.checkpoint.source)


def _model_side(model: Model) -> _Side:
    broken = [finding for finding in model.findings if finding.code == "model-file"]
    if broken:
        raise FindingsError("\n".join([f"{model.path} cannot be read as a whole:", *summary_lines(broken)]), broken)
    tensors = {
        w.name: _Tensor(w.shape, w.dtype, w.numel, partial(WeightSide, model, w)) for w in model.weights.values()
    }
    return _Side(model.path, tensors, model.source)


def _opener(one: _Tensor, other: _Tensor) -> Callable[[], tuple[CutSide, CutSide]]:
    return lambda: (one.open(), other.open())


def _compared(name: str, one: _Tensor | None, other: _Tensor | None, parts: list[Sums], cast: bool) -> ComparedTensor:
    shapes = (one.shape if one else None, other.shape if other else None)
    dtypes = (one.dtype.name if one else "", other.dtype.name if other else "")
    there = one or other
    assert there is not None
    if one is None or other is None:
        return ComparedTensor(name, "only b" if one is None else "only a", *shapes, *dtypes, there.numel)
    if one.shape != other.shape:
        return ComparedTensor(name, "shape", *shapes, *dtypes, there.numel)
    found = statistics(parts, there.numel)
    if one.dtype != other.dtype and not (cast and castable(one.dtype, other.dtype)):
        state = "dtype"
    else:
        state = "equal" if found.equal == 1 else "values"
    return ComparedTensor(name, state, *shapes, *dtypes, there.numel, *found)
