"""A table for a hundred thousand rows: filtered, sorted and paged in the kernel, one page sent to the browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as W
import pandas as pd
import traitlets as T

from dcptools.widgets._base import alert, table_html

PAGE_ROWS = 20
ROW_PIXELS = 23
ANY = "any"


class PagedTable(W.VBox):  # type: ignore[misc]
    """Shows a DataFrame by pages, with a search box, filters and a sort order.

    Parameters
    ----------
    frame
        The rows. Cells are shown with ``formats[column]`` where given, else ``str``.
    search
        The columns that the search box looks into.
    facets
        Columns that get a filter with their distinct values.
    flags
        Checkboxes: description to a function of the frame that gives a boolean Series.
    numeric
        Columns that are aligned to the right.
    """

    found = T.Int(0)  # rows that match the filters

    def __init__(
        self,
        frame: pd.DataFrame,
        *,
        search: Sequence[str],
        facets: Sequence[str] = (),
        flags: Mapping[str, Callable[[pd.DataFrame], pd.Series]] | None = None,
        formats: Mapping[str, Callable[[Any], str]] | None = None,
        numeric: Sequence[str] = (),
        label: str = "Search keys",
    ) -> None:
        self._search, self._facet_columns = search, facets
        self._flags, self._formats, self._numeric = dict(flags or {}), dict(formats or {}), set(numeric)
        self.search = W.Text(placeholder=label, description="Search", continuous_update=True, layout={"width": "340px"})
        self.regex = W.Checkbox(description="regex", indent=False, layout={"width": "70px"})
        self.filters = {name: W.Dropdown(description=name, layout={"width": "190px"}) for name in facets}
        for dropdown in self.filters.values():
            dropdown.style.description_width = "50px"
        self.checks = {
            name: W.Checkbox(description=name, indent=False, layout={"width": "auto"}) for name in self._flags
        }
        self.order = W.Dropdown(description="sort by", layout={"width": "190px"})
        self.order.style.description_width = "50px"
        self.descending = W.Checkbox(description="descending", indent=False, layout={"width": "110px"})
        self.previous = W.Button(description="Previous page", layout={"width": "140px"})
        self.next = W.Button(description="Next page", layout={"width": "140px"})
        self.page = W.BoundedIntText(min=1, max=1, value=1, description="Page", layout={"width": "140px"})
        self.page.style.description_width = "40px"
        self.status = W.HTML()
        self.body = W.HTML()
        wrap = W.Layout(flex_flow="row wrap", align_items="center")
        top = W.HBox([self.search, self.regex, *self.filters.values(), *self.checks.values()], layout=wrap)
        bottom = W.HBox([self.previous, self.page, self.next, self.order, self.descending, self.status], layout=wrap)
        super().__init__([top, self.body, bottom])
        self._quiet = False
        for control in (*top.children, self.order, self.descending):
            control.observe(self._changed, "value")
        self.page.observe(lambda _: self._show(), "value")
        self.previous.on_click(lambda _: self._turn(-1))
        self.next.on_click(lambda _: self._turn(1))
        self.frame = frame

    @property
    def frame(self) -> pd.DataFrame:
        """All rows."""
        return self._frame

    @frame.setter
    def frame(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        height = ROW_PIXELS * min(PAGE_ROWS, len(frame)) + 40
        self.body.layout.min_height = f"{height}px"  # filtering must not make it jump
        self._quiet = True
        for name, dropdown in self.filters.items():
            values = [ANY, *sorted(frame[name].dropna().astype(str).unique())]
            kept = dropdown.value
            dropdown.options = values
            dropdown.value = kept if kept in values else ANY
        kept = self.order.value
        self.order.options = list(frame.columns)
        self.order.value = kept if kept in frame.columns else frame.columns[0]
        self._quiet = False
        self.refresh()

    @property
    def selected(self) -> pd.DataFrame:
        """The rows that match the filters, in the chosen order."""
        return self._selected

    def refresh(self) -> None:
        """Filter and sort again."""
        try:
            self._selected = self._filtered()
        except re.error as error:
            self.status.value = alert("error", f"The search text is not a regular expression: {error}.")
            return
        self.found = len(self._selected)
        self.page.max = max(1, -(-self.found // PAGE_ROWS))
        self.page.value = min(self.page.value, self.page.max)
        self._show()

    def _filtered(self) -> pd.DataFrame:
        frame, mask = self._frame, pd.Series(True, index=self._frame.index)
        text = self.search.value
        if text:
            find = re.compile(text if self.regex.value else re.escape(text), re.IGNORECASE).search
            rows = zip(*(frame[name].astype(str) for name in self._search), strict=True)
            mask &= pd.Series([any(map(find, row)) for row in rows], index=frame.index, dtype=bool)
        for name, dropdown in self.filters.items():
            if dropdown.value not in (None, ANY):
                mask &= frame[name].astype(str) == dropdown.value
        for name, check in self.checks.items():
            if check.value:
                mask &= self._flags[name](frame)
        column = self.order.value
        key = None if self._sortable(frame[column]) else (lambda values: values.map(str, na_action="ignore"))
        return frame[mask].sort_values(column, ascending=not self.descending.value, kind="stable", key=key)

    @staticmethod
    def _sortable(values: pd.Series) -> bool:
        return pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)

    def _changed(self, _: Any) -> None:
        if not self._quiet:
            self.page.value = 1
            self.refresh()

    def _turn(self, pages: int) -> None:
        self.page.value = min(max(1, self.page.value + pages), self.page.max)

    def _show(self) -> None:
        first = (self.page.value - 1) * PAGE_ROWS
        rows = self._selected.iloc[first : first + PAGE_ROWS]
        columns = list(rows.columns)
        text = {name: [self._text(name, value) for value in rows[name]] for name in columns}
        cells = zip(*(text[name] for name in columns), strict=True)
        self.body.value = table_html(columns, cells, [i for i, name in enumerate(columns) if name in self._numeric])
        last = min(first + PAGE_ROWS, self.found)
        of = f"of {self.found:,}" + (f" (of {len(self._frame):,} in all)" if self.found != len(self._frame) else "")
        shown = f"Rows {first + 1:,} to {last:,} {of}" if self.found else f"No row matches (of {len(self._frame):,})"
        self.status.value = f"<span role='status'>{shown}</span>"
        self.previous.disabled, self.next.disabled = self.page.value <= 1, self.page.value >= self.page.max

    def _text(self, column: str, value: Any) -> str:
        if value is None or value is pd.NA or (isinstance(value, float) and value != value):
            return ""
        return self._formats[column](value) if column in self._formats else str(value)
