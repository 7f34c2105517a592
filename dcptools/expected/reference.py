"""A HuggingFace model as the expectation: the headers of its files, no values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dcptools._text import some
from dcptools.errors import UsageError, system_errors
from dcptools.expected.values import Expected, Naming, Shape

INDEX = "model.safetensors.index.json"


def expect_reference(path: str | os.PathLike[str]) -> Expected:
    """The names and shapes of another model: its directory, its index, or a safetensors file.

    An index without its files gives names alone.

    Raises
    ------
    UsageError
        There is no such model, or its files cannot be read.
    """
    path = Path(path)
    with system_errors(UsageError, f"The reference {path} cannot be read"):
        index = path / INDEX if path.is_dir() else path
        if index.name.endswith(".index.json") and index.is_file():
            found = _indexed(index)
        else:
            found = dict(_headers(sorted(path.glob("*.safetensors")) if path.is_dir() else [path]))
    if not found:
        raise UsageError(
            f"There is no model in the reference {path}.\n"
            f"Expected a directory with *.safetensors files, an {INDEX}, or a safetensors file."
        )
    naming = Naming(found)
    return Expected(str(path), naming, naming)


def _indexed(index: Path) -> dict[str, Shape | None]:
    try:
        listed = json.loads(index.read_bytes())["weight_map"]
        names, files = list(listed), {index.parent / os.path.basename(file) for file in listed.values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{index} is not an index of a HuggingFace model.\nExpected a 'weight_map' in it.") from None
    missing = [file.name for file in sorted(files) if not file.is_file()]
    if len(missing) == len(files):
        return dict.fromkeys(names)
    if missing:
        raise UsageError(f"Files of {index} are missing: {some(missing)}.\nGive an index with all its files, or none.")
    return dict(_headers(sorted(files)))


def _headers(files: list[Path]) -> Iterator[tuple[str, Shape | None]]:
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():
                    yield name, tuple(opened.get_slice(name).get_shape())
        except SafetensorError as error:
            raise UsageError(f"{file} is not a whole safetensors file: {error}.\nCopy the model again.") from None
