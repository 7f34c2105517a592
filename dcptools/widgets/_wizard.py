"""All steps in one, with Back and Next."""

from __future__ import annotations

import os

import ipywidgets as W
import traitlets as T

from dcptools.checkpoint import Checkpoint
from dcptools.mapping import KeyMapping
from dcptools.shards import DEFAULT_SHARD_SIZE, ShardPlan
from dcptools.widgets._base import Step, alert, escape
from dcptools.widgets._convert import Convert
from dcptools.widgets._inspect import Inspect
from dcptools.widgets._mapping import Mapping
from dcptools.widgets._open import Open
from dcptools.widgets._result import Result
from dcptools.widgets._shards import Shards
from dcptools.widgets._try import Try
from dcptools.writer import Report


class Wizard(Step):
    """From a checkpoint to a HuggingFace model by clicking; nothing is written before the step Convert.

    Parameters
    ----------
    load_dir
        A checkpoint to begin with.
    save_dir, model_assets_dir, shard_size
        What the fields of the later steps say at first.
    """

    title = "Wizard"
    step = T.Int(0)  # which step is shown; a number outside the range becomes that of the first or the last

    def __init__(
        self,
        load_dir: str | os.PathLike[str] | None = None,
        *,
        save_dir: str | os.PathLike[str] = "",
        model_assets_dir: str | os.PathLike[str] = "",
        shard_size: float | str = DEFAULT_SHARD_SIZE,
    ) -> None:
        self.open_step = Open(load_dir)
        self.inspect_step = Inspect()
        self.mapping_step = Mapping(model_assets_dir=str(model_assets_dir))
        self.try_step = Try()
        self.shards_step = Shards(shard_size=shard_size)
        self.shards_step.wanted = False  # until that is where somebody is
        self.convert_step = Convert(save_dir=str(save_dir))
        self.result_step = Result()
        first = (self.open_step, self.inspect_step, self.mapping_step, self.try_step)
        self.steps: tuple[Step, ...] = (*first, self.shards_step, self.convert_step, self.result_step)
        self.heading, self.why = W.HTML(), W.HTML()
        self.back = W.Button(description="Back", layout={"width": "120px"})
        self.next = W.Button(description="Next", button_style="primary", layout={"width": "120px"})
        self.running, self.return_ = W.HTML(), W.Button(description="Show it", layout={"width": "120px"})
        self.under_way = W.HBox([self.running, self.return_], layout={"display": "none", "align_items": "center"})
        for each in self.steps:
            each.seen = False
        self.stack = W.Stack(self.steps, selected_index=0)
        self.stack.layout.margin = "8px 0"
        # above the step, so that a click shows the next heading however long the step is
        super().__init__([self.heading, W.HBox([self.back, self.next, self.why]), self.under_way, self.stack])
        self.back.on_click(lambda _: self._go(-1))
        self.next.on_click(lambda _: self._go(1))
        self.return_.on_click(lambda _: self._return())
        for runs in (self.try_step, self.convert_step):
            runs.job.observe(lambda _: self._freeze_all(), "running")
        self._link()
        for step in self.steps:
            step.observe(lambda _: self._show(), "blocked")
        for step in (self.open_step, self.mapping_step, self.shards_step):
            step.observe(lambda _: self._pass_on(), "busy")
        self.observe(lambda _: self._show(), "step")
        self._show()

    def _what_runs(self) -> Step | None:
        return next((step for step in (self.convert_step, self.try_step) if step.job.running), None)

    def _freeze_all(self) -> None:
        """While something runs, nothing that it depends on can be changed, in whatever step."""
        running = self._what_runs() is not None
        for step in (self.open_step, self.mapping_step, self.try_step, self.shards_step, self.convert_step):
            step.frozen = running
        self._show()

    def _return(self) -> None:
        running = self._what_runs()
        if running is not None:
            self.step = self.steps.index(running)

    def _pass_on(self) -> None:
        """Tell the later steps what they wait for."""
        busy = self.open_step.busy or self.mapping_step.busy
        self.shards_step.pending = busy
        self.try_step.pending = self.convert_step.pending = busy or self.shards_step.busy

    def _link(self) -> None:
        T.dlink((self.open_step, "checkpoint"), (self.inspect_step, "checkpoint"))
        T.dlink((self.open_step, "checkpoint"), (self.mapping_step, "checkpoint"))
        T.dlink((self.open_step, "checkpoint"), (self.convert_step, "checkpoint"))
        T.dlink((self.mapping_step, "mapping"), (self.inspect_step, "mapping"))
        T.dlink((self.mapping_step, "dtype"), (self.shards_step, "dtype"))
        T.dlink((self.mapping_step, "mapping"), (self.shards_step, "mapping"), _without_errors)
        T.dlink((self.shards_step, "plan"), (self.try_step, "plan"))
        T.dlink((self.shards_step, "plan"), (self.convert_step, "plan"))
        T.link((self.mapping_step, "model_assets_dir"), (self.convert_step, "model_assets_dir"))
        T.dlink((self.convert_step, "report"), (self.result_step, "report"))

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What was read; waits for it, if it is being read."""
        self.open_step.join()
        return self.open_step.checkpoint  # type: ignore[no-any-return]

    @property
    def mapping(self) -> KeyMapping | None:
        """The current mapping; also None while it is being made."""
        return self.mapping_step.mapping  # type: ignore[no-any-return]

    @property
    def plan(self) -> ShardPlan | None:
        """The current plan; made now if nobody has looked at it."""
        self.shards_step.compute()
        self.shards_step.join()
        return self.convert_step.plan  # type: ignore[no-any-return]

    @property
    def report(self) -> Report | None:
        """What was written."""
        return self.convert_step.report  # type: ignore[no-any-return]

    def _go(self, steps: int) -> None:
        if steps < 0 or not self.steps[self.step].blocked:
            self.step += steps

    @T.validate("step")
    def _nearest(self, proposal: T.Bunch) -> int:
        step: int = proposal.value
        return min(max(0, step), len(self.steps) - 1)

    def _show(self) -> None:
        current, is_last = self.steps[self.step], self.step == len(self.steps) - 1
        names = " · ".join(
            f"<strong aria-current='step'>{escape(s.title)}</strong>" if s is current else escape(s.title)
            for s in self.steps
        )
        self.heading.value = (
            f"<h2 class='dcp'>Step {self.step + 1} of {len(self.steps)}: {escape(current.title)}</h2>"
            f"<div class='dcp-soft' role='navigation' aria-label='steps'>{names}</div>"
        )
        self.stack.selected_index = self.step
        self.shards_step.wanted = current in (self.try_step, self.shards_step, self.convert_step)
        for step in self.steps:
            step.seen = step is current
        self.back.disabled = self.step == 0
        self.next.disabled = bool(current.blocked) or is_last
        self.why.value = "" if is_last else f"<span class='dcp-soft' role='status'>{escape(current.blocked)}</span>"
        self._show_what_runs()

    def _show_what_runs(self) -> None:
        """On all steps except its own: that something runs, and a way back to it."""
        running = self._what_runs()
        elsewhere = running not in (None, self.steps[self.step])
        self.under_way.layout.display = "" if elsewhere else "none"
        what = "written" if running is self.convert_step else "tried"
        said = f"The model is being {what}. What it depends on can be changed once that is done."
        self.running.value = alert("busy", said) if elsewhere else ""

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        done = [step for step in self.steps if not step.blocked]
        return self.steps[self.step].summary() if done else ("No checkpoint is open.", [], [])


def _without_errors(mapping: KeyMapping | None) -> KeyMapping | None:
    return None if mapping is None or mapping.errors else mapping
