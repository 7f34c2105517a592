"""Models that peft wrapped: which keys are an adapter's, and what the others are in the model itself.

peft puts the model below ``base_model.model``, and each module that it adapts below ``base_layer``, beside
``lora_A.<adapter>`` and the like. Of a module that is trained whole it keeps two copies: ``original_module`` and
``modules_to_save.<adapter>``. What ``save_pretrained`` writes always has the prefix, and never the adapter's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from dcptools.layouts.keys import Key
from dcptools.layouts.values import Leftover, Output, Reading

PREFIX = "base_model.model."
FROZEN = "of the frozen base model"  # why tensors are left out
UNMERGED = "of an adapter, which is not merged"
REPLACED = "the original of a module that was trained whole"
MAGNITUDE = "lora_magnitude_vector"  # of DoRA
_PREFIX = re.compile(r"(^|\.)base_model\.model\.")
_LORA = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", MAGNITUDE)
_TOKENS = "trainable_tokens_delta"
_INSIDE = ("base_layer", "original_module", "token_adapter")  # segments that the model itself does not have
# Embeddings that peft writes beside their adapter, if they are called so
_EMBEDDINGS = re.compile(r"(.*\.)?(embed_tokens|lm_head)\.base_layer\.[^.]+")


class Role(NamedTuple):
    """What a key is in a model that peft wrapped. Names are given without the prefix."""

    kind: str  # "lora", "copy" (of a module that is trained whole), "tokens" or "base"
    adapter: str  # its name; "" if the key has none
    saved: str  # what save_pretrained calls it
    weight: str  # what the model without peft calls the weight that it is or belongs to

    @classmethod
    def of(cls, name: str) -> Role:
        """
        >>> Role.of("base_model.model.lm_head.lora_A.default.weight")
        Role(kind='lora', adapter='default', saved='lm_head.lora_A.weight', weight='lm_head.weight')
        """
        segments = _PREFIX.sub(r"\1", name, count=1).split(".")
        for at, segment in enumerate(segments):
            before, after = segments[:at], segments[at + 1 :]
            if segment == "modules_to_save" and before and len(after) > 1:
                saved = ".".join([*before, *after[1:]])
                return cls("copy", after[0], saved, saved)
            if (segment in _LORA or segment == _TOKENS) and before:
                own = after[-1:] if after[-1:] in (["weight"], ["bias"]) else []
                adapter = after[: len(after) - len(own)]
                if len(adapter) > 1:  # a moment of an optimizer
                    break
                saved = ".".join([*before, segment, *(own if segment != MAGNITUDE else ())])
                kind = "tokens" if segment == _TOKENS else "lora"
                return cls(kind, "".join(adapter), saved, _plain([*before, "weight"]))
        return cls("base", "", ".".join(segments), _plain(segments))

    @property
    def module(self) -> str:
        """The module of the weight."""
        return self.weight.rpartition(".")[0]


def _plain(segments: Sequence[str]) -> str:
    return ".".join(segment for segment in segments if segment not in _INSIDE)


@dataclass(frozen=True)
class Peft:
    """What peft made of a model's keys; without adapters, nothing."""

    keys: Mapping[str, Key]  # by what they are called in the checkpoint
    roles: Mapping[str, Role]  # of all keys, or of none

    @classmethod
    def of(cls, keys: Mapping[str, Key]) -> Peft:
        """Look for LoRA adapters; those of AdaLoRA, which rearranges its values when it saves, do not count."""
        if not any("lora_" in key.name for key in keys.values()):
            return cls(keys, {})
        roles = {stored: Role.of(key.name) for stored, key in keys.items()}
        other = any(".lora_E." in key.name for key in keys.values())
        return cls(keys, roles if any(role.kind == "lora" for role in roles.values()) and not other else {})

    @cached_property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters; "" is one that was saved without a name."""
        return tuple(sorted({role.adapter for role in self.roles.values() if role.kind == "lora"}))

    @cached_property
    def copying(self) -> tuple[str, ...]:
        """The adapters that have modules that were trained whole."""
        return tuple(sorted({role.adapter for role in self.roles.values() if role.kind == "copy"}))

    @cached_property
    def base_weights(self) -> frozenset[str]:
        """The base model's weights, if the adapted ones are among them: otherwise only what was trained is there."""
        base = frozenset(role.weight for role in self.roles.values() if role.kind == "base")
        adapted = {role.weight for role in self.roles.values() if role.kind == "lora"}
        return frozenset() if adapted.isdisjoint(base) else base

    def weights(self) -> list[Key]:
        """The keys under the names of the model without peft; those of adapters under the weight that they adapt."""
        return [_called(self.keys[stored], role.weight) for stored, role in self.roles.items()]

    def base(self) -> dict[str, Key]:
        """The keys by the names of the model without peft; those of adapters by names that no model has."""
        called = {
            stored: _called(self.keys[stored], role.saved if role.kind in ("lora", "tokens") else role.weight)
            for stored, role in self.roles.items()
        }
        return called or dict(self.keys)

    def saved(self) -> dict[str, Key]:
        """The keys by the names that ``save_pretrained`` writes, except for the prefix."""
        return {stored: _called(self.keys[stored], role.saved) for stored, role in self.roles.items()}

    def base_of(self, reading: Reading, adapter: str | None) -> Reading:
        """Only the base model of a reading of ``base``.

        Of a module that was trained whole, the copy of the ``adapter`` is taken, as ``unload`` and ``merge_and_unload``
        of peft do; without one, the original.
        """
        if not self.adapters:
            return reading
        copied = {role.weight for role in self.roles.values() if role.kind == "copy" and role.adapter == adapter}
        kept, left = [], []
        for output in reading.outputs:
            role = self._role(output)
            if role.kind == "base" and role.weight not in copied:
                kept.append(output)
            elif role.kind == "copy" and role.adapter == adapter:
                kept.append(replace(output, rule=f"{output.rule}, the copy that was trained"))
            else:
                left.append(Leftover.of(output, REPLACED if role.kind == "base" else UNMERGED))
        return replace(reading, outputs=tuple(kept), leftovers=(*reading.leftovers, *left))

    def adapter_of(self, reading: Reading, adapter: str, config: Mapping[str, Any] | None) -> Reading:
        """Only one adapter of a reading of ``saved``; ``config`` is its own, if that is known."""
        along = self._along(adapter, config)
        kept, left = [], []
        for output in reading.outputs:
            role = self._role(output)
            if role in along or (role.kind != "base" and role.adapter == adapter):
                kept.append(replace(output, name=PREFIX + output.name, rule=f"{output.rule}, as peft saves it"))
            else:
                left.append(Leftover.of(output, FROZEN if role.kind == "base" else "of another adapter"))
        return replace(reading, outputs=tuple(kept), leftovers=(*reading.leftovers, *left))

    def _along(self, adapter: str, config: Mapping[str, Any] | None) -> set[Role]:
        """What ``save_pretrained`` writes of the base model: adapted embeddings, and trained biases."""
        base = [role for role in self.roles.values() if role.kind == "base"]
        if not self.base_weights and not adapter:  # somebody saved what save_pretrained writes
            return set(base)
        bias = (config or {}).get("bias") or ("none" if self.base_weights else "all")
        ending = {"none": (), "all": (".bias",)}.get(bias, (".base_layer.bias",))
        embeddings = config is None or _adapts_embeddings(config)
        return {
            role
            for role in base
            if role.saved.endswith(ending) or (embeddings and _EMBEDDINGS.fullmatch(role.saved))
        }  # fmt: skip

    def _role(self, output: Output) -> Role:
        return self.roles[output.sources[0].key]


def _adapts_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether ``save_pretrained`` considers the embeddings adapted: it looks for exactly their names."""
    targets = config.get("target_modules")
    if config.get("trainable_token_indices") is not None:
        return False
    return isinstance(targets, str) or not {"embed_tokens", "lm_head"}.isdisjoint(targets or ())


def _called(key: Key, name: str) -> Key:
    """The key under another name; wrappers that were in it are forgotten."""
    return key if name == key.name else Key.of(name, key.path)
