"""A HuggingFace model on the disk: its weights by name, from headers and index alone; their bytes when asked for.

``header`` reads and checks the header of one file, ``reading`` puts files and index together, ``values`` is what comes
out.
"""

from __future__ import annotations

from dcptools.hf.header import MAX_HEADER_BYTES, header_bytes
from dcptools.hf.reading import as_model, is_model, read_model
from dcptools.hf.values import Model, Weight, WeightFile

__all__ = ["MAX_HEADER_BYTES", "Model", "Weight", "WeightFile", "as_model", "header_bytes", "is_model", "read_model"]
