"""``dcp.save(model.state_dict())``: the keys are the HuggingFace names already."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from dcptools._option import option
from dcptools._text import some
from dcptools.checkpoint import Checkpoint
from dcptools.findings import Finding
from dcptools.layouts.huggingface import BODY
from dcptools.layouts.keys import Key, strip_wrappers
from dcptools.layouts.training import (
    COPIES,
    TRAINING_STATE,
    beside_model,
    extra_state,
    is_extra_state,
    is_training_state,
)
from dcptools.layouts.values import Output, Reading


@dataclass(frozen=True, slots=True)
class Bare:
    """Names are kept; training state, and copies of the weights beside the model, are left out."""

    reason: str
    copies: frozenset[str] = frozenset()  # first segments under which names of the model occur again
    known: Container[str] = frozenset()  # names that are the model's for sure
    prefix: str = ""  # what the names of a base model lack

    @classmethod
    def of(cls, keys: Sequence[Key], reason: str, known: Container[str] = frozenset(), prefix: str = "") -> Bare:
        """With what repeats the model's names below a segment of its own, as an ``ema`` does."""
        names = {key.name for key in keys if len(key.path) <= 1}
        split = [(first, rest) for first, _, rest in (name.partition(".") for name in names)]
        again = {first for first, rest in split if first in COPIES or (rest in names and BODY.match(rest))}
        return cls(reason, frozenset(again), known, prefix)

    @property
    def name(self) -> str:
        return "bare"

    @property
    def root(self) -> str:
        return ""

    def read(self, checkpoint: Checkpoint, keys: Mapping[str, Key]) -> Reading:
        outputs, leftovers = [], []
        findings = [Finding("layout", "", f"layout 'bare': {self.reason}", f"{option('layout')} overrides it")]
        for stored, tensor in checkpoint.tensors.items():
            key = keys[stored]
            if not self.is_model(key):
                training = is_training_state(key)
                reason = f"{'training state' if training else 'not among the bare names'} ({key.first})"
                leftovers.append(beside_model(tensor, reason, key.first, training=training))
                continue
            if is_extra_state(stored):
                leftovers.append(extra_state(tensor))
                continue
            name, rule = self.prefix + key.name, f"with {self.prefix!r} in front" if self.prefix else "kept"
            outputs.append(Output.whole(name, tensor, rule))
            wrappers = strip_wrappers(key.stored)[1]
            if wrappers and key.stored != key.name:
                findings.append(Finding("wrapper-removed", stored, f"removed {some(dict.fromkeys(wrappers))}"))
        return Reading(tuple(outputs), tuple(leftovers), tuple(findings))

    def is_model(self, key: Key) -> bool:
        """Whether a key is a name of the model."""
        if key.name in self.known:
            return True
        return len(key.path) <= 1 and key.first not in self.copies and not TRAINING_STATE.fullmatch(key.first)
