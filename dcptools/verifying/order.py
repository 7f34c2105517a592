"""Which of two paths is the model and which the checkpoint, in case somebody mistook one for the other."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from dcptools.checkpoint import is_checkpoint
from dcptools.errors import NotACheckpoint, NotAModel, UsageError
from dcptools.hf import is_model


@contextmanager
def told_apart(save_dir: object, load_dir: object) -> Iterator[None]:
    """Read both within this context: if one is not what it was taken for, the error says what the two are.

    Raises
    ------
    UsageError
        They are swapped, or both of the same kind.
    """
    try:
        yield
    except (NotACheckpoint, NotAModel):
        if isinstance(save_dir, (str, os.PathLike)) and isinstance(load_dir, (str, os.PathLike)):
            _refuse(save_dir, load_dir)
        raise


def _refuse(save_dir: str | os.PathLike[str], load_dir: str | os.PathLike[str]) -> None:
    if is_checkpoint(load_dir) or not is_model(load_dir):
        return
    if is_checkpoint(save_dir):
        order = shlex.join([os.fspath(load_dir), os.fspath(save_dir)])
        raise UsageError(
            f"The model and the checkpoint are swapped: {save_dir} is a checkpoint, and {load_dir} is a model.\n"
            f"Give the model first, then the checkpoint: verify {order}"
        )
    if is_model(save_dir):
        raise UsageError(
            f"{save_dir} and {load_dir} are both HuggingFace models, and a model is verified with the checkpoint that "
            "it was made of.\nCompare two models with diff."
        )
