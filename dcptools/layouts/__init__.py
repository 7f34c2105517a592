"""How a model lies in a checkpoint, and what each of its tensors is called: a file for each layout.

``candidates`` tries the readings of a checkpoint and compares each with the expected model; ``choose`` finds
the layout by names alone. A layout takes the checkpoint and gives outputs and leftovers.
"""

from __future__ import annotations

from dcptools.layouts.choose import LAYOUTS, choose, containers
from dcptools.layouts.family import Family, FamilyLayout
from dcptools.layouts.family_files import read_family
from dcptools.layouts.fit import STATES, Difference, Fit, fit
from dcptools.layouts.huggingface import is_body_name, is_huggingface_name
from dcptools.layouts.keys import Key, keys_of, strip_wrappers, top_level
from dcptools.layouts.peft import FROZEN, Peft, Role
from dcptools.layouts.readings import Candidate, candidates, foreign_families, layout_of
from dcptools.layouts.training import MOMENT, TRAINING_STATE, is_of_optimizer
from dcptools.layouts.values import Layout, Leftover, Output, Reading

__all__ = [
    "FROZEN",
    "LAYOUTS",
    "MOMENT",
    "STATES",
    "TRAINING_STATE",
    "Candidate",
    "Difference",
    "Family",
    "FamilyLayout",
    "Fit",
    "Key",
    "Layout",
    "Leftover",
    "Output",
    "Peft",
    "Reading",
    "Role",
    "candidates",
    "choose",
    "containers",
    "fit",
    "foreign_families",
    "is_body_name",
    "is_huggingface_name",
    "is_of_optimizer",
    "keys_of",
    "layout_of",
    "read_family",
    "strip_wrappers",
    "top_level",
]
