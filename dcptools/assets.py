"""What makes weights a model: config, tokenizer and the like, found and copied as files, never run."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcptools._option import option
from dcptools._paths import expanded, from_hub
from dcptools._text import some
from dcptools.errors import UsageError, system_errors
from dcptools.expected import is_known
from dcptools.findings import Finding
from dcptools.storage import is_url, open_source

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
MAX_CONFIG_BYTES = 64 << 20

# Weights, optimizer and training state, what would make transformers look for other weights, and what is about another
# copy of the model
_NOT_ASSETS = re.compile(
    r"\..*"  # .metadata, .gitattributes
    r"|.*\.(safetensors|bin|pt|pth|ckpt|distcp|h5|msgpack|gguf|ggml|ot|onnx|onnx_data|npz|npy|tmp|lock|incomplete)"
    r"(\.index\.json)?"
    r"|(optimizer|optim|scheduler|lr_scheduler|rng_state|random_states?|scaler|training_args|events\.out)(_\d|\b).*"
    r"|(trainer_state|adapter_config)\.json|latest|zero_to_fp32\.py"
    r"|.*(~|\.(bak|backup|old|orig|swp|log|out|err)(\.?\d+)?)|readme(\..*)?",  # backups, logs, another model's card
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Asset:
    name: str
    nbytes: int
    content: bytes | None = None  # what is written; None: what the file of that name holds


@dataclass(frozen=True, slots=True)
class Assets:
    """The files of the assets directory that go with the model, and what was noticed about them."""

    directory: str  # "" if none was given
    files: tuple[Asset, ...]
    config: str  # the text of config.json; "" if there is none, or none in UTF-8
    findings: tuple[Finding, ...]

    def config_for(self, dtype: str) -> bytes | None:
        """config.json with every field kept and the dtype that is written; None if it is not a JSON object."""
        config = _parse(self.config)
        if config is None:
            return None
        changed = _with_dtype(config, dtype)
        try:
            return (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # a lone surrogate, which only an escape can write
            return (json.dumps(changed, indent=2) + "\n").encode()

    def says(self, field: str) -> Any:
        """A top-level field of config.json, or None."""
        return (_parse(self.config) or {}).get(field)

    def for_adapter(self, config: bytes) -> Assets:
        """What goes with an adapter: its own config, but not that of the model, which peft takes from the base."""
        own = Asset(ADAPTER_CONFIG, len(config), config)
        others = (file for file in self.files if file.name not in (CONFIG, "generation_config.json"))
        found = tuple(finding for finding in self.findings if finding.key != CONFIG)
        return replace(self, files=(own, *others), config="", findings=found)

    @property
    def dtype(self) -> str | None:
        """The dtype that config.json names."""
        value = self.says("dtype") or self.says("torch_dtype")
        return value if isinstance(value, str) else None


def find_assets(directory: str | os.PathLike[str]) -> Assets:
    """Look through an assets directory; symlinks, as in the Hub's cache, are followed.

    Raises
    ------
    UsageError
        There is no such directory, or it or its config.json cannot be read.
    """
    with system_errors(UsageError, f"The assets directory {directory} cannot be read"):
        source = open_source(directory)
        place, kind = source.location, source.kind()
        if kind != "directory":
            what = "is a file" if kind == "file" else "is not a directory" if kind else "does not exist"
            advice = f"Give the directory that holds {CONFIG} and the tokenizer"
            advice += f": {os.path.dirname(place) or '.'}" if kind == "file" else "."
            raise UsageError(f"The assets directory {place} {what}.\n{advice}{'' if kind else from_hub(directory)}")
        states = source.states([name for name in source.entries() if not _NOT_ASSETS.fullmatch(name)])
        odd = {} if is_url(directory) else dict(_odd_files(Path(place), states))
        files = tuple(Asset(name, state.nbytes) for name, state in states.items() if state and name not in odd)
        names = {file.name: file.nbytes for file in files}
        config = _text(source.content(CONFIG)) if names.get(CONFIG, MAX_CONFIG_BYTES + 1) <= MAX_CONFIG_BYTES else ""
    return Assets(place, files, config, (*_check(place, set(names), config), *odd.values()))


@contextmanager
def on_disk(directory: str | os.PathLike[str]) -> Iterator[str]:
    """An assets directory for a library that reads only directories; for a URL, a temporary copy of its files.

    Raises
    ------
    UsageError
        There is no such directory, or it cannot be read.
    """
    if not is_url(directory):
        yield expanded(directory)
        return
    with tempfile.TemporaryDirectory(prefix="dcptools-") as copy:
        source = open_source(directory)
        for file in find_assets(directory).files:
            with system_errors(UsageError, f"The assets directory {directory} cannot be read"):
                Path(copy, file.name).write_bytes(source.content(file.name))
        yield copy


def _odd_files(directory: Path, names: Iterable[str]) -> Iterator[tuple[str, Finding]]:
    """What looks like a file but cannot be copied, by name, with a finding."""
    kernel = {os.stat(mount).st_dev for mount in ("/proc", "/sys") if os.path.ismount(mount)}
    for name in names:
        if not (directory / name).exists():
            yield name, Finding("assets-missing", name, "is a symlink to nothing", "download the file again")
            continue
        found = (directory / name).stat()
        ordinary = stat.S_ISREG(found.st_mode) and found.st_dev not in kernel
        if not ordinary and not stat.S_ISDIR(found.st_mode):  # a pipe, a device, or made up by the kernel: it may block
            what, advice = "is not an ordinary file, and is not copied", "put the file itself there"
            yield name, Finding("assets-missing", name, what, advice)


def _text(content: bytes) -> str:
    """The text of a file, or nothing if it is not UTF-8: replaced characters must not get into a rewritten copy."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return ""


def _check(path: str, names: set[str], config: str) -> Iterator[Finding]:
    if CONFIG not in names:
        yield Finding(
            "assets-missing",
            CONFIG,
            f"{path} has no {CONFIG}",
            "transformers cannot load the result without it",
        )
    elif (parsed := _parse(config)) is None:
        yield Finding(
            "config-unreadable", CONFIG, "it is not a JSON object in UTF-8, and transformers loads no model with it",
            f"repair it; or leave out {option('model_assets_dir')} to write the weights alone",
        )  # fmt: skip
    else:
        yield from _check_config(parsed)
    if not names.intersection(TOKENIZER_FILES):
        yield Finding(
            "assets-missing", "tokenizer", f"{path} has none of {some(TOKENIZER_FILES, 3)}",
            "copy the tokenizer's files there now, or beside the result later",
        )  # fmt: skip


def _check_config(config: dict[str, Any]) -> Iterator[Finding]:
    if not config.get("architectures"):
        yield Finding(
            "config-no-architectures", CONFIG, "it names no architectures",
            "AutoModelForCausalLM goes by model_type; serving programs often need architectures",
        )  # fmt: skip
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        yield Finding("config-unknown-model-type", CONFIG, "it has no model_type", "AutoConfig cannot load it")
    elif "auto_map" not in config and is_known(model_type) is False:
        unknown = f"the installed transformers has no model_type {model_type!r:.200}"
        yield Finding("config-unknown-model-type", CONFIG, unknown, "load it with a version that has it")


def _parse(config: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(config)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with its dtype fields set, and those of its parts (text_config) where they are there."""
    fields = [name for name in ("dtype", "torch_dtype") if name in config]
    changed = {**config, **dict.fromkeys(fields or ["dtype"], dtype)}
    for name, part in config.items():
        if (
            name.endswith("_config")
            and isinstance(part, dict)
            and isinstance(part.get("dtype", part.get("torch_dtype")), str)
        ):
            changed[name] = _with_dtype(part, dtype)
    return changed
