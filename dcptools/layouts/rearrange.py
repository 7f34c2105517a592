"""The notation in which a family says how values lie: einops', ``(heads half two) in -> (heads two half) in``.

Names are axes, and parentheses make several of them one dimension, the last one running fastest. An axis in braces on
the right side is not a dimension of the result: each index of it is a tensor of its own, as ``expert out in -> {expert}
out in`` cuts a stack of experts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from dcptools.errors import UsageError
from dcptools.tensors import Composed

MOST_PARTS = 1 << 16  # that one tensor is cut into; no model has so many experts
# axes in parentheses, one in braces, or one alone
_DIMENSION = re.compile(r"\(\s*(?P<group>\w+(\s+\w+)*)\s*\)|\{(?P<split>\w+)\}|(?P<axis>\w+)")


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """What becomes of the dimensions of a tensor.

    >>> turn = Rearrangement.parse("expert in out -> {expert} out in")
    >>> [(indices, part.shape) for indices, part in turn.apply(Composed.whole("w", (2, 3, 4)), {})]
    [({'expert': 0}, (4, 3)), ({'expert': 1}, (4, 3))]
    """

    text: str
    before: tuple[tuple[str, ...], ...]  # axes of each dimension
    after: tuple[tuple[str, ...], ...]
    split: tuple[str, ...]  # axes of which each index is a tensor

    @classmethod
    def parse(cls, text: str) -> Rearrangement:
        """Raises UsageError for what is not such a notation."""
        left, arrow, right = text.partition("->")
        before, none = _side(left, text)
        after, split = _side(right, text)
        axes = [axis for dimension in before for axis in dimension]
        same = sorted(axes) == sorted([*split, *(axis for group in after for axis in group)])
        if not arrow or none or not same or len(set(axes)) != len(axes):
            raise _not_one(text)
        return cls(text, before, after, split)

    def apply(
        self, tensor: Composed, sizes: Mapping[str, int], differ: Collection[str] = ()
    ) -> Iterator[tuple[dict[str, int], Composed]]:
        """The tensors that it makes, each with the indices of the axes in braces.

        ``sizes`` are those of axes that the shape does not give. Raises ValueError where the shape does not fit, or
        where axes that must ``differ``, or nothing would tell how the values lie, have the same size.
        """
        known = self._axes(tensor.shape, sizes)
        if differ and len({known[axis] for axis in differ}) < len(differ):
            raise ValueError(f"{' and '.join(differ)} have the same size, so nothing tells which of them runs first")
        if (count := math.prod(known[axis] for axis in self.split)) > MOST_PARTS:
            raise ValueError(f"it would be cut into {count:,} tensors")
        axes = [axis for dimension in self.before for axis in dimension]
        order = [*self.split, *(axis for dimension in self.after for axis in dimension)]
        turned = tensor.reshape(*(known[axis] for axis in axes)).permute(*(axes.index(axis) for axis in order))
        shape = [math.prod(known[axis] for axis in dimension) for dimension in self.after]
        for at in product(*(range(known[axis]) for axis in self.split)):
            part = turned
            for index in at:
                part = part.select(0, index)
            yield dict(zip(self.split, at, strict=True)), part.reshape(*shape)

    def _axes(self, shape: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
        """The size of each axis of a tensor: as given, or what the others leave of its dimension."""
        if len(shape) != len(self.before):
            raise ValueError(f"{self.text!r} needs {len(self.before)} dimensions, and there are {len(shape)}")
        found: dict[str, int] = {}
        for whole, dimension in zip(shape, self.before, strict=True):
            told = {axis: sizes[axis] for axis in dimension if axis in sizes and len(dimension) > 1}
            open_axes = [axis for axis in dimension if axis not in told]
            rest, odd = divmod(whole, math.prod(told.values()) or 1)
            if odd or len(open_axes) > 1 or (not open_axes and rest != 1):
                sized = ", ".join(f"{axis} {size}" for axis, size in told.items()) or "none"
                raise ValueError(f"a dimension of {whole} is not ({' '.join(dimension)}); known sizes: {sized}")
            found |= told | dict.fromkeys(open_axes, rest)
        return found


def _side(text: str, whole: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """The dimensions of one side, and the axes in braces."""
    if _DIMENSION.sub("", text).strip():
        raise _not_one(whole)
    found = list(_DIMENSION.finditer(text))
    dimensions = tuple(tuple((one["group"] or one["axis"]).split()) for one in found if not one["split"])
    return dimensions, tuple(one["split"] for one in found if one["split"])


def _not_one(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is not a rearrangement.\nExpected one like '(heads half two) in -> (heads two half) in'."
    )
