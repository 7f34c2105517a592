"""``preview``: every output with its HuggingFace name, every key that is left out, everything that looks wrong.

No tensor data is read. What a :class:`KeyMapping` shows is what is written: nothing later decides about names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dcptools.assets import find_assets
from dcptools.checkpoint import Checkpoint, as_checkpoint
from dcptools.layouts import Leftover, Output, Reading, choose, keys_of
from dcptools.mapping.about import (
    about_assets,
    about_checkpoint,
    about_keys,
    about_leftovers,
    about_lost,
    about_names,
    about_reading,
    about_rules,
)
from dcptools.mapping.globs import Globs
from dcptools.mapping.rename import Rename, Renames
from dcptools.mapping.values import KeyMapping, MappingOptions


def preview(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    model_assets_dir: str | os.PathLike[str] | None = None,
    layout: str = "auto",
    root: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Iterable[str | tuple[str, str] | Rename] = (),
) -> KeyMapping:
    """Say which key becomes which HuggingFace name, what is left out, and what looks wrong. Writes nothing.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or a path.
    model_assets_dir
        The directory with config and tokenizer; its files are checked and will be copied.
    layout
        How names are found: ``auto``, ``container`` or ``bare`` (see :mod:`dcptools.layouts`).
    root
        The container to convert, where it is not ``model``: ``ema``, ``app.model``.
    include, exclude
        Globs on checkpoint keys (``fnmatch``: ``*`` matches dots too). Without ``include`` all keys are meant.
    rename
        Rules for HuggingFace names, ``REGEX=REPLACEMENT`` or pairs. The first that matches a whole name wins.

    Raises
    ------
    UsageError
        An option cannot be used. Findings, errors among them, are not raised here: see ``KeyMapping.errors``.

    Examples
    --------
    >>> mapping = preview(demo.checkpoint, model_assets_dir=demo.assets)
    >>> mapping.outputs[0].name, mapping.outputs[0].sources[0].key
    ('lm_head.weight', 'model.lm_head.weight')
    """
    checkpoint = as_checkpoint(checkpoint)
    rules = tuple(Rename.parse(rule) for rule in rename)
    assets_dir = None if model_assets_dir is None else os.fspath(model_assets_dir)
    options = MappingOptions(assets_dir, layout, root, tuple(include), tuple(exclude), rules)
    assets = find_assets(assets_dir) if assets_dir is not None else None
    keys = keys_of(checkpoint)
    chosen = choose(list(keys.values()), layout, root)
    reading = chosen.read(checkpoint, keys)
    globs, renames = Globs(include, exclude), Renames(rules)
    kept, left = _wanted(reading, checkpoint, globs)
    outputs = sorted(map(renames.apply, kept), key=lambda output: output.name)
    leftovers = sorted((*left, *_objects(checkpoint)), key=lambda left: left.key)
    findings = (
        *about_reading(reading, outputs, checkpoint, keys),
        *about_checkpoint(checkpoint, outputs),
        *about_keys(reading, outputs, renames.renamed),
        *about_lost(leftovers, outputs, checkpoint, chosen.name),
        *about_rules(renames.unused, sorted(globs.unused)),
        *about_names(outputs),
        *about_assets(assets, outputs),
        *about_leftovers(leftovers),
    )
    return KeyMapping(checkpoint, tuple(outputs), tuple(leftovers), findings, chosen.name, chosen.root, assets, options)


def _wanted(reading: Reading, checkpoint: Checkpoint, globs: Globs) -> tuple[list[Output], list[Leftover]]:
    """The outputs that the user wants, and the tensors that are left out. One refused source refuses its output."""
    refused = {key: why for key in checkpoint.tensors if (why := globs.refusal(key))}
    kept = [output for output in reading.outputs if refused.keys().isdisjoint(view.key for view in output.sources)]
    used = {view.key for output in kept for view in output.sources}
    left = [replace(left, part="") if left.key in refused else left for left in reading.leftovers]
    for key in {view.key: None for output in reading.outputs for view in output.sources}:
        if key not in used:
            why = refused.get(key, "another source of its output is left out")
            left.append(Leftover(key, "tensor", why, checkpoint.tensors[key].nbytes))
    return kept, left


def _objects(checkpoint: Checkpoint) -> Iterator[Leftover]:
    for entry in checkpoint.objects.values():
        yield Leftover(entry.key, "object", "a pickled object, not a tensor", entry.nbytes or 0)
