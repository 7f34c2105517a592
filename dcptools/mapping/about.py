"""What a preview noticed, as findings: about the layout, the keys, the names, the assets, and what is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from dcptools._option import option
from dcptools._text import counted, format_bytes, some
from dcptools.assets import Assets
from dcptools.checkpoint import Checkpoint, StoredTensor
from dcptools.expected import Expected
from dcptools.findings import Finding
from dcptools.layouts import (
    Family,
    FamilyLayout,
    Fit,
    Key,
    Layout,
    Leftover,
    Output,
    Reading,
    Role,
    foreign_families,
    is_body_name,
    is_huggingface_name,
)
from dcptools.mapping.about_model import left_out
from dcptools.mapping.about_nothing import where_to_look
from dcptools.mapping.expectation import Given
from dcptools.mapping.rename import Rename
from dcptools.mapping.taking import Taken
from dcptools.mapping.values import MappingOptions

_RESERVED = ("__metadata__", "")  # names that safetensors needs itself, or does not accept
_FLAT = ("_flat_param", "flat_param")
_PEFT = re.compile(r"(^|\.)(base_model\.model\.|lora_[A-Z]\b|modules_to_save\.|base_layer\.)")


def about_reading(checkpoint: Checkpoint, taken: Taken, outputs: Sequence[Output]) -> Iterator[Finding]:
    """Which layout it is, and why; or that there is no model, or only adapters of one."""
    if outputs:
        yield from (finding for finding in taken.reading.findings if not finding.key)
    else:
        yield Finding("no-model-weights", "", "No model weights found!", where_to_look(checkpoint, taken))


def about_checkpoint(checkpoint: Checkpoint, used: Collection[str]) -> Iterator[Finding]:
    """The checkpoint's findings; what concerns only keys that are not converted does not stop anything."""
    for finding in checkpoint.findings:
        harmless = finding.severity == "error" and finding.key and finding.key not in used
        yield replace(finding, severity="warning", hint="it is not converted") if harmless else finding


def about_keys(reading: Reading, used: Collection[str], known: Collection[str]) -> Iterator[Finding]:
    """What is odd about single keys that are converted; for the ``known`` ones it is clear what they are called."""
    found: dict[str, list[Finding]] = {}
    for finding in reading.findings:
        if finding.key and not (finding.code == "unusual-key" and finding.key in known):
            found.setdefault(finding.key, []).append(finding)
    names = {
        view.key: output.name
        for output in reading.outputs
        if found or _may_be_odd(output.name)  # nearly none
        for view in output.sources
        if view.key in found or _may_be_odd(output.name)
    }
    for key, name in names.items():
        if key not in used:
            continue
        kind = _about_kind(key, name) if _may_be_odd(name) else None
        if kind and kind.code == "peft" and key in known:
            kind = None
        for finding in found.get(key, ()):
            if kind is None or finding.code != "unusual-key":
                yield finding
        if kind:
            yield kind


def _may_be_odd(name: str) -> bool:
    """Whether it is worth a closer look; hardly any names are."""
    return (  # no loop over the signs, which would take several times as long for very many names
        "flat_param" in name
        or "lora_" in name
        or "base_model.model." in name
        or "modules_to_save." in name
        or "base_layer." in name
    )


def _about_kind(key: str, name: str) -> Finding | None:
    """A name of something other than a weight of a model."""
    if name.rpartition(".")[2] in _FLAT:
        return Finding(
            "flat-parameter", key, "a flat parameter of FSDP1 holds many tensors without names and shapes",
            "save with FSDP.set_state_dict_type(SHARDED_STATE_DICT) or with get_model_state_dict",
        )  # fmt: skip
    if _PEFT.search(name):
        return Finding(
            "peft", key, "a key of peft, but not of a LoRA adapter; transformers does not load it as part of a model",
            "save with peft's save_pretrained, or merge in the training script (merge_and_unload) and save again",
        )  # fmt: skip
    return None


def about_family(chosen: Layout, assets: Assets | None) -> Iterator[Finding]:
    """A family that was given for another architecture: values of another one are in another order."""
    makes = chosen.family.architectures if isinstance(chosen, FamilyLayout) else ()
    said = assets.says("architectures") if assets else None
    if makes and said and isinstance(said, list) and said[0] not in makes:
        what = f"{chosen.name} makes {some(makes)}, and config.json names {said[0]}"
        yield Finding("family-differs", "", what, f"leave out {option('family')}, or give the one of this model")


def about_published(given: Given, taken: Taken) -> Iterator[Finding]:
    """Published names that were requested but are not known."""
    expected = given.expected
    named = taken.kind == "adapter" or isinstance(taken.layout, FamilyLayout)
    if given.options.names == "published" and not named and (expected is None or expected.unpublished):
        why = expected.unpublished if expected else "nothing is known about the model"
        what = f"the names of the checkpoint are written, because the published ones are not known: {why}"
        yield Finding("names-unknown", "", what, f"{option('rename')} gives others, but splits and joins no tensors")


def about_unused(given: Given, taken: Taken) -> Iterator[Finding]:
    """Options that say what to do with weights of a model, where nothing is known about it."""
    if given.expected is None and taken.kind == "model":
        for name in ("tied", "unexpected"):
            if getattr(given.options, name) == "drop":
                what = f"{option(name, 'drop')} leaves nothing out, because nothing is known about the model"
                hint = f"{option('model_assets_dir')} or {option('reference')} says what the model is"
                yield Finding("option-unused", "", what, hint)


def about_foreign(
    chosen: Layout, keys: Collection[Key], outputs: Iterable[Output], found: Fit | None, options: MappingOptions
) -> Iterator[Finding]:
    """A trainer's own names that are taken for those of the model: renaming alone would give a wrong model."""
    right = found.complete if found else any(is_body_name(output.name) for output in outputs)
    if right or isinstance(chosen, FamilyLayout):
        return
    trainers: dict[str, list[Family]] = {}
    for family in foreign_families(keys):
        trainers.setdefault(family.trainer, []).append(family)
    asked = options.allow_mismatch or options.layout != "auto" or options.root is not None
    for trainer, known in trainers.items():
        refused = next((family.refused for family in known if family.refused), "")
        models = some([family.model for family in known if family.weights], 10)
        ways = [f"give {option('model_assets_dir')} with the config.json of {models}"] if models and not refused else []
        ways += [
            f"convert it with {exporter}" for exporter in dict.fromkeys(each.exporter for each in known) if exporter
        ]
        why = refused or "whose values are in another order than HuggingFace's"
        yield Finding(
            "foreign-names", "", f"these are names of {trainer}, {why}",
            f"{', or '.join(ways)}; {option('layout', 'bare')} keeps names and values as they are",
            "warning" if asked else "error",
        )  # fmt: skip


def about_lost(
    leftovers: Iterable[Leftover], used: Collection[str], checkpoint: Checkpoint, layout: str
) -> Iterator[Finding]:
    """A head must never vanish silently: a tensor that is not training state and is not converted is a warning."""
    lost: dict[str, list[StoredTensor]] = {}
    for left in leftovers:
        if left.part and used:
            lost.setdefault(left.part, []).append(checkpoint.tensors[left.key])
    nested = any(len(checkpoint.tensors[key].path) > 1 for key in used)
    for part, tensors in lost.items():
        yield _lost(part, tensors, layout, nested)


def _lost(part: str, tensors: Sequence[StoredTensor], layout: str, nested: bool) -> Finding:
    nbytes = format_bytes(sum(tensor.nbytes for tensor in tensors))
    keys = some([tensor.key for tensor in tensors])
    found = f"{counted(len(tensors), 'tensor')} of {nbytes}, not training state, are not converted: {keys}"
    hint = f"{option('exclude', part + '*')} leaves it out without this warning"
    if layout == "bare" or not any(len(tensor.path) == 1 for tensor in tensors):
        containers = {".".join(tensor.path[:-1]) for tensor in tensors}
        root = (containers.pop() if len(containers) == 1 else "") or part
        hint = f"{option('root', root)} converts it instead; {hint}"
    elif not nested:  # the model's keys are at the top as well
        hint = f"{option('layout', 'bare')} keeps all keys as they are; {hint}"
    return Finding("left-out-tensor", part, found, hint)


def about_excluded(names: Iterable[str], kind: str, before: Iterable[Finding]) -> Iterator[Finding]:
    """Weights that the user left out, if no model says what is missing: all of an adapter; otherwise by their names.

    Modules of which nothing is left were reported ``before``.
    """
    told = [f".{finding.key}." for finding in before if finding.code == "weight-missing"]
    for name in sorted(names):
        if (kind == "adapter" or is_huggingface_name(name)) and not any(module in name for module in told):
            yield left_out(name)


def about_rules(renames: Iterable[Rename], globs: Iterable[str]) -> Iterator[Finding]:
    """Rules that did nothing are probably misspelt."""
    for rule in renames:
        yield Finding("rename-unused", "", f"the rule {rule} matched no name")
    for glob in globs:
        yield Finding("pattern-unused", "", f"{glob!r} matched no tensor's key")


def about_renamed(renamed: Mapping[str, str], expected: Expected) -> Iterator[Finding]:
    """Names of weights, or of their adapters, that the rules changed: into those of other weights, perhaps."""
    own = {**expected.published.written, **expected.stored.written}
    weights = {old: Role.of(old).weight for old in renamed}
    names = [
        f"{old} to {new}"
        for old, new in renamed.items()
        if weights[old] in own and new != old and new != own[weights[old]]
    ]
    if names:
        yield Finding(
            "renamed-away", "", f"{counted(len(names), 'tensor')} of the model renamed: {some(names)}",
            "transformers will not find them, or take them for other weights; "
            f"leave out {option('rename')} if that is not intended",
        )  # fmt: skip


def about_names(outputs: Sequence[Output]) -> Iterator[Finding]:
    """Names that cannot be written: reserved ones, and those that several outputs would have."""
    names = [output.name for output in outputs]
    distinct = set(names)
    repeated = len(distinct) < len(names)
    several: dict[str, list[str]] = {n: [] for n, count in Counter(names).items() if count > 1} if repeated else {}
    reserved = distinct.intersection(_RESERVED)
    if not "".join(names).isascii():
        reserved.update(n for n in distinct if not (n.isascii() or _is_text(n)))
    for output in outputs if several or reserved else ():
        if output.name in several:
            several[output.name].append(output.sources[0].key)
        if output.name in reserved:
            would = f"would be named {output.name!r}, which safetensors cannot store"
            yield Finding("reserved-name", output.sources[0].key, would, "rename or exclude it")
    for name, keys in several.items():
        yield Finding("collision", name, f"{some(keys)} would get the same name", "rename or exclude one of them")


def _is_text(name: str) -> bool:
    """Whether it can be written as UTF-8; half a surrogate pair, which bytes of a command line can become, cannot."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def about_assets(assets: Assets | None) -> Iterator[Finding]:
    """What is missing or odd beside the weights."""
    if assets is None:
        yield Finding(
            "assets-none", "", "no assets directory was given, so the result will have no config and no tokenizer",
            f"give the directory of config.json: {option('model_assets_dir')}",
        )  # fmt: skip
        return
    yield from assets.findings


def about_leftovers(leftovers: Sequence[Leftover]) -> Iterator[Finding]:
    """How many keys are left out, by reason."""
    if leftovers:
        counts = Counter(left.reason for left in leftovers)
        text = "; ".join(f"{reason}: {count:,}" for reason, count in sorted(counts.items()))
        yield Finding("left-out", "", f"{counted(len(leftovers), 'key')} left out; reasons: {text}")
