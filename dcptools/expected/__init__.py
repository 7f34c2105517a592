"""What the model expects: the names and shapes of its weights, as ``config.json`` or another model's files say.

``asking`` has the architecture built by ``transformers`` in a process of its own (``building``, with ``tracing``), if
its ``counts`` are those of a model; ``architecture`` finds its classes; ``reference`` reads the headers of a
HuggingFace model.
"""

from __future__ import annotations

from dcptools.expected.architecture import Unknown, architecture_of, with_numbers
from dcptools.expected.asking import expect, is_answered, is_known
from dcptools.expected.reference import expect_reference
from dcptools.expected.values import Expected, Naming, NotExpected, Shape

__all__ = [
    "Expected",
    "Naming",
    "NotExpected",
    "Shape",
    "Unknown",
    "architecture_of",
    "expect",
    "expect_reference",
    "is_answered",
    "is_known",
    "with_numbers",
]
