"""The third step: review which key becomes which name, and change the rules."""

from __future__ import annotations

from typing import Any

import ipywidgets as W
import pandas as pd
import traitlets as T

from dcptools._text import counted, format_shape
from dcptools.checkpoint import NO_ROOT, Checkpoint
from dcptools.findings import SHOWN_PER_CODE
from dcptools.layouts import LAYOUTS
from dcptools.mapping import KeyMapping, preview
from dcptools.shards import DTYPES, written_dtypes
from dcptools.widgets._base import Step, alert, findings_html, handler, identity, typed_path
from dcptools.widgets._table import PagedTable

COLUMNS = ["key", "name", "rule", "shape", "dtype", "written as", "findings"]


class Mapping(Step):
    """Old and new name of every tensor, the rule, the dtypes and the findings; follows each change of a rule at once.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned; may be set later.
    model_assets_dir
        The directory with config and tokenizer.

    Attributes
    ----------
    mapping
        What :func:`dcptools.preview` returned for the rules as they stand, or None.
    """

    title = "Mapping"
    checkpoint = T.Any(None, allow_none=True)
    mapping = T.Any(None, allow_none=True)
    model_assets_dir = T.Unicode("")
    dtype = T.Unicode("bfloat16")

    def __init__(self, checkpoint: Checkpoint | None = None, model_assets_dir: str = "") -> None:
        rules = self._rules()
        tables = self._tables()
        self._identity: tuple[str, str] | None = None  # of the checkpoint that was looked at last
        self.found = W.HTML()
        self.accept = W.Checkbox(description="I have read the warnings", indent=False, layout={"display": "none"})
        self.tabs = W.Tab(tables, titles=("Outputs", "Left out", "Findings"), layout={"width": "99%"})
        super().__init__([*rules, self.found, self.accept, self.tabs])
        T.link((self, "dtype"), (self.dtype_choice, "value"))
        for control in (self.layout_choice, self.root, self.include, self.exclude, self.rename):
            control.observe(self._refresh, "value")
        self.accept.observe(lambda _: self._decide(), "value")
        self.observe(self._new, "checkpoint")
        self.observe(self._refresh, ["model_assets_dir", "dtype"])
        self.assets.observe(self._take_assets, "value")
        self.observe(self._show_assets, "model_assets_dir")
        self.blocked = "Read a checkpoint first."
        self.model_assets_dir = model_assets_dir
        self.checkpoint = checkpoint

    def _rules(self) -> list[W.Widget]:
        """The rows of controls that make the rules."""
        narrow, wide, widest = ({"width": width} for width in ("240px", "420px", "640px"))
        text = {"continuous_update": False}
        self.layout_choice = W.Dropdown(options=LAYOUTS, description="Layout", layout=narrow)
        self.root = W.Combobox(description="Root", placeholder="model", layout=narrow, **text)
        self.dtype_choice = W.Dropdown(options=DTYPES, description="Write as", layout=narrow)
        self.include = W.Text(description="Include", placeholder="globs on keys", layout=wide, **text)
        self.exclude = W.Text(description="Exclude", placeholder="globs on keys", layout=wide, **text)
        about = "REGEX=REPLACEMENT on whole names, one per line; the first match wins"
        self.rename = W.Textarea(description="Rename", placeholder=about, rows=3, layout=widest, **text)
        about = "directory with config.json and tokenizer"
        self.assets = W.Text(description="Assets", placeholder=about, layout=widest, **text)
        names = W.HBox([self.layout_choice, self.root, self.dtype_choice])
        return [names, W.HBox([self.include, self.exclude]), self.rename, self.assets]

    def _tables(self) -> list[W.Widget]:
        """What stands in the tabs."""
        self.outputs = PagedTable(
            pd.DataFrame(columns=COLUMNS),
            search=["key", "name"],
            facets=["dtype", "rule"],
            flags={"only findings": lambda frame: frame["findings"] != ""},
            formats={"shape": str},
            label="Search keys and names",
        )
        left = ["key", "kind", "reason", "nbytes"]
        self.leftovers = PagedTable(pd.DataFrame(columns=left), search=["key"], facets=["reason"], numeric=["nbytes"])
        self.findings = W.HTML()
        return [self.outputs, self.leftovers, self.findings]

    @handler
    def _new(self, _: Any) -> None:
        if self.checkpoint is not None:
            before, self._identity = self._identity, identity(self.checkpoint)
            if before not in (None, self._identity):
                self.model_assets_dir = ""  # what was typed is of another model
            self.root.options = [root for root, *_ in self.checkpoint.summary() if root != NO_ROOT]
        self._refresh()

    def _take_assets(self, _: Any) -> None:
        self.model_assets_dir = typed_path(self.assets.value)

    def _show_assets(self, _: Any) -> None:
        self.assets.value = self.model_assets_dir

    @handler
    def _refresh(self, _: Any = None) -> None:
        self.mapping, self.found.value = None, ""
        self.blocked = "There is no mapping yet."
        self.accept.layout.display = "none"
        try:
            self._preview()
        finally:  # tables of other rules must not stand below an error
            self.tabs.layout.display = "none" if self.mapping is None else ""

    def _preview(self) -> None:
        if self.checkpoint is None:
            return
        mapping = preview(
            self.checkpoint,
            model_assets_dir=self.model_assets_dir or None,
            layout=self.layout_choice.value,
            root=self.root.value or None,
            include=self.include.value.split(),
            exclude=self.exclude.value.split(),
            rename=[line for line in self.rename.value.splitlines() if line.strip()],
        )
        self._show(mapping)
        self.mapping = mapping
        self.accept.value = False
        self._decide()

    def _show(self, mapping: KeyMapping) -> None:
        written, _ = written_dtypes(mapping, self.dtype)
        frame = mapping.to_frame()
        frame["written as"] = [written[name].name for name in frame["name"]]
        frame["shape"] = [format_shape(shape) for shape in frame["shape"]]
        self.outputs.frame = frame[COLUMNS]
        self.leftovers.frame = mapping.leftovers_frame()
        count = f"{counted(len(mapping.outputs), 'output')}, {counted(len(mapping.leftovers), 'key')} left out"
        kind = "error" if mapping.errors else "warning" if mapping.warnings else "success"
        verdict = {
            "error": f"{counted(len(mapping.errors), 'error')}: this cannot be converted so.",
            "warning": f"{counted(len(mapping.warnings), 'warning')}: look before you go on.",
            "success": "No warnings.",
        }[kind]
        self.found.value = alert(kind, f"{count}. {verdict}") + findings_html(
            (*mapping.errors, *mapping.warnings), most=3
        )
        self.findings.value = findings_html(mapping.findings, most=SHOWN_PER_CODE)

    def _decide(self) -> None:
        mapping: KeyMapping | None = self.mapping
        if mapping is None:
            return
        ask = bool(mapping.warnings and not mapping.errors)
        self.accept.layout.display = "" if ask else "none"
        if mapping.errors:
            self.blocked = "The mapping has errors; change a rule, or use another checkpoint."
        elif ask and not self.accept.value:
            self.blocked = "There are warnings; tick that you have read them."
        else:
            self.blocked = ""

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        if self.mapping is None:
            return "No mapping yet.", [], []
        rows = [[output.sources[0].key, output.name, output.rule] for output in self.mapping.outputs]
        return f"{len(rows):,} outputs", ["key", "name", "rule"], rows
