"""The options of the commands, and the values that they stand for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from dcptools._paths import expanded
from dcptools.checkpoint import is_checkpoint
from dcptools.comparing import BY
from dcptools.errors import UsageError, system_errors
from dcptools.layouts import LAYOUTS
from dcptools.mapping import CHOICES, MappingOptions
from dcptools.shards import DEFAULT_SHARD_SIZE, DTYPES, SHORT_NAMES, PlanOptions
from dcptools.storage import is_url, without_password

Command = TypeVar("Command", bound=Callable[..., Any])
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in this order in the help."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


class _Path(click.Path):
    """A path; an empty word, which a shell makes of a variable that is not set, does not mean the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_url(value):
            self.fail(f"{without_password(value)} is a URL, and this must be on the disk.", param, ctx)
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
        except UnicodeEncodeError:  # bytes that are no text in this locale
            try:
                return os.fsencode(value).decode()
            except UnicodeError:
                self.fail(f"{value!r} is not UTF-8.", param, ctx)
        return value


class _DType(click.Choice):  # type: ignore[type-arg]
    """A dtype, also by its short name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(SHORT_NAMES.get(value, value), param, ctx)


Place = Path | str  # a path, or a URL
PATH, PLACE, TEXT = _Path(path_type=Path), _Place(path_type=Path), _Text()
source_options = _options(
    click.argument("directory", metavar="[LOAD_DIR]", required=False, type=PLACE),
    click.option("--load-dir", type=PLACE, help="Directory or URL of the checkpoint, the one that holds .metadata."),
)
mapping_options = _options(
    click.option(
        "--model-assets-dir",
        type=PLACE,
        help="Directory with config.json and the tokenizer; they are copied to the result.",
    ),
    click.option(
        "--reference",
        type=PLACE,
        help="A HuggingFace model whose names and shapes the result must have, instead of those of config.json.",
    ),
    click.option(
        "--family", type=PATH, metavar="FILE", help="A TOML file with a trainer's own names and how its values lie."
    ),
    click.option(
        "--layout",
        type=click.Choice(LAYOUTS),
        default="auto",
        show_default=True,
        help="How HuggingFace names are found in the keys: container takes the leading 'model.' away, bare keeps them.",
    ),
    click.option(
        "--root", type=TEXT, metavar="NAME", help="Convert this container instead of 'model', for example ema."
    ),
    click.option(
        "--mode",
        type=click.Choice(CHOICES["mode"]),
        default="auto",
        show_default=True,
        help="With LoRA adapters: lora writes an adapter, full the base model; auto the adapter, if there is one.",
    ),
    click.option("--adapter", type=TEXT, metavar="NAME", help="The adapter, if there are several."),
    click.option(
        "--adapter-config-path",
        type=PATH,
        help="The adapter_config.json of the training.  [default: that of the assets, else made]",
    ),
    click.option(
        "--include",
        type=TEXT,
        multiple=True,
        metavar="GLOB",
        help="Convert only checkpoint keys that match; repeatable.",
    ),
    click.option(
        "--exclude",
        type=TEXT,
        multiple=True,
        metavar="GLOB",
        help="Leave out checkpoint keys that match; repeatable.",
    ),
    click.option(
        "--names",
        type=click.Choice(CHOICES["names"]),
        default="stored",
        show_default=True,
        help="Write the names of the live model, or those that save_pretrained publishes (experts one by one).",
    ),
    click.option(
        "--tied",
        type=click.Choice(CHOICES["tied"]),
        default="auto",
        show_default=True,
        help="Weights that the model ties: auto writes one if they are equal, keep writes all, drop writes one.",
    ),
    click.option(
        "--unexpected",
        type=click.Choice(CHOICES["unexpected"]),
        default="keep",
        show_default=True,
        help="Tensors that the model has no weight for.",
    ),
    click.option(
        "--allow-mismatch",
        is_flag=True,
        help="Write the result though weights of the model are missing or have another shape.",
    ),
    click.option(
        "--rename",
        type=TEXT,
        multiple=True,
        metavar="REGEX=REPLACEMENT",
        help="Rename HuggingFace names that match as a whole; the first rule wins; repeatable.",
    ),
    click.option(
        "--rename-file",
        type=PATH,
        help="A file of such rules, one per line; empty lines and lines that start with # do not count.",
    ),
)
plan_options = _options(
    click.option(
        "--shard-size",
        default=str(DEFAULT_SHARD_SIZE),
        show_default=True,
        metavar="BYTES",
        help="Bytes of values per file, in the written dtype; also 5GB, 2GiB, 1e9.",
    ),
    click.option(
        "--dtype",
        type=_DType(DTYPES),
        default="bfloat16",
        show_default=True,
        help="Floating tensors are written as this; integers and booleans never change.",
    ),
    click.option(
        "--dtype-for",
        type=TEXT,
        multiple=True,
        metavar="GLOB=DTYPE",
        help="An exception for HuggingFace names that match; the first wins; repeatable.",
    ),
    click.option("--strict", is_flag=True, help="Treat warnings as errors."),
)
output_options = _options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, for programs."),
    click.option("--quiet", is_flag=True, help="Print errors only."),
)
workers_option = click.option("--workers", type=click.IntRange(1, 1024), help="Threads.  [default: the CPUs, 2 to 8]")
model_options = _options(
    click.argument("save_dir", type=PLACE),
    click.argument("directory", metavar="[LOAD_DIR]", required=False, type=PLACE),
    click.option("--load-dir", type=PLACE, help="Directory or URL of the checkpoint, the one that holds .metadata."),
)
verify_options = _options(
    click.option("--shard-size", metavar="BYTES", help="The files must be those of this size, byte for byte."),
    click.option("--dtype", type=_DType(DTYPES), help="What floating tensors must be.  [default: what the files say]"),
    click.option(
        "--dtype-for", type=TEXT, multiple=True, metavar="GLOB=DTYPE", help="An exception for names; repeatable."
    ),
)
diff_options = _options(
    click.argument("a", type=PLACE),
    click.argument("b", type=PLACE),
    click.option(
        "--by",
        type=click.Choice(BY),
        default="auto",
        show_default=True,
        help="Checkpoint keys, or the names that a conversion gives; auto: keys for two checkpoints.",
    ),
    click.option("--keys", type=TEXT, multiple=True, metavar="GLOB", help="Compare only what matches; repeatable."),
    click.option("--cast", is_flag=True, help="Cast values of A to the dtype of B first: is B the export of A?"),
    click.option("--csv", type=PATH, help="Write a row for each tensor into this file."),
)
leftover_option = click.option("--list-leftovers", is_flag=True, help="List every key that is left out, and why.")


def the_load_dir(directory: Place | None, load_dir: Place | None) -> Place:
    if (directory is None) == (load_dir is None):
        what = "Give only one of LOAD_DIR and --load-dir." if directory else "Missing option '--load-dir'."
        raise click.UsageError(what, click.get_current_context())
    return load_dir or directory or Path()


def preview_of(load_dir: Place, options: dict[str, Any]) -> Any:
    from dcptools.mapping import preview

    rules = [*options["rename"], *(_read_rules(options["rename_file"]) if options["rename_file"] else ())]
    return preview(
        load_dir, **{field.name: options[field.name] for field in fields(MappingOptions)} | {"rename": rules}
    )


def plan_of(load_dir: Place, options: dict[str, Any]) -> Any:
    from dcptools.shards import plan

    return plan(preview_of(load_dir, options), **{field.name: options[field.name] for field in fields(PlanOptions)})


def expected_of(load_dir: Place, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a model is compared with, and the dtypes that it must have."""
    if options["shard_size"] is None:
        return preview_of(load_dir, options), {name: options[name] for name in ("dtype", "dtype_for")}
    return plan_of(load_dir, {**options, "dtype": options["dtype"] or "bfloat16", "strict": False}), {}


def given_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not at their defaults."""
    defaults = {field.name: field.default for field in fields(MappingOptions)}
    return {name: value for name, value in options.items() if value and value != defaults.get(name)}


def sides_of(a: Place, b: Place, by: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """What is compared: paths, or what the options say of the checkpoints among them."""
    given = given_of(options)
    if not given:
        return a, b
    checkpoints = [is_checkpoint(path) for path in (a, b)]
    if by == "keys" or (by == "auto" and all(checkpoints)) or not any(checkpoints):
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{names}: for a checkpoint whose names are compared.\nCompare by names: --by names.")
    sides = [preview_of(path, options) if is_one else path for path, is_one in zip((a, b), checkpoints, strict=True)]
    return sides[0], sides[1]


def _read_rules(path: Path) -> list[str]:
    """The rename rules of a file."""
    with system_errors(UsageError, f"The file of rename rules {path} cannot be read"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # an editor may have put a mark in front
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
