"""Rules that give outputs other names."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dcptools.errors import UsageError
from dcptools.layouts import Output


@dataclass(frozen=True, slots=True)
class Rename:
    """One rename rule: a regular expression that must match a whole HuggingFace name, and its replacement.

    >>> Rename.parse(r"model\\.(.*)=language_model.\\1").apply("model.norm.weight")
    'language_model.norm.weight'
    """

    pattern: str
    replacement: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
            re.sub(self.pattern, self.replacement, "")
        except (re.error, IndexError, OverflowError, RecursionError) as error:
            raise UsageError(f"The rename rule {self:.200} is not a valid regular expression: {error}.") from None
        if group := re.search(r"\$\{?(\d)", self.replacement):
            raise UsageError(
                f"The rename rule {self:.200} would put {group[0]} itself into names.\n"
                f"Write \\{group[1]} for what a group matched."
            )

    @classmethod
    def parse(cls, rule: str | tuple[str, str] | Rename) -> Rename:
        """A rule from ``REGEX=REPLACEMENT``, split at the last ``=``, or from a pair."""
        if isinstance(rule, Rename):
            return rule
        pattern, equals, replacement = rule.rpartition("=") if isinstance(rule, str) else (rule[0], "=", rule[1])
        if not equals or not pattern:
            lacks = "has nothing before the '='" if equals else "has no '='"
            raise UsageError(f"The rename rule {rule[:200]!r} {lacks}.\nExpected REGEX=REPLACEMENT.")
        return cls(pattern, replacement)

    def apply(self, name: str) -> str | None:
        """The new name, or None if the rule does not match the whole of it."""
        match = re.fullmatch(self.pattern, name)
        try:
            return match.expand(self.replacement) if match else None
        except (re.error, IndexError) as error:
            raise UsageError(f"The rename rule {self:.200} cannot be applied to {name!r}: {error}.") from None

    def __str__(self) -> str:
        return f"{self.pattern}={self.replacement}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


def parse_renames(rules: Mapping[str, str] | Iterable[str | tuple[str, str] | Rename]) -> tuple[Rename, ...]:
    """The rules of an option: several, a mapping of patterns to replacements, or one."""
    listed = [rules] if isinstance(rules, str) else rules
    return tuple(map(Rename.parse, listed.items() if isinstance(listed, Mapping) else listed))


def renamed(rules: Iterable[Rename], name: str) -> str | None:
    """The name that the first matching rule gives; None if none matches."""
    return _first(rules, name)[1]


def _first(rules: Iterable[Rename], name: str) -> tuple[Rename, str] | tuple[None, None]:
    """The first matching rule, and the name that it gives."""
    found = ((rule, new) for rule in rules if (new := rule.apply(name)) is not None)
    return next(found, (None, None))


class Renames:
    """The rules of one preview, of which the first that matches counts; they remember what they were used for."""

    def __init__(self, rules: Sequence[Rename]) -> None:
        self._rules = rules
        self._used: set[Rename] = set()
        self._done: set[Output] = set()
        self.renamed: set[str] = set()  # keys of the outputs that a rule matched
        self.names: dict[str, str] = {}  # what the rules made of which name

    @property
    def unused(self) -> list[Rename]:
        return [rule for rule in self._rules if rule not in self._used]

    def apply(self, output: Output, only_to: Container[str] | None = None) -> Output:
        """The output with the name that the rules give it, if that is one of ``only_to``; once renamed, it stays so."""
        if not self._rules:
            return output
        rule, name = _first(self._rules, output.name)
        if rule is None or name is None or output in self._done:
            return output
        if only_to is not None and name not in only_to:
            return output
        self._used.add(rule)
        self.renamed.update(view.key for view in output.sources)
        self.names[output.name] = name
        done = replace(output, name=name, rule=f"{output.rule}, then {rule}")
        self._done.add(done)
        return done
