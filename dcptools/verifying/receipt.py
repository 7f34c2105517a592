"""What was written, as JSON to keep beside a model: enough to check a copy of it without the checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dcptools._parallel import Progress
from dcptools.errors import UsageError, system_errors
from dcptools.hf import Model, read_headers, read_model
from dcptools.shards import ShardPlan
from dcptools.storage import Source, check_document, open_regular, path_on_disk, pieces, write_document
from dcptools.verifying.checksums import checksums
from dcptools.writer import Report

FORMAT = "dcptools-report"
VERSION = 1
MOST_BYTES = 1_000_000_000  # of a report
_WHAT = "The report"
PACKAGES = ("dcptools", "torch", "safetensors", "numpy", "transformers")


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """A file of a model as it was written."""

    name: str
    nbytes: int  # of the whole file
    sha256: str  # hexadecimal; of its header if it has weights, whose values have checksums of their own
    weights: bool


@dataclass(frozen=True, slots=True)
class ReceiptWeight:
    """A weight as it was written."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    crc32: str  # of its bytes, hexadecimal


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a report says about a model's files."""

    path: str
    files: tuple[ReceiptFile, ...]
    weights: tuple[ReceiptWeight, ...]


def receipt_of(
    plan: ShardPlan,
    report: Report,
    *,
    verified: bool,
    sum_up: Callable[..., dict[str, int]] = checksums,
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """The plan, what was found, versions, and a checksum of everything that was written.

    The model is read once more for the checksums. ``sum_up`` does what ``checksums`` does, if this process is not
    alone.
    """
    model = read_model(report.save_dir)
    sums = sum_up(model, workers=workers, progress=progress, cancel=cancel)
    assets = [asset.name for asset in plan.assets.files] if plan.assets else []
    headers = read_headers(model)
    files = [_weight_file(model, file.filename, headers) for file in plan.files]
    files += [_other_file(model.source, name) for name in (*([model.index] if model.index else []), *assets)]
    return {
        "format": FORMAT,
        "version": VERSION,
        "versions": {"python": platform.python_version(), **_versions(PACKAGES)},
        "checkpoint": {"path": plan.checkpoint.path, "metadata_sha256": plan.checkpoint.digest},
        "fingerprint": plan.fingerprint,
        "options": {**_plain(plan.mapping.options.arguments()), **_plain(plan.options.arguments())},
        "plan": {key: value for key, value in plan.to_json().items() if key != "findings"},
        "mapping": {key: value for key, value in plan.mapping.to_json().items() if key != "findings"},
        "findings": [finding.to_json() for finding in report.findings],
        "verified": verified,
        "files": [asdict(file) for file in files],
        "weights": [
            asdict(ReceiptWeight(w.name, w.file, w.dtype.name, w.shape, f"{sums[w.name]:08x}"))
            for w in model.weights.values()
        ],
    }


def write_receipt(path: str | os.PathLike[str], receipt: dict[str, Any]) -> None:
    """Write it whole, or not at all.

    Raises
    ------
    UsageError
        The file cannot be written.
    """
    write_document(path, _WHAT, json.dumps(receipt, indent=1) + "\n")


def check_receipt_path(path: str | os.PathLike[str]) -> None:
    """Refuse a place where no report can be written, before the work that the report is about.

    Raises
    ------
    UsageError
        It is a directory, or is not in one.
    """
    check_document(path, _WHAT)


def read_receipt(path: str | os.PathLike[str]) -> Receipt:
    """A report that was written with a model.

    Raises
    ------
    UsageError
        There is no such file, or it is something else.
    """
    target = path_on_disk(path, _WHAT)
    with system_errors(UsageError, f"The report {target} cannot be read"):
        with open(open_regular(target), "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{target} is too large for a report of dcptools.\n{_WHAT_TO_DO}")
    try:
        said = json.loads(content)
        if (said["format"], said["version"]) != (FORMAT, VERSION):
            raise KeyError
        files = tuple(ReceiptFile(**_fields(file, _FILE)) for file in said["files"])
        weights = tuple(ReceiptWeight(**_fields(weight, _WEIGHT)) for weight in said["weights"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UsageError(f"{target} is not a report of dcptools.\n{_WHAT_TO_DO}") from None
    return Receipt(str(target), files, weights)


_WHAT_TO_DO = "Give the file that convert --report wrote."
_FILE = {"name": str, "nbytes": int, "sha256": str, "weights": bool}
_WEIGHT = {"name": str, "file": str, "dtype": str, "shape": list, "crc32": str}


def _fields(entry: Any, types: Mapping[str, type]) -> dict[str, Any]:
    """The fields of an entry, of these types; raises ValueError, TypeError or KeyError."""
    fields = {name: entry[name] for name in types}
    if not all(type(value) is types[name] for name, value in fields.items()):
        raise ValueError
    if {"/", "\\", "\0"}.intersection(fields.get("file", fields["name"])):
        raise ValueError  # it must not lead out of the model's directory
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _weight_file(model: Model, name: str, headers: Mapping[str, bytes]) -> ReceiptFile:
    (nbytes,) = [file.nbytes for file in model.files if file.name == name]
    assert nbytes is not None
    digest = hashlib.sha256(headers[name]).hexdigest()
    return ReceiptFile(name, nbytes, digest, True)


def _other_file(source: Source, name: str) -> ReceiptFile:
    nbytes, digest = file_digest(source, name)
    return ReceiptFile(name, nbytes, digest, False)


def file_digest(source: Source, name: str) -> tuple[int, str]:
    """Size and SHA-256 of a whole file; raises OSError."""
    digest, nbytes = hashlib.sha256(), 0
    for piece in pieces(source, name):
        digest.update(piece)
        nbytes += len(piece)
    return nbytes, digest.hexdigest()


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON has them."""
    plain: dict[str, Any] = json.loads(json.dumps(options, default=_as_json))
    return plain


def _as_json(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
