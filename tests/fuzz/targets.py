"""Hostile files are read as a user reads them; what is said of them is looked at. Each returns what came of it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import dcptools
from dcptools import cli
from dcptools.assets import find_assets
from dcptools.checkpoint import StoredTensor
from dcptools.errors import DcptoolsError
from dcptools.expected import NotExpected, expect, is_answered
from dcptools.hf import read_model
from dcptools.layouts import read_family
from dcptools.tensors import read_region

from . import architecture, differential, made, mutate, seeds
from .guard import check_message, check_page, check_text

MOST_ELEMENTS = 1 << 16  # of a tensor that is read: the metadata of a small file may well say that one is huge
Target = Callable[[Path, str], str]


def not_asked(_config: str) -> Any:
    """transformers builds models in a process of its own, which has bounds of its own."""
    raise NotExpected("it is not asked here")


def look_at(value: Any) -> None:
    """As a terminal and as a notebook show it."""
    check_text(str(value))
    check_page(value._repr_html_())
    value.to_json()


def command(*arguments: str) -> None:
    """As the command line shows it."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main_group.main(list(arguments), prog_name="dcptools", standalone_mode=False)
    finally:
        check_text(out.getvalue())
        check_text(err.getvalue())


def read_values(tensor: StoredTensor) -> str:
    """The whole of a small tensor."""
    if tensor.problem or not 0 < tensor.numel <= MOST_ELEMENTS:
        return "read"
    bits = np.empty(tensor.shape, f"u{tensor.dtype.itemsize}" if tensor.dtype.itemsize < 16 else "V16")
    read_region(tensor, [(0, n) for n in tensor.shape], bits)
    return "read, values too"


def metadata(directory: Path, _file: str) -> str:
    checkpoint = dcptools.read(directory)
    look_at(checkpoint)
    checkpoint.keys_table()
    mapping = dcptools.preview(checkpoint)
    look_at(mapping)
    look_at(dcptools.plan(mapping))
    for name in ("inspect", "preview"):
        command(name, str(directory))
        command(name, str(directory), "--json")
    return "read and planned"


def item(directory: Path, file: str) -> str:
    """The item is as long as its file."""
    checkpoint = dcptools.read(directory)
    (tensor,) = checkpoint.tensors.values()
    columns = replace(tensor.columns, nbytes=np.array([(directory / file).stat().st_size]))
    return read_values(replace(tensor, columns=columns))


def header(directory: Path, file: str) -> str:
    if file.startswith("shard-"):
        checkpoint = dcptools.read(directory)
        look_at(checkpoint)
        for tensor in list(checkpoint.tensors.values())[:5]:
            read_values(tensor)
        return "read"
    model = read_model(directory)
    look_at(model)
    differential.header(directory / file, model)
    return "refused by a finding" if model.errors else "read"


def index(directory: Path, _file: str) -> str:
    model = read_model(directory)
    look_at(model)
    return "refused by a finding" if model.errors else "read"


def config(directory: Path, _file: str) -> str:
    assets = find_assets(directory)
    check_text("\n".join(map(str, assets.findings)))
    return "refused by a finding" if assets.config_for("bfloat16") is None else "read"


def built(directory: Path, _file: str) -> str:
    assets = find_assets(directory)
    if not assets.says("architectures"):
        return "names no model"
    if is_answered(assets.config):
        with contextlib.suppress(NotExpected):
            expect(assets.config)
        return "refused at once"
    return architecture.outcome_of(assets.config)


def _previewed(directory: Path, **options: Any) -> str:
    mapping = dcptools.preview(directory, **options)
    look_at(mapping)
    look_at(dcptools.plan(mapping))
    return "read and planned"


def adapter_config(directory: Path, file: str) -> str:
    return _previewed(directory, adapter_config_path=directory / file)


def family(directory: Path, file: str) -> str:
    read_family(directory / file)
    return _previewed(directory, family=directory / file)


def rules(directory: Path, file: str) -> str:
    command("preview", str(directory), "--rename-file", str(directory / file))
    return "read and planned"


@dataclass(frozen=True)
class Kind:
    """A class of files: what to begin with, how to change it, and what to do with it."""

    seeds: Callable[[Path], seeds.Seeds]
    mutator: mutate.Mutator
    target: Target
    share: float = 1.0  # of the time
    events: frozenset[str] = frozenset()  # that it may cause, for another reader is asked as well
    slow: bool = False  # a second for each


_PICKLE = frozenset(["pickle.find_class"])
KINDS = {
    "metadata": Kind(seeds.metadata, made.of_metadata, metadata, 3),
    "metadata against pickle": Kind(seeds.metadata, made.of_metadata, differential.metadata, 2, _PICKLE),
    "item": Kind(seeds.items, mutate.of_archive, item, 2),
    "data.pkl": Kind(seeds.items, mutate.of_item_pickle, item, 2),
    "data.pkl against pickle": Kind(seeds.items, mutate.of_item_pickle, differential.item_pickle, 1, _PICKLE),
    "item against torch": Kind(seeds.items, mutate.of_archive, differential.item, 1, _PICKLE),
    "data.pkl against torch": Kind(seeds.items, mutate.of_item_pickle, differential.item, 1, _PICKLE),
    "cover against counting": Kind(differential.tilings, differential.of_tiling, differential.cover, 0.5),
    "safetensors header": Kind(seeds.headers, mutate.of_header, header, 2),
    "index": Kind(seeds.indexes, mutate.of_json, index),
    "config.json": Kind(seeds.configs, mutate.of_json, config),
    "architecture": Kind(seeds.architectures, mutate.of_json, built, 2, frozenset(["os.fork"]), slow=True),
    "adapter_config.json": Kind(seeds.adapter_configs, mutate.of_json, adapter_config),
    "family": Kind(seeds.families, mutate.of_text, family),
    "rename rules": Kind(seeds.rules, mutate.of_text, rules),
}


def outcome(target: Target, directory: Path, file: str) -> str:
    """What came of it; anything but our own errors is raised."""
    try:
        return target(directory, file)
    except DcptoolsError as error:
        check_message(error)
        return type(error).__name__
