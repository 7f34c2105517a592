"""Paths as people type them."""

from __future__ import annotations

import os


def expanded(path: str | os.PathLike[str]) -> str:
    """The path with ``~`` expanded, which no shell does in ``--save-dir=~/out``, nor does Python.

    >>> os.environ["HOME"] = "/home/me"
    >>> expanded("~/out"), expanded("out~")
    ('/home/me/out', 'out~')
    """
    return os.path.expanduser(os.fspath(path))
