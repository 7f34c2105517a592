"""The third step: is it the model, which key becomes which name, and the rules to change that."""

from __future__ import annotations

from functools import partial
from typing import Any

import ipywidgets as W
import pandas as pd
import traitlets as T

from dcptools._text import counted
from dcptools.checkpoint import NO_ROOT, Checkpoint
from dcptools.errors import DcptoolsError
from dcptools.findings import Finding, Group
from dcptools.mapping import KeyMapping, must_build, preview
from dcptools.recipe import to_preview
from dcptools.shards import DTYPES, PlanOptions, written_dtypes
from dcptools.widgets._acting import Concerned
from dcptools.widgets._base import Step, alert, beside, handler, identity
from dcptools.widgets._cards import Cards
from dcptools.widgets._detail import About, Detail
from dcptools.widgets._findings import by_key, findings_frame, findings_table, row_of, row_with, with_text
from dcptools.widgets._labels import LABELS
from dcptools.widgets._latest import MANY_KEYS, Latest
from dcptools.widgets._lines import lines_of
from dcptools.widgets._model import BUSY, leftovers_table, model_table, outputs_table, verdict_html
from dcptools.widgets._review import Review
from dcptools.widgets._rules import Rules
from dcptools.widgets._table import Table

MODEL, OUTPUTS, LEFT_OUT, FINDINGS = range(4)  # the tabs


class Mapping(Step):
    """The verdict on the model, each weight beside its key, each output with its rule; follows each change of a rule.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned; may be set later.
    model_assets_dir
        The directory with config and tokenizer.

    Attributes
    ----------
    mapping
        What :func:`dcptools.preview` returned for the current rules, or None; also None while it is being made.
    """

    title = "Mapping"
    checkpoint = T.Any(None, allow_none=True)
    mapping = T.Any(None, allow_none=True)
    model_assets_dir = T.Unicode("")
    dtype = T.Unicode("bfloat16")

    def __init__(self, checkpoint: Checkpoint | None = None, model_assets_dir: str = "") -> None:
        self.dtype_choice = W.Dropdown(options=DTYPES, description=LABELS["dtype"], layout={"width": "240px"})
        self.rules = Rules(beside=[self.dtype_choice])
        self.verdict, self.found, self.findings = W.HTML(), W.HTML(), findings_table()
        self.verdict.add_class("dcp-verdict")
        self.cards = Cards(self._show_concerned, self._exclude)
        self.accept = W.Checkbox(description="I have read the warnings", indent=False, layout={"display": "none"})
        self.weights, self.outputs, self.leftovers = model_table(), outputs_table(), leftovers_table()
        tables = (self.weights, self.outputs, self.leftovers)
        self.details = {table: Detail(self._show_finding) for table in tables}
        self.detail = self.details[self.outputs]
        self.tabs = W.Tab(
            [*(beside(table, detail) for table, detail in self.details.items()), with_text(self.findings)],
            titles=("Model", "Outputs", "Left out", "Findings"),
            layout={"width": "auto"},
        )
        self.review = Review(self._subject, self.show_error)
        self.lines = lines_of(self, "mapping", to_preview)
        # a message is about a rule: below their fields
        below = [self.found, self.cards, self.accept, self.tabs, self.review, self.lines]
        super().__init__([self.verdict, self.rules], below=below)
        self._identity: tuple[str, str] | None = None  # of the checkpoint that was looked at last
        self._known: bool | None = None  # whether the model of the last mapping was
        self._later = Latest(self._preview)
        self._renewing = False  # whether the rules change because the checkpoint does
        T.link((self, "dtype"), (self.dtype_choice, "value"))
        self.accept.observe(lambda _: self._decide(), "value")
        self.observe(self._new, "checkpoint")
        self.observe(self._show_assets, "model_assets_dir")
        self.observe(self._cast, "dtype")
        self.rules.observe(self._take, "options")
        for table, detail in self.details.items():
            table.observe(partial(self._tell, table, detail), "chosen")
        self.findings.observe(self._follow, "opened")
        self.blocked = "Read a checkpoint first."
        self.model_assets_dir = model_assets_dir
        self.checkpoint = checkpoint

    @handler
    def _new(self, _: Any) -> None:
        if self.checkpoint is not None:
            before, self._identity = self._identity, identity(self.checkpoint)
            roots = [root for root, *_ in self.checkpoint.summary() if root != NO_ROOT]
            self._renewing = True
            if before not in (None, self._identity):
                self.rules.forget()
            self.rules.fields["root"].options = roots
            self._renewing = False
        self._refresh()

    def _show_assets(self, _: Any) -> None:
        self.rules.fields["model_assets_dir"].value = self.model_assets_dir

    def _take(self, _: Any) -> None:
        self._forget()  # before others hear about the assets, who would map the keys with the earlier rules
        self.model_assets_dir = self.rules.options["model_assets_dir"] or ""
        if not self._renewing:
            self._refresh()

    @handler
    def _cast(self, _: Any) -> None:
        if self.mapping is not None:
            self.outputs.frame = partial(_outputs_frame, self.mapping, self.dtype)

    @handler
    def _refresh(self) -> None:
        """Preview again: at once, or on a thread of its own where that takes long."""
        self._forget()
        if self.checkpoint is None:
            return
        building, keys = self._must_build(), len(self.checkpoint.tensors)
        self.busy = BUSY if building else f"Mapping {keys:,} keys …"
        self.verdict.value = alert("busy", self.busy)
        self.blocked = f"The {'model is being built' if building else 'keys are being mapped'}; wait a moment."
        self._later.ask(at_once=not building and keys < MANY_KEYS)

    def _must_build(self) -> bool:
        try:
            return must_build(self.rules.options["model_assets_dir"])
        except DcptoolsError:  # the preview says the same, and is not done before the one under way
            return False

    def _forget(self) -> None:
        """What was said about other rules must not be shown below a message."""
        self.busy, self.mapping, self.verdict.value, self.found.value = "", None, "", ""
        self.blocked = "There is no mapping yet." if self.checkpoint is not None else "Read a checkpoint first."
        for widget in (self.accept, self.cards, self.tabs, self.review):
            widget.layout.display = "none"

    def inputs(self) -> tuple[W.Widget, ...]:
        return *self.rules.assets.inputs(), *self.rules.fields.values(), self.dtype_choice

    def join(self, timeout: float | None = None) -> None:
        """Wait until the mapping is that of the current rules."""
        self._later.join(timeout)

    @handler
    def _preview(self) -> None:
        checkpoint = self.checkpoint
        try:
            mapping = preview(checkpoint, **self.rules.options) if checkpoint is not None else None
        except BaseException:
            self._forget()
            raise
        if self._later.asked or checkpoint is not self.checkpoint:  # it is about what was changed in the meantime
            return
        if mapping is None:
            self._forget()
            return
        self._show(mapping)
        self.busy, self.mapping = "", mapping
        self.accept.value = False
        self._decide()

    def _show(self, mapping: KeyMapping) -> None:
        self.outputs.frame = partial(_outputs_frame, mapping, self.dtype)
        self.weights.frame, self.leftovers.frame = mapping.model_frame, mapping.leftovers_frame
        self.verdict.value, self.found.value = verdict_html(mapping), _found_html(mapping)
        self.findings.frame = findings_frame(mapping.findings)
        self.tabs.set_title(FINDINGS, f"Findings ({len(mapping.findings):,})")
        for detail in self.details.values():
            detail.tell(None)
        known = mapping.fit is not None
        if known is not self._known:
            self._known, self.tabs.selected_index = known, MODEL if known else OUTPUTS
        self._concerned = Concerned(mapping)
        self.cards.tell(
            mapping.findings, lambda group: bool(self._concerned.rows(group)[1]), self._concerned.can_exclude
        )
        for widget in (self.cards, self.tabs, self.review):
            widget.layout.display = ""

    def _subject(self) -> tuple[KeyMapping, PlanOptions] | None:
        return None if self.mapping is None else (self.mapping, PlanOptions(dtype=self.dtype))

    def _decide(self) -> None:
        mapping: KeyMapping | None = self.mapping
        if mapping is None:
            return
        ask = bool(mapping.warnings and not mapping.errors)
        self.accept.layout.display = "" if ask else "none"
        if mapping.errors:
            self.blocked = "The mapping has errors; change a rule, or use another checkpoint."
        elif ask and not self.accept.value:
            self.blocked = "There are warnings: tick that you have read them."
        else:
            self.blocked = ""

    @handler
    def _tell(self, table: Table, detail: Detail, _: Any) -> None:
        """Show what the chosen row is made of."""
        mapping: KeyMapping | None = self.mapping
        if mapping is None or table.chosen < 0:
            return
        left = mapping.leftovers[table.chosen] if table is self.leftovers else None
        made = mapping.weights[table.chosen].outputs if table is self.weights else ()
        outputs = (mapping.outputs[table.chosen],) if table is self.outputs else made
        keys = [left.key] if left else [view.key for output in outputs for view in output.sources]
        if not keys:  # a weight that is missing
            detail.tell(None)
            return
        names, known = [output.name for output in outputs], by_key(mapping.findings)
        found = [finding for name in dict.fromkeys((*names, keys[0])) for finding in known.get(name, ())]
        detail.tell(About(mapping.checkpoint, keys[0], names, left.reason if left else "", found))

    @handler
    def _show_finding(self, finding: Finding) -> None:
        row = row_of(self.findings.frame, finding)
        if row >= 0:
            self.tabs.selected_index = FINDINGS
            self.findings.show(row)

    @handler
    def _show_concerned(self, group: Group) -> None:
        """The rows that findings are about, and no others."""
        kind, rows = self._concerned.rows(group)
        tab, table = {
            "weights": (MODEL, self.weights),
            "outputs": (OUTPUTS, self.outputs),
            "leftovers": (LEFT_OUT, self.leftovers),
        }[kind]
        self.tabs.selected_index = tab
        table.only(rows, f"{group.code}: {group.where}" if group.where else group.code)

    @handler
    def _exclude(self, group: Group) -> None:
        """Leave out what findings are about, as if somebody had typed the globs."""
        field = self.rules.fields["exclude"]
        field.value = " ".join(dict.fromkeys([*field.value.split(), *self._concerned.globs(group)]))

    @handler
    def _follow(self, _: Any) -> None:
        """From a finding to the row that it is about."""
        if self.findings.opened < 0:
            return
        key = self.findings.frame["key"].iloc[self.findings.opened]
        places = (
            (OUTPUTS, self.outputs, "name"),
            (OUTPUTS, self.outputs, "key"),
            (LEFT_OUT, self.leftovers, "key"),
            (MODEL, self.weights, "name"),
        )
        for tab, table, column in places:
            row = row_with(table.frame, **{column: key})
            if key and row >= 0:
                self.tabs.selected_index = tab
                table.show(row)
                return

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        mapping: KeyMapping | None = self.mapping
        if mapping is None:
            return "No mapping yet.", [], []
        rows = [[output.sources[0].key, output.name, output.rule] for output in mapping.outputs]
        verdict = f"{mapping.fit.sentence}. " if mapping.fit else ""
        return f"{verdict}{counted(len(rows), 'output')}", ["key", "name", "rule"], rows


def _outputs_frame(mapping: KeyMapping, dtype: str) -> pd.DataFrame:
    written, _ = written_dtypes(mapping, dtype)
    frame = mapping.to_frame()
    frame["written as"] = [written[output.name].name for output in mapping.outputs]
    return frame


def _found_html(mapping: KeyMapping) -> str:
    """How much is written and left out, and what needs a look."""
    count = f"{counted(len(mapping.outputs), 'output')}, {counted(len(mapping.leftovers), 'key')} left out"
    kind = "error" if mapping.errors else "warning" if mapping.warnings else "success"
    verdict = {
        "error": f"{counted(len(mapping.errors), 'error')}: this cannot be converted with these options.",
        "warning": f"{counted(len(mapping.warnings), 'warning')}: look at them before you go on.",
        "success": "No warnings.",
    }[kind]
    return alert(kind, f"{count}. {verdict}")
