"""Findings: what was noticed about a checkpoint, a mapping or a plan, as data.

The codes are stable; :data:`CODES` says what each means, and the docs are checked against it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import takewhile
from typing import Any, Literal, NamedTuple, cast

from dcptools._text import printable

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
SHOWN_PER_CODE = 20  # lines; this many of one code are shown, and the rest is counted
SHOWN_ALONE = 3  # findings of one code; if there are more, those of a prefix are one line


class Code(NamedTuple):
    """What all findings of a kind have in common."""

    severity: Severity
    meaning: str


CODES: dict[str, Code] = {
    # the checkpoint
    "foreign-class": Code(
        "warning", "The metadata names a class that dcptools does not know; it was replaced by an inert stand-in."
    ),
    "no-metadata": Code("info", "There is no .metadata; the headers of safetensors shards say what is there."),
    "metadata-slow": Code("info", "The records of .metadata are read one by one, not in batches, which takes longer."),
    "missing-file": Code("error", "A .distcp file that the metadata names is not in the directory."),
    "truncated-file": Code("error", "A .distcp file ends before the bytes that the metadata promises."),
    "hole": Code(
        "error", "The stored chunks do not cover the whole tensor; torch would leave the hole unfilled, silently."
    ),
    "overlap": Code("error", "Stored chunks overlap without being exact replicas, or reach outside the tensor."),
    "no-storage": Code("error", "The metadata lists a chunk but not where its bytes are."),
    "unsupported-encoding": Code(
        "error", "The bytes are stored with a transform or in a format that dcptools does not read."
    ),
    "newer-file": Code("warning", "A .distcp file was written long after .metadata, which a save writes last."),
    # the mapping
    "layout": Code("info", "Which layout was chosen for the key names, and why."),
    "container": Code("warning", "The model was found in a container other than `model`."),
    "wrapper-removed": Code(
        "info", "A wrapper segment (torch.compile, FSDP, activation checkpointing, DDP) was removed from a key."
    ),
    "unusual-key": Code(
        "warning",
        "A key under the container is neither `model.*` nor a head (`lm_head.weight`, `score.weight`); it lost the "
        "container's prefix.",
    ),
    "flat-parameter": Code(
        "error", "FSDP1 flat parameters: names and shapes of the tensors are gone; they cannot be converted."
    ),
    "peft": Code("warning", "Keys of peft that are not those of a LoRA adapter: `transformers` does not load them."),
    "collision": Code("error", "Two checkpoint keys would get the same output name."),
    "reserved-name": Code("error", "An output name that safetensors cannot store."),
    "rename-unused": Code("warning", "A rename rule matched no name."),
    "renamed-away": Code("warning", "Rename rules give weights of the model other names than the model does."),
    "option-unused": Code("warning", "An option was given that has no effect here."),
    "pattern-unused": Code("warning", "An include, exclude or dtype pattern matched no key."),
    "no-model-weights": Code("error", "No key is a model weight under the chosen layout."),
    "left-out-tensor": Code(
        "warning", "Tensors that are neither the model's nor training state, and are not converted."
    ),
    "left-out": Code("info", "Keys that are not converted, counted by reason."),
    # the assets
    "assets-missing": Code(
        "warning", "An expected file (config.json, tokenizer) is not among the assets, or is not an ordinary file."
    ),
    "assets-none": Code("warning", "No assets directory was given; the output has weights only."),
    "config-unreadable": Code("error", "config.json is not a JSON object in UTF-8."),
    "config-no-architectures": Code(
        "warning", "config.json names no `architectures`; AutoModel classes cannot choose a class."
    ),
    "config-unknown-model-type": Code(
        "warning", "config.json has no `model_type`, or one that the installed transformers lacks."
    ),
    "config-quantized": Code("warning", "config.json describes quantized weights, but those that are written are not."),
    "config-dtype": Code("info", "config.json names another dtype than is written; the copy gets the written one."),
    "foreign-names": Code("error", "A trainer's own names; their values are not laid out as in the HuggingFace model."),
    # the model that config.json or a reference names
    "model-fits": Code("info", "Every weight of the model is there, in the shape that it expects."),
    "model-mismatch": Code("error", "The result is not the model that config.json or the reference names."),
    "model-unknown": Code("info", "Nothing is known about the model of config.json, so names are found by rules."),
    "model-not-built": Code("warning", "transformers cannot build the model that config.json describes."),
    "config-differs": Code("warning", "The config.json that is copied is not that of the reference."),
    "family-differs": Code("warning", "The given family makes another architecture than config.json names."),
    "shapes-unknown": Code("warning", "The reference is an index without its files: shapes were not compared."),
    "weight-kind": Code("warning", "Integers, booleans or complex numbers are stored where models have floats."),
    "weight-missing": Code("error", "A weight that the model or the adapter needs is not there, or was left out."),
    "weight-shape": Code("error", "A weight has another shape than the model expects."),
    "weight-unexpected": Code("warning", "A tensor that the model has no weight for is written."),
    "names": Code("info", "The live model and its published files name weights differently; which names are written."),
    "names-unknown": Code("warning", "Published names were requested, but it is not known what they are."),
    "tied-weights": Code("info", "Weights that the model ties have the same values; one is written."),
    "tied-kept": Code("warning", "Weights that the model ties are all written; their values were not compared."),
    "tied-dropped": Code("warning", "One of several weights that the model ties is written; values were not compared."),
    "tied-differ": Code("warning", "Weights that the model ties differ, or cannot be compared; all are written."),
    # an adapter
    "adapter": Code("info", "The checkpoint has a LoRA adapter of peft, and the adapter is written."),
    "base-left-out": Code("warning", "The adapter is written, and the base model in the checkpoint is not."),
    "adapter-left-out": Code("warning", "The base model is written, and the adapter in the checkpoint is not."),
    "trained-copy": Code("warning", "For a module that was trained whole, the trained copy is written."),
    "adapter-config": Code("warning", "No adapter config was given, so one is made; or it was given, but is not used."),
    "adapter-config-differs": Code("error", "The given config is not that of the adapter in the checkpoint."),
    "adapter-mismatch": Code("error", "The adapter is not for the model that config.json or the reference names."),
    "adapter-unchecked": Code("warning", "The checkpoint was not compared with a field of the adapter's config."),
    # the plan
    "kept-float32": Code(
        "info", "Parts that the model keeps in float32 when it is loaded in a narrower dtype stay float32."
    ),
    "float8": Code("warning", "fp8 tensors are passed through uncast: without their scales the numbers mean nothing."),
    "dtype-unsupported": Code("error", "safetensors has no type for this tensor's dtype."),
    "adapter-not-cut": Code("info", "An adapter larger than the shard size stays one file: peft reads no other."),
    "large-tensor": Code("info", "One tensor is larger than the shard size and gets a file of its own."),
    # the write
    "all-nan": Code("warning", "Every value of a tensor is NaN."),
    "cast-overflow": Code("warning", "Finite values became Inf in the cast."),
    "no-checksum": Code("info", "Items were stored without a checksum, so their bytes could not be verified."),
    "stale-file": Code("warning", "A file of the old model could not be removed; the new model is complete."),
    # a model on the disk
    "model-file": Code(
        "error", "A file of the model is missing, is damaged or contradicts itself, or is not the one that was written."
    ),
    "model-index": Code("error", "The index of the model and its files say different things, or it is damaged."),
    "model-form": Code("warning", "A header or the index says what it should, but not in the usual form."),
    "model-extra": Code("warning", "A file with weights is beside the model's files, but is not part of the model."),
    "model-config": Code("error", "config.json is not JSON, or names another dtype than the weights have."),
    "model-asset": Code("error", "A file beside the weights is missing, or is not the one from the assets."),
    "disk-missing": Code("error", "The checkpoint gives a weight that the model does not have."),
    "disk-unexpected": Code("error", "The model has a weight that the checkpoint does not give."),
    "disk-shape": Code("error", "A weight has another shape in the model than in the checkpoint."),
    "disk-dtype": Code(
        "error", "A weight has a dtype that no cast from the checkpoint's gives, or not the requested one."
    ),
    "disk-values": Code("error", "Values of a weight are not those of the checkpoint, or not those that were written."),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was noticed.

    ``key`` is the checkpoint key or output name concerned, or ``""``; ``hint`` says what to do, and names options as
    the command line does. The severity is that of the code, unless it is another one here.

    >>> print(Finding("hole", "model.w", "rows 2 to 4 are missing", "save again"))
    error[hole] model.w: rows 2 to 4 are missing (save again)
    """

    code: str
    key: str
    message: str
    hint: str = ""
    severity: Severity = cast(Severity, "")  # noqa: RUF009  (filled in from the code)

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(f"undocumented finding code {self.code!r}")
        if self.severity not in SEVERITIES:
            object.__setattr__(self, "severity", CODES[self.code].severity)

    def __str__(self) -> str:
        where = f" {self.key}:" if self.key else ":"
        text = f"{self.severity}[{self.code}]{where} {self.message}" + (f" ({self.hint})" if self.hint else "")
        return printable(text)  # keys are untrusted: they must not control a terminal

    def as_error(self) -> Finding:
        """The same finding as an error (what ``strict`` does to warnings)."""
        return replace(self, severity="error")

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("code", "severity", "key", "message", "hint")}


class HasFindings:
    """A value that carries findings; a frozen dataclass derives from it and names the field."""

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop the conversion."""
        return of_severity(self.findings, "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings to look at before going on."""
        return of_severity(self.findings, "warning")


def of_severity(findings: Iterable[Finding], severity: Severity) -> tuple[Finding, ...]:
    return tuple(f for f in findings if f.severity == severity)


def advice(code: str) -> str:
    """What to do about findings of a code: Markdown, with links to pages of the docs.

    >>> advice("missing-file")
    'Copy the file, or use another checkpoint.'
    """
    return _all_advice()[code]


@cache
def _all_advice() -> dict[str, str]:
    return tomllib.loads(resources.files("dcptools").joinpath("advice.toml").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Group:
    """Findings of one severity and code that are reported together; shows itself as one line."""

    findings: tuple[Finding, ...]

    @property
    def severity(self) -> Severity:
        return self.findings[0].severity

    @property
    def code(self) -> str:
        return self.findings[0].code

    @property
    def keys(self) -> tuple[str, ...]:
        """What they are about; some are about no key."""
        return tuple(finding.key for finding in self.findings if finding.key)

    @property
    def where(self) -> str:
        """The one key, or how many there are and what they begin with; empty if it is about no key.

        >>> Group(tuple(Finding("hole", f"model.layers.{n}.w", "rows are missing") for n in range(36))).where
        '36 keys under model.layers.*'
        """
        if len(self.findings) == 1:
            return self.findings[0].key
        parts = [key.split(".")[:-1] for key in self.keys]
        shared = takewhile(lambda segments: len(set(segments)) == 1, zip(*parts, strict=False))
        prefix = ".".join(segments[0] for segments in shared)
        alike = len({(finding.message, finding.hint) for finding in self.findings}) == 1
        return f"{len(self.keys):,} keys under {prefix}.*" + ("" if alike else f", such as {self.keys[0]}")

    @property
    def sentence(self) -> str:
        """What is said about all of them, or about the first one."""
        first = self.findings[0]
        return first.message + (f" ({first.hint})" if first.hint else "")

    def __str__(self) -> str:
        where = f" {self.where}:" if self.where else ":"
        return printable(f"{self.severity}[{self.code}]{where} {self.sentence}")


def summary_lines(findings: Iterable[Finding], *, most: int = SHOWN_PER_CODE) -> Iterator[str]:
    """Lines for people: errors first and infos last; keys of one code and prefix are one line.

    >>> missing = [Finding("weight-missing", f"model.ema.layers.{n}.w", "it is missing") for n in range(36)]
    >>> print(*summary_lines(missing), sep="\\n")
    error[weight-missing] 36 keys under model.ema.layers.*: it is missing
    """
    return (line for _, line in summary(findings, most=most))


def summary(findings: Iterable[Finding], *, most: int = SHOWN_PER_CODE) -> Iterator[tuple[Severity, str]]:
    """The same lines, each with its severity; at most ``most`` of a code, then the count of the rest."""
    kinds: dict[tuple[Severity, str], list[Group]] = {}
    for group in grouped(findings):
        kinds.setdefault((group.severity, group.code), []).append(group)
    for (severity, code), groups in kinds.items():
        for group in groups[:most]:
            yield severity, str(group)
        if rest := sum(len(group.findings) for group in groups[most:]):
            yield severity, f"{severity}[{code}]: and {rest:,} more"


def grouped(findings: Iterable[Finding]) -> Iterator[Group]:
    """Errors first and infos last; more than three of a code by what their keys begin with: two names, or a layer's."""
    kinds: dict[tuple[Severity, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: -SEVERITIES.index(f.severity)):
        kinds.setdefault((finding.severity, finding.code), []).append(finding)
    for alike in kinds.values():
        groups: dict[tuple[str, ...], list[Finding]] = {}
        for number, finding in enumerate(alike):
            names = takewhile(lambda name: not name.isdecimal(), finding.key.split(".")[:-1][:2])
            prefix = tuple(names) if len(alike) > SHOWN_ALONE else ()
            groups.setdefault(prefix or (str(number),), []).append(finding)
        yield from (Group(tuple(group)) for group in groups.values())
