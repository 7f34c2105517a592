"""The model's state dict was saved under a container: ``model.model.layers.0...``, ``model.lm_head.weight``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dcptools._option import option
from dcptools._text import some
from dcptools.checkpoint import Checkpoint, StoredTensor
from dcptools.findings import Finding
from dcptools.layouts.keys import Key, strip_wrappers
from dcptools.layouts.training import is_counter, is_extra_state, is_training_state
from dcptools.layouts.values import Leftover, Output, Reading
from dcptools.tensors import View

CONTAINER = "model"  # what nearly all trainers call it
HEADS = ("lm_head.weight", "score.weight")  # of a language model, and of a classifier made of one


@dataclass(frozen=True, slots=True)
class Container:
    """The HuggingFace name of a key is what stands after the container."""

    root: str
    reason: str
    unusual: bool = False  # found in another container than usual
    prefix: str = ""  # what the names of a base model lack

    @property
    def name(self) -> str:
        return "container"

    def read(self, checkpoint: Checkpoint, keys: Mapping[str, Key]) -> Reading:
        outputs, leftovers = [], []
        findings, rule = list(self._about_itself()), f"without {self.root + '.'!r}"
        rule += f", with {self.prefix!r} in front" if self.prefix else ""
        for stored, tensor in checkpoint.tensors.items():
            key = keys[stored]
            name = self.name_of(key)
            if name is None or is_extra_state(stored):
                leftovers.append(self._leftover(key, tensor, is_model=name is not None))
                continue
            outputs.append(Output(self.prefix + name, (View.whole(tensor),), tensor.shape, tensor.dtype, rule))
            findings += self._about_key(stored, key, name)
        return Reading(tuple(outputs), tuple(leftovers), tuple(findings))

    def name_of(self, key: Key) -> str | None:
        """The HuggingFace name; None if the key is not the model's."""
        rest = key.below(self.root)
        return None if rest is None else strip_wrappers(rest)[0]

    def wrappers_in(self, key: Key) -> tuple[str, ...]:
        """The segments that are taken out of a key of the model; those of the container itself stay."""
        in_root = len(strip_wrappers(self.root + ".")[1])
        return strip_wrappers(key.stored or key.name)[1][in_root:]

    def beside(self, key: Key) -> str:
        """What a key that is not the model's stands in: the part beside the model's, ``ema`` or ``app.ema``.

        >>> Container("app.model", "").beside(Key("app.ema.model.norm.weight", ()))
        'app.ema'
        """
        around, dot, _ = self.root.rpartition(".")
        rest = key.below(around) if around else None
        return key.first if rest is None else around + dot + rest.partition(".")[0]

    def _leftover(self, key: Key, tensor: StoredTensor, *, is_model: bool) -> Leftover:
        if is_model:
            return Leftover(tensor.key, "tensor", "extra state of a module, not a weight", tensor.nbytes)
        part = self.beside(key)
        expected = is_training_state(key, part) or is_counter(tensor) or is_extra_state(tensor.key)
        reason = f"not under {self.root + '.'!r} ({key.first})"
        return Leftover(tensor.key, "tensor", reason, tensor.nbytes, "" if expected else part)

    def _about_itself(self) -> Iterator[Finding]:
        yield Finding("layout", "", f"layout 'container': {self.reason}", f"{option('layout')} overrides it")
        if self.unusual:
            yield Finding("container", "", f"the model is read from {self.root!r}", f"{option('root')} names another")

    def _about_key(self, stored: str, key: Key, name: str) -> Iterator[Finding]:
        wrappers = self.wrappers_in(key) if key.stored else ()  # most keys have none
        if wrappers:
            yield Finding("wrapper-removed", stored, f"took out {some(dict.fromkeys(wrappers))}")
        if not _is_usual(name):
            found = f"is neither {self.root}.model.* nor {self.root}.lm_head.weight; it is named {name!r}"
            hint = f"{option('layout', 'bare')} keeps it as it is, {option('rename')} gives another name"
            yield Finding("unusual-key", stored, found, hint)


def _is_usual(name: str) -> bool:
    """Whether a name is what nearly all models have: it is more likely one than what only lost its container."""
    return name.startswith("model.") or name in HEADS
