"""The model's state dict was saved under a container: ``model.model.layers.0...``, ``model.lm_head.weight``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dcptools._option import option
from dcptools._text import some
from dcptools.checkpoint import Checkpoint
from dcptools.findings import Finding
from dcptools.layouts.keys import Key, names_below, strip_wrappers
from dcptools.layouts.training import beside_model, extra_state, is_extra_state, is_training_state
from dcptools.layouts.values import Output, Reading

CONTAINER = "model"  # what nearly all trainers call it
HEADS = ("lm_head.weight", "score.weight")  # of a language model, and of a classifier made of one


@dataclass(frozen=True, slots=True)
class Container:
    """The HuggingFace name of a key is what follows the container."""

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
        those = [keys[stored] for stored in checkpoint.tensors]
        for tensor, key, name in zip(checkpoint.tensors.values(), those, names_below(those, self.root), strict=True):
            if name is None:
                part = self.beside(key)
                reason = f"not under {self.root + '.'!r} ({part})"
                leftovers.append(beside_model(tensor, reason, part, training=is_training_state(key, part)))
                continue
            if is_extra_state(tensor.key):
                leftovers.append(extra_state(tensor))
                continue
            outputs.append(Output.whole(self.prefix + name, tensor, rule))
            if key.stored or not _is_usual(name):  # about most keys there is nothing to say
                findings += self._about_key(tensor.key, key, name)
        return Reading(tuple(outputs), tuple(leftovers), tuple(findings))

    def wrappers_in(self, key: Key) -> tuple[str, ...]:
        """The segments that are removed from a key of the model; those of the container itself stay."""
        in_root = len(strip_wrappers(self.root + ".")[1])
        return strip_wrappers(key.stored or key.name)[1][in_root:]

    def beside(self, key: Key) -> str:
        """What a key that is not the model's is in: the part beside the model's, ``ema`` or ``app.ema``.

        >>> Container("app.model", "").beside(Key("app.ema.model.norm.weight", ()))
        'app.ema'
        """
        around, dot, _ = self.root.rpartition(".")
        rest = key.below(around) if around else None
        return key.first if rest is None else around + dot + rest.partition(".")[0]

    def _about_itself(self) -> Iterator[Finding]:
        yield Finding("layout", "", f"layout 'container': {self.reason}", f"{option('layout')} overrides it")
        if self.unusual:
            yield another_container(self.root)

    def _about_key(self, stored: str, key: Key, name: str) -> Iterator[Finding]:
        wrappers = self.wrappers_in(key) if key.stored else ()  # most keys have none
        if wrappers:
            yield Finding("wrapper-removed", stored, f"removed {some(dict.fromkeys(wrappers))}")
        if not _is_usual(name):
            found = f"is neither {self.root}.model.* nor {self.root}.lm_head.weight; it is named {name!r}"
            hint = f"{option('layout', 'bare')} keeps it as it is, {option('rename')} gives another name"
            yield Finding("unusual-key", stored, found, hint)


def another_container(root: str) -> Finding:
    """That the model was found where it usually is not."""
    return Finding("container", "", f"the model is read from {root!r}", f"{option('root')} names another")


def _is_usual(name: str) -> bool:
    """Whether nearly all models have a name: it is likelier to be one than what only lost its container."""
    return name.startswith("model.") or name in HEADS
