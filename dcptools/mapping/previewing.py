"""``preview``: every output with its HuggingFace name, every key that is left out, everything that looks wrong.

No tensor data is read. What a :class:`KeyMapping` shows is what is written: nothing later decides about names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

from dcptools._collector import no_collections
from dcptools._option import option
from dcptools._paths import expanded
from dcptools.checkpoint import Checkpoint, as_checkpoint
from dcptools.errors import UsageError, check_stage
from dcptools.layouts import Leftover, Output, Reading, keys_of
from dcptools.mapping.about import (
    about_assets,
    about_checkpoint,
    about_excluded,
    about_family,
    about_foreign,
    about_keys,
    about_leftovers,
    about_lost,
    about_names,
    about_published,
    about_reading,
    about_renamed,
    about_rules,
    about_unused,
)
from dcptools.mapping.about_adapter import about_full
from dcptools.mapping.about_model import about_kinds
from dcptools.mapping.expectation import Given
from dcptools.mapping.globs import Globs
from dcptools.mapping.holding import hold
from dcptools.mapping.rename import Rename, Renames, parse_renames
from dcptools.mapping.taking import take
from dcptools.mapping.values import CHOICES, KeyMapping, MappingOptions


def preview(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    model_assets_dir: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    family: str | os.PathLike[str] | None = None,
    layout: str = "auto",
    root: str | None = None,
    mode: str = "auto",
    adapter: str | None = None,
    adapter_config_path: str | os.PathLike[str] | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    names: str = "stored",
    tied: str = "auto",
    unexpected: str = "keep",
    allow_mismatch: bool = False,
    rename: Mapping[str, str] | Iterable[str | tuple[str, str] | Rename] = (),
) -> KeyMapping:
    """Say which key becomes which HuggingFace name, what is left out, and what looks wrong. Writes nothing.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or a path.
    model_assets_dir
        The directory with config and tokenizer; its files are checked and will be copied. The architecture that
        ``config.json`` names decides how the checkpoint is read, and what a complete model is.
    reference
        Another HuggingFace model whose names and shapes decide instead: its directory, index or safetensors file.
    family
        A TOML file that says how a trainer's own names and values become those of the model; it is used instead of
        the families that come with dcptools.
    layout
        How names are found: ``auto``, ``container`` or ``bare`` (see :mod:`dcptools.layouts`).
    root
        The container to convert, if it is not ``model``: ``ema``, ``app.model``.
    mode
        For a model with LoRA adapters of peft: ``lora`` writes an adapter, ``full`` the model itself; ``auto`` writes
        an adapter if there is one.
    adapter
        The adapter's name, if there are several.
    adapter_config_path
        The ``adapter_config.json`` of the training; by default that of the assets directory, otherwise it is made.
    include, exclude
        Globs on checkpoint keys (``fnmatch``: ``*`` matches dots too), or one. Without ``include``, all keys are
        converted.
    names
        ``stored``: the names that the live model has; ``published``: those that ``save_pretrained`` writes.
    tied
        What becomes of weights that the model ties: ``auto`` writes one if their values are the same, ``keep`` writes
        all, ``drop`` one.
    unexpected
        ``keep`` or ``drop`` tensors that the model has no weight for.
    allow_mismatch
        Only warn about what is missing, or of another shape than the model expects.
    rename
        Rules for HuggingFace names: ``{REGEX: REPLACEMENT}``, pairs, or ``"REGEX=REPLACEMENT"``, one or several. The
        first that matches a whole name wins.

    Raises
    ------
    UsageError
        An option cannot be used. Findings, even errors, are not raised here: see ``KeyMapping.errors``.

    Examples
    --------
    >>> mapping = preview(demo.checkpoint, model_assets_dir=demo.assets)
    >>> mapping.outputs[0].name, mapping.outputs[0].sources[0].key
    ('lm_head.weight', 'model.lm_head.weight')
    """
    options = MappingOptions(
        _path(model_assets_dir),
        _path(reference),
        _path(family),
        layout,
        _root(root),
        _chosen("mode", mode),
        adapter,
        _path(adapter_config_path),
        _globs(include),
        _globs(exclude),
        _chosen("names", names),
        _chosen("tied", tied),
        _chosen("unexpected", unexpected),
        allow_mismatch,
        parse_renames(rename),
    )
    return _mapping(as_checkpoint(checkpoint), options)


@no_collections()
def _mapping(checkpoint: Checkpoint, options: MappingOptions) -> KeyMapping:
    """Read the checkpoint in the best way, keep what is wanted, let the model say what that is, and say what is odd."""
    given = Given.of(checkpoint, options)
    expected, keys = given.expected, keys_of(checkpoint)
    taken = take(given, keys)
    chosen, reading = taken.layout, taken.reading
    globs, renames = Globs(options.include, options.exclude), Renames(options.rename)
    kept, left, excluded = _wanted(reading, checkpoint, globs)
    held = hold(kept, given, taken, renames, excluded)
    renamed = [renames.apply(output) for output in held.outputs] if options.rename else list(held.outputs)
    outputs = tuple(sorted(renamed, key=attrgetter("name")))
    leftovers = tuple(sorted((*left, *held.leftovers, *_objects(checkpoint)), key=attrgetter("key")))
    used = checkpoint.tensors.keys() - {leftover.key for leftover in leftovers}
    found = held.measured.fit if held.measured else None
    findings = (
        *about_reading(checkpoint, taken, outputs),
        *given.findings,
        *held.findings,
        *about_checkpoint(checkpoint, used),
        *about_keys(reading, used, renames.renamed | held.known),
        *(about_full(taken, outputs, options) if taken.kind == "model" else ()),
        *about_family(chosen, given.assets),
        *about_published(given, taken),
        *about_unused(given, taken),
        *about_foreign(chosen, keys.values(), outputs, found, options),
        *about_lost(leftovers, used, checkpoint, chosen.name),
        *(about_excluded(excluded, taken.kind, held.findings) if found is None else ()),
        *about_rules(renames.unused, sorted(globs.unused)),
        *(about_renamed(renames.names, expected) if expected else ()),
        *(about_kinds(outputs, None) if taken.kind == "model" and expected is None else ()),
        *about_names(outputs),
        *about_assets(held.assets),
        *about_leftovers(leftovers),
    )
    where = (chosen.name, chosen.root, held.assets, options)
    model = (expected if taken.kind == "model" else None, held.measured, taken.fits)
    return KeyMapping(checkpoint, outputs, leftovers, findings, *where, *model, kind=taken.kind)


def _path(path: str | os.PathLike[str] | None) -> str | None:
    if path is None:
        return None
    check_stage(path, "path")
    return expanded(path)


def _root(root: str | None) -> str | None:
    """A container without the dot that ends what its keys begin with."""
    if root is not None and not root.strip("."):
        raise UsageError(f"{option('root')} is empty.\nName a container, or leave it out.")
    return root and root.removesuffix(".")


def _globs(globs: Sequence[str] | str) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)


def _chosen(name: str, value: str) -> str:
    """The value itself; raises UsageError if the option of that name does not have it."""
    if value not in CHOICES[name]:
        raise UsageError(f"{name} cannot be {value!r}.\nExpected one of {', '.join(CHOICES[name])}.")
    return value


def _wanted(
    reading: Reading, checkpoint: Checkpoint, globs: Globs
) -> tuple[list[Output], list[Leftover], frozenset[str]]:
    """The outputs that the user wants, the tensors that are left out, and the names that are left out.

    One refused source refuses its output.
    """
    if not globs:
        return list(reading.outputs), list(reading.leftovers), frozenset()
    refused = {key: why for key in checkpoint.tensors if (why := globs.refusal(key))}
    kept, excluded = [], set()
    for output in reading.outputs:
        if refused.keys().isdisjoint(view.key for view in output.sources):
            kept.append(output)
        else:
            excluded.add(output.name)
    used = {view.key for output in kept for view in output.sources}
    left = [replace(left, part="") if left.key in refused else left for left in reading.leftovers]
    for key in {view.key: None for output in reading.outputs for view in output.sources}:
        if key not in used:
            why = refused.get(key, "another source of its output is left out")
            left.append(Leftover.of(checkpoint.tensors[key], why))
    return kept, left, frozenset(excluded)


def _objects(checkpoint: Checkpoint) -> Iterator[Leftover]:
    for entry in checkpoint.objects.values():
        yield Leftover(entry.key, "object", "a pickled object, not a tensor", entry.nbytes or 0)
