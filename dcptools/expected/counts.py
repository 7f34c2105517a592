"""How many layers and the like a config asks for: each is a module or an entry that takes time and memory to build.

Sizes cost nothing, because weights have no values here. transformers would go on building a billion layers for as long
as it may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# By a field's name; one with "per_" is a size, and the names in some tables are their owner's. The largest known ones:
# 126 layers, 2,048 experts, 21,843 labels.
_MOST = {
    re.compile(r"^(?!.*per_).*(layer|depth|block|stage)s?$"): 1_000,
    re.compile(r"^(?!.*per_).*experts?$"): 5_000,
    re.compile(r"^num_labels$"): 100_000,
}
_OWN_NAMES = ("id2label", "label2id")


def too_many(config: dict[str, Any]) -> str:
    """The field that asks for more than any model has, as a sentence; "" if there is none."""
    for name, value in _numbers(config):
        for pattern, most in _MOST.items():
            if value > most and pattern.search(name):
                return f"{name:.100} is more than {most:,}, which no model has"
    return ""


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Each number at any depth, with the name of its field; those of a list have its name."""
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        name, value = waiting.pop()
        if name in _OWN_NAMES:
            continue
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, one) for one in value]
        elif isinstance(value, int | float):
            yield name, value
