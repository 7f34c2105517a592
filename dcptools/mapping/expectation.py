"""What a preview begins with, and which model the result must be: a reference, that of config.json, or unknown."""

from __future__ import annotations

from dataclasses import dataclass

from dcptools._option import option
from dcptools.assets import Assets, find_assets
from dcptools.checkpoint import Checkpoint
from dcptools.expected import Expected, NotExpected, expect, expect_reference, is_answered
from dcptools.findings import Finding
from dcptools.mapping.values import MappingOptions
from dcptools.storage import open_source


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
        return _of_reference(expect_reference(reference), assets or _beside(reference), is_copied=assets is not None)
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


def _beside(reference: str) -> Assets | None:
    """What lies beside the files of a reference; None if it is not a directory."""
    return find_assets(reference) if open_source(reference).kind() == "directory" else None


def _of_reference(
    reference: Expected, assets: Assets | None, *, is_copied: bool
) -> tuple[Expected, tuple[Finding, ...]]:
    """The model of its config, which knows ties and both names, if that is the reference; else what its files say."""
    if assets is None or not _names_a_model(assets):
        return reference, ()
    try:
        model = expect(assets.config)
    except NotExpected:
        return reference, ()
    found = reference.stored.shapes
    for naming in (model.stored, model.published):
        if all(name in found and found[name] in (None, naming.shapes[name]) for name in naming.needed):
            return (model if found.keys() <= naming.shapes.keys() else reference), ()
    what = f"it describes a {model.title}, whose weights are not those of the reference {reference.title}"
    differs = Finding("config-differs", "config.json", what, "give the config that belongs to the reference")
    return reference, (differs,) if is_copied else ()
