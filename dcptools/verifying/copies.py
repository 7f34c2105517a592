"""A model compared with the report that was written with it: no checkpoint is needed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

from dcptools._parallel import Progress
from dcptools._text import format_shape
from dcptools.errors import BrokenModel
from dcptools.findings import Finding
from dcptools.hf import Model, Weight, announce_headers, header_bytes
from dcptools.shards import INDEX
from dcptools.storage import at_once
from dcptools.verifying.checksums import checksums
from dcptools.verifying.receipt import Receipt, ReceiptFile, ReceiptWeight, file_digest
from dcptools.verifying.values import Compared, VerifiedWeight

_AGAIN = "copy it again"


def with_receipt(
    model: Model,
    receipt: Receipt,
    *,
    workers: int | None,
    progress: Progress | bool | None,
    cancel: threading.Event | None,
) -> Compared:
    """Sizes and checksums of everything that was written."""
    sums = checksums(model, workers=workers, progress=progress, cancel=cancel)
    written = {weight.name: weight for weight in receipt.weights}
    found = [
        _weight(name, model.weights.get(name), written.get(name), sums.get(name, 0))
        for name in sorted(model.weights.keys() | written.keys())
    ]
    announce_headers(model)
    abouts = at_once(model.source, list, [_about_file(model, file) for file in receipt.files])
    findings = (
        *model.findings,
        *(finding for about in abouts for finding in about),
        *(finding for _, finding in found if finding is not None),
    )
    model.source.close()
    return Compared(receipt.path, {weight.name: weight for weight, _ in found}, findings)


def _about_file(model: Model, file: ReceiptFile) -> Iterator[Finding]:
    code = "model-file" if file.weights else "model-index" if file.name == INDEX else "model-asset"
    try:
        nbytes, digest = _header_digest(model, file.name) if file.weights else _digest(model, file.name)
    except (OSError, BrokenModel) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        yield Finding(code, file.name, f"it cannot be read: {reason}", _AGAIN)
        return
    if nbytes != file.nbytes:
        yield Finding(code, file.name, f"it has {nbytes:,} bytes, but {file.nbytes:,} were written", _AGAIN)
    elif digest != file.sha256:
        what = "its header is" if file.weights else "it is"
        yield Finding(code, file.name, f"{what} not what was written: the SHA-256 differs", _AGAIN)


def _header_digest(model: Model, name: str) -> tuple[int, str]:
    state = model.source.state(name)
    if state is None:
        raise BrokenModel("it is missing")
    return state.nbytes, hashlib.sha256(header_bytes(model.source, name)).hexdigest()


def _digest(model: Model, name: str) -> tuple[int, str]:
    return file_digest(model.source, name)


def _weight(
    name: str, weight: Weight | None, written: ReceiptWeight | None, crc: int
) -> tuple[VerifiedWeight, Finding | None]:
    if written is None:
        assert weight is not None
        found = VerifiedWeight(name, "unexpected", weight.shape, "", weight.dtype.name, weight.file, 0)
        return found, Finding("disk-unexpected", name, f"it is in {weight.file} but was not written", _AGAIN)
    if weight is None:
        found = VerifiedWeight(name, "missing", written.shape, "", "", "", 0)
        return found, Finding("disk-missing", name, f"it was written into {written.file}", _AGAIN)
    found = VerifiedWeight(name, "same", weight.shape, "", weight.dtype.name, weight.file, 0)
    ours, theirs = (
        f"{dtype} {format_shape(shape)} in {file}"
        for dtype, shape, file in (
            (weight.dtype.name, weight.shape, weight.file),
            (written.dtype, written.shape, written.file),
        )
    )
    if ours != theirs:
        state, code = ("shape", "disk-shape") if weight.shape != written.shape else ("dtype", "disk-dtype")
        wrong = VerifiedWeight(name, state, weight.shape, "", weight.dtype.name, weight.file, 0)
        return wrong, Finding(code, name, f"it is {ours}, but {theirs} was written", _AGAIN)
    if f"{crc:08x}" != written.crc32:
        wrong = VerifiedWeight(name, "values", weight.shape, "", weight.dtype.name, weight.file, 0)
        what = f"its bytes in {weight.file} have the CRC-32 {crc:08x}, but {written.crc32} were written"
        return wrong, Finding("disk-values", name, what, _AGAIN)
    return found, None
