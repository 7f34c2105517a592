"""What all steps share: handlers that cannot fail silently, escaped messages, a static view without a kernel."""

from __future__ import annotations

import functools
import html
import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec

import ipywidgets as W
import traitlets as T

from dcptools import plots
from dcptools._option import speaking
from dcptools._paths import expanded
from dcptools._table import SHOWN_ROWS, html_table
from dcptools._text import printable
from dcptools.checkpoint import Checkpoint
from dcptools.errors import DcptoolsError
from dcptools.findings import Finding, summary
from dcptools.storage import is_url
from dcptools.widgets._labels import by_label

P = ParamSpec("P")

# Colours come from JupyterLab's own variables, so that light and dark follow the theme; the second value serves
# programs that have no such variables. JupyterLab's second colour of text is too faint on its own fills. Widths that
# steps ask for are those where there is room.
STYLE = """<style>
.dcptools { --dcp-text: var(--jp-ui-font-color1, currentColor);
  --dcp-soft: color-mix(in srgb, var(--dcp-text) 75%, transparent);
  --dcp-line: var(--jp-border-color2, #bbb); --dcp-fill: var(--jp-layout-color2, rgba(128,128,128,.12));
  --dcp-ring: var(--jp-brand-color1, #1976d2); --jp-widgets-inline-label-width: 84px;
  --jp-widgets-dropdown-arrow: url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'\
%3E%3Cpath d='M5 7l4 4 4-4' fill='none' stroke='%23808080' stroke-width='2'/%3E%3C/svg%3E"); }
.dcptools :is(button, input, select, textarea, summary, pre, [tabindex]):focus-visible {
  outline: 2px solid var(--dcp-ring) !important; outline-offset: 2px; }
.dcptools :is(input, select, textarea):focus-visible { outline-offset: 0; }
.dcptools .jupyter-widget-tab > .lm-TabBar .lm-TabBar-tab:not(.lm-mod-current) { color: var(--dcp-soft); }
.dcptools .widget-hbox { flex-wrap: wrap; align-items: center; }
.dcptools .widget-box { overflow: visible; }
.dcptools :is(.widget-html, .widget-html-content) { min-width: 0; max-width: 100%; }
.dcptools .widget-html-content, .dcptools .widget-html > .widget-html-content { line-height: 1.45; }
.dcptools :is(.widget-text, .widget-textarea, .widget-dropdown, .dcp-slider) {
  max-width: calc(100% - 4px); }
.dcptools :is(input, textarea)::placeholder { color: var(--dcp-soft); opacity: 1; }
.dcptools .widget-checkbox { width: auto; max-width: 100%; height: auto; }
.dcptools .widget-checkbox .widget-label-basic { display: flex; align-items: center; gap: 6px; overflow: visible;
  white-space: normal; line-height: 1.4; min-height: var(--jp-widgets-inline-height); }
.dcptools .widget-checkbox input { margin: 0; flex: none; }
.dcptools .dcp-chooser > .widget-hbox > .widget-text { flex: 1 1 400px; max-width: min(640px, 100% - 4px); }
.dcptools .dcp-fields { --least: 230px; display: grid; gap: 0 6px; max-width: 980px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--least)), 1fr)); }
.dcptools .dcp-fields:not(:has(> :nth-child(3))) { --least: 350px; }
.dcptools .dcp-fields > * { width: auto !important; max-width: none; }
.dcptools .dcp-fields > .widget-checkbox { padding-left: 12px; }
.dcptools table.dcp { border-collapse: collapse; font-size: 12px; color: var(--dcp-text); min-width: min(100%, 420px); }
.dcptools table.dcp th, .dcptools table.dcp td { text-align: left; padding: 3px 20px 3px 0; overflow-wrap: break-word;
  max-width: 60ch; border-bottom: 1px solid var(--dcp-line); background: transparent; vertical-align: top; }
.dcptools table.dcp :is(th, .num) { white-space: nowrap; }
.dcptools table.dcp :is(th, td):last-child { padding-right: 0; }
.dcptools table.dcp th { font-weight: 600; border-bottom: 2px solid var(--dcp-line); }
.dcptools table.dcp td.num, .dcptools table.dcp th.num { text-align: right; font-variant-numeric: tabular-nums; }
.dcptools .dcp-scroll { overflow-x: auto; }
.dcptools .dcp-alert { border-left: 4px solid; padding: 6px 12px; margin: 4px 0; background: var(--dcp-fill);
  color: var(--dcp-text); overflow-wrap: anywhere; }
.dcptools .dcp-error { border-color: #d55e00; } .dcptools .dcp-warning { border-color: #e69f00; }
.dcptools .dcp-info { border-color: #0072b2; } .dcptools .dcp-success { border-color: #009e73; }
.dcptools .dcp-busy { border-color: var(--dcp-line); display: flex; align-items: center; gap: 10px; }
.dcptools .dcp-busy::before { content: ""; flex: none; width: 12px; height: 12px; border-radius: 50%;
  border: 2px solid var(--dcp-line); border-top-color: var(--dcp-text); animation: dcp-turn 1s linear infinite; }
@keyframes dcp-turn { to { transform: rotate(1turn); } }
@media (prefers-reduced-motion: reduce) { .dcptools .dcp-busy::before { animation-duration: 6s; } }
.dcptools .dcp-alert p { margin: 0 0 2px; } .dcptools .dcp-soft { color: var(--dcp-soft); }
.dcptools .dcp-soft strong[aria-current] { color: var(--dcp-text); }
.dcptools pre.dcp { white-space: pre-wrap; overflow-wrap: anywhere; word-break: normal; background: var(--dcp-fill);
  color: var(--dcp-text); padding: 8px 12px; margin: 2px 0; font-size: 12px; user-select: all;
  font-family: var(--jp-code-font-family, monospace); }
.dcptools pre.dcp-scroll { white-space: pre; font-size: 11px; }
.dcptools .dcp-alert p:last-child { margin: 0; }
.dcptools .dcp-verdict { margin-bottom: 8px; } .dcptools .dcp-verdict .dcp-alert p:first-child { font-weight: 600; }
.dcptools h2.dcp { font-size: 18px; font-weight: 600; margin: 0; color: var(--dcp-text); line-height: 1.4; }
.dcptools .widget-html-content > p { margin: 6px 0 2px; }
.dcptools .dcp-beside { flex-flow: row wrap; align-items: flex-start; gap: 8px 16px; overflow: visible; }
.dcptools .dcp-beside > .dcp-list { flex: 3 1 560px; min-width: 0; margin: 0; }
.dcptools .dcp-beside > .dcp-detail { flex: 1 1 380px; min-width: 0; margin: 0; padding: 0 2px; overflow: visible; }
.dcptools .dcp-detail table.dcp :is(th, td) { padding-right: 14px; }
.dcptools h3.dcp { font: 600 13px/1.4 var(--jp-code-font-family, monospace); margin: 0 0 6px; color: var(--dcp-text);
  overflow-wrap: anywhere; user-select: all; }
.dcptools dl.dcp { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 0; font-size: 12px; }
.dcptools dl.dcp :is(dt, dd) { width: auto; float: none; margin: 0; padding: 0; font-weight: 400; }
.dcptools dl.dcp dt { color: var(--dcp-soft); } .dcptools dl.dcp dd { overflow-wrap: anywhere; }
.dcptools button.dcp-finding { height: auto; white-space: normal; text-align: left; line-height: 1.4; padding: 4px 10px;
  border-left-width: 4px; border-left-style: solid; background: var(--dcp-fill); color: var(--dcp-text);
  overflow-wrap: anywhere; }
.dcptools .dcp-card { flex-flow: row wrap; align-items: flex-start; gap: 4px 12px; border-left-width: 4px;
  border-left-style: solid; margin: 4px 0; padding: 6px 12px; background: var(--dcp-fill); color: var(--dcp-text);
  overflow: visible; }
.dcptools .dcp-card > .widget-html { flex: 1 1 420px; min-width: 0; height: auto; margin: 0; }
.dcptools .dcp-card .widget-html-content { overflow-wrap: anywhere; } .dcptools .dcp-card p { margin: 0 0 4px; }
.dcptools .dcp-card > .widget-hbox { flex: none; overflow: visible; margin: 0; }
.dcptools .dcp-card button, .dcptools button.dcp-quiet { background: transparent; color: var(--dcp-text);
  border: 1px solid var(--dcp-soft); border-radius: 4px;
  line-height: calc(var(--jp-widgets-inline-height, 28px) - 2px); }
.dcptools .dcp-card button:hover, .dcptools button.dcp-quiet:hover { background: var(--dcp-line); }
.dcptools .dcp-card summary { cursor: pointer; width: max-content; }
.dcptools .dcp-card details p { margin: 2px 0 4px 14px; max-width: 90ch; }
</style>"""


def escape(text: object) -> str:
    """Text from a file, safe and visible in HTML."""
    return html.escape(printable(str(text)))


def identity(checkpoint: Checkpoint) -> tuple[str, str]:
    """What distinguishes one checkpoint from another, even if both were saved by the same program."""
    path = checkpoint.path
    return path if is_url(path) else os.path.abspath(path), checkpoint.digest


def typed_path(text: str) -> str:
    """A path as somebody typed it: without spaces around it, and with ``~`` as a shell reads it."""
    return expanded(text.strip())


def alert(kind: str, text: str, details: str = "") -> str:
    """A box with a message; ``role=alert`` makes screen readers announce it. Both texts are escaped here."""
    lines = "".join(f"<p>{escape(line)}</p>" for line in text.splitlines())
    folded = f"<details><summary>Details</summary><pre class='dcp'>{html.escape(details)}</pre></details>"
    role = "alert" if kind in ("error", "warning") else "status"
    return f"<div role='{role}' class='dcp-alert dcp-{kind}'>{lines}{folded if details else ''}</div>"


def findings_html(findings: Iterable[Finding], most: int = 5) -> str:
    """The findings as boxes, errors first, at most ``most`` of a code."""
    return "".join(alert(severity, line) for severity, line in summary(findings, most=most))


def table_html(header: Iterable[str], rows: Iterable[Iterable[object]], numeric: Iterable[int] = ()) -> str:
    """A table in the style of the steps; every cell is escaped, and shown in full on hovering."""
    numbers = set(numeric)

    def mark(column: int) -> str:
        return " class='num'" if column in numbers else ""

    head = "".join(f"<th scope='col'{mark(i)}>{escape(name)}</th>" for i, name in enumerate(header))
    body = "".join(
        "<tr>" + "".join(f"<td{mark(i)} title='{escape(c)}'>{escape(c)}</td>" for i, c in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f"<div class='dcp-scroll'><table class='dcp'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure_html(figure: Any, width: float | None = None) -> str:
    """A figure of ``plots`` as a part of the page, in the page's colours; its description is the text alternative."""
    return plots.svg(figure, width=width)


def beside(table: W.Widget, detail: W.Widget) -> W.HBox:
    """A table, and to its right what is said about the chosen row; below it if there is no room."""
    table.add_class("dcp-list")
    box = W.HBox([table, detail])
    box.add_class("dcp-beside")
    return box


def handler(method: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """A callback of a step that shows what goes wrong: Jupyter itself would hide it in a log."""

    @functools.wraps(method)
    def safe(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            self.message.value = ""
            with speaking(by_label):
                method(self, *args, **kwargs)
        except Exception as error:
            self.show_error(error)

    return safe  # type: ignore[return-value]


class Step(W.VBox):  # type: ignore[misc]
    """A step of the way from checkpoint to model; works alone in a cell, or as a part of the wizard.

    ``blocked`` says why the next step cannot begin yet, and is empty when it can. ``busy`` says what is being computed,
    and ``pending`` what an earlier step computes that this one waits for. ``seen`` says whether somebody looks at it,
    and ``frozen`` whether something runs that depends on its fields.
    """

    title = ""
    blocked = T.Unicode("")
    busy = T.Unicode("")
    pending = T.Unicode("")
    seen = T.Bool(True)
    frozen = T.Bool(False)

    def __init__(self, children: Iterable[W.Widget] = (), below: Iterable[W.Widget] = ()) -> None:
        """``below`` is shown below the message."""
        self.message = W.HTML()
        super().__init__([W.HTML(STYLE), *children, self.message, *below])
        self.add_class("dcptools")
        self.layout.width = "100%"
        self.observe(lambda _: self._freeze(), "frozen")

    def inputs(self) -> Iterable[W.Widget]:
        """The fields that a running job depends on."""
        return ()

    def _freeze(self) -> None:
        for field in self.inputs():
            field.disabled = self.frozen

    def show_error(self, error: BaseException) -> None:
        """The error as one plain message, the traceback folded."""
        known = isinstance(error, (DcptoolsError, OSError))
        text = str(error) if known else f"Something went wrong: {type(error).__name__}: {error}"
        details = "" if isinstance(error, DcptoolsError) else "".join(traceback.format_exception(error))
        self.message.value = alert("error", text, details)

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        """Headline, header and rows of the static view."""
        return self.title, [], []

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **kwargs: Any) -> Any:
        """The live widget, and beside it a static view for places without a kernel: GitHub, nbviewer, nbconvert."""
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude, **kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        headline, header, rows = self.summary()
        note = "Run the notebook for the live view."
        table = html_table(header, rows, most=SHOWN_ROWS) if rows else ""
        data["text/html"] = f"<div><p><strong>{escape(headline)}</strong></p>{table}<p><em>{note}</em></p></div>"
        data["text/plain"] = f"{headline} ({note})"
        return bundle
