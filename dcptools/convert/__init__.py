"""The whole line in one call; the command line is in ``__main__``."""

from __future__ import annotations

from dcptools.convert.pipeline import convert, default_save_dir

__all__ = ["convert", "default_save_dir"]
