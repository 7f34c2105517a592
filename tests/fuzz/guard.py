"""What must not happen while a hostile file is read: Python's audit events tell, and what texts and pages may hold."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import FrameType
from typing import Any

LONGEST_MESSAGE = 5000  # characters of an error: a few lines

# Names of audit events (docs.python.org, "Audit events table"), and beginnings of such
_FORBIDDEN = (
    "exec", "compile", "code.__new__", "ctypes.", "fcntl.", "marshal.loads", "os.system", "os.exec", "os.posix_spawn",
    "os.spawn", "os.fork", "os.kill", "os.putenv", "os.unsetenv", "os.remove", "os.rename", "os.rmdir", "os.mkdir",
    "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.utime", "os.chdir", "pickle.find_class",
    "pty.spawn", "setopencodehook", "shutil.", "signal.pthread_kill", "socket.", "subprocess.Popen", "sys.setprofile",
    "urllib.", "webbrowser.", "winreg.",
)  # fmt: skip
_LIBRARIES = tuple(
    {
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).parents[2] / "dcptools"),
        *map(os.path.realpath, filter(None, sys.path)),
    }
)


# What an import does, in which the code of a module is read and run
_OF_IMPORTS = ("exec", "compile", "code.__new__", "marshal.loads")


def _is_importing() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


class Violation(Exception):
    """Something happened that never may."""


class Guard:
    """Refuses, and remembers, what a file could only want for evil. Its hook stays as long as the process does."""

    def __init__(self, place: Path) -> None:
        self._place = os.path.realpath(place)
        self._active, self._data = False, b""
        self.seen: list[str] = []
        self.also: frozenset[str] = frozenset()  # events that this class of files needs
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, data: bytes) -> Iterator[None]:
        """While that file is read: no module that it names is imported."""
        self.seen.clear()
        self._active, self._data = True, data
        try:
            yield
        finally:
            self._active = False
        if self.seen:
            raise Violation(self.seen[0])

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._active and (what := self._wrong(event, arguments)):
            self.seen.append(what)
            raise Violation(what)

    def _wrong(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event == "open" and not isinstance(arguments[0], int):
            path, _, flags = arguments
            if os.fsdecode(path) == "/proc/self/status":  # how much memory this process takes
                return ""
            path = os.path.realpath(os.fsdecode(path))
            inside = path.startswith(self._place + os.sep)
            if not inside and (flags & (os.O_WRONLY | os.O_RDWR) or not path.startswith(_LIBRARIES)):
                return f"opens {path}"
        elif event == "import":
            return f"imports {arguments[0]}" if str(arguments[0]).encode() in self._data else ""
        elif event in _OF_IMPORTS and _is_importing():
            return ""  # a library imports a part of itself when it is first used; the file does not name that
        elif event.startswith(_FORBIDDEN) and event not in self.also:
            return f"{event} {str(arguments)[:200]}"
        return ""


def check_text(text: str) -> None:
    """No character of it drives a terminal."""
    for line in text.split("\n"):
        if not line.isprintable():
            raise Violation(f"a terminal would get {line[:200]!r}")


def check_message(error: Exception) -> None:
    """An error is a few lines that a terminal may show."""
    check_text(str(error))
    if len(str(error)) > LONGEST_MESSAGE:
        raise Violation(f"a message of {len(str(error)):,} characters: {str(error)[:200]}")


class _Page(HTMLParser):
    TAGS = frozenset(["p", "strong", "table", "thead", "tbody", "tr", "th", "td", "wbr"])

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.TAGS or not {name for name, _ in attributes} <= {"style", "scope"}:
            raise Violation(f"a page would get <{tag} {attributes}>")

    def handle_comment(self, data: str) -> None:
        raise Violation(f"a page would get <!--{data[:100]}-->")


def check_page(html: str) -> None:
    """It has the tags of our tables, and no others."""
    page = _Page()
    page.feed(html)
    page.close()
    check_text(html)
