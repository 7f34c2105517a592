"""The rows of a table as a value: searched, counted, sorted and shown by pages. No widgets here.

What is computed for all rows is computed once and kept; a page costs the same however many rows there are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dcptools._text import natural, printable

MOST_CHIPS = 24  # of a column, the most frequent ones
Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.intp]  # rows of the frame


def is_missing(value: object) -> bool:
    """Whether nothing is there, in any of pandas' forms."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


@dataclass(frozen=True, slots=True)
class Column:
    """How a column of the frame is shown, and what can be done with it."""

    name: str  # in the frame
    show: Callable[[Any], str] = str  # a cell as text
    label: str = ""  # the heading; the name if it is empty
    numeric: bool = False  # to the right, and the largest first at the first click
    searched: bool = False  # a name: searched, and never cut at its end
    prose: bool = False  # a sentence, which is cut at its end
    optional: bool = False  # left out of a table in which no row has anything there
    missing: str = ""  # what is shown if nothing is there
    kinds: Callable[[Any], Iterable[str]] | None = None  # the filters that a cell falls under; None: there are none

    def text(self, value: Any) -> str:
        """A cell as it is shown: printable whatever a file says."""
        return self.missing if is_missing(value) else printable(self.show(value))

    def is_wanted(self, frame: pd.DataFrame) -> bool:
        """Whether a table of these rows has the column."""
        return not self.optional or bool(frame[self.name].fillna("").ne("").any())

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "label": self.label or self.name,
            "numeric": self.numeric,
            "elide": self.searched and not self.prose,
            "prose": self.prose,
        }


@dataclass(frozen=True, slots=True)
class Query:
    """What is requested of the rows."""

    search: str = ""
    regex: bool = False
    sort: str = ""  # the name of a column; empty: the frame's own order
    descending: bool = False
    chips: Mapping[str, frozenset[str]] = field(default_factory=dict)  # the kinds that are wanted, by column

    def pattern(self) -> re.Pattern[str] | None:
        """What is searched for; raises re.error."""
        text = self.search if self.regex else re.escape(self.search)
        return re.compile(text, re.IGNORECASE | re.MULTILINE) if self.search else None

    def to_json(self) -> dict[str, Any]:
        chosen = {name: sorted(kinds) for name, kinds in self.chips.items() if kinds}
        return {
            "search": self.search,
            "regex": self.regex,
            "sort": self.sort,
            "descending": self.descending,
            "chips": chosen,
        }


@dataclass(frozen=True)
class Selection:
    """The rows that match a query, in its order, and how many there would be of each kind."""

    query: Query
    positions: Positions
    chips: Mapping[str, Mapping[str, int]]  # by column and kind: rows that match all but this column's chips

    def index(self, position: int) -> int:
        """Where a row of the frame is among those that match; -1: it is not there."""
        found = np.flatnonzero(self.positions == position)
        return int(found[0]) if len(found) else -1


@dataclass(frozen=True)
class Rows:
    """A frame, and how its columns are shown."""

    frame: pd.DataFrame
    columns: tuple[Column, ...]
    sorted_by: str = ""  # the column by which the frame is ordered

    def __len__(self) -> int:
        return len(self.frame)

    def select(self, query: Query, among: Mask | None = None) -> Selection:
        """Search, filter and sort, all rows or some; raises re.error if the search is a wrong regular expression."""
        found = self._found(query) if among is None else self._found(query) & among
        known = {name: facet.members.keys() & query.chips.get(name, ()) for name, facet in self._facets.items()}
        masks = {name: self._facets[name].mask(kinds) for name, kinds in known.items() if kinds}
        chips = {}
        for name, facet in self._facets.items():
            others = [mask for other, mask in masks.items() if other != name]
            chips[name] = facet.counts(_all(found, others), query.chips.get(name, ()))
        wanted = _all(found, list(masks.values()))
        order = self._order(query.sort, query.descending)
        return Selection(query, order[wanted[order]], chips)

    def page(self, selection: Selection, first: int, count: int) -> list[dict[str, Any]]:
        """Some rows as they are sent: the number in the frame, the cells as texts, and where they match the search."""
        pattern = selection.query.pattern()
        return [self._row(int(position), pattern) for position in selection.positions[first : first + count]]

    def _row(self, position: int, pattern: re.Pattern[str] | None) -> dict[str, Any]:
        cells = [column.text(self._cells[column.name][position]) for column in self.columns]
        row: dict[str, Any] = {"id": position, "cells": cells}
        if pattern is not None:
            searched = ((i, cells[i]) for i, column in enumerate(self.columns) if column.searched)
            marks = {i: [m.span() for m in pattern.finditer(cell) if m.end() > m.start()] for i, cell in searched}
            row["marks"] = {i: spans for i, spans in marks.items() if spans}
        return row

    def _found(self, query: Query) -> Mask:
        pattern = query.pattern()
        if pattern is None:
            return np.ones(len(self), bool)
        if query.regex:
            return np.fromiter((pattern.search(text) is not None for text in self._texts), bool, len(self))
        needle = query.search.lower()
        return np.fromiter((needle in text for text in self._lowered), bool, len(self))

    @cached_property
    def _cells(self) -> dict[str, npt.NDArray[Any]]:
        return {column.name: self.frame[column.name].to_numpy(object) for column in self.columns}

    @cached_property
    def _texts(self) -> list[str]:
        """What is searched, one line per column."""
        texts = [map(column.text, self._cells[column.name]) for column in self.columns if column.searched]
        return ["\n".join(row) for row in zip(*texts, strict=True)] if texts else [""] * len(self)

    @cached_property
    def _lowered(self) -> list[str]:
        return [text.lower() for text in self._texts]

    @cached_property
    def _facets(self) -> dict[str, _Facet]:
        with_kinds = [column for column in self.columns if column.kinds is not None]
        return {column.name: _Facet.of(column, self.frame[column.name]) for column in with_kinds}

    @cached_property
    def _ranked(self) -> dict[str, npt.NDArray[np.float64]]:
        return {}

    def _order(self, name: str, descending: bool) -> Positions:
        """All rows in the order of a column; what is missing comes last in both directions."""
        if name not in self.frame.columns:
            return np.arange(len(self))
        if name not in self._ranked:
            known = name == self.sorted_by
            self._ranked[name] = np.arange(len(self), dtype=float) if known else _ranks(self.frame[name])
        ranks = self._ranked[name]
        missing = np.isnan(ranks)
        return np.lexsort((np.where(missing, 0.0, -ranks if descending else ranks), missing))


@dataclass(frozen=True)
class _Facet:
    """The kinds of a column's cells."""

    codes: npt.NDArray[np.intp]  # for each row, which of the distinct values it has
    members: dict[str, Mask]  # by kind: which distinct values are of it

    @classmethod
    def of(cls, column: Column, values: pd.Series) -> _Facet:
        codes, distinct = pd.factorize(values.astype(object).to_numpy(object), use_na_sentinel=False)
        kinds_of = column.kinds or (lambda value: ())
        kinds = [tuple(kinds_of(None if is_missing(value) else value)) for value in distinct]
        totals: Counter[str] = Counter()
        for count, labels in zip(np.bincount(codes, minlength=len(kinds)).tolist(), kinds, strict=True):
            totals.update(dict.fromkeys(labels, count))
        names = [name for name, _ in totals.most_common(MOST_CHIPS)]
        return cls(codes, {name: np.array([name in labels for labels in kinds], bool) for name in names})

    def mask(self, kinds: Iterable[str]) -> Mask:
        """The rows of any of these kinds."""
        members = [self.members[kind] for kind in kinds if kind in self.members]
        wanted = np.any(members, axis=0) if members else np.zeros(self.codes.max(initial=-1) + 1, bool)
        found: Mask = wanted[self.codes]
        return found

    def counts(self, among: Mask, chosen: Iterable[str]) -> dict[str, int]:
        """How many rows of each kind are among them; without the kinds that have none, unless they are chosen."""
        of_value = np.bincount(self.codes[among], minlength=self.codes.max(initial=-1) + 1)
        counts = {kind: int(of_value[member].sum()) for kind, member in self.members.items()}
        return {kind: count for kind, count in counts.items() if count or kind in chosen}


def _all(first: Mask, others: Sequence[Mask]) -> Mask:
    for mask in others:
        first = first & mask
    return first


def _ranks(values: pd.Series) -> npt.NDArray[np.float64]:
    """Numbers that sort as the values do: names with their numbers as numbers; NaN if nothing is there."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(np.float64, na_value=np.nan)
    codes, distinct = pd.factorize(values.astype(object).to_numpy(object))  # -1: missing
    keys = [natural(str(value)) for value in distinct]
    ranks = np.empty(len(keys) + 1)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    ranks[-1] = np.nan
    found: npt.NDArray[np.float64] = ranks[codes]
    return found
