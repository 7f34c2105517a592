"""The ways in which a checkpoint can be read, and how well each gives the expected model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Container as Names
from dataclasses import dataclass, replace

from dcptools.checkpoint import Checkpoint
from dcptools.expected import Expected, Naming, Shape
from dcptools.layouts.bare import Bare
from dcptools.layouts.choose import choose
from dcptools.layouts.container import CONTAINER, Container
from dcptools.layouts.family import Family, FamilyLayout, pattern_of
from dcptools.layouts.family_files import families
from dcptools.layouts.fit import Fit, fit
from dcptools.layouts.keys import Key, names_below
from dcptools.layouts.training import COPIES, TRAINING_STATE, is_of_optimizer, is_usual
from dcptools.layouts.values import Layout

MAX_ROOTS = 8  # containers that are tried, those with the most names of the model


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to read the checkpoint, and what it gives."""

    layout: Layout
    fit: Fit
    naming: str  # what its outputs are called: "stored" or "published" names


def candidates(
    checkpoint: Checkpoint,
    keys: Mapping[str, Key],
    expected: Expected,
    layout: str,
    root: str | None,
    family: Family | None,
    renamed: Callable[[str], str | None] | None,
) -> list[Candidate]:
    """The readings that give some weights of the model, by names and shapes; the best one first.

    Each container is tried with each naming: that of the live model, that of its files, that of its base model alone;
    and those of trainers, unless a layout is given. With a ``family``, only that one is tried. A name that the
    user's rules, ``renamed``, make one of the model counts as that.
    """
    by_rules = choose(list(keys.values()), layout, root).root
    shapes = {key: checkpoint.tensors[stored].shape for stored, key in keys.items()}
    tried: list[Candidate] = []
    if family is not None:
        tried += _in_family(family, checkpoint, keys, expected, root)
    else:
        for place in _roots(keys.values(), expected, layout, root):
            tried += _at(place, shapes, expected, renamed)
        for each in families() if layout == "auto" else ():
            if expected.title in each.architectures:
                tried += _in_family(each, checkpoint, keys, expected, root)

    def rank(candidate: Candidate) -> tuple[bool, bool, int, bool, bool, bool, int]:
        place, measured = candidate.layout.root, candidate.fit
        copy = any(segment in COPIES for segment in place.split("."))
        likely = is_usual(place), not _is_training(place), place == by_rules
        whole = not measured.missing_names and all(each.tied for each in measured.misshapen)
        return not copy, whole, measured.fitting, *likely, -len(place)

    return sorted((each for each in tried if each.fit.fitting or family), key=rank, reverse=True)


def layout_of(keys: Sequence[Key], expected: Expected | None, layout: str, root: str | None) -> Layout:
    """The container, or the top level, where most of the keys are names of the model; by rules if none is."""
    found = _roots(keys, expected, layout, root) if expected and root is None and layout == "auto" else []
    if expected is None or not found:
        return choose(keys, layout, root)
    at = min(found, key=lambda at: any(segment in COPIES for segment in at.split(".")))  # the first that is not a copy
    reason = f"the names there are those of {expected.title}"
    return Container(at, reason) if at else Bare.of(keys, reason)


def _at(
    root: str, shapes: Mapping[Key, Shape], expected: Expected, renamed: Callable[[str], str | None] | None
) -> Iterator[Candidate]:
    """The readings of one container under HuggingFace's names."""
    called = names_below(shapes, root) if root else (key.name for key in shapes)
    below = {name: shape for name, shape in zip(called, shapes.values(), strict=True) if name is not None}
    place = f"below {root + '.'!r}" if root else "at the top level"
    tried = [("stored", expected.stored, "", "the names of the live model")]
    if expected.differ:
        tried.append(("published", expected.published, "", "the published names"))
    if expected.based:
        base = f"{expected.base}."
        tried.append(("stored", expected.based, base, f"the base model's names, without {base!r}"))
    for naming, names, prefix, said in tried:
        whole = expected.stored if naming == "stored" else expected.published
        known = {}
        for name, shape in below.items():
            new = renamed(prefix + name) if renamed else None
            if new is not None and new in whole.shapes:
                known[new] = shape
            elif name in names.shapes:
                known[prefix + name] = shape
        if not known:
            continue
        measured = fit(expected.title, f"{place}, with {said}", known, whole)
        yield Candidate(_layout(root, measured, names, prefix, list(shapes)), measured, naming)


def _layout(root: str, measured: Fit, names: Naming, prefix: str, keys: Sequence[Key]) -> Layout:
    reason = f"{measured.fitting:,} of {measured.weights:,} weights of {measured.title} are {measured.reading}"
    if root:
        return Container(root, reason, not is_usual(root), prefix)
    return Bare.of(keys, reason, names.shapes, prefix)


def _in_family(
    family: Family, checkpoint: Checkpoint, keys: Mapping[str, Key], expected: Expected, root: str | None
) -> Iterator[Candidate]:
    """The readings under a trainer's own names."""
    for place in family_roots(family, keys.values()) if root is None else [root]:
        layout = FamilyLayout(family, place, "", expected.sizes)
        shapes = {output.name: output.shape for output in layout.read(checkpoint, keys).outputs}
        said = f"names of {family.title}" + (f", below {place + '.'!r}" if place else "")
        measured = fit(expected.title, said, shapes, expected.published)
        reason = f"they make {measured.fitting:,} of {measured.weights:,} weights of {measured.title}"
        yield Candidate(replace(layout, reason=reason), measured, "published")


def foreign_families(keys: Iterable[Key]) -> list[Family]:
    """The families of trainers whose own names of layers occur among the keys."""
    patterns = {pattern_of(key.name) for key in keys}  # few, for very many keys
    return [each for each in families() if any(True for pattern in patterns for _ in _places(pattern, each.telling))]


def family_roots(family: Family, keys: Iterable[Key]) -> list[str]:
    """The containers that have a trainer's own names of layers below them."""
    return _most(place for key in keys for place in _places(pattern_of(key.name), family.telling))


def _roots(keys: Iterable[Key], expected: Expected, layout: str, root: str | None) -> list[str]:
    """The containers that have names of the model below them; "" is the top level."""
    if root is not None:
        return [root]
    if layout != "auto":
        return [CONTAINER if layout == "container" else ""]
    return _most(place for key in keys for place in _places(key.name, expected.names))


def _most(places: Iterable[str]) -> list[str]:
    """Those that occur most often, without training state and an optimizer's moments."""
    counted = Counter(places).most_common()
    wanted = (
        place for place, _ in counted if not _is_optimizers(place) and (is_usual(place) or not _is_training(place))
    )
    return [place for place, _ in zip(wanted, range(MAX_ROOTS), strict=False)]


def _is_training(root: str) -> bool:
    return any(map(TRAINING_STATE.fullmatch, root.split(".")))


def _is_optimizers(root: str) -> bool:
    return any(map(is_of_optimizer, root.split(".")))


def _places(key: str, names: Names[str]) -> Iterator[str]:
    """What precedes one of these names, wherever the key ends with one."""
    at = 0
    while True:
        if key[at:] in names:
            yield key[: at - 1] if at else ""
        at = key.find(".", at) + 1
        if not at:
            return
