"""The classes of ``transformers`` that a ``config.json`` names. No remote code is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class Unknown(Exception):
    """``transformers`` cannot build this architecture; the text says why."""


def architecture_of(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The classes of the model and of its config. Raises Unknown."""
    try:
        import torch  # noqa: F401  (without it transformers has no models)
        import transformers
        from transformers import CONFIG_MAPPING
    except ImportError as error:
        raise Unknown(f"transformers is not installed here ({error})") from None

    name, model_type = next(iter(config.get("architectures") or [None])), config.get("model_type")
    if not isinstance(name, str):
        raise Unknown("config.json names no architecture")
    remote = " without the code that comes with it" if config.get("auto_map") else ""
    version = f"transformers {transformers.__version__}"
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise Unknown(f"{version} does not know the model_type {model_type!r:.200}{remote}")
    made = getattr(transformers, name, None)
    if not (isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)):
        raise Unknown(f"{version} does not know the architecture {name!r:.200}{remote}")
    return made, CONFIG_MAPPING[model_type]


def with_numbers(config: Mapping[str, Any]) -> Any:
    """The config with the numbers that JSON does not have; ``save_pretrained`` writes ``{"__float__": "Infinity"}``."""
    return json.loads(json.dumps(config), object_hook=_number)


def _number(said: dict[str, Any]) -> Any:
    return float(said["__float__"]) if said.keys() == {"__float__"} else said
