"""Findings as a table, and the row that one of them is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import ipywidgets as W
import pandas as pd

from dcptools._text import natural
from dcptools.findings import SEVERITIES, Finding
from dcptools.widgets._base import alert
from dcptools.widgets._rows import Column
from dcptools.widgets._table import Table

COLUMNS = (
    Column("severity", kinds=lambda severity: [severity]), Column("code", kinds=lambda code: [code]),
    Column("key", searched=True, optional=True), Column("message", searched=True, prose=True),
    Column("hint", prose=True, optional=True),
)  # fmt: skip


def findings_table() -> Table:
    """A table for :func:`findings_frame`; pressing Enter on a row leads to what it is about."""
    return Table(COLUMNS, noun="finding")


def with_text(table: Table) -> W.VBox:
    """The table, and below it the whole text of the chosen finding."""
    text = W.HTML()

    def show(_: Any) -> None:
        chosen = table.frame.iloc[table.chosen] if table.chosen >= 0 else None
        text.value = "" if chosen is None else alert(chosen["severity"], str(Finding(**chosen)))

    table.observe(show, "chosen")
    return W.VBox([table, text])


def findings_frame(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per finding, errors first; those of a code follow each other, in the order of their keys."""
    codes = {code: number for number, code in enumerate(dict.fromkeys(each.code for each in findings))}
    ordered = sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), codes[f.code], natural(f.key)))
    rows = [(each.severity, each.code, each.key, each.message, each.hint) for each in ordered]
    return pd.DataFrame(rows, columns=[column.name for column in COLUMNS], dtype=object)


def row_of(frame: pd.DataFrame, finding: Finding) -> int:
    """The row of a finding; -1: it is not there."""
    return row_with(frame, key=finding.key, code=finding.code, message=finding.message)


def row_with(frame: pd.DataFrame, **cells: str) -> int:
    """The first row with these cells; -1: there is none."""
    wanted = pd.Series(True, index=frame.index)
    for name, value in cells.items():
        wanted &= frame[name] == value
    found = wanted.to_numpy().nonzero()[0]
    return int(found[0]) if len(found) else -1


def by_key(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """The findings of each key."""
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.key, []).append(finding)
    return found
