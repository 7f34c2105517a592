"""Names that a person picks by globs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from dcptools.errors import UsageError

_WILD = re.compile(r"[*?\[]")


def matching(names: Iterable[str], globs: Sequence[str] | str | None, nothing: str, advice: str) -> list[str]:
    """The names that match a glob, or one of several; all of them for None.

    ``nothing`` begins the message of the UsageError if there are none, before the globs; ``advice`` ends it.

    >>> matching(["model.norm", "lm_head", "ema"], ["model.*", "ema"], "No name matches", "Look again.")
    ['model.norm', 'ema']
    """
    if globs is None:
        return list(names)
    listed = [globs] if isinstance(globs, str) else globs
    plain = {glob for glob in listed if not _WILD.search(glob)}  # a hundred thousand cannot be one regular expression
    regex = re.compile("|".join(fnmatch.translate(glob) for glob in listed if glob not in plain) or r"(?!)")
    found = [name for name in names if name in plain or regex.match(name)]
    if not found:
        raise UsageError(f"{nothing} {', '.join(map(repr, listed)) or 'an empty list'}.\n{advice}")
    return found
