"""``convert``: the whole line in one call."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dcptools.checkpoint import Checkpoint, as_checkpoint
from dcptools.mapping import Rename, preview
from dcptools.shards import DEFAULT_SHARD_SIZE, plan
from dcptools.verifying import check_receipt_path, receipt_of, verify_written, write_or_find, write_receipt
from dcptools.writer import Progress, Report, default_save_dir

if TYPE_CHECKING:
    import torch


def convert(
    load_dir: Checkpoint | str | os.PathLike[str],
    save_dir: str | os.PathLike[str] | None = None,
    *,
    model_assets_dir: str | os.PathLike[str] | None = None,
    shard_size: float | str = DEFAULT_SHARD_SIZE,
    dtype: str | torch.dtype = "bfloat16",
    dtype_for: Mapping[str, str | torch.dtype] | Iterable[str | tuple[str, str | torch.dtype]] = (),
    reference: str | os.PathLike[str] | None = None,
    family: str | os.PathLike[str] | None = None,
    layout: str = "auto",
    root: str | None = None,
    mode: str = "auto",
    adapter: str | None = None,
    adapter_config_path: str | os.PathLike[str] | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    names: str = "stored",
    tied: str = "auto",
    unexpected: str = "keep",
    allow_mismatch: bool = False,
    rename: Mapping[str, str] | Iterable[str | tuple[str, str] | Rename] = (),
    strict: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    fsync: bool = True,
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
    verify: bool = False,
    report: str | os.PathLike[str] | None = None,
) -> Report:
    """Convert a distributed checkpoint to a HuggingFace model: read, preview, plan and write.

    Parameters
    ----------
    load_dir
        The directory that holds ``.metadata``.
    save_dir
        The output directory; by default ``<load_dir>/hf_ckpt``.
    model_assets_dir, reference, family, layout, root, include, exclude, names, tied, unexpected, allow_mismatch, rename
        As in :func:`dcptools.preview`.
    mode, adapter, adapter_config_path
        As in :func:`dcptools.preview`.
    shard_size, dtype, dtype_for, strict
        As in :func:`dcptools.plan`.
    overwrite, resume, fsync, workers, progress, cancel
        As in :func:`dcptools.write`. With ``resume``, a model that is there already is compared with the checkpoint,
        and stays if it is what would be written (``Report.was_complete``).
    verify
        Read the written model again and compare it with the checkpoint, as :func:`dcptools.verify` does.
    report
        A file to write as JSON: plan, findings, versions, and a checksum of each weight and file, with which
        :func:`dcptools.verify` checks a copy of the model.

    Raises
    ------
    NotVerified
        What was written is not what it should be; it stays, so that you can look at it.
    DcptoolsError
        Whatever the four steps raise; then nothing that looks like a model is left.

    Examples
    --------
    >>> report = convert(demo.checkpoint, tmp_dir / "model", model_assets_dir=demo.assets, shard_size="500MB")
    >>> "config.json" in report.assets
    True
    """
    checkpoint = as_checkpoint(load_dir)
    mapping = preview(
        checkpoint,
        model_assets_dir=model_assets_dir,
        reference=reference,
        family=family,
        layout=layout,
        root=root,
        mode=mode,
        adapter=adapter,
        adapter_config_path=adapter_config_path,
        include=include,
        exclude=exclude,
        names=names,
        tied=tied,
        unexpected=unexpected,
        allow_mismatch=allow_mismatch,
        rename=rename,
    )
    planned = plan(mapping, shard_size, dtype, dtype_for=dtype_for, strict=strict)
    target = save_dir if save_dir is not None else default_save_dir(checkpoint.path)
    if report is not None:
        check_receipt_path(report)
    running: dict[str, Any] = {"workers": workers, "progress": progress, "cancel": cancel}
    options: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "fsync": fsync}
    written, found = write_or_find(planned, target, **options, running=running)
    if verify and found is None:
        verify_written(planned, target, **running)
    if report is not None:
        write_receipt(report, receipt_of(planned, written, verified=verify, **running))
    return written
