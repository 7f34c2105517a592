"""Findings as cards: what each says, why, and what can be done about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import ipywidgets as W

from dcptools._text import counted
from dcptools.findings import CODES, Finding, Group, advice, grouped
from dcptools.widgets._base import escape

MOST = 8  # cards at first; infos are shown with the rest
Act = Callable[[Group], None]
Can = Callable[[Group], bool]


class Cards(W.VBox):  # type: ignore[misc]
    """A card for the findings of a code and a prefix, errors first; infos are behind a button.

    Parameters
    ----------
    show, exclude
        Called with the findings whose button was clicked; without ``exclude`` there are no such buttons.
    """

    def __init__(self, show: Act, exclude: Act | None = None) -> None:
        self._acts = {"show": show, "exclude": exclude}
        self._can: dict[str, Can] = {}
        self._hidden: list[Group] = []
        self.more = W.Button(layout={"width": "auto", "display": "none", "align_self": "flex-start"})
        self.more.add_class("dcp-quiet")
        self.shown = W.VBox()
        super().__init__([self.shown, self.more])
        self.more.on_click(lambda _: self._show_rest())

    def tell(self, findings: Iterable[Finding], can_show: Can, can_exclude: Can = lambda group: False) -> None:
        """Show these, with buttons where they make sense."""
        self._can = {"show": can_show, "exclude": can_exclude}
        groups = list(grouped(findings))
        first = [group for group in groups if group.severity != "info"][:MOST]
        self._hidden = groups[len(first) :]
        before, self.shown.children = self.shown.children, tuple(map(self._card, first))
        for card in before:
            _close(card)
        self.more.description = _rest(self._hidden)
        self.more.layout.display = "" if self._hidden else "none"

    def _show_rest(self) -> None:
        self.shown.children += tuple(map(self._card, self._hidden))
        self._hidden, self.more.layout.display = [], "none"

    def _card(self, group: Group) -> W.HBox:
        buttons = []
        if self._can["show"](group):
            words = "Show keys" if len(group.findings) > 1 else "Show"
            buttons.append(self._button(words, "show", group, f"Show just {group.where or 'these keys'} in the table"))
        if self._acts["exclude"] is not None and self._can["exclude"](group):
            words = "Exclude these" if len(group.findings) > 1 else "Exclude"
            buttons.append(self._button(words, "exclude", group, f"Leave out {group.where}, and preview again"))
        card = W.HBox([W.HTML(card_html(group)), W.HBox(buttons)])
        card.add_class("dcp-card")
        card.add_class(f"dcp-{group.severity}")
        return card

    def _button(self, words: str, name: str, group: Group, tooltip: str) -> W.Button:
        act = self._acts[name]
        assert act is not None
        button = W.Button(description=words, tooltip=escape(tooltip), layout={"width": "auto"})
        button.on_click(lambda _: act(group))
        return button


def card_html(group: Group) -> str:
    """What is said, and folded away: what it means and what to do."""
    role = "status" if group.severity == "info" else "alert"
    where = f" <code>{escape(group.where)}</code>" if group.where else ""
    kind = CODES[group.code]
    return (
        f"<div role='{role}'><p><strong>{group.severity}[{group.code}]</strong>{where}: "
        f"{escape(group.sentence)}</p></div>"
        f"<details><summary>Why?</summary><p>{_marked(kind.meaning)}</p><p>{_marked(advice(group.code))}</p></details>"
    )


def _marked(markdown: str) -> str:
    """The little Markdown that the texts use: code, and links to pages of the docs, which are only named."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(markdown))
    return re.sub(r"\[([^\]]+)\]\(([\w-]+\.md)[^)]*\)", r"\1 (<code>docs/\2</code>)", text)


def _rest(hidden: Iterable[Group]) -> str:
    """What is on the button that shows the rest."""
    groups = list(hidden)
    infos = sum(group.severity == "info" for group in groups)
    others = len(groups) - infos
    parts = [counted(infos, "info")] if infos else []
    return "Show " + " and ".join([f"{others:,} more", *parts] if others else parts)


def _close(widget: W.Widget) -> None:
    """Nothing of it stays in the kernel or in the page."""
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()
