"""Do the stored chunks of a tensor cover it exactly? Exact in any number of dimensions, in O(chunks)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from dcptools._text import some

Ints = npt.NDArray[np.int64]
FEW_CHUNKS = 16
MOST_CUTS = 4  # dimensions along which chunks that are not a grid are cut; each doubles the corners of all of them
MAX_CORNERS = 1 << 21  # coordinates of the corners of all chunks of one tensor


def check_cover(shape: tuple[int, ...], offsets: Ints, sizes: Ints) -> tuple[Literal["hole", "overlap"], str] | None:
    """None if the boxes tile ``shape`` without a hole; otherwise what is wrong, in words.

    ``offsets`` and ``sizes`` have the shape (chunks, dimensions). Boxes that occur twice are replicas and count
    once; empty boxes do not count.
    """
    if 0 in shape:
        return None  # a tensor without elements is covered by anything
    if len(offsets) <= FEW_CHUNKS and _is_short_sequence(shape, offsets.tolist(), sizes.tolist()):
        return None
    full = np.array(shape, dtype=np.int64)
    outside = np.any((offsets < 0) | (sizes < 0) | (sizes > full) | (offsets > full - sizes), axis=1)
    if outside.any():
        at = int(np.argmax(outside))
        return "overlap", (
            f"a chunk at {tuple(offsets[at].tolist())} of size {tuple(sizes[at].tolist())} reaches outside {shape}"
        )
    if _is_sequence(full, offsets, sizes):
        return None
    boxes = np.concatenate([offsets, sizes], axis=1)[np.all(sizes > 0, axis=1)]
    if len(boxes) > 1:
        boxes = np.unique(boxes, axis=0)
    offsets, sizes = boxes[:, : len(shape)], boxes[:, len(shape) :]
    split = np.any(sizes != full, axis=0)
    if not split.any():
        return None if len(boxes) else ("hole", "no chunk of it is stored")
    if split.sum() == 1:
        (dim,) = np.flatnonzero(split)
        return _check_line(shape, int(dim), offsets[:, dim], sizes[:, dim])
    offsets, sizes, full = offsets[:, split], sizes[:, split], full[split]
    if _is_grid(offsets, sizes, full):
        return None
    if len(full) > MOST_CUTS or len(boxes) * 2 ** len(full) * len(full) > MAX_CORNERS:
        return "overlap", f"its {len(boxes):,} chunks are cut along {len(full)} dimensions, but not as a grid"
    return _check_boxes(shape, offsets, sizes, full)


def _is_short_sequence(shape: tuple[int, ...], offsets: list[list[int]], sizes: list[list[int]]) -> bool:
    """Whether the chunks follow one another along the first dimension. Without numpy, which costs more for a few."""
    if not shape:
        return False
    end, rest, origin = 0, list(shape[1:]), [0] * (len(shape) - 1)
    for offset, size in zip(offsets, sizes, strict=True):
        if offset[0] != end or size[0] < 0 or offset[1:] != origin or size[1:] != rest:
            return False
        end += size[0]
    return end == shape[0]


def _is_sequence(full: Ints, offsets: Ints, sizes: Ints) -> bool:
    """Whether the chunks follow one another along one dimension, as FSDP writes them: the quick way to say yes."""
    split = np.flatnonzero((sizes != full).any(axis=0))
    if len(split) != 1:
        return False
    dim = int(split[0])
    starts, stops = offsets[:, dim], offsets[:, dim] + sizes[:, dim]
    return bool(starts[0] == 0 and stops[-1] == full[dim] and (starts[1:] == stops[:-1]).all())


def _is_grid(offsets: Ints, sizes: Ints, full: Ints) -> bool:
    """Whether distinct boxes are all the cells of a grid, as they usually are when cut along several dimensions."""
    cells = 1
    for dim, size in enumerate(full.tolist()):
        intervals = np.unique(np.stack([offsets[:, dim], sizes[:, dim]], axis=1), axis=0)
        starts, stops = intervals[:, 0], intervals.sum(axis=1)
        if starts[0] != 0 or stops[-1] != size or (starts[1:] != stops[:-1]).any():
            return False
        cells *= len(intervals)
    return cells == len(offsets)


def _check_line(
    shape: tuple[int, ...], dim: int, starts: Ints, lengths: Ints
) -> tuple[Literal["hole", "overlap"], str] | None:
    """As ``check_cover``, for chunks that are cut along one dimension only."""
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], (starts + lengths)[order]
    before = np.concatenate([[0], stops])
    after = np.concatenate([starts, [shape[dim]]])
    if np.any(after < before):
        at = int(np.argmax(after < before))
        return "overlap", f"chunks overlap along dimension {dim}, at index {after[at]} of {shape[dim]}"
    holes = np.flatnonzero(after > before)
    if not len(holes):
        return None
    listed = some((f"[{before[i]}:{after[i]}]" for i in holes.tolist()), 3)
    return "hole", f"nothing is stored for {listed} of {shape[dim]} along dimension {dim}"


def _check_boxes(
    shape: tuple[int, ...], offsets: Ints, sizes: Ints, full: Ints
) -> tuple[Literal["hole", "overlap"], str] | None:
    """The boxes tile the whole iff the signed corners of all boxes add up to the corners of the whole.

    A box is the sum of its 2**d corners' step functions, with alternating signs; so two sums of boxes are the
    same function exactly if their signed corners are the same. That sees holes and overlaps at once.
    """
    dims = len(full)
    picks = np.array(np.meshgrid(*[[0, 1]] * dims, indexing="ij")).reshape(dims, -1).T  # (2**d, d): low or high side
    signs = np.where(picks.sum(axis=1) % 2, -1, 1)
    corners = offsets[:, None, :] + picks[None] * sizes[:, None, :]
    wanted = picks * full
    points = np.concatenate([corners.reshape(-1, dims), wanted])
    weights = np.concatenate([np.tile(signs, len(offsets)), -signs])
    _, index = np.unique(points, axis=0, return_inverse=True)
    if not np.any(np.bincount(index.ravel(), weights=weights)):
        return None
    stored, total = sum(int(n) for n in np.prod(sizes.astype(object), axis=1)), int(np.prod(full.astype(object)))
    if stored < total:
        return "hole", f"its {len(offsets)} chunks hold {100 * stored / total:.3g}% of {shape}"
    return "overlap", f"its {len(offsets)} chunks overlap"
