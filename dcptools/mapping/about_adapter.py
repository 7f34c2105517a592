"""What there is to say about an adapter: which one it is, what is left out beside it, whether it fits the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dcptools._option import option
from dcptools._text import counted, format_bytes, format_shape, some
from dcptools.assets import ADAPTER_CONFIG
from dcptools.expected import Expected, Shape
from dcptools.findings import Finding
from dcptools.layouts import FROZEN, Leftover, Output, Role
from dcptools.mapping.about_model import allow, as_allowed, left_out
from dcptools.mapping.adapter_config import Adapted, AdapterConfig
from dcptools.mapping.adapter_targets import named_beside, targeted, trained_biases, unmatched, without_adapter
from dcptools.mapping.expectation import Given
from dcptools.mapping.patterns import Unchecked
from dcptools.mapping.taking import Taken
from dcptools.mapping.values import MappingOptions

_PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
_IF_ANY = (("lora_A", "lora_magnitude_vector"), ("lora_B", "lora_B.bias"))  # all have the second, or none
_WHOLE = f"is the checkpoint whole, and is the {ADAPTER_CONFIG} from this training?"


def about_adapter(
    given: Given, taken: Taken, adapted: Adapted, config: AdapterConfig, weights: Mapping[str, Shape | None]
) -> Iterator[Finding]:
    """About an adapter that is written; ``weights`` are all known weights of the model."""
    expected = given.expected
    name = f"the adapter {taken.adapter!r}" if taken.adapter else "an adapter"
    ranks = some([str(rank) for rank in sorted(set(adapted.ranks.values()))])
    whole = f", and {some(adapted.copies)} trained whole" if adapted.copies else ""
    yield Finding(
        "adapter", "", f"{name} is written: {counted(len(adapted.ranks), 'module')} of rank {ranks}{whole}",
        "peft loads it together with the base model",
    )  # fmt: skip
    yield from _about_base(taken.reading.leftovers, given.options)
    found = list(_about_config(taken, adapted, config, expected))
    found += _about_modules(adapted, expected) if expected else ()
    found += _about_halves(adapted)
    found += _about_missing(taken, adapted, expected, weights)
    yield from as_allowed(dict.fromkeys(found), given.options.allow_mismatch)


def _about_base(leftovers: Iterable[Leftover], options: MappingOptions) -> Iterator[Finding]:
    base = [left for left in leftovers if left.reason == FROZEN]
    if base:
        size = format_bytes(sum(left.nbytes for left in base))
        yield Finding(
            "base-left-out", "", f"{counted(len(base), 'tensor')} of the base model, {size}, are not written, "
            "only the adapter",
            f"{option('mode', 'full')} writes the base model, into a directory of its own",
            "info" if options.mode == "lora" else "warning",
        )  # fmt: skip


def _about_config(
    taken: Taken, adapted: Adapted, config: AdapterConfig, expected: Expected | None
) -> Iterator[Finding]:
    if taken.config is None:
        unknown = ["use_rslora", "alpha_pattern", "task_type"]
        unknown += [] if config.said["base_model_name_or_path"] else ["base_model_name_or_path"]
        if any(left.reason == FROZEN and left.key.endswith(".bias") for left in taken.reading.leftovers):
            unknown += ["bias (whether those of the base model were trained; they are not written)"]
        whole = [module for module in adapted.ranks if expected and f"{module}.weight" not in expected.stored.shapes]
        unknown += [f"which parameters of {some(whole, 2)} are adapted (target_parameters)"] if whole else []
        yield Finding(
            "adapter-config", ADAPTER_CONFIG, "made from names and shapes; lora_alpha is unknown, and peft does not "
            f"load the adapter without it; also unknown: {', '.join(unknown)}",
            f"give the one from the training: {option('adapter_config_path')}; or write lora_alpha into it",
        )  # fmt: skip
        return
    said, hint = taken.config.said, f"give the {ADAPTER_CONFIG} from this training; {allow()}"
    fields = {"target_modules": adapted.not_targeted, "rank_pattern": adapted.of_another_rank, "": adapted.differences}
    for field, differences in fields.items():
        try:
            for difference in differences(said):
                yield Finding("adapter-config-differs", taken.config.path, difference, hint)
        except Unchecked as why:
            yield _unchecked(field, why)


def _about_modules(adapted: Adapted, expected: Expected) -> Iterator[Finding]:
    """Adapted modules that the model does not have, or has with other sizes."""
    names = expected.stored.shapes
    known = {name.rsplit(".", count)[0] for name in names for count in range(name.count(".") + 1)}  # parameters too
    lost = [module for module in adapted.ranks if module not in known]
    if lost:
        what = f"{expected.title} has no {some(lost, 3)}: {len(lost):,} of {counted(len(adapted.ranks), 'module')}"
        yield Finding(
            "adapter-mismatch", "", what, f"peft does not load these; {allow()}",
            "warning" if len(lost) < len(adapted.ranks) else "error",
        )  # fmt: skip
    for module, sizes in _sizes(adapted.weights).items():
        shape = names.get(f"{module}.weight")
        if shape is not None and len(shape) == len(sizes) == 2 and sorted(shape) != sorted(sizes):
            what = f"it is {format_shape(sizes)} here, and the model has {format_shape(shape)}"
            yield Finding("adapter-mismatch", module, what, f"is this another model, or one rank's share? {allow()}")


def _about_halves(adapted: Adapted) -> Iterator[Finding]:
    """Modules that lack a part of their adapter, which peft would make anew when it loads the rest."""
    parts: dict[str, set[str]] = {}
    for role, _ in adapted.weights:
        if role.kind == "lora":
            parts.setdefault(role.module, set()).add(_part(role.saved))
    pairs = [*_PAIRS, *(pair[::-1] for pair in _PAIRS)]
    pairs += [pair for pair in _IF_ANY if any(pair[1] in found for found in parts.values())]
    for module, found in parts.items():
        lacking = [other for one, other in pairs if one in found and other not in found]
        if lacking:
            what = f"the checkpoint has no {some(sorted(lacking))} of it, but has the rest of its adapter"
            yield Finding("adapter-mismatch", module, what, f"peft does not notice, and makes a new one; {allow()}")


def _part(name: str) -> str:
    """What of an adapter a weight is: ``"lora_A"``, ``"lora_B.bias"``."""
    name = name.removesuffix(".weight")
    return ".".join(name.split(".")[-2 if name.endswith(".bias") else -1 :])


def _about_missing(
    taken: Taken, adapted: Adapted, expected: Expected | None, weights: Mapping[str, Shape | None]
) -> Iterator[Finding]:
    """Modules and weights that were trained, according to the config, but that the checkpoint does not have."""
    said = taken.config.said if taken.config else {}
    if not weights:
        yield from _about_unmatched(said, adapted)
        if said:
            yield _unchecked("the modules", Unchecked("nothing is known about the model"))
        return
    if adapted.modules.isdisjoint(name.rpartition(".")[0] for name in weights):  # of another model, which is reported
        return
    linear, ties = (expected.linear, expected.stored.ties) if expected else (None, ())
    everything = Adapted.of(taken.reading.outputs, taken.peft)
    if taken.config is None and (bare := without_adapter(weights, everything.ranks, everything.modules)):
        what = f"there is no adapter of {some(bare, 3)}, but of others with the same last name"
        hint = f"check that they were not trained; the config from the training tells ({option('adapter_config_path')})"
        yield Finding("adapter-unchecked", "", what, hint)
    named: dict[str, str] = {}
    try:
        named |= dict.fromkeys(sorted(targeted(said, weights, linear)), "target_modules")
    except Unchecked as why:
        yield _unchecked("target_modules", why)
    named |= named_beside(said, weights)
    named |= dict.fromkeys(trained_biases(said, weights, adapted.ranks), "bias")
    whole = set(adapted.copies)
    named |= {name: "modules_to_save" for name in weights if name.rpartition(".")[0] in whole}
    there = adapted.modules | adapted.trained
    excluded = (everything.modules | everything.trained) - there
    tied = {name.rpartition(".")[0] for names in ties for name in names[1:] if said.get("ensure_weight_tying")}
    for name, field in named.items():
        if name in excluded:
            yield left_out(name)
        elif name not in there and name not in tied:
            what = f"{field} of the adapter's config names it, but the checkpoint has nothing of it"
            certain = linear is not None or not expected  # the files of another model may name modules otherwise
            hint = f"peft does not notice; {_WHOLE} {allow()}"
            yield Finding("weight-missing", name, what, hint, "error" if certain else "warning")


def _about_unmatched(said: Mapping[str, Any], adapted: Adapted) -> Iterator[Finding]:
    """Names in the config that nothing in the checkpoint has, where the model is not known."""
    hint = f"{_WHOLE} {option('model_assets_dir')} with the model's config.json tells which modules it has"
    lacking = {
        field: f"{field} in its config names {some(n, 5)}" for field, n in unmatched(said, adapted.modules).items()
    }
    if said.get("bias") not in (None, "none") and not adapted.has(".bias"):
        lacking["bias"] = f"bias in its config is {said['bias'][:100]!r}"
    for field, what in lacking.items():
        things = "no bias" if field == "bias" else "nothing of such a module"
        yield Finding("weight-missing", "", f"{what}, but the checkpoint has {things}", hint, "warning")


def _unchecked(field: str, why: Unchecked) -> Finding:
    what = f"the checkpoint was not compared with {field} of the adapter's config: {why}"
    return Finding("adapter-unchecked", "", what, "check that what is written is what was trained")


def _sizes(weights: Iterable[tuple[Role, Output]]) -> dict[str, tuple[int, ...]]:
    """(out, in) of each module, if both of its matrices give it."""
    shapes = {role.saved: output.shape for role, output in weights}
    found: dict[str, tuple[int, ...]] = {}
    for role, _ in weights:
        for ending, other in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            stem = role.saved.removesuffix(ending)
            first, second = shapes[role.saved], shapes.get(stem + other, ())
            if stem != role.saved and len(first) == len(second) == 2:
                found[role.module] = (second[0], first[1])
    return found


def about_full(taken: Taken, outputs: Sequence[Output], options: MappingOptions) -> Iterator[Finding]:
    """About a model that peft wrapped, if the model itself is written."""
    if options.adapter_config_path is not None:
        yield Finding("adapter-config", options.adapter_config_path, "not used: no adapter is written", "leave it out")
    kinds = {key: role for key, role in taken.peft.roles.items() if role.kind != "base"}
    for output in outputs if kinds else ():
        if kinds.keys() & {view.key for view in output.sources}:
            what = f"trained whole: the copy of the adapter {taken.adapter!r} is written, as peft's unload gives it"
            yield Finding("trained-copy", output.name, what, "the original is left out")
    left = [left for left in taken.reading.leftovers if left.key in kinds]
    if left:
        size = format_bytes(sum(each.nbytes for each in left))
        yield Finding(
            "adapter-left-out", "", f"{counted(len(left), 'tensor')} of {_named(taken.peft.adapters)}, {size}, are "
            f"neither written nor merged: {some([each.key for each in left], 3)}",
            f"{option('mode', 'lora')} writes the adapter; peft merges the two: merge_and_unload",
        )  # fmt: skip


def _named(adapters: Sequence[str]) -> str:
    named = [repr(name) for name in adapters if name]
    return f"the adapter{'' if len(named) == 1 else 's'} {', '.join(named)}" if named else "an adapter"
