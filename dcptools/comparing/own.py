"""What a checkpoint gives that is compared with a model: the model's own config may say how it is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dcptools.checkpoint import Checkpoint
from dcptools.hf import Model
from dcptools.mapping import KeyMapping, preview


def preview_beside(checkpoint: Checkpoint, model: Model, options: dict[str, Any]) -> KeyMapping:
    """What it gives; as the model's own config says, if the options name no model and other names come out."""
    mapping = preview(checkpoint, **options)
    alike = not mapping.errors and {output.name for output in mapping.outputs} == model.weights.keys()
    if alike or options.get("model_assets_dir") or options.get("reference"):
        return mapping
    own = preview(checkpoint, **{**options, "model_assets_dir": model.source.location})
    return mapping if own.errors else replace(own, assets=None)  # its files need not be compared with themselves
