"""What was measured, as values, as text for a terminal and as JSON."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

Unit = Literal["s", "us", "MB"]


@dataclass(frozen=True)
class Settings:
    """What was asked for on the command line."""

    directory: Path
    parameters: int
    rounds: int
    shard_size: int  # bytes
    workers: int
    commands: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return self.directory / "out"


@dataclass(frozen=True)
class Target:
    """What a ratio should be."""

    text: str  # "<= 1.25"
    met_by: Callable[[float], bool]


def at_least(limit: float) -> Target:
    return Target(f">= {limit:g}", lambda ratio: ratio >= limit)


def at_most(limit: float) -> Target:
    return Target(f"<= {limit:g}", lambda ratio: ratio <= limit)


def below(limit: float) -> Target:
    return Target(f"< {limit:g}", lambda ratio: ratio < limit)


@dataclass(frozen=True)
class Row:
    """One comparison: the median of ``first`` over the median of ``second``."""

    name: str
    unit: Unit
    first: tuple[float, ...]  # one for each round, or a single one where nothing was repeated
    second: tuple[float, ...]
    target: Target | None = None

    @property
    def ratio(self) -> float:
        return median(self.first) / median(self.second)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "ok" if self.target.met_by(self.ratio) else "missed"

    def cells(self) -> tuple[str, ...]:
        target = self.target.text if self.target else ""
        return (
            self.name,
            spread(self.first, self.unit),
            spread(self.second, self.unit),
            f"{self.ratio:.2f}",
            target,
            self.verdict,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "first": list(self.first),
            "second": list(self.second),
            "ratio": self.ratio,
            "target": self.target.text if self.target else None,
            "verdict": self.verdict or None,
        }


def spread(samples: Sequence[float], unit: Unit) -> str:
    """The median, and from where to where the samples go."""
    digits = {"s": 3, "us": 1, "MB": 0}[unit]
    text = f"{median(samples):.{digits}f} {unit}"
    return text if len(samples) == 1 else f"{text} ({min(samples):.{digits}f}-{max(samples):.{digits}f})"


@dataclass(frozen=True)
class Section:
    """The rows that were measured together, and what else there is to say of them."""

    name: str
    about: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.name}: {self.about}", *table([row.cells() for row in self.rows]), *self.notes])

    def to_json(self) -> dict[str, Any]:
        rows = [row.to_json() for row in self.rows]
        return {"name": self.name, "about": self.about, "rows": rows, "notes": list(self.notes)}


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    header = ("first / second", "first", "second", "ratio", "target", "")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield f"  {'  '.join(cells)}".rstrip()


def machine() -> dict[str, Any]:
    """What the numbers depend on; a load above zero means that others were at work."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
