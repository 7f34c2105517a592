"""Which layout a checkpoint has, by the names of its keys and their paths alone (torch's ``_nested_dict.py``)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from dcptools._option import option
from dcptools._text import some
from dcptools.errors import UsageError
from dcptools.layouts.bare import Bare
from dcptools.layouts.container import CONTAINER, Container
from dcptools.layouts.family import Family, FamilyLayout
from dcptools.layouts.huggingface import BODY, HEAD, is_huggingface_name
from dcptools.layouts.keys import WRAPPERS, Key, names_below, strip_wrappers, top_level
from dcptools.layouts.training import MOMENT, is_extra_state, is_of_optimizer, is_usual
from dcptools.layouts.unknown import Unknown
from dcptools.layouts.values import Layout

APP_STATE = "app.model"  # {"app": AppState(model, optimizer)}, as PyTorch's tutorial of DCP saves it
LAYOUTS = ("auto", "container", "bare")


def choose(keys: Sequence[Key], layout: str = "auto", root: str | None = None, family: Family | None = None) -> Layout:
    """Choose the layout; ``Unknown`` if no rule finds a model. If a ``family`` is given, it is used.

    The rules are tried in this order: names that only a container gives; a container ``model`` in ``planner_data``;
    names of a HuggingFace model at the top level; another container that holds a model (after the bare names, so that
    an ``ema`` beside them is not taken for the model); any ``model.*``.

    Raises
    ------
    UsageError
        The layout is not known, or no key is under the given root.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"Unknown layout {layout!r}.\nKnown layouts: {', '.join(LAYOUTS)}.")
    if family is not None:
        return FamilyLayout(family, root or "", "as requested")
    if root is not None and layout == "bare":
        raise UsageError(f"Bare names have no root.\nLeave out {option('root')} or {option('layout', 'bare')}.")
    if root is not None:
        if all(key.below(root) is None for key in keys):
            raise UsageError(
                f"No tensor's key starts with {root + '.'!r}.\nTop-level keys: {some(top_level(keys), 10)}."
            )
        return Container(root, f"the root {root!r}, as requested")
    if layout == "bare":
        return Bare.of(keys, "as requested")
    if layout == "container":
        return Container(CONTAINER, "as requested")
    rules = (_by_names, _by_container, _bare, _by_other_container, _any_model)
    found: Iterator[Layout | None] = (rule(keys) for rule in rules)
    chosen = next(filter(None, found), Unknown())
    return _wrapped(chosen, keys) if isinstance(chosen, Container) else chosen


def containers(keys: Collection[Key]) -> dict[str, int]:
    """The containers that have names of a model, each with the number of its tensors; the likeliest one first."""
    counts = dict.fromkeys(filter(None, map(_container_of, keys)), 0)
    for key in keys if counts else ():
        for at, sign in enumerate(key.name):
            if sign == "." and key.name[:at] in counts and not is_extra_state(key.name):
                counts[key.name[:at]] += 1
    return dict(sorted(counts.items(), key=lambda each: (not is_usual(each[0]), -each[1], each[0])))


def _container_of(key: Key) -> str:
    """What a key of a model is in, by its path or by what comes before a name of a HuggingFace model."""
    if len(key.path) > 1 and _holds_model(key):
        return key.container
    dots = (at for at, sign in enumerate(key.name) if sign == ".")
    place = next((key.name[:at] for at in dots if is_huggingface_name(key.name[at + 1 :])), "")
    return "" if any(map(is_of_optimizer, place.split("."))) else place


def _wrapped(container: Container, keys: Sequence[Key]) -> Container:
    """The attribute in which the trainer's module holds the model (Lightning, Composer), if the container has one."""
    attribute, named = None, False
    for name in names_below(keys, container.root):
        if name is None or is_extra_state(name):
            continue
        first, _, rest = name.partition(".")
        if is_huggingface_name(name) or attribute not in (None, first):
            return container
        attribute, named = first, named or is_huggingface_name(rest)
    if not named:
        return container
    reason = f"{container.reason}, and all of it is in an attribute {attribute!r}, with names of HuggingFace models"
    return Container(f"{container.root}.{attribute}", reason, True)


def _by_names(keys: Sequence[Key]) -> Container | None:
    sign = ("model.model.", "model.base_model.")
    found = next((k.name for k in keys if k.name.startswith(sign) or k.name == "model.lm_head.weight"), None)
    return Container(CONTAINER, f"there is a key {found!r}") if found else None


def _by_container(keys: Sequence[Key]) -> Container | None:
    if any(len(key.path) > 1 and key.path[0] == CONTAINER for key in keys):
        return Container(CONTAINER, "the saved state dict has a container 'model'")
    return None


def _by_other_container(keys: Sequence[Key]) -> Container | None:
    others = sorted({key.container for key in keys if len(key.path) > 1 and _holds_model(key)})
    if len(others) == 1:
        reason = f"the saved state dict has a model in the container {others[0]!r}"
        return Container(others[0], reason, others[0] != APP_STATE)
    return None


def _holds_model(key: Key) -> bool:
    *_, last = containers = key.path[:-1]
    if any("optim" in container or MOMENT.fullmatch(container) for container in containers):
        return False
    called_so = last in WRAPPERS or (last == CONTAINER and len(containers) > 1)
    rest = key.below(key.container)
    return called_so or (rest is not None and is_huggingface_name(strip_wrappers(rest)[0]))


def _bare(keys: Sequence[Key]) -> Bare | None:
    names = [key.name for key in keys if len(key.path) <= 1]
    head = next((name for name in names if HEAD.match(name)), None)
    model = next((name for name in names if name.startswith(f"{CONTAINER}.")), None)
    body = next((name for name in names if BODY.match(name)), model if head else None)
    if body is None:
        return None
    found = f"{head!r} stands beside {body!r}" if head else f"{body!r} is a name that HuggingFace models have"
    return Bare.of(keys, f"{found}, so the keys are HuggingFace names already")


def _any_model(keys: Sequence[Key]) -> Container | None:
    found = next((key.name for key in keys if key.name.startswith(CONTAINER + ".")), None)
    return Container(CONTAINER, f"there is a key {found!r}, and no other sign") if found else None
