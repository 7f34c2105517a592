"""The table of the widgets without a browser: what it finds, counts, sorts, sends and does not send."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from checkpoints import saved

from dcptools import widgets
from dcptools.checkpoint import read
from dcptools.widgets._rows import MOST_CHIPS, Column, Query, Rows
from dcptools.widgets._table import CSV_ROWS, FIRST_ROWS, MOST_ROWS, Table

SCRIPT = "<script>window.__xss=1</script>"
KEYS = 200_000


def looked_at(table: Table) -> dict[str, Any]:
    """What the browser gets when somebody looks."""
    table.receive({"kind": "look"})
    answer: dict[str, Any] = table.answer
    return answer


def names(table: Table) -> list[str]:
    return [row["cells"][0] for row in looked_at(table)["rows"]]


class Sent:
    """What a table sends beside its state."""

    def __init__(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[tuple[dict[str, Any], list[bytes]]] = []
        monkeypatch.setattr(table, "send", lambda content, buffers=None: self.messages.append((content, buffers or [])))


COLUMNS = (
    Column("key", searched=True),
    Column("n", "{:,} B".format, numeric=True),
    Column("root", missing="(top)", kinds=lambda root: [root or "(top)"]),
    Column("found", kinds=lambda codes: codes.split(", ") if codes else []),
    Column("shape"),
)


@pytest.fixture
def table() -> Table:
    table = Table(COLUMNS)
    table.frame = pd.DataFrame(
        {
            "key": ["a.10.w", "a.9.W", "c.bias", "d(1)", SCRIPT],
            "n": pd.Series([10, 9, None, 1000, 1], dtype="Int64"),
            "root": ["model", None, "model", "optim", None],
            "found": ["hole", "", "hole, overlap", "", ""],
            "shape": [(2, 3), None, (10, 1), (2, 3), ()],
        }
    )
    return table


def numbered(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"key": [f"layers.{n}.w" for n in range(rows)], "n": range(rows)})


def plain(rows: int) -> Table:
    table = Table([Column("key", searched=True), Column("n", numeric=True)])
    table.frame = numbered(rows)
    return table


# --- searching, filtering, sorting


def test_search_finds_parts_of_keys_in_any_case_and_marks_them(table: Table) -> None:
    table.ask(search=".w")
    assert names(table) == ["a.10.w", "a.9.W"]
    assert [row["marks"] for row in table.answer["rows"]] == [{0: [(4, 6)]}, {0: [(3, 5)]}]
    assert (table.answer["found"], table.answer["total"], table.found) == (2, 5, 2)


def test_search_takes_special_characters_as_they_are(table: Table) -> None:
    table.ask(search="(1)")
    assert names(table) == ["d(1)"]


@pytest.mark.filterwarnings("error")
def test_search_by_regular_expression(table: Table) -> None:
    table.ask(search=r"^(a|c)\..*[ws]$", regex=True)
    assert names(table) == ["a.10.w", "a.9.W", "c.bias"]


def test_a_bad_regular_expression_is_said_and_the_rows_stay(table: Table) -> None:
    table.ask(search="a", regex=True)
    before = names(table)
    table.ask(search="(")
    assert table.answer["error"].startswith("This is not a valid regular expression: missing )")
    assert names(table) == before and table.answer["query"]["search"] == "("
    table.ask(search=r"(d)\(")
    assert names(table) == ["d(1)"] and table.answer["error"] == ""


def test_filters_have_counts_that_follow_the_search_and_each_other(table: Table) -> None:
    counts = {name: dict(kinds) for name, kinds in looked_at(table)["counts"].items()}
    assert counts == {"root": {"model": 2, "(top)": 2, "optim": 1}, "found": {"hole": 2, "overlap": 1}}
    table.ask(chips={"found": ["hole"]})
    assert names(table) == ["a.10.w", "c.bias"]
    counts = {name: dict(kinds) for name, kinds in table.answer["counts"].items()}
    assert counts == {"root": {"model": 2}, "found": {"hole": 2, "overlap": 1}}  # its own chips stay to be changed
    table.ask(search="bias")
    assert names(table) == ["c.bias"] and dict(table.answer["counts"]["root"]) == {"model": 1}
    table.ask(search="", chips={"root": ["optim", "(top)"]})
    assert names(table) == ["a.9.W", "d(1)", SCRIPT]


def test_a_filter_that_is_chosen_stays_to_be_taken_back(table: Table) -> None:
    table.ask(chips={"found": ["overlap"]}, search="nothing")
    assert names(table) == [] and dict(table.answer["counts"]["found"]) == {"overlap": 0}


def test_a_filter_that_other_rows_have_no_kind_of_hides_none_of_them(table: Table) -> None:
    table.ask(chips={"found": ["hole"]})
    table.frame = table.frame.assign(found="")
    assert len(names(table)) == 5
    table.frame = table.frame.assign(found=["", "", "", "hole", ""])
    assert names(table) == ["d(1)"]


def test_a_column_without_anything_in_it_is_left_out_until_there_is_something() -> None:
    table = Table(
        [Column("key", searched=True), Column("found", optional=True, kinds=lambda code: [code] if code else [])]
    )

    def shown(found: list[str | None]) -> list[str]:
        table.frame = pd.DataFrame({"key": ["a", "b"], "found": found})
        assert {len(row["cells"]) for row in looked_at(table)["rows"]} == {len(table.head["columns"])}
        return [column["name"] for column in table.head["columns"]]

    assert [column["name"] for column in table.head["columns"]] == ["key"]  # nobody has looked
    assert shown(["", None]) == ["key"] and table.answer["counts"] == {}
    assert shown([None, "hole"]) == ["key", "found"] and dict(table.answer["counts"]["found"]) == {"hole": 1}
    table.ask(chips={"found": ["hole"]})
    assert shown(["", ""]) == ["key"] and names(table) == ["a", "b"]


def test_only_the_most_frequent_kinds_become_filters() -> None:
    table = Table([Column("key", kinds=lambda key: [key])])
    table.frame = pd.DataFrame({"key": [f"k{n}" for n in range(100)] + ["often"] * 3})
    kinds = looked_at(table)["counts"]["key"]
    assert len(kinds) == MOST_CHIPS and kinds[0] == ("often", 3)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    ("column", "ascending"),
    [("n", [1, 9, 10, 1000]), ("root", ["model", "model", "optim"]), ("shape", [(), (2, 3), (2, 3), (10, 1)])],
)
def test_numbers_sort_as_numbers_and_nothing_sorts_last(
    table: Table, column: str, ascending: list[Any], descending: bool
) -> None:
    table.ask(sort=column, descending=descending)
    values = list(table.selected[column])
    there = len(ascending)
    assert values[:there] == (ascending[::-1] if descending else ascending)
    assert all(value is None or value is pd.NA or value != value for value in values[there:])


def test_numbers_in_names_count() -> None:
    table = Table([Column("key", searched=True)], order="key")
    table.frame = pd.DataFrame({"key": sorted(f"layers.{n}.w" for n in range(12))})
    assert names(table) == [f"layers.{n}.w" for n in range(12)]


def test_cells_are_texts_empty_where_missing_and_printable(table: Table) -> None:
    table.frame = pd.concat([table.frame, pd.DataFrame({"key": ["new\nline\x1b[31m"]})], ignore_index=True)
    rows = looked_at(table)["rows"]
    assert rows[0]["cells"] == ["a.10.w", "10 B", "model", "hole", "(2, 3)"]
    assert rows[2]["cells"][1] == "" and rows[1]["cells"][2] == "(top)"
    assert rows[5]["cells"] == ["new\\nline\\x1b[31m", "", "(top)", "", ""]
    assert rows[4]["cells"][0] == SCRIPT  # the browser sets it as text


def test_new_rows_keep_the_search_and_the_order() -> None:
    table = plain(30)
    table.ask(search="1", sort="n", descending=True)
    table.frame = numbered(13)
    assert list(table.selected["n"]) == [12, 11, 10, 1]


def test_no_rows_at_all() -> None:
    table = Table(COLUMNS)
    assert (looked_at(table)["found"], table.answer["rows"]) == (0, [])
    table.ask(search="x", sort="n", chips={"root": ["model"]})
    assert table.found == 0


# --- what is sent, and when


def test_nothing_is_computed_before_somebody_looks() -> None:
    made = []

    def frame() -> pd.DataFrame:
        made.append(1)
        return numbered(100)

    table = plain(1)
    table.frame = frame  # type: ignore[assignment]
    assert not made and table.answer["stale"] and "rows" not in table.answer
    assert len(looked_at(table)["rows"]) == FIRST_ROWS
    table.ask(search="1")
    looked_at(table)
    assert len(table.frame) == 100 and made == [1]


def test_more_rows_come_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    table = plain(250)
    version = looked_at(table)["version"]
    sent = Sent(table, monkeypatch)
    table.receive({"kind": "rows", "version": version, "first": 200})
    ((message, _),) = sent.messages
    assert (message["kind"], message["first"], message["version"]) == ("rows", 200, version)
    assert [row["id"] for row in message["rows"]] == list(range(200, 250))
    table.ask(search="1")
    table.receive({"kind": "rows", "version": version, "first": 100})  # of what is not shown any more
    assert len(sent.messages) == 1


def test_messages_without_sense_are_ignored(table: Table) -> None:
    version = looked_at(table)["version"]
    for message in ({}, {"kind": "nothing"}, {"kind": "choose"}, {"kind": "toggle", "path": "x"}):
        table.receive(message)
    table.receive({"kind": "choose", "id": 5, "version": version, "frame": table.answer["frame"]})
    assert table.chosen == -1


def test_what_is_sent_does_not_grow_with_the_rows() -> None:
    def sent(rows: int) -> int:
        table = plain(rows)
        looked_at(table)
        return len(json.dumps(table.get_state(), default=str))

    small, large = sent(1000), sent(KEYS)
    assert large < 1.02 * small < 60_000  # bytes


@pytest.fixture(scope="module")
def many() -> Rows:
    kinds = ("gate_proj", "up_proj", "down_proj", "shared")
    keys = [
        f"model.model.layers.{layer}.mlp.experts.{expert}.{kind}.weight"
        for layer in range(100)
        for expert in range(500)
        for kind in kinds
    ]
    assert len(keys) == KEYS
    frame = pd.DataFrame({"key": keys, "n": range(KEYS), "root": "model", "found": "", "shape": [(32, 32)] * KEYS})
    return Rows(frame, COLUMNS)


def test_a_page_costs_the_same_wherever_it_is(many: Rows) -> None:
    shown = []

    def show(value: Any) -> str:
        shown.append(value)
        return str(value)

    rows = Rows(many.frame, (Column("key", searched=True), Column("n", show)))
    selection = rows.select(Query(sort="key"))
    shown.clear()
    page = rows.page(selection, KEYS - 10, MOST_ROWS)
    assert [row["cells"][0] for row in page[-2:]] == [
        f"model.model.layers.99.mlp.experts.499.{kind}.weight" for kind in ("shared", "up_proj")
    ]
    assert len(page) == len(shown) == 10


def test_two_hundred_thousand_rows_answer(many: Rows, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {}
    for what, query in {
        "first rows": Query(),
        "first search": Query(search="layers.49.mlp.experts.499."),
        "search": Query(search="experts.4"),
        "by bytes": Query(sort="n", descending=True),
        "by key": Query(sort="key"),
        "filter": Query(chips={"root": frozenset(["model"])}),
    }.items():
        start = time.process_time()
        rows = many.page(many.select(query), 0, FIRST_ROWS)
        seconds[what] = time.process_time() - start
        assert rows
    with capsys.disabled():
        print("\n" + ", ".join(f"{what} {spent:.2f} s" for what, spent in seconds.items()), end=" ")


def test_no_message_about_two_hundred_thousand_rows_is_large(many: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    table, sizes = Table(COLUMNS), {}
    table.frame = many.frame.assign(found=["hole, overlap" if n % 3 else "" for n in range(KEYS)])
    sent = Sent(table, monkeypatch)
    questions: dict[str, dict[str, Any]] = {
        "first rows": {"kind": "look"},
        "search": {"kind": "ask", "search": "e"},  # all rows, with several marks each
        "sort": {"kind": "ask", "search": "", "sort": "key", "descending": True},
        "filter": {"kind": "ask", "chips": {"found": ["hole"]}},
        "more rows": {"kind": "rows", "first": 100_000},
        "choice": {"kind": "choose", "id": KEYS - 1},
        "piece of a download": {"kind": "csv", "first": 0},
    }
    for what, question in questions.items():
        here = {"version": table.answer["version"], "frame": table.answer["frame"]}
        table.receive({**here, **question})
        said = [content for content, _ in sent.messages]
        packed = sum(len(buffer) for _, buffers in sent.messages for buffer in buffers)
        sizes[what] = len(json.dumps([table.get_state(), said], default=str)) + packed
        sent.messages.clear()
    assert table.found > 100_000 and max(sizes.values()) < 60_000, sizes


def test_a_download_comes_in_packed_pieces_and_has_what_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    table = plain(3 * CSV_ROWS)
    table.ask(search="1", sort="n", descending=True)
    sent = Sent(table, monkeypatch)
    done = 0
    while done < table.found:
        table.receive({"kind": "csv", "first": done})
        done = sent.messages[-1][0]["done"]
    pieces = [buffers[0] for _, buffers in sent.messages]
    assert len(pieces) == 2 and max(map(len, pieces)) < 60_000
    text = "".join(gzip.decompress(piece).decode() for piece in pieces)
    downloaded = pd.read_csv(io.StringIO(text))
    assert list(downloaded["n"]) == list(table.selected["n"]) and list(downloaded) == ["key", "n"]


def test_names_in_a_download_are_no_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["=cmd|'/c calc'!A0", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "a=b", "a\r=b"]
    table = Table([Column("key", searched=True), Column("n", numeric=True)])
    table.frame = pd.DataFrame({"key": names, "n": range(-4, 4)})
    sent = Sent(table, monkeypatch)
    table.receive({"kind": "csv", "first": 0})
    rows = list(csv.reader(io.StringIO(gzip.decompress(sent.messages[0][1][0]).decode(), newline="")))[1:]
    assert [row[0] for row in rows] == [f"'{name}" for name in names[:6]] + names[6:]
    assert [row[1] for row in rows] == list(map(str, range(-4, 4)))  # numbers are numbers


# --- a chosen row


def pick(table: Table, kind: str, index: int) -> None:
    """Click on a row that is shown, or open it."""
    shown = looked_at(table)
    identity = {name: shown[name] for name in ("version", "frame")}
    table.receive({"kind": kind, "id": shown["rows"][index]["id"], **identity})


def test_a_chosen_row_stays_so_when_it_moves(table: Table) -> None:
    table.ask(sort="n", descending=True)
    pick(table, "choose", 1)
    assert table.frame["key"][table.chosen] == "a.10.w"
    table.ask(sort="key")
    assert table.answer["at"] == names(table).index("a.10.w")  # it stays chosen, at another place
    table.ask(search="bias")
    assert table.answer["at"] == -1
    table.frame = numbered(3).assign(root="", found="", shape="")
    assert table.chosen == -1


def test_a_choice_holds_when_the_rows_have_moved_meanwhile_but_not_for_another_frame(table: Table) -> None:
    before = dict(looked_at(table))
    choice = {"kind": "choose", "id": 2, "version": before["version"], "frame": before["frame"]}
    table.ask(search="bias")
    table.receive(choice)
    assert (table.chosen, table.answer["at"]) == (2, 0)
    table.frame = table.frame
    table.receive(choice)
    assert table.chosen == -1


def test_enter_opens_a_row_once(table: Table) -> None:
    opened = []
    table.observe(lambda change: opened.append(change.new), "opened")
    pick(table, "open", 3)
    assert opened == [3, -1]


def test_a_row_is_brought_into_view_whatever_is_filtered(table: Table) -> None:
    table.ask(search="bias", sort="n")
    table.show(3)
    assert (table.chosen, table.answer["query"]["search"]) == (3, "")
    assert table.reveal["index"] == names(table).index("d(1)")
    turn = table.reveal["turn"]
    table.show(3)
    assert table.reveal["turn"] > turn  # again, if somebody scrolled away


# --- the tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Table]:
    table = widgets.Inspect(read(saved.trained(tmp_path / "step-100"))).key_table
    table.ask(tree=True)
    yield table


def labels(table: Table) -> list[str]:
    marks = {True: "▾ ", False: "▸ ", None: ""}
    return [f"{marks[row['open']]}{row['cells'][0]}" for row in table.answer["rows"]]


def turn(table: Table, index: int) -> None:
    row = table.answer["rows"][index]
    for _ in range(2):  # a second key may come before the first is answered
        table.receive({"kind": "toggle", "path": row["path"], "open": not row["open"]})


def test_the_model_is_open_and_the_rest_closed_at_first(tree: Table) -> None:
    layers = ["embed_tokens.weight", "▸ layers.{0..1}", "norm.weight"]
    assert labels(tree) == ["▾ model", "▾ model", *layers, "lm_head.weight", "▸ optimizer", "step"]
    assert [row["level"] for row in tree.answer["rows"]] == [1, 2, 3, 3, 3, 2, 1, 1]
    assert tree.answer["rows"][3]["cells"] == ["layers.{0..1}", "22", "", "", "1,200", "4.80 kB"]
    assert tree.answer["rows"][7]["cells"][3] == "object"


def test_a_row_is_expanded_and_collapsed(tree: Table) -> None:
    before = labels(tree)
    turn(tree, 1)
    assert labels(tree) == ["▾ model", "▸ model", "lm_head.weight", "▸ optimizer", "step"]
    turn(tree, 1)
    assert labels(tree) == before
    turn(tree, 2)  # a tensor
    assert labels(tree) == before


def test_all_of_it_is_expanded_and_collapsed(tree: Table) -> None:
    tree.receive({"kind": "expand", "all": True})
    assert tree.answer["shown"] == 86
    assert len(tree.page(80, MOST_ROWS)) == 6
    tree.receive({"kind": "expand", "all": False})
    assert labels(tree) == ["▸ model", "▸ optimizer", "step"]


def test_what_is_searched_is_shown_in_its_place_in_the_tree(tree: Table) -> None:
    tree.ask(search="k_norm", chips={"root": ["model"]})
    assert labels(tree) == ["model.model.layers.{0..1}.self_attn.k_norm.weight"]
    tree.ask(search="norm", chips={"root": ["model"]})
    assert labels(tree)[0] == "▾ model.model" and "k_norm.weight" in labels(tree)
    tree.ask(tree=False)
    assert tree.answer["rows"][0]["cells"][0] == "model.model.layers.0.input_layernorm.weight"


def test_a_tensor_of_the_tree_is_chosen_and_a_module_is_not(tree: Table) -> None:
    pick(tree, "choose", 2)
    assert tree.frame["key"][tree.chosen] == "model.model.embed_tokens.weight"
    pick(tree, "choose", 3)
    assert tree.chosen == -1


def test_names_of_keys_in_the_tree_are_printable(tmp_path: Path) -> None:
    table = widgets.Inspect(read(saved.save(tmp_path / "odd", {"model": {"new\nline": torch.ones(2)}}))).key_table
    table.ask(tree=True)
    assert "model.new\\nline" in "".join(labels(table))
