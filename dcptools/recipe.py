"""The command line and the Python call that do what a plan says, to copy."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from dcptools.mapping import MappingOptions
from dcptools.shards import PlanOptions, ShardPlan
from dcptools.storage import without_password

__all__ = ["command_line", "given_options", "python_call"]


def command_line(plan: ShardPlan, save_dir: str, *, overwrite: bool = False, resume: bool = False) -> str:
    """The shell command that converts just so; options at their defaults are left out.

    >>> print(command_line(plan(demo.checkpoint, "1GB"), "out"))  # doctest: +ELLIPSIS
    python -m dcptools.convert --load-dir ... --save-dir out --shard-size 1000000000
    """
    words = ["python", "-m", "dcptools.convert", "--load-dir", plan.checkpoint.path]
    words += ["--save-dir", without_password(save_dir)]
    for name, value in _given(plan, overwrite=overwrite, resume=resume).items():
        option = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            words += [option] if one is True else [option, _rule(*one) if isinstance(one, tuple) else str(one)]
    return shlex.join(words)


def python_call(plan: ShardPlan, save_dir: str, *, overwrite: bool = False, resume: bool = False) -> str:
    """The call of ``dcptools.convert`` that converts just so.

    >>> print(python_call(plan(demo.checkpoint, dtype="keep"), "out"))  # doctest: +ELLIPSIS
    dcptools.convert('...', 'out', dtype='keep')
    """
    places = [repr(plan.checkpoint.path), repr(without_password(save_dir))]
    named = _given(plan, overwrite=overwrite, resume=resume).items()
    arguments = [*places, *(f"{name}={value!r}" for name, value in named)]
    return f"dcptools.convert({', '.join(arguments)})"


def _rule(pattern: str, replacement: str) -> str:
    """One word that is split at its last ``=`` again; in a replacement ``=`` can be written as an octal escape."""
    escaped = replacement.replace("=", r"\075")
    return f"{pattern}={escaped}"


def given_options(plan: ShardPlan) -> dict[str, Any]:
    """The options that differ from their defaults, by the names that they have in Python.

    >>> given_options(plan(demo.checkpoint, "1GB", dtype="keep"))
    {'shard_size': 1000000000, 'dtype': 'keep'}
    """
    options = plan.mapping.options
    renames = [(rule.pattern, rule.replacement) for rule in options.rename]
    given = {**_not_default(options), **_not_default(plan.options), "rename": renames}
    return {name: value for name, value in given.items() if value}


def _given(plan: ShardPlan, **flags: bool) -> dict[str, Any]:
    """What differs from the defaults, with the flags that are set."""
    return given_options(plan) | {name: flag for name, flag in flags.items() if flag}


def _not_default(options: MappingOptions | PlanOptions) -> dict[str, Any]:
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in fields(options)
        if (value := getattr(options, field.name)) != field.default
    }
