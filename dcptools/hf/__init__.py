"""A HuggingFace model on the disk: its weights by name, from headers and index alone; their bytes on request.

``reading`` puts the headers of the files and the index together, ``values`` is what comes out.
"""

from __future__ import annotations

from dcptools.hf.reading import announce_headers, as_model, header_bytes, is_model, read_headers, read_model
from dcptools.hf.values import Model, Weight, WeightFile

__all__ = [
    "Model",
    "Weight",
    "WeightFile",
    "announce_headers",
    "as_model",
    "header_bytes",
    "is_model",
    "read_headers",
    "read_model",
]
