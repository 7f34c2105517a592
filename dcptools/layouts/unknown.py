"""No rule finds a model."""

from __future__ import annotations

from collections.abc import Mapping

from dcptools.checkpoint import Checkpoint
from dcptools.layouts.keys import Key
from dcptools.layouts.values import Leftover, Reading


class Unknown:
    """Nothing is converted."""

    name = root = ""

    def read(self, checkpoint: Checkpoint, keys: Mapping[str, Key]) -> Reading:
        return Reading((), tuple(Leftover.of(each, "no layout found") for each in checkpoint.tensors.values()), ())
