"""A HuggingFace model as the expectation: the headers of its files, no values."""

from __future__ import annotations

import os

from dcptools._option import option
from dcptools._paths import from_hub
from dcptools._text import some
from dcptools.errors import NotAModel, UsageError
from dcptools.expected.values import Expected, Naming, Shape
from dcptools.hf import read_model


def expect_reference(path: str | os.PathLike[str]) -> Expected:
    """The names and shapes of another model: its directory, its index, or a safetensors file.

    An index without its files gives only names.

    Raises
    ------
    NotAModel
        There is no such model.
    UsageError
        Some of its files are missing or damaged.
    """
    try:
        model = read_model(path)
    except NotAModel as error:
        what = f"The reference ({option('reference')}) cannot be used: {error}"
        raise NotAModel(what if os.path.exists(path) else what + from_hub(path)) from None
    found: dict[str, Shape | None] = {name: weight.shape for name, weight in model.weights.items()}
    missing = [file.name for file in model.files if file.nbytes is None]
    if model.weight_map and len(missing) == len(model.files):
        found = dict.fromkeys(model.weight_map)
    elif missing:
        raise UsageError(
            f"Files of the reference {path} ({option('reference')}) are missing: {some(missing)}.\n"
            "Give a whole model, or an index alone."
        )
    elif model.errors or not found:
        what = f"The reference {path} ({option('reference')}) cannot be used:"
        raise UsageError("\n".join([what, *map(str, model.errors[:3])]))
    naming = Naming(found)
    dtypes = {name: weight.dtype for name, weight in model.weights.items()}
    numbers = frozenset(name for name, dtype in dtypes.items() if dtype.kind not in ("float", "float8"))
    return Expected(os.fspath(path), naming, naming, numbers=numbers if dtypes else None)
