"""Which modules of a model peft adapts, or trains whole, by an adapter's config: its own rules, for names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dcptools.expected import Shape
from dcptools.mapping.patterns import Unchecked, first_matches

ALL_LINEAR = "all-linear"
_HEADS = ("classifier", "score")  # what peft adds to modules_to_save for classifiers, whatever the model has
_ANY_LAYER = r".*?\.[^.]*\.(\d+)\..*"


def named_beside(said: Mapping[str, Any], weights: Mapping[str, Shape | None]) -> dict[str, str]:
    """The modules that are named other than as targets; for each, the field that names it."""
    parts = matching(weights, said.get("target_parameters"))
    modules = (name.removesuffix(".weight") for name in weights if name.endswith(".weight"))
    whole = [module for module in modules if is_trained_whole(said, module)]
    return {
        **dict.fromkeys(sorted(name.rpartition(".")[0] for name in parts), "target_parameters"),
        **dict.fromkeys(sorted(whole), "modules_to_save"),
    }


def trained_biases(said: Mapping[str, Any], weights: Iterable[str], adapted: Collection[str]) -> list[str]:
    """The biases of the model that are trained: all, or those of the adapted modules."""
    kind = said.get("bias") or "none"
    biases = [name for name in weights if name.endswith(".bias")] if kind != "none" else []
    return [name for name in biases if kind == "all" or name.removesuffix(".bias") in adapted]


def unmatched(said: Mapping[str, Any], modules: Iterable[str]) -> dict[str, list[str]]:
    """By field, what the config names but none of the modules is, or is in."""
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


def without_adapter(weights: Mapping[str, Shape | None], adapted: Iterable[str], there: Collection[str]) -> list[str]:
    """The modules that are not among those that are there, while others with the same last name are adapted."""
    lasts = {module.rpartition(".")[2] for module in adapted}
    return [module for module in _adaptable(weights) if module.rpartition(".")[2] in lasts and module not in there]


def targeted(said: Mapping[str, Any], weights: Mapping[str, Shape | None], linear: Collection[str] | None) -> set[str]:
    """The adapted modules of a model with these weights; ``linear`` are those that are linear, if known.

    Raises
    ------
    Unchecked
        That is not known.
    """
    targets, exclude = said.get("target_modules"), said.get("exclude_modules")
    if said.get("layer_replication"):
        raise Unchecked("layer_replication makes layers that the model does not have")
    modules = _adaptable(weights)
    excluded, whole = matching(modules, exclude), said.get("modules_to_save") or ()
    modules = [m for m in modules if m not in excluded and not any(f".{part}." in f".{m}." for part in whole)]
    if is_all_linear(targets):
        if linear is None:
            raise Unchecked("which modules are linear is known only for the model of a config.json")
        heads = _HEADS if said.get("task_type") == "SEQ_CLS" else ()
        return set(modules).intersection(linear).difference(heads)
    found = matching(modules, targets)
    return found if isinstance(targets, str) else _in_layers(found, said).union(found.intersection(targets or ()))


def is_all_linear(targets: object) -> bool:
    return isinstance(targets, str) and targets.lower() == ALL_LINEAR


def is_trained_whole(said: Mapping[str, Any], module: str) -> bool:
    """Whether a copy of the module is trained: of those with such an ending of the name, and of those in them."""
    ends = tuple(said.get("modules_to_save") or ())
    return any(around.endswith(ends) for around in _around(module))


def matching(names: Collection[str], wanted: str | Sequence[str] | None) -> set[str]:
    """Names that are, or end with, a wanted one; or, if a string is wanted, names that match it as a pattern.

    Raises
    ------
    Unchecked
        The pattern cannot be tried.
    """
    if isinstance(wanted, str):
        return set(first_matches([wanted], names))
    ends = frozenset(wanted or ())
    return {name for name in names if not ends.isdisjoint(_ends(name))}


def _adaptable(weights: Mapping[str, Shape | None]) -> list[str]:
    """The modules that may have an adapter: norms, which have vectors, may not."""
    shapes = ((name, shape) for name, shape in weights.items() if name.endswith(".weight"))
    return [name.removesuffix(".weight") for name, shape in shapes if shape is None or len(shape) > 1]


def _in_layers(modules: Collection[str], said: Mapping[str, Any]) -> set[str]:
    """Those in one of the given layers: the first number in a name is that of the layer."""
    layers, called = said.get("layers_to_transform"), said.get("layers_pattern") or ()
    if layers is None or layers == []:
        return set(modules)
    called = (called,) if isinstance(called, str) else called
    patterns = [rf"(?:(?:^|.*?\.){each}\.(\d+)\.).*" for each in called] or [_ANY_LAYER]
    wanted = {str(layer) for layer in (layers if isinstance(layers, list) else [layers])}
    found = first_matches(patterns, modules)
    return {module for module, match in found.items() if match[match.re.groups] in wanted}


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
