"""Findings as cards, and what can be done with them: show their keys, leave them out, read why."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import ipywidgets as W
import pytest
import torch
from checkpoints import broken, saved
from safetensors.torch import save_file

from dcptools import widgets
from dcptools.checkpoint import read
from dcptools.findings import CODES, Finding, advice
from dcptools.widgets._cards import MOST, Cards
from dcptools.widgets._mapping import LEFT_OUT, MODEL, OUTPUTS

SCRIPT = "<script>window.__xss=1</script>"


def cards_of(step: Any) -> dict[str, W.HBox]:
    """The cards of a step, by code: the last one if there are several."""
    step.cards.more.click()
    return {card.children[0].value.partition("[")[2].partition("]")[0]: card for card in step.cards.shown.children}


def press(card: W.HBox, words: str) -> None:
    (button,) = [button for button in card.children[1].children if button.description == words]
    button.click()


def buttons(card: W.HBox) -> list[str]:
    return [button.description for button in card.children[1].children]


def shown(table: Any) -> set[str]:
    """The first cells of all rows that match."""
    return set(table.selected.iloc[:, 0])


@pytest.fixture
def odd(tmp_path: Path) -> widgets.Mapping:
    """A model with six weights below ``ema`` and one beside it that no model has, and a head that is lost."""
    state = {**saved.model_state(layers=1), "projector.weight": torch.ones(2)}
    state |= {f"ema.{n}.w {name}": torch.ones(2) for n in range(3) for name in ("a", "b")}
    top = {"classifier": {"weight": torch.ones(2), "bias": torch.ones(2)}}
    return widgets.Mapping(read(saved.save(tmp_path / "odd", {"model": state, **top})))


EMA = {f"ema.{n}.w {name}" for n in range(3) for name in ("a", "b")}


def unusual(step: widgets.Mapping) -> tuple[W.HBox, W.HBox]:
    """Two cards of one code: six keys, and one."""
    found = [card for card in step.cards.shown.children if "unusual-key" in card.children[0].value]
    six, one = sorted(found, key=lambda card: "6 keys" not in card.children[0].value)
    return six, one


def test_a_card_says_how_many_where_what_and_why(odd: widgets.Mapping) -> None:
    six, one = unusual(odd)
    page = six.children[0].value
    assert (
        "<strong>warning[unusual-key]</strong> <code>6 keys under model.ema.*, such as model.ema.0.w a</code>" in page
    )
    assert "<details><summary>Why?</summary>" in page and "role='alert'" in page
    for part in CODES["unusual-key"].meaning.split("`") + advice("unusual-key").split("`"):
        assert html.escape(part) in page
    assert "<code>model.projector.weight</code>: " in one.children[0].value
    assert buttons(six) == ["Show keys", "Exclude these"] and buttons(one) == ["Show", "Exclude"]


def test_show_keys_shows_just_those_until_it_is_taken_back(odd: widgets.Mapping) -> None:
    odd.outputs.ask(search="nothing that is there")
    odd.tabs.selected_index = LEFT_OUT
    press(unusual(odd)[0], "Show keys")
    assert odd.tabs.selected_index == OUTPUTS and shown(odd.outputs) == EMA
    assert odd.outputs.answer["only"] == "unusual-key: 6 keys under model.ema.*, such as model.ema.0.w a"
    odd.outputs.ask(search="w b")
    assert shown(odd.outputs) == {name for name in EMA if name.endswith("b")}  # both count
    odd.outputs.ask(search="", only="")
    assert odd.outputs.found == len(odd.mapping.outputs) and odd.outputs.answer["only"] == ""
    press(unusual(odd)[1], "Show")
    assert shown(odd.outputs) == {"projector.weight"}


def test_exclude_leaves_out_just_those_and_previews_again(odd: widgets.Mapping) -> None:
    odd.rules.fields["exclude"].value = "*lm_head*"
    before = {output.name for output in odd.mapping.outputs}
    press(unusual(odd)[0], "Exclude these")
    assert odd.rules.fields["exclude"].value == "*lm_head* model.ema.*"
    assert {output.name for output in odd.mapping.outputs} == before - EMA
    press(cards_of(odd)["unusual-key"], "Exclude")
    assert {output.name for output in odd.mapping.outputs} == before - EMA - {"projector.weight"}
    assert not any("unusual-key" in card.children[0].value for card in odd.cards.shown.children)


def test_the_globs_match_nothing_else(tmp_path: Path) -> None:
    """The same in each layer of which all else is converted; keys with blanks and brackets."""
    state = {**saved.model_state(layers=3), **{f"extra.{n}.odd[{n}] w": torch.ones(2) for n in range(5)}}
    state |= {"extra.sound": torch.ones(2)}
    save_file({**saved.model_state(layers=3), "extra.sound": torch.ones(2)}, tmp_path / "model.safetensors")
    step = widgets.Mapping(read(saved.save(tmp_path / "c", {"model": state})))
    step.rules.fields["reference"].value = str(tmp_path / "model.safetensors")
    before = {output.name for output in step.mapping.outputs}
    card = cards_of(step)["weight-unexpected"]
    press(card, "Show keys")
    unexpected = {f"extra.{n}.odd[{n}] w" for n in range(5)}
    assert step.tabs.selected_index == MODEL and shown(step.weights) == unexpected
    press(card, "Exclude these")
    assert {output.name for output in step.mapping.outputs} == before - unexpected
    assert "weight-unexpected" not in cards_of(step) and "pattern-unused" not in cards_of(step)


def test_what_is_lost_is_shown_and_left_out_knowingly(odd: widgets.Mapping) -> None:
    card = cards_of(odd)["left-out-tensor"]
    press(card, "Show")
    assert odd.tabs.selected_index == LEFT_OUT and shown(odd.leftovers) == {"classifier.bias", "classifier.weight"}
    press(card, "Exclude")
    assert "left-out-tensor" not in cards_of(odd)


def test_excluding_is_offered_where_it_makes_sense_alone(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Mapping(read(tmp_path / "hole"))
    assert buttons(cards_of(step)["hole"]) == ["Show", "Exclude"]  # of no known model
    assert buttons(cards_of(step)["assets-none"]) == []
    save_file({"model.w": torch.ones(6, 4)}, tmp_path / "model.safetensors")
    step.rules.fields["reference"].value = str(tmp_path / "model.safetensors")
    assert step.mapping.fit is not None and "Exclude" not in buttons(cards_of(step)["hole"])  # the model needs it


def test_infos_come_last_and_hide_no_warning() -> None:
    told = [Finding("large-tensor", f"layers.{n}.w", "large") for n in range(3)] + [Finding("layout", "", "the usual")]
    told += [Finding("unusual-key", f"{name}.w", "odd") for name in "abc"] + [Finding("hole", "w", "rows")]
    cards = Cards(lambda group: None)
    cards.tell(told, lambda group: True)
    codes = [card.children[0].value.partition("[")[2].partition("]")[0] for card in cards.shown.children]
    assert codes == ["hole", *["unusual-key"] * 3] and cards.more.description == "Show 4 infos"
    cards.more.click()
    assert len(cards.shown.children) == 8 and cards.more.layout.display == "none"
    cards.tell([Finding("hole", f"{n}", "rows") for n in range(MOST)], lambda group: False)
    assert len(cards.shown.children) == MOST and cards.more.layout.display == "none"
    many = [Finding("hole", f"{n}", "rows") for n in range(MOST + 2)]
    cards.tell([*many, Finding("layout", "", "the usual")], lambda group: False)
    assert cards.more.description == "Show 2 more and 1 info"


def test_every_code_can_be_explained() -> None:
    cards = Cards(lambda group: None)
    cards.tell([Finding(code, "", "") for code in CODES], lambda group: False)
    cards.more.click()
    assert len(cards.shown.children) == len(CODES)
    assert not any("](" in card.children[0].value or "`" in card.children[0].value for card in cards.shown.children)


def test_keys_on_cards_are_text(tmp_path: Path) -> None:
    state = {**saved.model_state(layers=1), **{f"{SCRIPT}.{n}\n": torch.ones(2) for n in range(5)}}
    step = widgets.Mapping(read(saved.save(tmp_path / "bad", {"model": state})))
    card = cards_of(step)["unusual-key"]
    assert "<script" not in card.children[0].value and "&lt;script&gt;" in card.children[0].value
    before = len(step.mapping.outputs)
    press(card, "Show keys")
    assert step.outputs.found == 5 and "\n" not in step.outputs.answer["only"]
    press(card, "Exclude these")
    assert len(step.mapping.outputs) == before - 5


def test_inspect_shows_the_keys_of_its_findings(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Inspect(read(tmp_path / "hole"))
    card = cards_of(step)["hole"]
    assert buttons(card) == ["Show"]
    press(card, "Show")
    assert step.tabs.selected_index == 0 and shown(step.key_table) == {"model.model.w"}
    step.key_table.show(0)  # another row, from elsewhere
    assert step.key_table.answer["only"] == "" or shown(step.key_table) == {"model.model.w"}
