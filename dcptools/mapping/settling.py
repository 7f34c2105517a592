"""What the model itself says about outputs: which are not weights, which are one weight, what they are published as.

Each step takes outputs and gives outputs, leftovers and findings. Nothing that was found is lost: a key from which no
output is made any more becomes a leftover with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple

from dcptools._option import option
from dcptools._text import counted, format_bytes, some
from dcptools.checkpoint import Checkpoint
from dcptools.errors import DcptoolsError
from dcptools.expected import Expected, Naming, Shape
from dcptools.findings import Finding
from dcptools.layouts import Leftover, Output, Role
from dcptools.tensors import Composed, View, same_values


@dataclass(frozen=True, slots=True)
class Settled:
    """The outputs that remain, and what became of the others."""

    outputs: tuple[Output, ...]
    leftovers: tuple[Leftover, ...] = ()
    findings: tuple[Finding, ...] = ()


def without_buffers(outputs: Sequence[Output], expected: Expected, naming: Naming) -> Settled:
    """Leave out what a live model recomputes and does not save, such as the frequencies of its positions."""
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in expected.ignored) or r"(?!)")
    left = [
        output
        for output in outputs
        if output.name not in naming.shapes and (output.name in expected.unsaved or ignored.search(output.name))
    ]
    weights = [output for output in left if output.name.endswith(".weight")]  # of another model, or of other layers
    settled = _leave_out(outputs, left, f"{expected.title} does not save it")
    return replace(settled, findings=_about_left(weights, expected))


def without_unexpected(outputs: Sequence[Output], expected: Expected, naming: Naming) -> Settled:
    """Leave out outputs whose names no weight of the model has. One may be a layer of it, if its config is wrong."""
    left = [output for output in outputs if output.name not in naming.shapes]
    settled = _leave_out(outputs, left, f"no weight of {expected.title}")
    return replace(settled, findings=_about_left(left, expected))


def _about_left(left: Sequence[Output], expected: Expected) -> tuple[Finding, ...]:
    if not left:
        return ()
    size = format_bytes(sum(output.nbytes for output in left))
    return (
        Finding(
            "left-out-tensor", "",
            f"{expected.title} has no weight for {counted(len(left), 'tensor')} of {size}, left out: "
            f"{some([output.name for output in left])}",
            f"{option('exclude')} leaves out the same without this warning",
        ),
    )  # fmt: skip


def without_tied_tokens(outputs: Sequence[Output], expected: Expected | None) -> Settled:
    """Leave out what an adapter trained for single tokens, if the model ties it to what is already written."""
    tied = {name for names in expected.stored.ties for name in names[1:]} if expected else set()
    roles = {output: Role.of(output.name) for output in outputs}
    left = [output for output, role in roles.items() if role.kind == "tokens" and role.weight in tied]
    return _leave_out(outputs, left, "tied; written under another name")


def tie(outputs: Sequence[Output], naming: Naming, checkpoint: Checkpoint, how: str) -> Settled:
    """Write one of several weights that the model ties, under the name that ``save_pretrained`` gives it.

    ``how`` is "auto" (if they have the same values), "drop" (whatever their values are) or "keep" (write all).
    """
    by_name = {output.name: output for output in outputs}
    if len(by_name) < len(outputs):  # two with one name: an error that is reported for them
        return Settled(tuple(outputs))
    gone: list[Output] = []
    renamed: dict[Output, Output] = {}
    findings = []
    for names in naming.ties:
        tied = [by_name[name] for name in names if name in by_name]
        if not tied:
            continue
        shape = naming.shapes.get(names[0])
        first, *others = sorted(tied, key=lambda each: shape not in (None, each.shape))  # one that fits
        if how == "auto" and shape is not None:  # that some have another shape is reported for them
            others = [other for other in others if other.shape == first.shape]
        dropped, finding = _tied(first, others, checkpoint, how)
        gone += dropped
        findings += [finding] if finding else []
        if len(dropped) == len(tied) - 1 and first.name != names[0]:
            renamed[first] = replace(first, name=names[0], rule=f"{first.rule}, tied to {first.name}")
    settled = _leave_out(outputs, gone, "tied; written under another name")
    return Settled(tuple(renamed.get(each, each) for each in settled.outputs), settled.leftovers, tuple(findings))


def _tied(
    first: Output, others: Sequence[Output], checkpoint: Checkpoint, how: str
) -> tuple[list[Output], Finding | None]:
    """Which of the others are not written, and what to say about it."""
    names = some([other.name for other in others])
    if not others:
        return [], None
    if how == "keep":
        return [], Finding(
            "tied-kept",
            first.name,
            f"the model ties it to {names}; all are written",
            f"{option('tied', 'auto')} compares them",
        )
    if how == "drop":
        return list(others), Finding("tied-dropped", first.name, f"written once; {names} is not compared")
    try:
        different = [other for other in others if not _same(first, other, checkpoint)]
    except DcptoolsError as error:
        found = " ".join(str(error).splitlines()[:2])  # where, and what
        why = f"it is not known whether it is the same as {names}: {found.rstrip('.')}"
        return [], Finding(
            "tied-differ", first.name, why, f"all are written; {option('tied', 'drop')} writes only this one"
        )
    if different:
        names = some([other.name for other in different])
        found = ", but the checkpoint has other values there"
        if any(other.shape != first.shape for other in different):
            found = ", but the checkpoint has another shape there"
        return [other for other in others if other not in different], Finding(
            "tied-differ", first.name, f"the model ties it to {names}{found}",
            "all are written; transformers 5 uses each, older versions use one for all, unless config.json says "
            "\"tie_word_embeddings\": false; "
            f"{option('tied', 'drop')} writes only this one",
        )  # fmt: skip
    return list(others), Finding("tied-weights", first.name, f"tied to {names}, with the same values; written once")


def _same(first: Output, other: Output, checkpoint: Checkpoint) -> bool:
    tensors = [[checkpoint.tensors[view.key] for view in output.sources] for output in (first, other)]
    if any(
        len(output.sources) != 1 or not output.sources[0].is_whole(t[0].shape)
        for output, t in zip((first, other), tensors, strict=True)
    ):
        return first.sources == other.sources
    return same_values(tensors[0][0], tensors[1][0])


def publish(outputs: Sequence[Output], expected: Expected) -> Settled:
    """Make the tensors that ``save_pretrained`` writes from those of the live model."""
    stored = {output.name: output for output in outputs}
    if len(stored) < len(outputs):  # two with one name: an error that is reported for them
        return Settled(tuple(outputs))
    sources = {name: _Source.of(output, expected.stored.shapes.get(name)) for name, output in stored.items()}
    whole = {name: _published(name, composed, sources) for name, composed in expected.conversion.items()}
    made = {name: output for name, output in whole.items() if output}
    used = {view.key for name in made for view in expected.conversion[name].views}
    others = [output for output in outputs if output.name not in used and output.name not in expected.stored.shapes]
    written = sorted((*made.values(), *others), key=attrgetter("name"))
    kept = {view.key for output in (*others, *map(stored.__getitem__, used)) for view in output.sources}
    left = [output for output in outputs if not kept.issuperset(view.key for view in output.sources)]
    leftovers = _leave_out(outputs, left, "a part of what would be published is missing").leftovers
    return Settled(tuple(written), leftovers)


class _Source(NamedTuple):
    """A tensor of the live model, from which published ones are made."""

    output: Output
    shape: Shape | None  # that the model expects
    whole: View | None  # the elements that parts of it are taken from; None if none can be
    rule: str  # of its parts

    @classmethod
    def of(cls, output: Output, shape: Shape | None) -> _Source:
        (view, *others) = output.sources
        is_range = output.shape == shape and not others and view.contiguous
        return cls(output, shape, view if is_range else None, f"{output.rule}, a part of what is published")


def _published(name: str, composed: Composed, sources: Mapping[str, _Source]) -> Output | None:
    """One published tensor; None if a source is missing, or does not have the shape or the dtype that is needed."""
    views = composed.views
    if (one := sources.get(views[0].key)) is None:
        return None
    first = one.output
    if len(views) == 1 and composed.shape == one.shape and views[0].is_whole(composed.shape):
        if name == first.name:
            return first
        return replace(first, name=name, rule=f"{first.rule}, published as {name}")  # whatever its own shape is
    made = []
    for view in views:
        source = sources.get(view.key)
        if source is None or source.whole is None or source.output.dtype is not first.dtype:
            return None
        made.append(view.inside(source.whole))
    return Output(name, tuple(made), composed.shape, first.dtype, one.rule)


def _leave_out(outputs: Sequence[Output], left: Iterable[Output], reason: str) -> Settled:
    """Without some outputs, usually none; their keys are leftovers, if nothing else is made from them."""
    gone = set(left)
    if not gone:
        return Settled(tuple(outputs))
    kept = tuple(output for output in outputs if output not in gone)
    used = {view.key for output in kept for view in output.sources}
    keys = {view.key: output for output in gone for view in output.sources if view.key not in used}
    return Settled(kept, tuple(Leftover(key, "tensor", reason, output.nbytes) for key, output in keys.items()))


def names_differ(expected: Expected, naming: str, names: str) -> Finding | None:
    """Which programs read the written names, if stored and published ones are not the same."""
    if not expected.differ:
        return None
    count = counted(len(expected.published.shapes.keys() - expected.stored.shapes.keys()), "published name")
    if naming == "published":
        return Finding("names", "", f"the checkpoint has the published names already ({count}); they are written")
    if names == "published":
        return Finding("names", "", f"{count} are written, which all programs read")
    who = f"transformers 5 reads them; vLLM, SGLang and older transformers read the {count}"
    hint = f"{option('names', 'published')} writes those, as save_pretrained does"
    return Finding("names", "", f"the names of the live model are written: {who}", hint)
