"""Paths as people type them."""

from __future__ import annotations

import os
import re

_LIKE_A_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")  # user/model, as from_pretrained takes it
_FILE = re.compile(r".*\.(json|safetensors|model|txt|toml)")


def expanded(path: str | os.PathLike[str]) -> str:
    """The path with ``~`` expanded, which no shell does in ``--save-dir=~/out``, nor does Python.

    >>> os.environ["HOME"] = "/home/me"
    >>> expanded("~/out"), expanded("out~")
    ('/home/me/out', 'out~')
    """
    return os.path.expanduser(os.fspath(path))


def from_hub(path: str | os.PathLike[str]) -> str:
    """What to do if a path where nothing is was meant as a name on the Hub; "" if it does not look like one.

    >>> from_hub("Qwen/Qwen3-0.6B")
    ' If that is a name on the Hub, download it first: hf download Qwen/Qwen3-0.6B'
    >>> from_hub("assets/config.json")
    ''
    """
    name = os.fspath(path)
    like = _LIKE_A_HUB_NAME.fullmatch(name) and not _FILE.fullmatch(name)
    return f" If that is a name on the Hub, download it first: hf download {name}" if like else ""
