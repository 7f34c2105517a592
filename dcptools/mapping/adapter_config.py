"""``adapter_config.json`` of peft: the given one, or what the checkpoint itself tells."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dcptools._fields import Wrong, expected
from dcptools._text import counted, some
from dcptools.assets import ADAPTER_CONFIG
from dcptools.errors import UsageError, system_errors
from dcptools.layouts import Output, Peft, Role
from dcptools.mapping.adapter_targets import is_all_linear, is_trained_whole, matching
from dcptools.mapping.patterns import first_matches
from dcptools.storage import Source, open_source

MAX_BYTES = 16 << 20
_TEXT, _TEXTS, _FLAG = (str, "a string"), (list, "a list of strings"), (bool, "true or false")
_TEXT_OR_TEXTS = ((str, list), "a string or a list of strings")
_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {  # what is looked at; null is always allowed
    "base_model_name_or_path": _TEXT, "bias": _TEXT, "peft_type": _TEXT, "lora_bias": _FLAG, "use_dora": _FLAG,
    "modules_to_save": _TEXTS, "target_modules": _TEXT_OR_TEXTS, "exclude_modules": _TEXT_OR_TEXTS,
    "target_parameters": _TEXTS, "layers_pattern": _TEXT_OR_TEXTS, "r": (int, "a number"),
    "layers_to_transform": ((int, list), "a number or a list of numbers"), "rank_pattern": (dict, "numbers by pattern"),
}  # fmt: skip
_SHOWN = {  # fields that can be seen from names, by how such names end
    "use_dora": ".lora_magnitude_vector",
    "lora_bias": ".lora_B.bias",
    "trainable_token_indices": ".trainable_tokens_delta",
}


@dataclass(frozen=True)
class AdapterConfig:
    """The config of an adapter, and its text as it is written."""

    said: Mapping[str, Any]
    content: bytes
    path: str = ""  # of the file that was given


def find_config(path: str | os.PathLike[str] | None, assets_dir: str | os.PathLike[str] | None) -> AdapterConfig | None:
    """The config at a path, or in the directory of the assets; None if there is none.

    Raises
    ------
    UsageError
        The file cannot be read, or is not a JSON object.
    """
    if path is None:
        if assets_dir is None:
            return None
        source = open_source(assets_dir)
        with system_errors(UsageError, f"The adapter's config in {assets_dir} cannot be read"):
            return _read(source, ADAPTER_CONFIG) if source.kind(ADAPTER_CONFIG) == "file" else None
    with system_errors(UsageError, f"The adapter's config {path} cannot be read"):
        if open_source(path).kind() == "directory":
            return _read(open_source(path), ADAPTER_CONFIG)
        directory, name = os.path.split(path)
        return _read(open_source(directory), name)


def _read(source: Source, name: str) -> AdapterConfig:
    path = source.path(name)
    with system_errors(UsageError, f"The adapter's config {path} cannot be read"):
        content = source.content(name)[:MAX_BYTES]
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise UsageError(
            f"{path} is not a JSON object.\nGive the {ADAPTER_CONFIG} that peft wrote during the training."
        )
    try:
        _check(said)
    except Wrong as wrong:
        raise UsageError(f"{path}: {wrong}.\nGive the {ADAPTER_CONFIG} that peft wrote during the training.") from None
    return AdapterConfig(said, content, str(path))


def _check(said: Mapping[str, Any]) -> None:
    for field, (kinds, what) in _KINDS.items():
        value = said.get(field)
        parts = value if isinstance(value, list) else ()
        ranks = value.values() if isinstance(value, dict) else ()
        part = int if kinds == (int, list) else str
        sound = isinstance(value, kinds) and all(type(each) is part for each in parts)
        if value is not None and not (sound and all(type(rank) is int for rank in ranks)):
            raise expected(field, what, value)


@dataclass(frozen=True)
class Adapted:
    """What the tensors of an adapter tell: which modules are adapted, and how."""

    weights: Sequence[tuple[Role, Output]]  # of the adapter, as they are written

    @classmethod
    def of(cls, outputs: Iterable[Output], peft: Peft) -> Adapted:
        """From the outputs of an adapter, whose names no longer say which modules were trained whole."""
        return cls([(Role.of(output.name)._replace(kind=_kind(output, peft)), output) for output in outputs])

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each module that is adapted."""
        ranks = {}
        for role, output in self.weights:
            if role.saved.endswith((".lora_A.weight", ".lora_embedding_A")):
                # experts may have one matrix each: (expert, rank, in)
                ranks[role.module] = output.shape[1 if len(output.shape) == 3 else 0] if output.shape else 0
        return ranks

    @cached_property
    def copies(self) -> tuple[str, ...]:
        """The modules that were trained whole."""
        return tuple(sorted({role.module for role, _ in self.weights if role.kind == "copy"}))

    @cached_property
    def modules(self) -> frozenset[str]:
        """All modules that are adapted or were trained whole, even if a part of that is missing."""
        return frozenset(role.module for role, _ in self.weights if role.kind in ("lora", "tokens", "copy"))

    @cached_property
    def trained(self) -> frozenset[str]:
        """The model's own weights that were trained: its biases, and all of the modules that were trained whole."""
        kinds = ("bias", "copy")
        return frozenset(role.weight for role, _ in self.weights if role.kind in kinds)

    def has(self, ending: str) -> bool:
        return any(role.saved.endswith(ending) for role, _ in self.weights)

    @property
    def rank(self) -> int:
        """That of most modules."""
        return Counter(sorted(self.ranks.values(), reverse=True)).most_common(1)[0][0] if self.ranks else 0

    def config(self, modules: Collection[str], base: str | None) -> AdapterConfig:
        """The known part of the config. ``modules`` are all known modules of the model, ``base`` is its name.

        What is not known is null where peft needs it: no value is made up.
        """
        said = {
            "base_model_name_or_path": base,
            "bias": "all" if any(role.kind == "bias" for role, _ in self.weights) else "none",
            "inference_mode": True,
            "lora_alpha": None,
            "lora_bias": self.has(".lora_B.bias"),
            "modules_to_save": list(self.copies) or None,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": {module: rank for module, rank in self.ranks.items() if rank != self.rank},
            "target_modules": sorted(_targets(self.ranks, modules)),
            "task_type": None,
            "use_dora": self.has(".lora_magnitude_vector"),
        }
        return AdapterConfig(said, (json.dumps(said, indent=2, sort_keys=True) + "\n").encode())

    def differences(self, said: Mapping[str, Any]) -> Iterator[str]:
        """Where a config is not that of this adapter, but for what ``not_targeted`` and ``of_another_rank`` report."""
        if said.get("peft_type") != "LORA":
            yield f"peft_type is {str(said.get('peft_type'))[:100]!r}, but the keys are those of 'LORA'"
        others = [module for module in self.copies if not is_trained_whole(said, module)]
        yield from [f"modules_to_save does not name {some(others, 3)}"] if others else []
        for field, ending in _SHOWN.items():
            if bool(said.get(field)) != self.has(ending):
                value, there = str(said.get(field))[:100], "" if self.has(ending) else "no "
                yield f"{field} is {value}, and there are {there}{ending[1:]}"

    def not_targeted(self, said: Mapping[str, Any]) -> Iterator[str]:
        """Adapted modules that a config does not target.

        Raises
        ------
        Unchecked
            Its pattern was not tried.
        """
        targets = said.get("target_modules") or ()
        if not said.get("target_parameters") and not is_all_linear(targets):
            named = matching(self.ranks, targets)
            others = [module for module in self.ranks if module not in named]
            yield from [f"target_modules does not name {some(others, 3)}"] if others else []

    def of_another_rank(self, said: Mapping[str, Any]) -> Iterator[str]:
        """Adapted modules of another rank than a config gives them: that of the first pattern that peft finds for each.

        Raises
        ------
        Unchecked
            A pattern was not tried.
        """
        if said.get("target_parameters"):
            return
        ranks = {rf"(.*\.)?({pattern})": rank for pattern, rank in (said.get("rank_pattern") or {}).items()}
        found = first_matches(ranks, self.ranks)
        wanted = {name: ranks[found[name].re.pattern] if name in found else said.get("r") for name in self.ranks}
        wrong = [name for name in wanted if wanted[name] != self.ranks[name]]
        if wrong:
            one, many = wrong[0], counted(len(wrong), "module")
            yield f"r is {wanted[one]} for {one}, and its tensors have {self.ranks[one]}; so it is for {many}"


def _kind(output: Output, peft: Peft) -> str:
    """The kind of its role; what goes along with an adapter is an adapted embedding, a bias, or was trained whole."""
    role = peft.roles[output.sources[0].key]
    if role.kind != "base":
        return role.kind
    if role.saved.endswith(".bias"):
        return "bias"
    return "base" if role.saved != role.weight else "copy"


def _targets(adapted: Iterable[str], modules: Collection[str]) -> set[str]:
    """Last segments, if all modules of the model with that ending are adapted; whole names otherwise."""
    adapted = set(adapted)
    lasts = {module.rpartition(".")[2] for module in adapted}
    others = {module.rpartition(".")[2] for module in set(modules) - adapted}
    short = lasts - others if modules else set()
    return short | {module for module in adapted if module.rpartition(".")[2] not in short}
