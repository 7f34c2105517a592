"""Write docs/api.md, the reference of the public Python names, from their docstrings.

    python docs/scripts/api.py

A class shows its fields with the comments on their lines, which is where this project says units and shapes.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import dcptools
from dcptools import checkpoint, comparing, demo, errors, mapping, plots, recipe, shards, tree, verifying, widgets
from dcptools.findings import HasFindings

PAGE = Path(__file__).resolve().parents[1] / "api.md"
INTRODUCTION = """\
# Python

The names of this page are public; what is not here may change. [The values](values.md) says how the functions belong
together. In the examples `demo` is what `dcptools.demo.default_demo()` returned, and `tmp_dir` an empty directory.
"""
PARTS: tuple[tuple[str, str, ModuleType, tuple[str, ...]], ...] = (
    (
        "Functions",
        "From `import dcptools`.",
        dcptools,
        (
            "read",
            "inspect",
            "preview",
            "plan",
            "write",
            "convert",
            "verify",
            "diff",
            "review",
            "load_state_dict",
            "load_model",
            "load_tensor",
            "stats",
        ),
    ),
    (
        "Values",
        "What the functions return.",
        dcptools,
        ("Checkpoint", "KeyMapping", "ShardPlan", "Report", "Verification", "Comparison", "Finding"),
    ),
    ("Parts of a Checkpoint", "", checkpoint, ("StoredTensor", "Chunk", "StoredObject", "StoredFile")),
    ("Parts of a KeyMapping", "", mapping, ("Output", "Leftover", "Rename", "MappingOptions")),
    ("Parts of a Verification", "", verifying, ("VerifiedWeight",)),
    ("Parts of a Comparison", "", comparing, ("ComparedTensor",)),
    ("Parts of a ShardPlan", "", shards, ("ShardFile", "PlannedTensor")),
    ("dcptools.plots", "Figures, with the extra `notebook`.", plots, tuple(plots.__all__)),
    ("dcptools.widgets", "The steps of the wizard, with the extra `notebook`.", widgets, tuple(widgets.__all__)),
    ("dcptools.tree", "", tree, tuple(tree.__all__)),
    ("dcptools.recipe", "", recipe, tuple(recipe.__all__)),
    ("dcptools.demo", "", demo, tuple(demo.__all__)),
)
ERRORS = """\
## dcptools.errors

`except dcptools.DcptoolsError` catches all of them; where a builtin exception means the same, it is a base too.
"""
_SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?\.?([^`]+)`")
_BUILTIN_METHODS = frozenset({"to_json"})  # the same for every value; said once in values.md


@dataclass(frozen=True)
class Row:
    """A field, property or method of a class."""

    name: str
    kind: str  # its type, or the arguments of a method
    about: str


def render() -> str:
    """The text of the page."""
    parts = [INTRODUCTION]
    for title, about, module, names in PARTS:
        parts += [f"## {title}\n", *([f"{about}\n"] if about else [])]
        parts += [entry(f"{module.__name__}.{name}", getattr(module, name)) for name in names]
    parts += [ERRORS, error_table()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))


def error_table() -> str:
    """The classes of dcptools.errors, in the order of the file."""
    lines = ["| error | derives from | meaning |", "| --- | --- | --- |"]
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.DcptoolsError):
            bases = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
            lines.append(f"| `{name}` | {bases} | {cell(' '.join(docstring(value).split()))} |")
    return "\n".join(lines) + "\n"


def entry(full_name: str, value: Any) -> str:
    """Heading, signature, docstring, and the rows of a class."""
    lines = [f"### {full_name}\n"]
    if not isinstance(value, type) or value.__module__.startswith("dcptools.widgets"):  # nobody else makes a value
        lines.append(code(signature(full_name, value), "text"))
    lines.append(docstring(value))
    if isinstance(value, type):
        lines.append(table(list(rows(value))))
    return "\n".join(lines)


def signature(full_name: str, value: Callable[..., Any]) -> str:
    """The call with its types, over several lines if it is long."""
    found = inspect.signature(value)
    arguments, star = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            arguments.append("*")
            star = True
        annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        equals = " = " if annotation else "="
        default = "" if parameter.default is parameter.empty else f"{equals}{default_text(parameter.default)}"
        arguments.append(f"{parameter.name}{annotation}{default}")
    result = "" if found.return_annotation in (found.empty, None, "None") else f" -> {found.return_annotation}"
    short = f"{full_name}({', '.join(arguments)}){result}"
    if len(short) <= 100:
        return short
    return "\n".join([f"{full_name}(", *(f"    {argument}," for argument in arguments), f"){result}"])


def default_text(value: Any) -> str:
    return "..." if value is ... else f"{value:_}" if type(value) is int and value > 10_000 else repr(value)


def docstring(value: Any) -> str:
    """The docstring as Markdown."""
    text = inspect.getdoc(value) if not isinstance(value, type) else inspect.cleandoc(value.__doc__ or "")
    if not text or text.startswith(f"{getattr(value, '__name__', '')}("):  # what dataclasses write by themselves
        return ""
    pieces = _SECTION.split(text)
    parts = [prose(pieces[0])]
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        parts.append(f"**{title}**\n")
        parts.append(code(body.strip(), "pycon") if title == "Examples" else definitions(body))
    return "\n".join(parts)


def definitions(body: str) -> str:
    """The entries of a numpy section as a list."""
    found = re.split(r"^(\S.*)\n(?=[ \t])", body.strip("\n"), flags=re.MULTILINE)
    if len(found) < 3:
        return prose(body)
    pairs = zip(found[1::2], found[2::2], strict=True)
    entries = []
    for names, about in pairs:
        shown = ", ".join(f"`{name.strip()}`" for name in names.split(","))
        entries.append(f"- {shown}: {' '.join(prose(textwrap.dedent(about)).split())}")
    return "\n".join(entries) + "\n"


def prose(text: str) -> str:
    """Restructured text to Markdown: roles, literals, and indented blocks after two colons."""
    text = _ROLE.sub(r"`\1`", text).replace("``", "`")
    out: list[str] = []
    for paragraph in re.split(r"\n{2,}", text.strip("\n")):
        if out and out[-1].endswith("::") and paragraph.startswith("    "):
            out[-1] = out[-1][:-1]
            out.append(code(textwrap.dedent(paragraph), "text").rstrip("\n"))
        elif paragraph.startswith(">>> "):
            out.append(code(paragraph, "pycon").rstrip("\n"))
        else:
            out.append(paragraph)
    return "\n\n".join(out) + "\n"


def code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```\n"


def rows(cls: type) -> Iterator[Row]:
    """The public fields, properties and methods of a class, in the order of its source."""
    source = textwrap.dedent(inspect.getsource(cls))
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    comments = source.splitlines()
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name, kind = statement.target.id, ast.unparse(statement.annotation)
            comment = comments[statement.lineno - 1].partition("  # ")[2]
            if not name.startswith("_"):
                yield Row(name, f"`{kind}`", sentence(comment))
        elif isinstance(statement, ast.FunctionDef) and not statement.name.startswith("_"):
            yield from method_row(cls, statement)
    if HasFindings in cls.__mro__ and cls is not HasFindings:
        yield from (row for row in rows(HasFindings) if row.name != "findings")


def method_row(cls: type, node: ast.FunctionDef) -> Iterator[Row]:
    """A row for a public method or property that has something to say."""
    value = inspect.getattr_static(cls, node.name)
    about = prose((ast.get_docstring(node) or "").split("\n\n")[0]).strip().replace("\n", " ")
    if isinstance(value, (property, cached_property)):
        yield Row(node.name, f"`{ast.unparse(node.returns)}`" if node.returns else "", sentence(about))
    elif about and node.name not in _BUILTIN_METHODS:
        arguments = ", ".join(argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))
        inside = arguments.removeprefix("self").removeprefix("cls").removeprefix(", ")
        yield Row(f"{node.name}({inside})", f"`{ast.unparse(node.returns)}`" if node.returns else "", sentence(about))


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") if text else ""


def table(found: list[Row]) -> str:
    if not found:
        return ""
    lines = ["| name | type | |", "| --- | --- | --- |"]
    lines += [f"| `{row.name}` | {cell(row.kind)} | {cell(row.about)} |" for row in found]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
