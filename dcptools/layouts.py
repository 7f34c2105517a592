"""Which keys are the model, and what each trainer calls them: the choice of a layout.

A layout says how to get from a checkpoint key to the HuggingFace name. Two families are known:

``container``
    The model's state dict was saved under a container, by default ``model``: ``model.model.layers.0...``,
    ``model.lm_head.weight``. The name is what stands after the container.
``bare``
    ``dcp.save(model.state_dict())``: the keys are the HuggingFace names already.

Only names are looked at, and the paths of ``planner_data`` (torch's ``_nested_dict.py``), never values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dcptools._table import some
from dcptools.errors import UsageError

LAYOUTS = ("auto", "container", "bare")
CONTAINER = "model"

# Modules that wrap the model and add a segment to every key below them:
# torch.compile, FSDP1, activation checkpointing, DistributedDataParallel
WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"))

# Names of HuggingFace models, from the first segment on. N is a number, * is anything within a segment. They are what
# transformers 5 gives its models, and 4 gave those that 5 names differently. Where ``model.`` may be a container as
# well, only what speaks against it is here: ``model.encoder.block.N`` is T5's base model in a container.
HUGGINGFACE_NAMES = (
    # a base model called `model`: decoders, then encoder-decoders, then vision and language
    "model.layers.N",
    "model.embed_tokens",
    "model.encoder.layers.N.self_attn",
    "model.decoder.layers.N.self_attn",
    "model.language_model",
    "model.text_model.layers.N",
    "model.visual",
    "model.vision_tower",
    "model.multi_modal_projector",
    # a base model of another name
    *("*bert*.embeddings", "*bert*.encoder.layer.N", "distilbert.transformer.layer.N", "electra.encoder.layer.N"),
    *("transformer.wte", "transformer.h.N", "transformer.word_embeddings", "gpt_neox.layers.N", "backbone.layers.N"),
    *("vit.embeddings", "wav2vec2.encoder.layers.N", "transformer.layers.N.self_attn"),
    *("text_model.embeddings", "text_model.encoder.layers.N", "vision_model.encoder.layers.N"),
    *("language_model.layers.N", "language_model.model.layers.N", "visual.blocks.N"),
    *("vision_tower", "multi_modal_projector"),
    # the base model itself
    *("embed_tokens", "layers.N.self_attn", "layers.N.mixer", "h.N.attn", "h.N.self_attention", "wte"),
    *("embeddings.word_embeddings", "embeddings.tok_embeddings", "embeddings.patch_embeddings"),
    *("encoder.embed_tokens", "encoder.layer.N", "encoder.layers.N.self_attn", "encoder.block.N"),
    *("decoder.embed_tokens", "decoder.layers.N.self_attn", "decoder.block.N"),
)
HEADS = ("lm_head", "score", "classifier", "qa_outputs")  # stand beside the base model, and in no container

# What trainers save beside the model, as a segment: optimizers, what else has state, counters
TRAINING_STATE = re.compile(
    r"(optim|optimizer|(lr_|opt_param_)?scheduler|((train|val|eval|ft)_)?data_?loader|sampler|((grad|loss)_)?scaler"
    r"|((cpu|cuda|torch|numpy|python|device)_)?rng|callback|loop|(global_)?step|iteration|epoch"
    r"|(train|trainer|training|extra|client)_state)(_states?)?(_dict)?s?(_?[0-9]+)?"
)
COPIES = ("ema", "ema_model", "model_ema")  # averages of the weights, kept beside the model


def _whole_segments(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches at the start of a key, up to the end of a segment."""
    regexes = (re.escape(name).replace(r"\*", "[^.]{0,20}").replace(r"\.N", r"\.[0-9]+") for name in names)
    return re.compile(rf"(?:{'|'.join(regexes)})\.")


_BODY = _whole_segments(HUGGINGFACE_NAMES)
_HEAD = re.compile(rf"(?:{'|'.join(HEADS)})\.(?:weight|bias)\Z")


def _is_huggingface_name(name: str) -> bool:
    return bool(_BODY.match(name) or _HEAD.match(name))


class Key(NamedTuple):
    """A tensor's key, without the segments of wrappers, and its path in the saved state dict (() if unknown)."""

    name: str
    path: tuple[str, ...]
    stored: str = ""  # as the checkpoint has it, if that differs

    @classmethod
    def of(cls, stored: str, path: tuple[str, ...]) -> Key:
        """The key with wrappers taken out below its container: a container may itself be called ``module``.

        >>> Key.of("module.model._orig_mod.norm.weight", ("module", "model._orig_mod.norm.weight")).name
        'module.model.norm.weight'
        """
        container = "".join(f"{part}." for part in path[:-1])
        if not stored.startswith(container):
            container = ""
        name = container + strip_wrappers(stored[len(container) :])[0]
        return cls(name, path, "" if name == stored else stored)

    @property
    def container(self) -> str:
        return ".".join(self.path[:-1])

    @property
    def first(self) -> str:
        """The first segment."""
        return self.name.partition(".")[0]

    def below(self, root: str) -> str | None:
        """What stands below a container, as it was stored where that says more; None if the key is not in it."""
        prefix = root + "."
        return next((k[len(prefix) :] for k in (self.stored, self.name) if k.startswith(prefix)), None)


class Named(NamedTuple):
    """What becomes of a key under a layout."""

    name: str | None  # the HuggingFace name; None: the key is not the model's
    usual: bool = True  # whether the key is of the usual form
    wrappers: tuple[str, ...] = ()  # the segments that were taken out


@dataclass(frozen=True, slots=True)
class Choice:
    """The layout that applies, and why."""

    layout: str  # "container" or "bare"
    root: str  # the container; "" for bare
    reason: str
    unusual: bool = False  # found in another container than usual
    copies: frozenset[str] = frozenset()  # for bare: first segments under which names of the model occur again


def strip_wrappers(key: str) -> tuple[str, tuple[str, ...]]:
    """The key without wrapper segments, and the segments that were taken out.

    >>> strip_wrappers("model._orig_mod.model.norm.weight")
    ('model.model.norm.weight', ('_orig_mod',))
    """
    if "_" not in key and "module." not in key:
        return key, ()
    parts = key.split(".")
    removed = tuple(part for part in parts if part in WRAPPERS)
    return (".".join(part for part in parts if part not in WRAPPERS), removed) if removed else (key, ())


def choose(keys: Sequence[Key], layout: str = "auto", root: str | None = None) -> Choice | None:
    """Choose the layout; None if no rule finds a model.

    The rules are tried in this order: names that only a container gives; a container ``model`` in ``planner_data``;
    names of a HuggingFace model at the top level; another container that holds a model (after the bare names, so that
    an ``ema`` beside them is not taken for the model); any ``model.*``.

    Raises
    ------
    UsageError
        The layout is not known, or no key stands under the given root.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"There is no layout {layout!r}.\nKnown layouts: {', '.join(LAYOUTS)}.")
    if root is not None and layout == "bare":
        raise UsageError("Bare names have no root.\nLeave out --root or --layout bare.")
    if root is not None:
        if all(key.below(root) is None for key in keys):
            raise UsageError(
                f"No tensor's key starts with {root + '.'!r}.\nTop-level keys: {some(top_level(keys), 10)}."
            )
        return Choice("container", root, f"the root {root!r} was asked for")
    if layout == "bare":
        return _as_bare(keys, "the layout 'bare' was asked for")
    if layout == "container":
        return Choice("container", CONTAINER, "the layout 'container' was asked for")
    return _by_names(keys) or _by_container(keys) or _bare(keys) or _by_other_container(keys) or _any_model(keys)


def _by_names(keys: Sequence[Key]) -> Choice | None:
    sign = ("model.model.", "model.base_model.")
    found = next((k.name for k in keys if k.name.startswith(sign) or k.name == "model.lm_head.weight"), None)
    return Choice("container", CONTAINER, f"there is a key {found!r}") if found else None


def _by_container(keys: Sequence[Key]) -> Choice | None:
    if any(len(key.path) > 1 and key.path[0] == CONTAINER for key in keys):
        return Choice("container", CONTAINER, "the saved state dict has a container 'model'")
    return None


def _by_other_container(keys: Sequence[Key]) -> Choice | None:
    others = sorted({key.container for key in keys if len(key.path) > 1 and _holds_model(key)})
    if len(others) == 1:
        return Choice("container", others[0], f"the saved state dict has a model in the container {others[0]!r}", True)
    return None


def _holds_model(key: Key) -> bool:
    *_, last = containers = key.path[:-1]
    if any("optim" in container for container in containers):
        return False
    called_so = last in WRAPPERS or (last == CONTAINER and len(containers) > 1)
    rest = key.below(key.container)
    return called_so or (rest is not None and _is_huggingface_name(strip_wrappers(rest)[0]))


def _bare(keys: Sequence[Key]) -> Choice | None:
    names = [key.name for key in keys if len(key.path) <= 1]
    head = next((name for name in names if _HEAD.match(name)), None)
    model = next((name for name in names if name.startswith(f"{CONTAINER}.")), None)
    body = next((name for name in names if _BODY.match(name)), model if head else None)
    if body is None:
        return None
    found = f"{head!r} stands beside {body!r}" if head else f"{body!r} is a name that HuggingFace models have"
    return _as_bare(keys, f"{found}, so the keys are HuggingFace names already")


def _as_bare(keys: Sequence[Key], reason: str) -> Choice:
    """The layout ``bare``, with what repeats the model's names below a segment of its own, as an ``ema`` does."""
    names = {key.name for key in keys if len(key.path) <= 1}
    split = [(first, rest) for first, _, rest in (name.partition(".") for name in names)]
    again = {first for first, rest in split if first in COPIES or (rest in names and _BODY.match(rest))}
    return Choice("bare", "", reason, copies=frozenset(again))


def _any_model(keys: Sequence[Key]) -> Choice | None:
    found = next((key.name for key in keys if key.name.startswith(CONTAINER + ".")), None)
    return Choice("container", CONTAINER, f"there is a key {found!r}, and no other sign") if found else None


def name_of(key: Key, choice: Choice) -> Named:
    """What becomes of a key."""
    if choice.layout == "bare":
        if len(key.path) > 1 or key.first in choice.copies or TRAINING_STATE.fullmatch(key.first):
            return Named(None)
        return Named(key.name, True, strip_wrappers(key.stored)[1])
    rest = key.below(choice.root)
    if rest is None:
        return Named(None)
    name = strip_wrappers(rest)[0]
    in_root = len(strip_wrappers(choice.root + ".")[1])  # these stay
    wrappers = strip_wrappers(key.stored or key.name)[1][in_root:]
    return Named(name, name.startswith("model.") or name == "lm_head.weight", wrappers)


def is_training_state(key: Key, choice: Choice) -> bool:
    """Whether a key that is not the model's is what trainers keep beside it, by the names of its containers.

    Where ``planner_data`` does not tell the containers, only the first segment counts, or the one after the container
    that holds the model's: ``app.optim`` beside ``app.model``.
    """
    containers = key.path[:-1] or (beside(key, choice).rpartition(".")[2],)
    return any(TRAINING_STATE.fullmatch(container) for container in containers)


def beside(key: Key, choice: Choice) -> str:
    """What a key that is not the model's stands in: the part beside the model's, ``ema`` or ``app.ema``.

    >>> beside(Key("app.ema.model.norm.weight", ()), Choice("container", "app.model", ""))
    'app.ema'
    """
    around, dot, _ = choice.root.rpartition(".")
    rest = key.below(around) if around else None
    return key.first if rest is None else around + dot + rest.partition(".")[0]


def top_level(keys: Iterable[Key]) -> list[str]:
    """The first segments of the keys, each once."""
    return sorted({key.first for key in keys})
