"""Compares what was read with the expected model: what is which weight, and what is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dcptools.assets import Assets
from dcptools.expected import Expected, Naming, Shape
from dcptools.findings import Finding
from dcptools.layouts import Candidate, FamilyLayout, Leftover, Output, fit
from dcptools.mapping.about_adapter import about_adapter
from dcptools.mapping.about_model import about_kinds, about_model, about_optional
from dcptools.mapping.adapter_config import Adapted
from dcptools.mapping.expectation import Given
from dcptools.mapping.rename import Renames
from dcptools.mapping.settling import (
    Settled,
    names_differ,
    publish,
    tie,
    without_buffers,
    without_tied_tokens,
    without_unexpected,
)
from dcptools.mapping.taking import Taken
from dcptools.mapping.weights import Measured

TIED = ("model.embed_tokens.weight", "lm_head.weight")  # what tie_word_embeddings ties, in most language models


@dataclass(frozen=True, slots=True)
class Held:
    """Outputs as the model calls them, and what was noticed."""

    outputs: tuple[Output, ...]
    leftovers: tuple[Leftover, ...] = ()
    findings: tuple[Finding, ...] = ()
    measured: Measured | None = None  # how well they are the model
    known: frozenset[str] = frozenset()  # keys for which the model says what they are
    assets: Assets | None = None  # what is copied beside them


def hold(outputs: Sequence[Output], given: Given, taken: Taken, renames: Renames, excluded: Collection[str]) -> Held:
    """Let the model, if it is known, say what each output is; ``excluded`` are names that the user left out."""
    if taken.kind == "adapter":
        return _hold_adapter(outputs, given, taken, renames)
    if given.expected:
        return _hold_model(outputs, given, given.expected, next(iter(taken.tried), None), renames, excluded)
    if given.assets and given.assets.says("tie_word_embeddings") is True:
        settled = tie(outputs, Naming({}, (TIED,)), given.checkpoint, given.options.tied)
        return Held(settled.outputs, settled.leftovers, settled.findings, assets=given.assets)
    return Held(tuple(outputs), assets=given.assets)


def _hold_model(
    outputs: Sequence[Output],
    given: Given,
    expected: Expected,
    candidate: Candidate | None,
    renames: Renames,
    excluded: Collection[str],
) -> Held:
    """What each output is in the model, what of the model is missing, and what is written.

    ``candidate`` is the reading that was chosen (None: by rules).
    """
    options = given.options
    naming = candidate.naming if candidate else "stored"
    names = expected.stored if naming == "stored" else expected.published
    renamed = (renames.apply(each, names.shapes) for each in outputs) if options.rename else outputs
    settled = [Settled(tuple(renamed))]

    def latest() -> tuple[Output, ...]:
        return settled[-1].outputs

    settled.append(without_buffers(latest(), expected, names))
    settled.append(tie(latest(), names, given.checkpoint, options.tied))
    if options.unexpected == "drop":
        settled.append(without_unexpected(latest(), expected, names))
    reading = candidate.fit.reading if candidate else "by rules"
    measured = latest()
    found = fit(expected.title, reading, _shapes(measured), names)
    known = _known(measured, expected)
    about = tuple(about_model(found, expected, names, excluded, allow_mismatch=options.allow_mismatch))
    if found.fitting:
        about = (*about, *about_optional([output.name for output in measured], names, excluded))
    if options.names == "published" and naming == "stored" and expected.differ:
        settled.append(publish(latest(), expected))
        if found.complete:
            measured, names = latest(), expected.published
            found = fit(expected.title, reading, _shapes(measured), names)
    made = candidate is not None and isinstance(candidate.layout, FamilyLayout)  # of other names, whatever was asked
    about = (*about, *about_kinds(latest(), expected))
    differ = None if made else names_differ(expected, naming, options.names)
    return Held(
        latest(),
        tuple(left for each in settled for left in each.leftovers),
        (*about, *(finding for each in settled for finding in each.findings), *([differ] if differ else [])),
        Measured(measured, found, names),
        known,
        given.assets,
    )


def _shapes(outputs: Sequence[Output]) -> dict[str, Shape]:
    return {output.name: output.shape for output in outputs}


def _hold_adapter(outputs: Sequence[Output], given: Given, taken: Taken, renames: Renames) -> Held:
    """Compare an adapter with its own config and the model."""
    assets, expected = given.assets, given.expected
    settled = without_tied_tokens(tuple(map(renames.apply, outputs)), expected)
    adapted = Adapted.of(settled.outputs, taken.peft)
    weights = _weights(taken, expected)
    modules = {name.rpartition(".")[0] for name in weights}
    config = taken.config or adapted.config(modules, assets.says("_name_or_path") if assets else None)
    found = tuple(about_adapter(given, taken, adapted, config, weights)) if settled.outputs else ()
    beside = (assets or Assets("", (), "", ())).for_adapter(config.content)
    known = frozenset(view.key for output in settled.outputs for view in output.sources)
    return Held(settled.outputs, settled.leftovers, found, None, known, beside)


def _weights(taken: Taken, expected: Expected | None) -> Mapping[str, Shape | None]:
    """All weights that are known: of the expected model, or of the base model in the checkpoint, if it is there."""
    if expected:
        return expected.stored.shapes
    root = f"{taken.layout.root}." if taken.layout.root else ""
    return {name.removeprefix(root): None for name in taken.peft.base_weights if name.startswith(root)}


def _known(outputs: Sequence[Output], expected: Expected) -> frozenset[str]:
    stored, published = expected.stored.shapes, expected.published.shapes
    return frozenset(
        view.key for output in outputs if output.name in stored or output.name in published for view in output.sources
    )
