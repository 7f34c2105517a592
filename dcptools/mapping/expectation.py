"""What model the result must be: that of another model's files, that of config.json, or nothing that is known."""

from __future__ import annotations

import os

from dcptools.assets import Assets
from dcptools.expected import Expected, NotExpected, expect, expect_reference
from dcptools.findings import Finding


def expectation(
    assets: Assets | None, reference: str | os.PathLike[str] | None
) -> tuple[Expected | None, tuple[Finding, ...]]:
    """The model, or None and the finding that says why nothing is known of it. Raises UsageError for the reference."""
    if reference is not None:
        return expect_reference(reference), ()
    if assets is None or not assets.says("architectures"):
        return None, ()  # that there is no config, or that it names none, is a finding of the assets
    try:
        expected = expect(assets.config)
    except NotExpected as error:
        code = "model-not-built" if error.broken else "model-unknown"
        hint = "names are found by rules, and not held against a model; --reference names a model to hold them against"
        return None, (Finding(code, "config.json", str(error), hint),)
    return expected, ()
