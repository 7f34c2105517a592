"""``preview``: every output with its HuggingFace name, every key that is left out, everything that looks wrong.

No tensor data is read. What a :class:`KeyMapping` shows is what is written: nothing later decides about names.
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dcptools._table import counted, format_bytes, format_count, format_shape, html_table, some, text_table
from dcptools.assets import Assets, find_assets
from dcptools.checkpoint import Checkpoint, StoredTensor, as_checkpoint
from dcptools.dtypes import DType
from dcptools.errors import UsageError
from dcptools.findings import Finding, HasFindings, summary_lines
from dcptools.layouts import Choice, Key, Named, beside, choose, is_training_state, name_of, top_level
from dcptools.tensors import View

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KeyMapping", "Leftover", "MappingOptions", "Output", "Rename", "preview"]

_FLAT = ("_flat_param", "flat_param")
_ADAPTER = re.compile(r"(^|\.)(base_model\.model\.|lora_[AB]\b|lora_embedding_[AB]\b|modules_to_save\.)")


@dataclass(frozen=True, slots=True)
class Rename:
    """One rename rule: a regular expression that must match a whole HuggingFace name, and its replacement.

    >>> Rename.parse(r"model\\.(.*)=language_model.\\1").apply("model.norm.weight")
    'language_model.norm.weight'
    """

    pattern: str
    replacement: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
            re.sub(self.pattern, self.replacement, "")
        except (re.error, IndexError) as error:
            raise UsageError(f"The rename rule {self} is not a valid regular expression: {error}.") from None

    @classmethod
    def parse(cls, rule: str | tuple[str, str] | Rename) -> Rename:
        """A rule from ``REGEX=REPLACEMENT``, split at the last ``=``, or from a pair."""
        if isinstance(rule, Rename):
            return rule
        pattern, equals, replacement = rule.rpartition("=") if isinstance(rule, str) else (rule[0], "=", rule[1])
        if not equals or not pattern:
            raise UsageError(f"The rename rule {rule!r} has no '='.\nExpected REGEX=REPLACEMENT.")
        return cls(pattern, replacement)

    def apply(self, name: str) -> str | None:
        """The new name, or None if the rule does not match the whole of it."""
        match = re.fullmatch(self.pattern, name)
        try:
            return match.expand(self.replacement) if match else None
        except (re.error, IndexError) as error:
            raise UsageError(f"The rename rule {self} cannot be applied to {name!r}: {error}.") from None

    def __str__(self) -> str:
        return f"{self.pattern}={self.replacement}"


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of the result: its name, and the views of stored tensors that it is made of.

    The values of the sources follow each other in row-major order: one whole tensor, one expert of a stack, or all
    experts of a layer that become one stack.

    Raises
    ------
    UsageError
        The sources have not just as many elements as the shape.
    """

    name: str
    sources: tuple[View, ...]
    shape: tuple[int, ...]
    dtype: DType  # as stored; the plan says what is written
    rule: str  # which rule gave the name

    def __post_init__(self) -> None:
        found = sum(view.numel for view in self.sources)
        if not self.sources or found != self.numel:
            raise UsageError(
                f"The sources of the output {self.name!r} have {found:,} elements.\n"
                f"Expected {self.numel:,}, those of its shape {self.shape}."
            )

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Leftover:
    """A key of the checkpoint that is not converted, and why."""

    key: str
    kind: str  # "tensor" or "object"
    reason: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class MappingOptions:
    """What ``preview`` was asked, to do the same again."""

    model_assets_dir: str | None = None
    layout: str = "auto"
    root: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rename: tuple[Rename, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``preview``."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, eq=False)
class KeyMapping(HasFindings):
    """Which tensors will be written under which names; every checkpoint key is a source or a leftover."""

    checkpoint: Checkpoint
    outputs: tuple[Output, ...]  # sorted by name
    leftovers: tuple[Leftover, ...]  # sorted by key
    findings: tuple[Finding, ...]
    layout: str  # "container", "bare", or "" if none was found
    root: str  # the container
    assets: Assets | None
    options: MappingOptions

    def __post_init__(self) -> None:
        """Hold the law: each key of the checkpoint is used, or left out with a reason, and never both."""
        used = Counter(leftover.key for leftover in self.leftovers)
        used.update({view.key for output in self.outputs for view in output.sources})
        if any(count != 1 for count in used.values()) or used.keys() != {
            *self.checkpoint.tensors,
            *self.checkpoint.objects,
        }:
            raise AssertionError("a key is neither used nor left out, or both; this is a bug in dcptools")
        for output in self.outputs:
            for view in output.sources:
                _check_view(output, view, self.checkpoint.tensors[view.key])

    def to_frame(self) -> pd.DataFrame:
        """One row an output: name, key (comma-separated if several), rule, shape, dtype, numel, findings."""
        import pandas as pd

        by_key: dict[str, list[str]] = {}
        for finding in self.findings:
            by_key.setdefault(finding.key, []).append(finding.code)
        rows = [
            {
                "name": output.name,
                "key": ", ".join(view.key for view in output.sources),
                "rule": output.rule,
                "shape": output.shape,
                "dtype": output.dtype.name,
                "numel": output.numel,
                "findings": ", ".join(
                    dict.fromkeys(
                        code for key in (output.name, *(v.key for v in output.sources)) for code in by_key.get(key, ())
                    )
                ),
            }
            for output in self.outputs
        ]
        return pd.DataFrame(rows, columns=["name", "key", "rule", "shape", "dtype", "numel", "findings"])

    def leftovers_frame(self) -> pd.DataFrame:
        """One row a key that is left out: key, kind, reason, nbytes."""
        import pandas as pd

        rows = [(left.key, left.kind, left.reason, left.nbytes) for left in self.leftovers]
        return pd.DataFrame(rows, columns=["key", "kind", "reason", "nbytes"])

    def to_json(self) -> dict[str, Any]:
        return {
            "layout": self.layout,
            "root": self.root,
            "outputs": [
                {
                    "name": o.name,
                    "keys": [view.key for view in o.sources],
                    "shape": o.shape,
                    "dtype": o.dtype.name,
                    "rule": o.rule,
                }
                for o in self.outputs
            ],
            "leftovers": [{"key": left.key, "kind": left.kind, "reason": left.reason} for left in self.leftovers],
            "findings": [finding.to_json() for finding in self.findings],
        }

    def leftover_counts(self) -> list[tuple[str, int, int]]:
        """One row a reason: reason, keys, bytes."""
        counts: dict[str, list[int]] = {}
        for left in self.leftovers:
            row = counts.setdefault(left.reason, [0, 0])
            row[0] += 1
            row[1] += left.nbytes
        return [(reason, keys, nbytes) for reason, (keys, nbytes) in sorted(counts.items())]

    def _headline(self) -> str:
        parameters = sum(output.numel for output in self.outputs)
        outputs = f"{counted(len(self.outputs), 'output')} with {format_count(parameters)} elements"
        return f"{outputs}; {counted(len(self.leftovers), 'key')} left out"

    def _rows(self) -> list[tuple[Any, ...]]:
        return [
            (", ".join(v.key for v in o.sources), o.name, format_shape(o.shape), o.dtype.name, o.rule)
            for o in self.outputs[:200]
        ]

    def _leftover_rows(self) -> list[tuple[Any, ...]]:
        return [(reason, f"{keys:,}", format_bytes(nbytes)) for reason, keys, nbytes in self.leftover_counts()]

    def table(self) -> str:
        """The mapping as a text table, without the findings."""
        parts = [self._headline()]
        if self.outputs:
            parts.append(text_table(_HEADER, self._rows(), total=len(self.outputs)))
        if self.leftovers:
            parts.append(text_table(("left out because", "keys", "bytes"), self._leftover_rows()))
        return "\n".join(parts)

    def __str__(self) -> str:
        return "\n".join([self.table(), *summary_lines(self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [html_table(_HEADER, self._rows(), title=self._headline(), total=len(self.outputs))]
        if self.leftovers:
            parts.append(html_table(("left out because", "keys", "bytes"), self._leftover_rows()))
        if self.findings:
            parts.append(html_table(["finding"], [[line] for line in summary_lines(self.findings)]))
        return "".join(parts)


def _check_view(output: Output, view: View, tensor: StoredTensor) -> None:
    """Raises UsageError: what is written must be what the checkpoint has, and nothing beside it."""
    if view.end > tensor.numel:
        raise UsageError(
            f"A source of the output {output.name!r} reaches to element {view.end:,} of {view.key!r}.\n"
            f"Expected at most {tensor.numel:,}, those of its shape {tensor.shape}."
        )
    if output.dtype != tensor.dtype:
        raise UsageError(
            f"The output {output.name!r} is said to be stored as {output.dtype.name}.\n"
            f"Expected {tensor.dtype.name}, as {view.key!r} is."
        )


_HEADER = ("key", "name", "shape", "dtype", "rule")


def preview(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    model_assets_dir: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    layout: str = "auto",
    root: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Iterable[str | tuple[str, str] | Rename] = (),
) -> KeyMapping:
    """Say which key becomes which HuggingFace name, what is left out, and what looks wrong. Writes nothing.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or a path.
    model_assets_dir
        The directory with config and tokenizer; its files are checked and will be copied.
    reference
        Reserved for a model to compare with; must be None for now.
    layout
        How names are found: ``auto``, ``container`` or ``bare`` (see :mod:`dcptools.layouts`).
    root
        The container to convert, where it is not ``model``: ``ema``, ``app.model``.
    include, exclude
        Globs on checkpoint keys (``fnmatch``: ``*`` matches dots too). Without ``include`` all keys are meant.
    rename
        Rules for HuggingFace names, ``REGEX=REPLACEMENT`` or pairs. The first that matches a whole name wins.

    Raises
    ------
    UsageError
        An option cannot be used. Findings, errors among them, are not raised here: see ``KeyMapping.errors``.

    Examples
    --------
    >>> mapping = preview(demo.checkpoint, model_assets_dir=demo.assets)
    >>> mapping.outputs[0].name, mapping.outputs[0].sources[0].key
    ('lm_head.weight', 'model.lm_head.weight')
    """
    if reference is not None:
        raise UsageError("reference is reserved for comparing with a model, and is not supported yet.\nLeave it out.")
    checkpoint = as_checkpoint(checkpoint)
    rules = tuple(Rename.parse(rule) for rule in rename)
    options = MappingOptions(
        None if model_assets_dir is None else os.fspath(model_assets_dir),
        layout, root, tuple(include), tuple(exclude), rules,
    )  # fmt: skip
    assets = find_assets(model_assets_dir) if model_assets_dir is not None else None
    keys = {key: Key.of(key, tensor.path) for key, tensor in checkpoint.tensors.items()}
    choice = choose(list(keys.values()), layout, root)
    outputs, reasons, findings = _outputs(checkpoint, keys, choice, rules, _Globs(include, exclude))
    used = {view.key for output in outputs for view in output.sources}
    found = [
        *_about_choice(checkpoint, choice, outputs, list(keys.values())),
        *_about_checkpoint(checkpoint, used),
        *findings,
        *_reserved(outputs),
        *_collisions(outputs),
        *_about_assets(assets, outputs),
    ]
    leftovers = _leftovers(checkpoint, used, reasons, found)
    ordered = tuple(sorted(outputs, key=lambda output: output.name))
    return KeyMapping(
        checkpoint, ordered, leftovers, tuple(found),
        choice.layout if choice else "", choice.root if choice else "", assets, options,
    )  # fmt: skip


class _Globs:
    """Include and exclude patterns that remember which of them matched something."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        if isinstance(include, str) or isinstance(exclude, str):
            raise UsageError("include and exclude are lists of globs, not one string.")
        self._include = [(glob, re.compile(fnmatch.translate(glob))) for glob in include]
        self._exclude = [(glob, re.compile(fnmatch.translate(glob))) for glob in exclude]
        self.unused = {*include, *exclude}

    def refusal(self, key: str) -> str | None:
        """Why a key is not wanted, or None."""
        included = [glob for glob, regex in self._include if regex.match(key)]
        excluded = [glob for glob, regex in self._exclude if regex.match(key)]
        self.unused.difference_update(included, excluded)
        if excluded:
            return f"excluded by {excluded[0]!r}"
        return "not included by any glob" if self._include and not included else None


def _outputs(
    checkpoint: Checkpoint, keys: dict[str, Key], choice: Choice | None, rules: Sequence[Rename], globs: _Globs
) -> tuple[list[Output], dict[str, str], list[Finding]]:
    """The outputs, for the other tensors the reason to leave them out, and the findings on the way."""
    outputs: list[Output] = []
    reasons: dict[str, str] = {}
    findings: list[Finding] = []
    lost: dict[str, list[StoredTensor]] = {}  # by what they stand in
    unused = set(rules)
    for key, tensor in checkpoint.tensors.items():
        named = name_of(keys[key], choice) if choice else Named(None)
        refusal = globs.refusal(key) or _extra_state(key)
        name = named.name
        if name is None or choice is None or refusal:
            reasons[key] = refusal if name is not None and refusal else _why_not_model(keys[key], choice)
            if choice and not refusal and not is_training_state(keys[key], choice) and not _counter(tensor):
                lost.setdefault(beside(keys[key], choice), []).append(tensor)
            continue
        rule = next((rule for rule in rules if rule.apply(name) is not None), None)
        findings += _about_key(key, named, rule, choice)
        if rule is not None:
            unused.discard(rule)
            name = rule.apply(name) or ""
        output = Output(name, (View.whole(tensor),), tensor.shape, tensor.dtype, _rule_text(choice, rule))
        outputs.append(output)
    nested = any(len(keys[view.key].path) > 1 for output in outputs for view in output.sources)
    if choice and outputs:
        findings += [_left_out(part, tensors, choice, nested) for part, tensors in lost.items()]
    findings += [
        Finding("rename-unused", "warning", "", f"the rule {rule} matched no name") for rule in rules if rule in unused
    ]
    findings += [
        Finding("pattern-unused", "warning", "", f"{glob!r} matched no tensor's key") for glob in sorted(globs.unused)
    ]
    return outputs, reasons, findings


def _extra_state(key: str) -> str | None:
    """TransformerEngine and others keep a module's extra state as a tensor; it is no weight."""
    return "a module's extra state, not a weight" if "_extra_state" in key.split(".") else None


def _rule_text(choice: Choice, rule: Rename | None) -> str:
    base = "kept" if choice.layout == "bare" else f"without {choice.root + '.'!r}"
    return f"{base}, then {rule}" if rule else base


def _why_not_model(key: Key, choice: Choice | None) -> str:
    if choice is None:
        return "no layout found"
    if choice.layout == "container":
        return f"not under {choice.root + '.'!r} ({key.first})"
    return f"{'training state' if is_training_state(key, choice) else 'not among the bare names'} ({key.first})"


def _counter(tensor: StoredTensor) -> bool:
    """One integer at the top of the state dict: so many tokens seen, so many epochs run."""
    return not tensor.shape and tensor.dtype.kind == "int" and "." not in tensor.key


def _left_out(part: str, tensors: Sequence[StoredTensor], choice: Choice, nested: bool) -> Finding:
    """A head must never vanish quietly: what is a tensor, is no training state and is not converted is warned about."""
    nbytes = format_bytes(sum(tensor.nbytes for tensor in tensors))
    keys = some([tensor.key for tensor in tensors])
    found = f"{counted(len(tensors), 'tensor')} of {nbytes}, no training state, and not converted: {keys}"
    hint = f"--exclude '{part}*' leaves it out knowingly"
    if choice.layout == "bare" or not any(len(tensor.path) == 1 for tensor in tensors):
        containers = {".".join(tensor.path[:-1]) for tensor in tensors}
        root = (containers.pop() if len(containers) == 1 else "") or part
        hint = f"--root {root} converts it instead; {hint}"
    elif not nested:  # the model's keys are at the top as well
        hint = f"--layout bare keeps all keys as they are; {hint}"
    return Finding("left-out-tensor", "warning", part, found, hint)


def _about_key(key: str, named: Named, rule: Rename | None, choice: Choice) -> Iterator[Finding]:
    name = named.name or ""
    if named.wrappers:
        yield Finding("wrapper-removed", "info", key, f"took out {some(dict.fromkeys(named.wrappers))}")
    if name.rpartition(".")[2] in _FLAT:
        yield Finding(
            "flat-parameter", "error", key, "a flat parameter of FSDP1 holds many tensors without names and shapes",
            "save with FSDP.set_state_dict_type(SHARDED_STATE_DICT) or with get_model_state_dict",
        )  # fmt: skip
    elif _ADAPTER.search(name):
        yield Finding(
            "lora", "warning", key, "a key of a PEFT adapter; transformers will not load it as part of a model",
            "merge the adapter in the training script (merge_and_unload) and save again",
        )  # fmt: skip
    elif not named.usual and rule is None:
        found = f"is neither {choice.root}.model.* nor {choice.root}.lm_head.weight; it is named {name!r}"
        hint = "--layout bare keeps it as it is, --rename gives another name"
        yield Finding("unusual-key", "warning", key, found, hint)


def _about_choice(
    checkpoint: Checkpoint, choice: Choice | None, outputs: Sequence[Output], keys: Sequence[Key]
) -> Iterator[Finding]:
    if choice is not None and outputs:
        yield Finding("layout", "info", "", f"layout {choice.layout!r}: {choice.reason}", "--layout overrules it")
        if choice.unusual:
            yield Finding("container", "warning", "", f"the model is read from {choice.root!r}", "--root names another")
        return
    unwanted = sum(name_of(key, choice).name is not None for key in keys) if choice else 0
    tops = sorted({*top_level(keys), *(key.partition(".")[0] for key in checkpoint.objects)})
    yield Finding(
        "no-model-weights", "error", "", "No model weights found!",
        f"{counted(unwanted, 'key')} of the model, and all left out: look at --include and --exclude" if unwanted else
        f"check the path {checkpoint.path}, that it is the model's checkpoint, and that keys start with 'model.'; "
        f"top-level keys here: {some(tops, 10) or 'none'}; if the model is there, say where with --layout or --root",
    )  # fmt: skip


def _about_checkpoint(checkpoint: Checkpoint, used: set[str]) -> Iterator[Finding]:
    """The checkpoint's findings; what concerns only keys that are not converted does not stop anything."""
    for finding in checkpoint.findings:
        harmless = finding.severity == "error" and finding.key and finding.key not in used
        yield replace(finding, severity="warning", hint="it is not converted") if harmless else finding


def _reserved(outputs: Sequence[Output]) -> Iterator[Finding]:
    for output in outputs:
        if output.name in ("__metadata__", ""):
            would = f"would be named {output.name!r}, which safetensors cannot store"
            yield Finding("reserved-name", "error", output.sources[0].key, would, "rename or exclude it")


def _collisions(outputs: Sequence[Output]) -> Iterator[Finding]:
    by_name: dict[str, list[str]] = {}
    for output in outputs:
        by_name.setdefault(output.name, []).append(output.sources[0].key)
    for name, keys in by_name.items():
        if len(keys) > 1:
            yield Finding(
                "collision", "error", name, f"{some(keys)} would get this one name", "rename or exclude one of them"
            )


def _about_assets(assets: Assets | None, outputs: Sequence[Output]) -> Iterator[Finding]:
    if assets is None:
        yield Finding(
            "assets-none", "warning", "", "no assets directory was given, so config and tokenizer will be missing",
            "give the directory that holds config.json: model_assets_dir=, --model-assets-dir",
        )  # fmt: skip
        return
    yield from assets.findings
    names = {output.name for output in outputs}
    if assets.says("tie_word_embeddings") is True and {"lm_head.weight", "model.embed_tokens.weight"} <= names:
        yield Finding(
            "tied-weights", "warning", "lm_head.weight", "config.json ties it to the embedding; both are written",
            "transformers uses the embedding for both; exclude one if they are equal",
        )  # fmt: skip


def _leftovers(
    checkpoint: Checkpoint, used: set[str], reasons: dict[str, str], findings: list[Finding]
) -> tuple[Leftover, ...]:
    tensors = [
        Leftover(key, "tensor", reasons[key], tensor.nbytes)
        for key, tensor in checkpoint.tensors.items()
        if key not in used
    ]
    objects = [
        Leftover(o.key, "object", "a pickled object, not a tensor", o.nbytes or 0) for o in checkpoint.objects.values()
    ]
    leftovers = tuple(sorted((*tensors, *objects), key=lambda left: left.key))
    if leftovers:
        counts = Counter(left.reason for left in leftovers)
        text = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
        findings.append(Finding("left-out", "info", "", f"{counted(len(leftovers), 'key')}: {text}"))
    return leftovers
