"""Writes the page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dcptools.checkpoint import Checkpoint
from dcptools.errors import FindingsError
from dcptools.mapping import KeyMapping, preview
from dcptools.reviewing.page import page_of
from dcptools.shards import DEFAULT_SHARD_SIZE, plan
from dcptools.storage import check_document, write_document
from dcptools.writer import default_save_dir

if TYPE_CHECKING:
    import torch

_WHAT = "The review"


def review(
    mapping: KeyMapping | Checkpoint | str | os.PathLike[str],
    html: str | os.PathLike[str],
    *,
    shard_size: float | str = DEFAULT_SHARD_SIZE,
    dtype: str | torch.dtype = "bfloat16",
    dtype_for: Mapping[str, str | torch.dtype] | Iterable[str | tuple[str, str | torch.dtype]] = (),
    strict: bool = False,
    save_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one HTML file that shows what a conversion would do: mapping, leftovers, findings, files, the command.

    The file loads nothing from elsewhere and runs nothing but a small script of its own, which searches and filters.
    A mapping with errors has no plan; the page says so, and shows the rest.

    Parameters
    ----------
    mapping
        What :func:`dcptools.preview` returned; or a checkpoint or a path, previewed with the defaults.
    html
        The file to write; an existing one is replaced.
    shard_size, dtype, dtype_for, strict
        As in :func:`dcptools.plan`.
    save_dir
        The output directory that the command on the page names.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UsageError
        The file cannot be written, or an option cannot be used.

    Examples
    --------
    >>> page = review(preview(demo.checkpoint, model_assets_dir=demo.assets), tmp_dir / "review.html")
    >>> "Content-Security-Policy" in page.read_text()
    True
    """
    target = check_document(html, _WHAT)
    shown = mapping if isinstance(mapping, KeyMapping) else preview(mapping)
    try:
        planned = plan(shown, shard_size, dtype, dtype_for=dtype_for, strict=strict)
    except FindingsError:
        planned = None
    named = str(save_dir) if save_dir is not None else str(default_save_dir(shown.checkpoint.path))
    return write_document(target, _WHAT, page_of(shown, planned, named))
