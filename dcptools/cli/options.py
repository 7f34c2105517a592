"""The options of the commands, and the values that they stand for."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from dcptools._paths import expanded
from dcptools.cli.output import Output
from dcptools.cli.surplus import named
from dcptools.comparing import BY
from dcptools.errors import UsageError, system_errors
from dcptools.layouts import LAYOUTS
from dcptools.mapping import CHOICES, MappingOptions
from dcptools.shards import DEFAULT_SHARD_SIZE, DTYPES, SHORT_NAMES, PlanOptions
from dcptools.storage import is_url, without_password

Command = TypeVar("Command", bound=Callable[..., Any])


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in this order in the help."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


class _Path(click.Path):
    """A path; an empty argument, which a shell makes from an unset variable, does not mean the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_url(value):
            self.fail(f"{without_password(value)} is a URL, and this must be on the disk.", param, ctx)
        if value == "-":
            self.fail("- is no file here: /dev/stdout is what stdout is called, ./- a file of that name.", param, ctx)
        return super().convert(expanded(value), param, ctx) if value else self.fail("The path is empty.", param, ctx)


class _Place(_Path):
    """A path, or a URL as it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_url(value) else super().convert(value, param, ctx)


class _Text(click.types.StringParamType):
    """A name or pattern, which is compared with names in UTF-8 whatever the locale is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            value.encode()
        except UnicodeEncodeError:  # bytes that are not text in this locale
            try:
                return os.fsencode(value).decode()
            except UnicodeError:
                self.fail(f"{value!r} is not UTF-8.", param, ctx)
        return value


class _DType(click.Choice):  # type: ignore[type-arg]
    """A dtype by any of its names, as in Python."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = value.lower().removeprefix("torch.")
        known = SHORT_NAMES.get(name, name)
        return super().convert(known if known in DTYPES else value, param, ctx)


class _Number(click.IntRange):
    """A whole number between bounds; click calls its own kind an "integer range" in messages."""

    name = "whole number"


def _one_of(name: str, choices: Sequence[str], text: str) -> Callable[[Command], Command]:
    """An option with one of a few values; the first is its default."""
    return click.option(name, type=click.Choice(choices), default=choices[0], show_default=True, help=text)


def _repeatable(name: str, metavar: str, text: str) -> Callable[[Command], Command]:
    return click.option(name, type=TEXT, multiple=True, metavar=metavar, help=text)


Place = Path | str  # a path, or a URL
PATH, PLACE, TEXT = _Path(path_type=Path), _Place(path_type=Path), _Text()
_SOURCE = (
    click.argument("directory", metavar="[LOAD_DIR]", required=False, type=PLACE),
    click.option("--load-dir", type=PLACE, help="The checkpoint: the directory or URL that holds .metadata."),
)
_OUTPUT = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout, for programs."),
    click.option("--quiet", is_flag=True, help="Print only errors."),
)
mapping_options = _options(
    click.option(
        "--model-assets-dir",
        type=PLACE,
        help="Directory or URL of config.json and the tokenizer, which are copied into the result.",
    ),
    click.option(
        "--reference", type=PLACE, help="HuggingFace model that decides names and shapes, instead of config.json."
    ),
    click.option(
        "--family",
        type=PATH,
        metavar="FILE",
        help="TOML file that describes a trainer's own names and the order of its values.",
    ),
    _one_of(
        "--layout",
        LAYOUTS,
        "How keys become HuggingFace names: container strips the leading 'model.', bare keeps them as they are.",
    ),
    click.option(
        "--root", type=TEXT, metavar="NAME", help="Convert this container instead of 'model', for example ema."
    ),
    _one_of(
        "--mode",
        CHOICES["mode"],
        "lora writes a LoRA adapter, full the base model; auto writes the adapter if there is one.",
    ),
    click.option("--adapter", type=TEXT, metavar="NAME", help="Which adapter to write, if there are several."),
    click.option(
        "--adapter-config-path",
        type=PATH,
        help="adapter_config.json of the training run.  [default: the one in the assets, or a new one]",
    ),
    _repeatable("--include", "GLOB", "Convert only checkpoint keys that match; repeatable."),
    _repeatable("--exclude", "GLOB", "Leave out checkpoint keys that match; repeatable."),
    _one_of(
        "--names",
        CHOICES["names"],
        "stored writes the live model's names, published those of save_pretrained, one tensor per expert.",
    ),
    _one_of(
        "--tied",
        CHOICES["tied"],
        "Tied weights: auto writes one if they are equal, keep writes all, drop writes one without comparing.",
    ),
    _one_of("--unexpected", CHOICES["unexpected"], "Keep or drop tensors that the model has no weight for."),
    click.option(
        "--allow-mismatch",
        is_flag=True,
        help="Write the result even if weights are missing or have another shape than the model's.",
    ),
    _repeatable(
        "--rename",
        "REGEX=REPLACEMENT",
        "Rename HuggingFace names that match as a whole; the first matching rule wins; repeatable.",
    ),
    click.option(
        "--rename-file",
        type=PATH,
        help="File of rename rules, one per line; blank lines and lines that start with # are skipped.",
    ),
)
plan_options = _options(
    click.option(
        "--shard-size",
        default=str(DEFAULT_SHARD_SIZE),
        show_default=True,
        metavar="BYTES",
        help="Largest size of the values in one file, in the written dtype: bytes, or 5GB, 2GiB, 1e9.",
    ),
    click.option(
        "--dtype",
        type=_DType(DTYPES),
        default="bfloat16",
        show_default=True,
        help="Dtype to write floating-point tensors in; integers and booleans never change.",
    ),
    _repeatable(
        "--dtype-for", "GLOB=DTYPE", "Another dtype for HuggingFace names that match; the first match wins; repeatable."
    ),
    click.option("--strict", is_flag=True, help="Treat warnings as errors."),
)
workers_option = click.option(
    "--workers", metavar="N", type=_Number(1, 1024), help="Number of threads.  [default: one per CPU, 2 to 8]"
)
model_options = _options(click.argument("save_dir", type=PLACE), *_SOURCE)
verify_options = _options(
    click.option(
        "--shard-size",
        metavar="BYTES",
        help="Also check that the files are exactly those of a conversion with this size.",
    ),
    click.option(
        "--dtype",
        type=_DType(DTYPES),
        help="Dtype that floating-point tensors must have.  [default: the one in the files]",
    ),
    _repeatable("--dtype-for", "GLOB=DTYPE", "Another dtype for names that match; repeatable."),
)
diff_options = _options(
    click.argument("a", type=PLACE),
    click.argument("b", type=PLACE),
    _one_of("--by", BY, "Compare by checkpoint keys or by HuggingFace names; auto takes keys if both are checkpoints."),
    _repeatable("--keys", "GLOB", "Compare only tensors that match; repeatable."),
    click.option("--cast", is_flag=True, help="Cast A to the dtypes of B first, to see whether B is an export of A."),
    click.option("--csv", type=PATH, help="Write the table to this file, one row per tensor."),
)
all_option = click.option("--all", "show_all", is_flag=True, help="Print every row of a table, not just the first 20.")
leftover_option = click.option("--list-leftovers", is_flag=True, help="List every key that is left out, and why.")


def source_options(command: Command) -> Command:
    """LOAD_DIR or ``--load-dir``, which the command gets as ``load_dir``."""

    @functools.wraps(command)
    def with_source(*, directory: Place | None, load_dir: Place | None, **options: Any) -> Any:
        return command(load_dir=the_load_dir(directory, load_dir), **options)

    return cast(Command, _options(*_SOURCE)(with_source))


def output_options(command: Command) -> Command:
    """``--json`` and ``--quiet``, and ``--all`` where there is one, which the command gets as ``output``."""

    @functools.wraps(command)
    def with_output(*, as_json: bool, quiet: bool, show_all: bool = False, **options: Any) -> Any:
        return command(output=Output(as_json, quiet, show_all), **options)

    return cast(Command, _options(*_OUTPUT)(with_output))


def the_load_dir(directory: Place | None, load_dir: Place | None) -> Place:
    if (directory is None) == (load_dir is None):
        ctx = click.get_current_context()
        missing = "Missing LOAD_DIR (or --load-dir): the directory or URL that holds .metadata."
        what = "Give LOAD_DIR or --load-dir, not both." if directory else missing
        if directory and ctx.params.get("save_dir", "") is None:
            what += f"\n{named(ctx, str(load_dir), str(directory))}"
        raise click.UsageError(what, ctx)
    return load_dir or directory or Path()


def preview_of(load_dir: Place, options: dict[str, Any]) -> Any:
    from dcptools.mapping import preview

    return preview(load_dir, **_of_preview(options))


def _of_preview(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``preview`` among them."""
    rules = [*options["rename"], *(_read_rules(options["rename_file"]) if options["rename_file"] else ())]
    return {field.name: options[field.name] for field in fields(MappingOptions)} | {"rename": rules}


def plan_of(load_dir: Place, options: dict[str, Any]) -> Any:
    from dcptools.shards import plan

    return plan(preview_of(load_dir, options), **{field.name: options[field.name] for field in fields(PlanOptions)})


def expected_of(load_dir: Place, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a model is compared with, and the options of ``verify`` for it."""
    if options["shard_size"] is None:
        return load_dir, {**_of_preview(options), **{name: options[name] for name in ("dtype", "dtype_for")}}
    return plan_of(load_dir, {**options, "dtype": options["dtype"] or "bfloat16", "strict": False}), {}


def given_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not at their defaults."""
    defaults = {field.name: field.default for field in fields(MappingOptions)}
    return {name: value for name, value in options.items() if value and value != defaults.get(name)}


def given_to_preview(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``preview`` that are not at their defaults."""
    return given_of(_of_preview(options))


def _read_rules(path: Path) -> list[str]:
    """The rename rules of a file."""
    with system_errors(UsageError, f"The file of rename rules {path} cannot be read"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # an editor may have put a byte order mark in front
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
