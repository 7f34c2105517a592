"""The step between mapping and shards: load the model without writing it, and see what it generates."""

from __future__ import annotations

import html
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import ipywidgets as W
import traitlets as T

from dcptools._text import format_bytes, printable_lines
from dcptools.loading import (
    available_bytes,
    continuation,
    load_model,
    load_reference,
    loss,
    memory_needed,
    open_tokenizer,
)
from dcptools.recipe import to_try
from dcptools.shards import ShardPlan
from dcptools.widgets._base import Step, alert, escape, handler, typed_path
from dcptools.widgets._job import Job
from dcptools.widgets._lines import lines_of

MOST_TOKENS = 40
WIDE = {"width": "640px"}


class Said(NamedTuple):
    """What one model generated."""

    who: str
    text: str  # after the prompt
    loss: float | None  # of the pasted text, in nats per token; None if there is no text


class Try(Step):
    """What does this checkpoint generate? A prompt, how the model continues it, its loss on a text; nothing is written.

    Parameters
    ----------
    plan
        What :func:`dcptools.plan` returned: the model and its dtypes; may be set later.

    Attributes
    ----------
    said
        For each model that was asked: who it is, how it continued the prompt, and its loss.
    """

    title = "Try it"
    plan = T.Any(None, allow_none=True)
    said = T.Tuple()

    def __init__(self, plan: ShardPlan | None = None) -> None:
        self.facts, self.answer = W.HTML(), W.HTML()
        self.prompt = W.Text(value="The", description="Prompt", layout=WIDE)
        self.most = W.BoundedIntText(
            value=MOST_TOKENS, min=1, max=1000, description="Tokens", tooltip="Largest number of tokens to generate",
            layout={"width": "200px"},
        )  # fmt: skip
        self.sample = W.Textarea(description="Text", placeholder="paste a text to see its loss", rows=3, layout=WIDE)
        self.reference = W.Text(
            description="Beside", placeholder="directory of another HuggingFace model, to compare with", layout=WIDE
        )
        self.free = W.Button(description="Free its memory", disabled=True, layout={"width": "160px"})
        self._models: dict[str, Any] = {}  # that are in memory, by directory; "" is that of the plan
        self._asked: Any = None  # the plan that the job works for
        self.job = Job("Try it", self._run, self._done, self.show_error, self._ready, cancelled="cancelled")
        fields = (self.prompt, self.most, self.sample, self.reference)
        self.lines = lines_of(self, "plan", to_try)
        super().__init__([self.facts, *fields, self.job, self.answer, self.free, self.lines])
        self.free.on_click(lambda _: self._forget())
        self.job.observe(self._running, "running")
        self.observe(self._new, "plan")
        self.observe(lambda _: self._describe(), "pending")
        self.plan = plan
        self._describe()

    @handler
    def _new(self, _: Any) -> None:
        """Another plan is another model."""
        self.job.forget()
        self.said, self.answer.value = (), ""
        self._forget()

    def inputs(self) -> tuple[W.Widget, ...]:
        return self.prompt, self.most, self.sample, self.reference

    def _freeze(self) -> None:
        super()._freeze()
        self.job.enable()

    def _running(self, change: Any) -> None:
        self.frozen = change["new"]
        self._describe()

    @handler
    def _forget(self) -> None:
        self._models.clear()
        self._describe()

    def _describe(self) -> None:
        why = self._why_not()
        if self.plan is None and self.pending:
            self.facts.value = alert("busy", self.pending)
        else:
            self.facts.value = alert("warning" if self.plan is not None and why else "info", why or self._fits())
        self.free.disabled = not self._models or self.job.running
        self.job.enable()

    def _why_not(self) -> str:
        """Why the model cannot be tried; empty if it can."""
        planned: ShardPlan | None = self.plan
        if planned is None:
            return "Review the mapping first."
        skip = "You can skip this step."
        if planned.kind == "adapter":
            return f"This is an adapter, not a model by itself. {skip}"
        if planned.assets is None or not planned.assets.config:
            return f"No config.json says which model this is: give the assets in the Mapping step. {skip}"
        needed, available = memory_needed(planned), available_bytes()
        if available is not None and needed > available and "" not in self._models:
            room = f"The model takes {format_bytes(needed)} of memory, and {format_bytes(available)} is free."
            return f"{room} Try it on a machine with more. {skip}"
        return ""

    def _fits(self) -> str:
        return f"Loads the model into {format_bytes(memory_needed(self.plan))} of memory and writes nothing."

    def _ready(self) -> bool:
        return not self._why_not() and not self.frozen

    def _run(self, progress: Callable[[int, int, str], None], cancel: threading.Event) -> tuple[Said, ...]:
        self.message.value, self.answer.value = "", ""
        planned = self.plan
        if self._asked is not planned:
            self._models.clear()
        self._asked = planned
        other = typed_path(self.reference.value)
        model = self._model("", lambda: _load(planned, progress, cancel))
        beside = self._model(other, lambda: load_reference(other)) if other else None
        tokenizer = self._model("tokenizer", lambda: open_tokenizer(planned.assets.directory))
        asked = [("this checkpoint", model), *([(other, beside)] if other else [])]
        return tuple(self._ask(who, each, tokenizer, cancel) for who, each in asked)

    def _model(self, name: str, load: Callable[[], Any]) -> Any:
        """What is already in memory, or is loaded now."""
        if name not in self._models:
            self._models[name] = load()
        return self._models[name]

    def _ask(self, who: str, model: Any, tokenizer: Any, cancel: threading.Event) -> Said:
        text = continuation(model, tokenizer, self.prompt.value, self.most.value, cancel)
        sample = self.sample.value
        return Said(who, text, loss(model, tokenizer, sample) if sample.strip() else None)

    def _done(self, said: tuple[Said, ...]) -> None:
        if self._asked is not self.plan:  # of a model that was changed in the meantime
            self._models.clear()
            return
        self.said = said
        self.answer.value = "".join(_answer_html(each, self.prompt.value) for each in said)

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        if not self.said:
            return "Nothing has been tried.", [], []
        rows = [[each.who, each.text, _loss_text(each.loss)] for each in self.said]
        return "What the model generates", ["model", "text", "loss"], rows


def _load(planned: ShardPlan, progress: Callable[[int, int, str], None], cancel: threading.Event) -> Any:
    options = planned.options
    return load_model(
        planned.mapping, dtype=options.dtype, dtype_for=options.dtype_for, progress=progress, cancel=cancel
    )


def _answer_html(said: Said, prompt: str) -> str:
    text = html.escape(printable_lines(said.text))
    about = f"<p>Loss on the text: {_loss_text(said.loss)}</p>" if said.loss is not None else ""
    return (
        f"<p><strong>{escape(said.who)}</strong></p>"
        f"<pre class='dcp' data-testid='said'><span class='dcp-soft'>{escape(prompt)}</span>{text}</pre>{about}"
    )


def _loss_text(value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "not a number (NaN): some values of the model are NaN or infinite"
    return f"{value:.3f} nats per token (perplexity {math.exp(min(value, 700)):,.1f})"
