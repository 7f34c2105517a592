"""How the values of the pipeline show themselves, in a terminal and in a notebook: the same facts in both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dcptools._table import SHOWN_ROWS, html_table, html_title, text_table
from dcptools.findings import Finding, summary_lines


class Table(NamedTuple):
    """Some rows of a value, or the first ones if there are many."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    total: int | None = None  # rows in all, where ``rows`` are not all
    title: str = ""


class Shown:
    """A value that says what it is in a headline, tables, and a footer; a frozen dataclass derives from it."""

    def headline(self) -> str:
        """What it is, in one line."""
        raise NotImplementedError

    def _tables(self, most: int | None = SHOWN_ROWS) -> Iterable[Table]:
        """Those of it, whose rows need not be more than ``most`` (None: all)."""
        return ()

    def _footer(self) -> str:
        return ""

    def _shown_findings(self) -> Sequence[Finding]:
        return getattr(self, "findings", ())

    def table(self, most: int | None = SHOWN_ROWS, rest: str = "") -> str:
        """The text that ``print`` shows, without the findings.

        At most ``most`` rows of each table (None: all); ``rest`` says below one that is cut how to see the others.
        """
        lines = [self.headline()]
        for table in self._tables(most):
            lines += [table.title, text_table(table.header, table.rows, most=most, total=table.total, rest=rest)]
        return "\n".join(filter(None, [*lines, self._footer()]))

    def text(self, most: int | None = SHOWN_ROWS, rest: str = "") -> str:
        """The same with the findings."""
        return "\n".join([self.table(most, rest), *summary_lines(self._shown_findings())])

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [html_title(self.headline())]
        for table in self._tables():
            parts.append(html_table(table.header, table.rows, title=table.title, total=table.total))
        footer = self._footer()
        parts += [f"<p>{footer}</p>"] if footer else []
        found = [[line] for line in summary_lines(self._shown_findings())]
        return "".join([*parts, html_table(["finding"], found) if found else ""])
