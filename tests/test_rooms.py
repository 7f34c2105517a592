"""The rooms are what AGENTS.md says: small files, and nobody uses what is another's own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "dcptools").rglob("*.py"))
MOST_LINES, MOST_BODY_LINES = 300, 40
ROOMS = (
    "_pickle",
    "checkpoint",
    "cli",
    "convert",
    "layouts",
    "loading",
    "mapping",
    "ranks",
    "shards",
    "storage",
    "tensors",
    "writer",
)
# of os, of named tuples, of torch, of ipywidgets
FROM_ELSEWHERE = {"_apply", "_exit", "_make", "_replace", "_make_wrapper_subclass", "_unsafe_view", "_repr_mimebundle_"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


MODULES = {module_of(path): ast.parse(path.read_text("utf-8")) for path in FILES}


def body_lines(function: ast.FunctionDef) -> int:
    """Without the signature and the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def imported(module: str) -> Iterator[tuple[str, str]]:
    """The place, and the name, of all that a module imports from the package."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dcptools"):
            yield from ((str(node.module), alias.name) for alias in node.names)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_files_are_short() -> None:
    lines = {module_of(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}


def test_functions_are_short() -> None:
    functions = [
        (module, node) for module in MODULES for node in ast.walk(MODULES[module]) if isinstance(node, ast.FunctionDef)
    ]
    lines = {f"{module}.{function.name}": body_lines(function) for module, function in functions}
    assert {name: count for name, count in lines.items() if count > MOST_BODY_LINES} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_the_door_of_a_room_hands_names_on_and_defines_nothing(room: str) -> None:
    _docstring, _annotations, *imports, names = MODULES[f"dcptools.{room}"].body
    assert {type(node) for node in imports} == {ast.ImportFrom}
    assert isinstance(names, ast.Assign) and ast.unparse(names.targets[0]) == "__all__"


def test_rooms_are_entered_through_their_doors() -> None:
    """What a room does not hand on, it can change."""
    found = []
    for module in MODULES:
        for place, name in imported(module):
            elsewhere = room_of(f"{place}.{name}") != room_of(module)
            if elsewhere and (place.count(".") > 1 or (place != "dcptools" and is_private(name))):
                found.append((module, place, name))
    assert found == []


def test_what_has_an_underscore_stays_in_its_file() -> None:
    found = []
    for module, tree in MODULES.items():
        names = [name for place, name in imported(module) if f"{place}.{name}" not in MODULES]
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} - FROM_ELSEWHERE
        found += [(module, name) for name in {*names, *(used - set(defined(tree)))} if is_private(name)]
    assert found == []


def defined(tree: ast.Module) -> Iterator[str]:
    """All that a file defines or sets, on whatever level."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
