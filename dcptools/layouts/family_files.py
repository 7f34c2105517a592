"""Families as TOML files: one for each model of a trainer, with templates of whole keys and how the values lie."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from dcptools.errors import UsageError, system_errors
from dcptools.layouts.family import NUMBER, PLACE, Family, Weight
from dcptools.layouts.rearrange import Rearrangement
from dcptools.storage import path_on_disk

Value = TypeVar("Value")
_FIELDS = {"trainer", "model", "architectures", "sizes", "weights", "left_out", "signs", "refused", "exporter"}
_ENTRY = {"name", "rearrange", "differ"}
_WEIGHT = 'Expected a name, or a name and how to rearrange: { name = "...{layer}...", rearrange = "a b -> b a" }.'


@cache
def families() -> tuple[Family, ...]:
    """The families that come with dcptools."""
    tables = sorted(files(__package__).joinpath("families").iterdir(), key=lambda file: file.name)
    return tuple(parse_family(file.read_text("utf-8"), file.name) for file in tables if file.name.endswith(".toml"))


def read_family(path: str | os.PathLike[str]) -> Family:
    """A family of the user's own. Raises UsageError."""
    with system_errors(UsageError, f"The family file {path} cannot be read"):
        try:
            return parse_family(path_on_disk(path, "The family file").read_text("utf-8"), str(path))
        except UnicodeDecodeError:
            raise UsageError(f"The family file {path} is not text in UTF-8.") from None


def parse_family(text: str, where: str) -> Family:
    """A family from the text of a TOML file; ``where`` is what messages call it. Raises UsageError."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number with too many digits
        raise UsageError(f"The family file {where} is not TOML: {error}.") from None
    try:
        return _family(table)
    except _Wrong as wrong:
        at = f", line {line}" if (line := _line_of(wrong.entry, text)) else ""
        raise UsageError(f"The family file {where}{at}: {wrong.problem:.400}\n{wrong.hint:.400}") from None


class _Wrong(Exception):
    """What is wrong with an entry of the file."""

    def __init__(self, entry: str, problem: str, hint: str) -> None:
        self.entry, self.problem, self.hint = entry, problem, hint


def _line_of(entry: str, text: str) -> int | None:
    """The number of the line on which an entry begins, from 1 on."""
    begins = re.compile(rf"\s*\[?[\"']?{re.escape(entry)}[\"']?\s*[\]=]")
    return next((at for at, line in enumerate(text.splitlines(), 1) if entry and begins.match(line)), None)


def _family(table: dict[str, Any]) -> Family:
    wrong = sorted(table.keys() - _FIELDS) or sorted({"trainer", "model"} - table.keys())
    if wrong:
        known = "trainer, model and weights; also architectures, sizes, left_out, signs, refused, exporter"
        kind = "there is no field of that name" if wrong[0] in table else "the field is missing"
        raise _Wrong(wrong[0], f"{wrong[0]}: {kind}.", f"Expected {known}.")
    texts = {name: _text(table, name) for name in ("trainer", "model", "refused", "exporter")}
    signs = tuple(PLACE.sub("#", sign) for sign in _texts(table, "signs"))
    architectures, sizes = _texts(table, "architectures"), _table(table, "sizes")
    for axis, size in sizes.items():
        if type(size) not in (int, str) or size in (0, "") or (type(size) is int and size < 0):
            raise _Wrong(
                axis, f"the size of the axis {axis} is {size!r}.", "Expected a number or a field of config.json."
            )
    return Family(architectures=architectures, sizes=sizes, weights=dict(_weights(table)), signs=signs, **texts)


def _weights(table: dict[str, Any]) -> Iterator[tuple[str, Weight]]:
    for template, said in _table(table, "weights").items():
        pattern, places = _template(template)
        entry = {"name": said} if isinstance(said, str) else said
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or entry.keys() - _ENTRY:
            raise _Wrong(template, f"what {template!r} becomes is not clear.", _WEIGHT)
        rearrangement = _rearrangement(template, entry["rearrange"]) if "rearrange" in entry else None
        axes = {axis for dimension in rearrangement.before for axis in dimension} if rearrangement else set()
        for place in PLACE.findall(entry["name"]):
            if place not in {*places, *(rearrangement.split if rearrangement else ())}:
                raise _Wrong(template, f"nothing says what {{{place}}} of the name is.", _WEIGHT)
        differ = _texts(entry, "differ", template)
        if not axes.issuperset(differ):
            raise _Wrong(
                template,
                f"differ names {', '.join(differ)}, and the axes are {', '.join(sorted(axes)) or 'none'}.",
                "Expected some of the axes.",
            )
        yield pattern, Weight(places, entry["name"], rearrangement, differ)
    for template, why in _table(table, "left_out").items():
        pattern, places = _template(template)
        yield pattern, Weight(places, "", None, left_out=str(why))


def _template(template: str) -> tuple[str, tuple[str, ...]]:
    """The pattern of its keys, and what their numbers are called."""
    pattern, places = PLACE.sub("#", template), tuple(PLACE.findall(template))
    if NUMBER.search(template) or len(set(places)) < len(places) or pattern.count("#") != len(places):
        what = f"{template!r} is not a template of keys."
        raise _Wrong(template, what, "Expected a place in braces for each number.")
    return pattern, places


def _rearrangement(template: str, text: Any) -> Rearrangement:
    try:
        return Rearrangement.parse(str(text))
    except UsageError as error:
        problem, _, hint = str(error).partition("\n")
        raise _Wrong(template, problem, hint) from None


def _table(table: dict[str, Any], name: str) -> dict[str, Any]:
    return _field(table, name, {}, f"a table: [{name}]")


def _text(table: dict[str, Any], name: str) -> str:
    return _field(table, name, "", "a string")


def _field(table: dict[str, Any], name: str, default: Value, expected: str) -> Value:
    """A field with the type of its default."""
    value = table.get(name, default)
    if not isinstance(value, type(default)):
        raise _Wrong(name, f"{name} is {type(value).__name__}.", f"Expected {expected}.")
    return value


def _texts(table: dict[str, Any], name: str, entry: str = "") -> tuple[str, ...]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _Wrong(entry or name, f"{name} is not a list of strings.", f'Expected {name} = ["...", "..."].')
    return tuple(value)
