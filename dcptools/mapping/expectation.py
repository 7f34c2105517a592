"""What a preview begins with, and which model the result must be: a reference, that of config.json, or unknown."""

from __future__ import annotations

from dataclasses import dataclass

from dcptools._option import option
from dcptools.assets import Assets, find_assets
from dcptools.checkpoint import Checkpoint
from dcptools.expected import Expected, NotExpected, expect, expect_reference, is_answered
from dcptools.findings import Finding
from dcptools.mapping.values import MappingOptions


@dataclass(frozen=True, slots=True)
class Given:
    """What a preview begins with."""

    checkpoint: Checkpoint
    options: MappingOptions
    assets: Assets | None
    expected: Expected | None  # None: nothing is known about the model
    findings: tuple[Finding, ...]  # about what is expected

    @classmethod
    def of(cls, checkpoint: Checkpoint, options: MappingOptions) -> Given:
        """Raises UsageError if the assets or the reference cannot be used."""
        assets = find_assets(options.model_assets_dir) if options.model_assets_dir is not None else None
        return cls(checkpoint, options, assets, *_expectation(assets, options.reference))


def _expectation(assets: Assets | None, reference: str | None) -> tuple[Expected | None, tuple[Finding, ...]]:
    """The model, or None and the finding that says why nothing is known about it."""
    if reference is not None:
        expected = expect_reference(reference)
        return expected, _about_config(expected, assets)
    if assets is None or not _names_a_model(assets):
        return None, ()  # that there is no config, or that it names none, is a finding of the assets
    try:
        expected = expect(assets.config)
    except NotExpected as error:
        code = "model-not-built" if error.broken else "model-unknown"
        hint = (
            "names are found by rules and not checked against a model; "
            f"{option('reference')} names a model to check them against"
        )
        return None, (Finding(code, "config.json", str(error), hint),)
    return expected, ()


def must_build(model_assets_dir: str | None) -> bool:
    """Whether a preview has to build the model of config.json first, which takes seconds. Raises UsageError."""
    if model_assets_dir is None:
        return False
    assets = find_assets(model_assets_dir)
    return _names_a_model(assets) and not is_answered(assets.config)


def _names_a_model(assets: Assets) -> bool:
    return bool(assets.says("architectures"))


def _about_config(expected: Expected, assets: Assets | None) -> tuple[Finding, ...]:
    """Whether the config that is copied is that of the reference, as far as both are known."""
    if assets is None or not _names_a_model(assets):
        return ()
    try:
        other = expect(assets.config)
    except NotExpected:
        return ()
    found = expected.stored.shapes
    for naming in (other.stored, other.published):
        if all(name in found and found[name] in (None, naming.shapes[name]) for name in naming.needed):
            return ()
    what = f"it describes a {other.title}, whose weights are not those of the reference {expected.title}"
    return (Finding("config-differs", "config.json", what, "give the config that belongs to the reference"),)
