"""What is wrong with a result that is not the model: a verdict, and a finding per weight with its likely cause."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from dcptools._option import option
from dcptools._text import counted, format_shape, some
from dcptools.expected import Expected, Naming
from dcptools.findings import Finding
from dcptools.layouts import Difference, Fit, Output

_VOCABULARY = re.compile(
    r"(^|\.)(embed_tokens|lm_head|wte|word_embeddings|shared|embed_in|embed_out|decoder)\.(weight|bias)$"
)
_LAYER = re.compile(r"(.*?\.(?:layers|layer|h|blocks?))\.(\d+)\.")
_WEIGHT = re.compile(r"(^|\.)(q?weights?(_packed)?|[^.]*_proj)$")  # tables of indices have other names
_QUANTIZED = "convert the trained checkpoint, not a quantized one"
_EXPERTS = re.compile(r"\.experts\.")


def allow() -> str:
    return f"{option('allow_mismatch', True)} writes it anyway"


def as_allowed(findings: Iterable[Finding], allow_mismatch: bool) -> Iterator[Finding]:
    """Errors among the findings as warnings, if that was requested."""
    for finding in findings:
        yield replace(finding, severity="warning") if allow_mismatch and finding.severity == "error" else finding


def about_model(
    found: Fit, expected: Expected, naming: Naming, excluded: Collection[str], *, allow_mismatch: bool
) -> Iterator[Finding]:
    """The verdict, then what is missing, of another shape, or unexpected.

    What the user left out is not an error, and neither is anything with ``allow_mismatch``.
    """
    knowingly = [each for each in found.missing if each.name in excluded]
    missing = [each for each in found.missing if each.name not in excluded]
    wrong = bool(missing or found.misshapen)
    findings = [_verdict(found, expected, naming, wrong=wrong)]
    if not found.fitting:  # another model altogether: what is missing of it says nothing
        missing, knowingly = [], []
    findings += [Finding("weight-missing", each.name, _missing(each), "") for each in missing]
    findings += [Finding("weight-shape", each.name, _shapes(each), _why_shape(each)) for each in found.misshapen]
    yield from as_allowed(findings, allow_mismatch)
    if not found.shapes_known:
        what = f"{found.title} is an index without its files, so shapes were not compared"
        yield Finding("shapes-unknown", "", what, "give the reference's files too, or a config.json")
    yield from map(left_out, [each.name for each in knowingly])
    for each in found.unexpected if found.fitting else ():
        what = f"{found.title} has no weight of this name; it is written anyway"
        why = (
            f"if it was trained, config.json is another model's; {option('unexpected', 'drop')} leaves such tensors out"
        )
        yield Finding("weight-unexpected", each.name, what, why)


def about_optional(names: Iterable[str], naming: Naming, excluded: Collection[str]) -> Iterator[Finding]:
    """Weights that ``save_pretrained`` writes, but whose absence transformers does not report when it loads a model."""
    made = {naming.written.get(name) for name in names}
    for name in sorted(naming.optional.intersection(naming.written.values()) - made):
        what = "the checkpoint does not have it, and transformers silently makes a new one"
        yield left_out(name) if name in excluded else Finding("weight-missing", name, what, severity="warning")


def left_out(name: str) -> Finding:
    """A weight that the user left out."""
    what = f"left out by {option('include')} or {option('exclude')}"
    return Finding("weight-missing", name, what, severity="warning")


def about_kinds(outputs: Iterable[Output], expected: Expected | None) -> Iterator[Finding]:
    """Weights stored in a dtype that no such model has; or, if the model is not known, that hardly any model has."""
    for output in outputs:
        if output.dtype.kind in ("float", "float8"):
            continue
        if expected is None or expected.numbers is None:
            if output.dtype.kind == "int" and len(output.shape) > 1 and _WEIGHT.search(output.name):
                what = f"{output.dtype.name} is stored: like quantized values, whose scale is elsewhere"
                yield Finding("weight-kind", output.name, what, f"{_QUANTIZED}; or dequantize it first")
            continue
        known = output.name in expected.stored.shapes or output.name in expected.published.shapes
        if known and output.name not in expected.numbers:
            what = f"{output.dtype.name} is stored where {expected.title} has floating-point values"
            yield Finding("weight-kind", output.name, what, _QUANTIZED)


def _verdict(found: Fit, expected: Expected, naming: Naming, *, wrong: bool) -> Finding:
    if not wrong:
        part = f"{found.fitting:,} of {counted(found.weights, 'weight')} of {found.title} are converted and fit"
        return Finding("model-fits", "", f"{found.sentence if found.complete else part} ({found.reading})")
    causes = list(_causes(found, expected, naming))
    return Finding(
        "model-mismatch", "", f"{found.sentence} ({found.reading})",
        "; ".join([*causes, f"check config.json and the layout; {allow()}"]),
    )  # fmt: skip


def _causes(found: Fit, expected: Expected, naming: Naming) -> Iterator[str]:
    """What many differences have in common."""
    missing, unexpected = found.missing, found.unexpected
    if not found.fitting:
        yield "no weight fits: this is the checkpoint of another model, or config.json is"
        return
    lacking = {each.name for each in missing}
    for stem, first in _first_layers(lacking).items():
        if first and lacking.issuperset(_layer(naming, stem, first)):
            yield f"{stem} ends before layer {first}, and config.json has more: another number of layers"
    for stem, first in _first_layers([each.name for each in unexpected]).items():
        if first and not _layer(naming, stem, first):
            yield f"{stem} goes on from layer {first}, where config.json ends: another number of layers"
    heads = [each for each in missing if not _LAYER.match(each.name) and not _of_base(each.name, expected)]
    if heads and len(heads) == len(missing):
        yield f"the base model without its head: {some([each.name for each in heads])}"
    extra = [each for each in unexpected if _shares_no_module(each.name, expected)]
    if extra and not missing:
        yield f"a head that the model does not have: {some([each.name for each in extra])}"
    if any(_is_vocabulary(each) for each in found.misshapen):
        yield "another vocabulary size"


def _of_base(name: str, expected: Expected) -> bool:
    return bool(expected.base) and name.startswith(f"{expected.base}.")


def _shares_no_module(name: str, expected: Expected) -> bool:
    first = name.partition(".")[0]
    return not any(other.startswith(f"{first}.") for other in expected.stored.shapes)


def _layer(naming: Naming, stem: str, number: int) -> list[str]:
    """The weights of one layer that the model needs."""
    return [name for name in naming.needed if name.startswith(f"{stem}.{number}.")]


def _first_layers(names: Iterable[str]) -> dict[str, int]:
    """For each stack of layers, the first one that has a weight among the names."""
    first: dict[str, int] = {}
    for name in names:
        if match := _LAYER.match(name):
            first[match[1]] = min(int(match[2]), first.get(match[1], int(match[2])))
    return first


def _missing(each: Difference) -> str:
    return f"the checkpoint has no such weight of the shape {format_shape(each.expected or ())}"


def _shapes(each: Difference) -> str:
    return f"{format_shape(each.found or ())} is stored, but the model expects {format_shape(each.expected or ())}"


def _is_vocabulary(each: Difference) -> bool:
    found, expected = each.found or (), each.expected or ()
    return bool(_VOCABULARY.search(each.name)) and found[:1] != expected[:1] and found[1:] == expected[1:]


def _why_shape(each: Difference) -> str:
    """The likely cause of a shape that is not the expected one, and what has it."""
    why = _likely(each)
    if each.tied:
        why += f"; {each.tied}, which the model ties it to, fits: {option('tied', 'drop')} writes that"
    return why


def _likely(each: Difference) -> str:
    found, wanted = each.found or (), each.expected or ()
    if _is_vocabulary(each):
        more = found[0] - wanted[0]
        if more > 0:
            return f"a vocabulary with {counted(more, 'row')} of padding: set vocab_size to {found[0]} in config.json"
        return f"a smaller vocabulary: set vocab_size to {found[0]} in config.json"
    if len(found) == len(wanted) and found[1:] == wanted[1:] and _EXPERTS.search(each.name) and found[0]:
        if wanted[0] % found[0] == 0:
            return f"{found[0]} of {wanted[0]} experts: what one of {wanted[0] // found[0]} expert-parallel ranks holds"
        return f"another number of experts: {found[0]}"
    if sorted(found) == sorted(wanted):
        return "the dimensions are in another order: is it transposed?"
    if len(found) != len(wanted) and [n for n in found if n != 1] == [n for n in wanted if n != 1]:
        return "only dimensions of size 1 differ"
    factors = [w // f for f, w in zip(found, wanted, strict=False) if f and w % f == 0 and f != w]
    if len(found) == len(wanted) and len(factors) == sum(f != w for f, w in zip(found, wanted, strict=True)) == 1:
        return f"one of {factors[0]} equal parts: what one rank of {factors[0]} holds"
    return "another size than config.json says"
