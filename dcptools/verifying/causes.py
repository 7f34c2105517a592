"""Which option a model was probably converted with, where names or dtypes are not those that are expected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dcptools._option import option
from dcptools.findings import Finding
from dcptools.hf import Model
from dcptools.mapping import CHOICES, KeyMapping, preview
from dcptools.shards import DTYPES, written_dtypes

_ABOUT_NAMES = {"disk-missing", "disk-unexpected"}
_ABOUT_DTYPES = "disk-dtype"


def with_causes(findings: Iterable[Finding], model: Model, mapping: KeyMapping) -> tuple[Finding, ...]:
    """The findings, whose hints name the one option with which all names, or all dtypes, are those of the model."""
    listed = tuple(findings)
    found = {finding.code for finding in listed}
    hints: dict[str, str] = {}
    if found & _ABOUT_NAMES and (names := _names_of(model, mapping)):
        hint = f"the model's names are those of {option('names', names)}: give that, or write it again"
        hints |= dict.fromkeys(_ABOUT_NAMES, hint)
    if _ABOUT_DTYPES in found and (dtype := _dtype_of(model, mapping)):
        hint = f"the model's dtypes are those of {option('dtype', dtype)} alone: give that, or write it again"
        hints[_ABOUT_DTYPES] = hint
    return tuple(replace(each, hint=hints.get(each.code, each.hint)) for each in listed)


def _names_of(model: Model, mapping: KeyMapping) -> str:
    """The choice of names with which the checkpoint gives exactly those of the model; "" if none does."""
    given = mapping.options.arguments()
    for names in CHOICES["names"] if mapping.expected else ():
        if names != mapping.options.names:
            other = preview(mapping.checkpoint, **{**given, "names": names})
            if {output.name for output in other.outputs} == model.weights.keys():
                return names
    return ""


def _dtype_of(model: Model, mapping: KeyMapping) -> str:
    """The dtype with which a conversion writes all weights as they are in the model; "" if none does."""
    for dtype in reversed(DTYPES):  # keep comes first: it is right for any that are stored
        written, _ = written_dtypes(mapping, dtype)
        if all(written[name] == model.weights[name].dtype for name in written.keys() & model.weights.keys()):
            return dtype
    return ""
