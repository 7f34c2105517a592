"""Which keys the user wants."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence


class Globs:
    """Include and exclude patterns that remember which of them matched something."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = [(glob, re.compile(fnmatch.translate(glob))) for glob in include]
        self._exclude = [(glob, re.compile(fnmatch.translate(glob))) for glob in exclude]
        self.unused = {*include, *exclude}

    def __bool__(self) -> bool:
        return bool(self._include or self._exclude)

    def refusal(self, key: str) -> str | None:
        """Why a key is not wanted, or None."""
        included = [glob for glob, regex in self._include if regex.match(key)]
        excluded = [glob for glob, regex in self._exclude if regex.match(key)]
        self.unused.difference_update(included, excluded)
        if excluded:
            return f"excluded by {excluded[0]!r}"
        return "not included by any glob" if self._include and not included else None
