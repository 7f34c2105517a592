"""Paths as people type them."""

from __future__ import annotations

import os


def expanded(path: str | os.PathLike[str]) -> str:
    """The path with ``~`` as a shell reads it, which none does in ``--save-dir=~/out`` or in Python.

    >>> os.environ["HOME"] = "/home/me"
    >>> expanded("~/out"), expanded("out~")
    ('/home/me/out', 'out~')
    """
    return os.path.expanduser(os.fspath(path))
