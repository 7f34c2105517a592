"""What is converted from a checkpoint, the model or an adapter, and how its keys are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from dcptools._option import option
from dcptools._text import some
from dcptools.errors import UsageError
from dcptools.layouts import Candidate, Fit, Key, Layout, Peft, Reading, candidates, choose, layout_of, read_family
from dcptools.mapping.adapter_config import AdapterConfig, find_config
from dcptools.mapping.expectation import Given
from dcptools.mapping.rename import renamed


@dataclass(frozen=True, slots=True)
class Taken:
    """The reading of a checkpoint that is converted."""

    kind: str  # "model" or "adapter"
    layout: Layout
    reading: Reading
    peft: Peft
    tried: tuple[Candidate, ...] = ()  # the readings that were compared with the model, the chosen one first
    adapter: str | None = None  # the adapter that is taken, or whose copies of modules are taken; None: none
    config: AdapterConfig | None = None  # of the adapter, if it was given

    @property
    def fits(self) -> tuple[Fit, ...]:
        """How well each of the readings that were tried gives the model."""
        return tuple(candidate.fit for candidate in self.tried)


def take(given: Given, keys: Mapping[str, Key]) -> Taken:
    """Read the model; or, for a model that peft wrapped, the adapter, unless the mode is "full".

    Raises
    ------
    UsageError
        An adapter is requested that is not there, or there are several and none is named; or the file of a family
        cannot be used.
    """
    checkpoint, options, expected = given.checkpoint, given.options, given.expected
    family = read_family(options.family) if options.family is not None else None
    own = {name: Key(name, ()) for name in expected.stored.shapes} if expected else {}
    peft = Peft(keys, {}) if Peft.of(own).adapters else Peft.of(keys)  # a model may have LoRA weights of its own
    if not peft.adapters and (options.mode == "lora" or options.adapter is not None):
        raise UsageError(
            "This checkpoint has no LoRA adapter: no key like '....lora_A.default.weight'.\n"
            f"Give the directory of one that has one, or leave out {option('mode', 'lora')} and {option('adapter')}."
        )
    if peft.adapters and options.mode != "full":
        return _adapter(given, peft)
    adapter, wanted = _chosen(peft, options.adapter, peft.copying), peft.base()
    rules = partial(renamed, options.rename) if options.rename else None
    tried = candidates(checkpoint, wanted, expected, options.layout, options.root, family, rules) if expected else []
    layout = tried[0].layout if tried else choose(list(wanted.values()), options.layout, options.root, family)
    return Taken("model", layout, peft.base_of(layout.read(checkpoint, wanted), adapter), peft, tuple(tried), adapter)


def _adapter(given: Given, peft: Peft) -> Taken:
    options = given.options
    adapter = _chosen(peft, options.adapter, peft.adapters) or ""
    layout = layout_of(peft.weights(), given.expected, options.layout, options.root)
    config = find_config(options.adapter_config_path, options.model_assets_dir)
    reading = peft.adapter_of(layout.read(given.checkpoint, peft.saved()), adapter, config.said if config else None)
    return Taken("adapter", layout, reading, peft, (), adapter, config)


def _chosen(peft: Peft, asked: str | None, names: tuple[str, ...]) -> str | None:
    """The requested adapter, or the only one of those that matter; None if none does."""
    if asked is not None and asked not in peft.adapters:
        raise UsageError(f"This checkpoint has no adapter {asked!r}.\nIts adapters: {some(peft.adapters, 10)}.")
    if asked is None and len(names) > 1:
        raise UsageError(f"This checkpoint has several adapters: {some(names, 10)}.\nName one: {option('adapter')}.")
    return asked if asked is not None else next(iter(names), None)
