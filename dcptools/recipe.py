"""The command line and the Python call that do what a plan says, or what a step shows, to copy."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any, NamedTuple

from dcptools.checkpoint import Checkpoint
from dcptools.mapping import KeyMapping, MappingOptions
from dcptools.shards import PlanOptions, ShardPlan
from dcptools.storage import without_password

__all__ = [
    "Recipe",
    "command_line",
    "given_options",
    "python_call",
    "to_inspect",
    "to_plan",
    "to_preview",
    "to_review",
    "to_try",
]


class Recipe(NamedTuple):
    """The same thing, as it is typed into a shell and in Python."""

    shell: str  # empty: there is no such command
    python: str


def to_inspect(checkpoint: Checkpoint) -> Recipe:
    """Show what is in a checkpoint.

    >>> print(*to_inspect(read(demo.checkpoint)), sep="\\n")  # doctest: +ELLIPSIS
    python -m dcptools inspect --load-dir ...
    dcptools.inspect('...')
    """
    return Recipe(_shell("inspect", checkpoint.path, {}), f"dcptools.inspect({checkpoint.path!r})")


def to_preview(mapping: KeyMapping) -> Recipe:
    """Show the names, with these rules.

    >>> print(*to_preview(preview(demo.checkpoint, layout="container")), sep="\\n")  # doctest: +ELLIPSIS
    python -m dcptools preview --load-dir ... --layout container
    dcptools.preview('...', layout='container')
    """
    given = _given_to_preview(mapping.options)
    return Recipe(_shell("preview", mapping.checkpoint.path, given), _preview_call(mapping))


def to_plan(plan: ShardPlan) -> Recipe:
    """Show the files.

    >>> print(*to_plan(plan(demo.checkpoint, "1GB")), sep="\\n")  # doctest: +ELLIPSIS
    python -m dcptools plan --load-dir ... --shard-size 1000000000
    dcptools.plan(dcptools.preview('...'), shard_size=1000000000)
    """
    arguments = _arguments(_preview_call(plan.mapping), **_not_default(plan.options))
    return Recipe(_shell("plan", plan.checkpoint.path, given_options(plan)), f"dcptools.plan({arguments})")


def to_try(plan: ShardPlan) -> Recipe:
    """Load the model without writing it; there is no command for that.

    >>> print(to_try(plan(demo.checkpoint, dtype="keep")).python)  # doctest: +ELLIPSIS
    dcptools.load_model(dcptools.preview('...'), dtype='keep')
    """
    dtypes = {name: value for name, value in _not_default(plan.options).items() if name in ("dtype", "dtype_for")}
    return Recipe("", f"dcptools.load_model({_arguments(_preview_call(plan.mapping), **dtypes)})")


def to_review(mapping: KeyMapping, html: str, options: PlanOptions | None = None) -> Recipe:
    """Write the page that shows all of it.

    >>> print(to_review(preview(demo.checkpoint), "review.html").shell)  # doctest: +ELLIPSIS
    python -m dcptools review --load-dir ... --html review.html
    """
    planned = _not_default(options) if options else {}
    given = {"html": html, **_given_to_preview(mapping.options), **planned}
    call = f"dcptools.review({_arguments(_preview_call(mapping), repr(html), **planned)})"
    return Recipe(_shell("review", mapping.checkpoint.path, given), call)


def command_line(plan: ShardPlan, save_dir: str, *, overwrite: bool = False, resume: bool = False) -> str:
    """The shell command that does this conversion; options at their defaults are left out.

    >>> print(command_line(plan(demo.checkpoint, "1GB"), "out"))  # doctest: +ELLIPSIS
    python -m dcptools.convert --load-dir ... --save-dir out --shard-size 1000000000
    """
    given = {**given_options(plan), **_true(overwrite=overwrite, resume=resume)}
    return _shell("convert", plan.checkpoint.path, {"save_dir": without_password(save_dir), **given})


def python_call(plan: ShardPlan, save_dir: str, *, overwrite: bool = False, resume: bool = False) -> str:
    """The call of ``dcptools.convert`` that does this conversion.

    >>> print(python_call(plan(demo.checkpoint, dtype="keep"), "out"))  # doctest: +ELLIPSIS
    dcptools.convert('...', 'out', dtype='keep')
    """
    named = {**given_options(plan), **_true(overwrite=overwrite, resume=resume)}
    places = (repr(plan.checkpoint.path), repr(without_password(save_dir)))
    return f"dcptools.convert({_arguments(*places, **named)})"


def _shell(command: str, load_dir: str, given: dict[str, Any]) -> str:
    """The words of a command; each value of a list is an option of its own."""
    program = ["dcptools.convert"] if command == "convert" else ["dcptools", command]
    words = ["python", "-m", *program, "--load-dir", load_dir]
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            words += [option] if one is True else [option, _rule(*one) if isinstance(one, tuple) else str(one)]
    return shlex.join(words)


def _preview_call(mapping: KeyMapping) -> str:
    return f"dcptools.preview({_arguments(repr(mapping.checkpoint.path), **_given_to_preview(mapping.options))})"


def _arguments(*places: str, **named: Any) -> str:
    return ", ".join([*places, *(f"{name}={value!r}" for name, value in named.items())])


def _rule(pattern: str, replacement: str) -> str:
    """One word that is split at its last ``=`` again; in a replacement, ``=`` can be written as an octal escape."""
    escaped = replacement.replace("=", r"\075")
    return f"{pattern}={escaped}"


def given_options(plan: ShardPlan) -> dict[str, Any]:
    """The options that differ from their defaults, by the names that they have in Python.

    >>> given_options(plan(demo.checkpoint, "1GB", dtype="keep"))
    {'shard_size': 1000000000, 'dtype': 'keep'}
    """
    return {**_given_to_preview(plan.mapping.options), **_not_default(plan.options)}


def _given_to_preview(options: MappingOptions) -> dict[str, Any]:
    given = _not_default(options)
    if options.rename:
        given["rename"] = [(rule.pattern, rule.replacement) for rule in options.rename]
    return given


def _true(**flags: bool) -> dict[str, Any]:
    return {name: flag for name, flag in flags.items() if flag}


def _not_default(options: MappingOptions | PlanOptions) -> dict[str, Any]:
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in fields(options)
        if (value := getattr(options, field.name)) and value != field.default
    }
