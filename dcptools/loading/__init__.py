"""The values of a checkpoint without writing them: a state dict, or the model itself, to try before it is written.

``states`` has the writer's engine fill memory instead of files, ``memory`` is that memory and says how much there is;
``models`` makes the model of ``config.json``, and ``trying`` asks it something.
"""

from __future__ import annotations

from dcptools.loading.memory import available_bytes
from dcptools.loading.models import load_model, memory_needed, open_tokenizer
from dcptools.loading.states import load_state_dict
from dcptools.loading.trying import continuation, load_reference, loss

__all__ = [
    "available_bytes",
    "continuation",
    "load_model",
    "load_reference",
    "load_state_dict",
    "loss",
    "memory_needed",
    "open_tokenizer",
]
