"""Which dtype each output is written in."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dcptools._option import option
from dcptools._text import counted, some
from dcptools.dtypes import TABLE, DType
from dcptools.errors import UsageError
from dcptools.findings import Finding
from dcptools.mapping import KeyMapping

if TYPE_CHECKING:
    import torch

DTYPES = ("bfloat16", "float16", "float32", "keep")
SHORT_NAMES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def checked_dtype(dtype: str | torch.dtype) -> str:
    """Its plain name, also for ``torch.bfloat16`` and ``"bf16"``; raises UsageError if it is not one of ``DTYPES``.

    >>> checked_dtype("BF16"), checked_dtype("torch.float16")
    ('bfloat16', 'float16')
    """
    name = str(dtype).lower().removeprefix("torch.")
    name = SHORT_NAMES.get(name, name)
    if name not in DTYPES:
        raise UsageError(f"{str(dtype)!r} is not a dtype that can be written.\nExpected one of {', '.join(DTYPES)}.")
    return name


def parse_exceptions(
    exceptions: Mapping[str, str | torch.dtype] | Iterable[str | tuple[str, str | torch.dtype]],
) -> tuple[tuple[str, str], ...]:
    """Exceptions to the dtype as pairs of a glob and a dtype; raises UsageError.

    >>> parse_exceptions({"*.norm.weight": "fp32"}) == parse_exceptions("*.norm.weight=float32")
    True
    """
    listed = [exceptions] if isinstance(exceptions, str) else exceptions
    return tuple(map(_parse_exception, listed.items() if isinstance(listed, Mapping) else listed))


def _parse_exception(exception: str | tuple[str, str | torch.dtype]) -> tuple[str, str]:
    """A glob and a dtype, split at the last ``=``."""
    glob, equals, name = exception.rpartition("=") if isinstance(exception, str) else (exception[0], "=", exception[1])
    if not equals or not glob:
        raise UsageError(
            f"{exception!r} is not a rule for dtypes.\nExpected PATTERN=DTYPE, like '*.norm.weight=float32'."
        )
    return glob, checked_dtype(name)


def written_dtypes(
    mapping: KeyMapping, dtype: str | torch.dtype, exceptions: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, DType], list[Finding]]:
    """The dtype that each output is written in, by name, and a finding for each exception that matched nothing.

    What the model keeps in float32 when it is loaded in a narrower dtype stays float32, if it is stored as float32.

    Raises UsageError for a dtype that cannot be written.
    """
    default = checked_dtype(dtype)
    kept = mapping.expected.float32.get(default, frozenset()) if mapping.expected else frozenset()
    rules = [(glob, re.compile(fnmatch.translate(glob)), checked_dtype(name)) for glob, name in exceptions]
    unused = dict.fromkeys(glob for glob, _ in exceptions)
    written = {}
    for output in mapping.outputs:
        matching = [(glob, name) for glob, regex, name in rules if regex.match(output.name)] if rules else []
        for glob, _ in matching:
            unused.pop(glob, None)
        asked = matching[0][1] if matching else None
        castable = output.dtype.kind == "float" or (output.dtype.kind == "float8" and asked is not None)
        name = asked or ("float32" if output.name in kept and output.dtype.name == "float32" else default)
        written[output.name] = TABLE[name] if castable and name != "keep" else output.dtype
    what = f"of {option('dtype_for')} matched no name"
    return written, [Finding("pattern-unused", "", f"{glob!r} {what}") for glob in unused]


def about_dtypes(mapping: KeyMapping, written: dict[str, DType]) -> Iterator[Finding]:
    """What is wrong with the dtypes, or worth knowing."""
    targets = set(written.values())
    for output in mapping.outputs if any(each.code is None or each.kind == "float8" for each in targets) else ():
        target = written[output.name]
        if target.code is None:
            yield Finding(
                "dtype-unsupported", output.name, f"safetensors has no type for {target.name}",
                f"leave it out with {option('exclude')}",
            )  # fmt: skip
        elif target.kind == "float8":
            yield Finding(
                "float8", output.name, f"{target.name} is written as it is and means nothing without its scale",
                f"{option('dtype_for')} casts it, if it has none",
            )  # fmt: skip
    narrower = any(target.kind == "float" and target.itemsize == 2 for target in targets)
    kept = {name for names in mapping.expected.float32.values() for name in names} if mapping.expected else set()
    in_float32 = [name for name in sorted(kept & written.keys()) if written[name].name == "float32"]
    if narrower and in_float32:
        text = f"{counted(len(in_float32), 'tensor')} stay float32, as the model keeps them: {some(in_float32)}"
        yield Finding("kept-float32", "", text, f"{option('dtype_for')} casts them")
    quantized = mapping.assets.says("quantization_config") if mapping.assets else None
    if quantized and not any(target.kind == "float8" for target in targets):
        method = quantized.get("quant_method", "") if isinstance(quantized, dict) else ""
        says = f"says that the weights are quantized{f' ({method})' if method else ''}, but these are not"
        hint = "remove quantization_config from the copy, or the model cannot be loaded"
        yield Finding("config-quantized", "config.json", says, hint)
    config = mapping.assets.dtype if mapping.assets else None
    others = {target for name, target in written.items() if name not in kept or target.name != "float32"}
    names = {target.name for target in others if target.kind == "float"}
    if config and names and names != {config}:
        says = f"says {config}, and {', '.join(sorted(names))} is written"
        yield Finding("config-dtype", "config.json", says, "the copy gets the written dtype")
