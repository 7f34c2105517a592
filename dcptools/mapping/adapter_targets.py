"""Which modules of a model peft adapts, or trains whole, by an adapter's config: its own rules, for names."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dcptools.expected import Shape

MAX_PATTERN = 200  # characters of a pattern that is tried
MAX_REPEATS = 4  # of characters, in a pattern that is tried
MAX_STEPS = 50_000_000  # that patterns may take for all names
ALL_LINEAR = "all-linear"
_HEADS = ("classifier", "score")  # what peft adds to modules_to_save for classifiers, whatever the model has
_ANY_LAYER = r".*?\.[^.]*\.(\d+)\."
# What repeats something: not the ? of (?, which begins a group, unless the parenthesis is an escaped one
_REPEATS = re.compile(r"(?<![^\\]\()(?<!^\()[*+?{]\??")


def named_modules(
    said: Mapping[str, Any], weights: Mapping[str, Shape | None], linear: Collection[str] | None
) -> dict[str, str]:
    """The modules that an adapter of a model with these weights has something of; for each, the field that names it."""
    adapted, parts = _targeted(said, weights, linear), matching(weights, said.get("target_parameters") or ())
    modules = (name.removesuffix(".weight") for name in weights if name.endswith(".weight"))
    whole = [module for module in modules if is_trained_whole(said, module)]
    return {
        **dict.fromkeys(sorted(adapted), "target_modules"),
        **dict.fromkeys(sorted(name.rpartition(".")[0] for name in parts), "target_parameters"),
        **dict.fromkeys(sorted(whole), "modules_to_save"),
    }


def unmatched(said: Mapping[str, Any], modules: Iterable[str]) -> dict[str, list[str]]:
    """By field, what the config names and none of the modules is, or is in."""
    around = {each for module in modules for each in _around(module)}

    def is_there(name: str) -> bool:
        return any(each.endswith(name) for each in around)

    targets, heads = said.get("target_modules") or (), _HEADS if any(map(is_there, _HEADS)) else ()
    wanted = {
        "target_modules": () if isinstance(targets, str) else targets,
        "modules_to_save": [name for name in said.get("modules_to_save") or () if name not in heads],
    }
    lacking = {field: [name for name in names if not is_there(name)] for field, names in wanted.items()}
    return {field: names for field, names in lacking.items() if names}


def _targeted(said: Mapping[str, Any], weights: Mapping[str, Shape | None], linear: Collection[str] | None) -> set[str]:
    """The modules that are adapted.

    Empty where that is not known: the linear modules are meant and are not known, layers are repeated, or a pattern
    would take too long.
    """
    targets, exclude = said.get("target_modules"), said.get("exclude_modules")
    modules = [name.removesuffix(".weight") for name, shape in weights.items() if _may_be_adapted(name, shape)]
    patterns = [pattern for pattern in (targets, exclude) if isinstance(pattern, str)]
    if said.get("layer_replication") or not are_quick(patterns, modules) or not _layers_are_plain(said):
        return set()
    excluded, whole = matching(modules, exclude), said.get("modules_to_save") or ()
    modules = [m for m in modules if m not in excluded and not any(f".{part}." in f".{m}." for part in whole)]
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        heads = _HEADS if said.get("task_type") == "SEQ_CLS" else ()
        return set(modules).intersection(linear or ()).difference(heads)
    return {m for m in matching(modules, targets) if _is_in_layers(m, said) or m in (targets or ())}


def is_trained_whole(said: Mapping[str, Any], module: str) -> bool:
    """Whether a copy of the module is trained: of those called so, however the name begins, and of those in them."""
    ends = tuple(said.get("modules_to_save") or ())
    return any(around.endswith(ends) for around in _around(module))


def matching(names: Collection[str], wanted: str | Sequence[str] | None) -> set[str]:
    """Names that are, or end with, one of those that are wanted; or that a text matches, which is a pattern."""
    if isinstance(wanted, str):
        return {name for name in names if re.fullmatch(wanted, name)}
    ends = frozenset(wanted or ())
    return {name for name in names if not ends.isdisjoint(_ends(name))}


def are_quick(patterns: Sequence[str], names: Collection[str]) -> bool:
    """Whether they can be tried: one that repeats a group, or several things, may take for ever on a name."""
    return sum(_steps(pattern, names) for pattern in patterns) <= MAX_STEPS


def _steps(pattern: str, names: Iterable[str]) -> float:
    """The most steps that a pattern may take if it matches none of the names; no end of them if it is no pattern."""
    repeats, groups = len(_REPEATS.findall(pattern)), pattern.count("(") + 1
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+?{]", pattern):
        return math.inf
    try:
        re.compile(f"({pattern})$")  # as a part of another one, too
    except (re.error, OverflowError, RecursionError):
        return math.inf
    ways = (1 + pattern.count("|") / groups) ** groups  # at most: each group may be passed in so many
    return ways * sum(math.comb(len(name) + repeats, repeats) for name in names)


def _may_be_adapted(name: str, shape: Shape | None) -> bool:
    return name.endswith(".weight") and (shape is None or len(shape) > 1)  # norms have vectors


def _layers_are_plain(said: Mapping[str, Any]) -> bool:
    """Whether what layers are called is no more of a pattern than a name is."""
    return all(re.fullmatch(r"[\w.]+", pattern) for pattern in _layers_patterns(said))


def _layers_patterns(said: Mapping[str, Any]) -> Sequence[str]:
    patterns = said.get("layers_pattern") or ()
    return (patterns,) if isinstance(patterns, str) else patterns


def _is_in_layers(module: str, said: Mapping[str, Any]) -> bool:
    """Whether a module is in a layer that is meant: the first number in its name is that of the layer."""
    layers = said.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = [rf"(?:^|.*?\.){called}\.(\d+)\." for called in _layers_patterns(said)] or [_ANY_LAYER]
    matches = (re.match(pattern, module) for pattern in patterns)
    layer = next((int(match[1]) for match in matches if match), None)
    return layer in layers if isinstance(layers, list) else layer == layers


def _ends(name: str) -> Iterator[str]:
    """The whole name, and what is left of it after each dot."""
    while name:
        yield name
        name = name.partition(".")[2]


def _around(module: str) -> Iterator[str]:
    """The module's own name and those of the modules around it."""
    while module:
        yield module
        module = module.rpartition(".")[0]
