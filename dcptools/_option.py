"""What an option is called where a message is read: ``--layout bare`` in a shell, ``layout='bare'`` in Python."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Value = str | bool | None
Speaker = Callable[[str, Value], str]


def in_python(name: str, value: Value = None) -> str:
    return f"{name}=" if value is None else f"{name}={value!r}"


def in_shell(name: str, value: Value = None) -> str:
    option = "--" + name.replace("_", "-")
    return f"{option} {shlex.quote(value)}" if isinstance(value, str) else option


_SPEAKER: ContextVar[Speaker] = ContextVar("speaker", default=in_python)


def option(name: str, value: Value = None) -> str:
    """An option of ``preview`` or ``plan``, with a value, or as a flag (True), as the reader knows it.

    >>> option("layout", "bare"), option("allow_mismatch", True), option("root")
    ("layout='bare'", 'allow_mismatch=True', 'root=')
    """
    return _SPEAKER.get()(name, value)


@contextmanager
def speaking(speaker: Speaker) -> Iterator[None]:
    """Within this context, messages of this thread are read by somebody who knows options by these names."""
    token = _SPEAKER.set(speaker)
    try:
        yield
    finally:
        _SPEAKER.reset(token)
