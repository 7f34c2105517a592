"""How a model lies in a checkpoint, and what each of its tensors is called: a file for each layout.

``choose`` finds the layout, by names alone. A layout takes the checkpoint and gives outputs and leftovers.
"""

from __future__ import annotations

from dcptools.layouts.choose import LAYOUTS, choose
from dcptools.layouts.keys import Key, keys_of, strip_wrappers, top_level
from dcptools.layouts.values import Layout, Leftover, Output, Reading

__all__ = [
    "LAYOUTS",
    "Key",
    "Layout",
    "Leftover",
    "Output",
    "Reading",
    "choose",
    "keys_of",
    "strip_wrappers",
    "top_level",
]
