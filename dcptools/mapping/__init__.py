"""The second stage: ``preview`` says what every tensor will be called, what is left out, and what looks wrong."""

from __future__ import annotations

from dcptools.layouts import Leftover, Output
from dcptools.mapping.expectation import must_build
from dcptools.mapping.previewing import preview
from dcptools.mapping.rename import Rename
from dcptools.mapping.values import CHOICES, KeyMapping, MappingOptions

__all__ = ["CHOICES", "KeyMapping", "Leftover", "MappingOptions", "Output", "Rename", "must_build", "preview"]
