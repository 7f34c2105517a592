"""``convert``: the whole line in one call."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from dcptools.checkpoint import Checkpoint, as_checkpoint
from dcptools.mapping import Rename, preview
from dcptools.shards import DEFAULT_SHARD_SIZE, plan
from dcptools.writer import Progress, Report, write


def default_save_dir(load_dir: str | os.PathLike[str]) -> Path:
    """Where a checkpoint is converted to unless said otherwise.

    >>> default_save_dir("step-100").as_posix()
    'step-100/hf_ckpt'
    """
    return Path(load_dir, "hf_ckpt")


def convert(
    load_dir: Checkpoint | str | os.PathLike[str],
    save_dir: str | os.PathLike[str] | None = None,
    *,
    model_assets_dir: str | os.PathLike[str] | None = None,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    dtype: str = "bfloat16",
    dtype_for: Iterable[str | tuple[str, str]] = (),
    reference: str | os.PathLike[str] | None = None,
    family: str | os.PathLike[str] | None = None,
    layout: str = "auto",
    root: str | None = None,
    mode: str = "auto",
    adapter: str | None = None,
    adapter_config_path: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    names: str = "stored",
    tied: str = "auto",
    unexpected: str = "keep",
    allow_mismatch: bool = False,
    rename: Iterable[str | tuple[str, str] | Rename] = (),
    strict: bool = False,
    overwrite: bool = False,
    fsync: bool = True,
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
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
    overwrite, fsync, workers, progress, cancel
        As in :func:`dcptools.write`.

    Raises
    ------
    DcptoolsError
        Whatever the four steps raise; nothing that looks like a model is left then.

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
    return write(planned, target, overwrite=overwrite, fsync=fsync, workers=workers, progress=progress, cancel=cancel)
