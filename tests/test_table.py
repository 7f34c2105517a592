"""Tables and numbers as people read them, and names that cannot break either."""

from __future__ import annotations

import html
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcptools._sizes import parse_bytes
from dcptools._table import clip, html_name, html_table, text_table
from dcptools._text import counted, format_bytes, format_count, printable, printable_lines, some
from dcptools.errors import UsageError

# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.35 kB"),
        (123_456, "123 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (2_000_000_000, "2.00 GB"),
        (1_500_000_000_000, "1.50 TB"),
        (12_345_000_000_000_000, "1.23e+04 TB"),
        (-2_000, "-2.00 kB"),
    ],
)
def test_format_bytes(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (1234, "1,234"), (999_999, "999,999"), (1_000_000, "1.00 M"), (7_620_000_000, "7.62 B")],
)
def test_format_count(count: int, text: str) -> None:
    assert format_count(count) == text


def test_counted() -> None:
    assert [counted(n, "file") for n in (0, 1, 2, 1200)] == ["0 files", "1 file", "2 files", "1,200 files"]


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (2_000_000_000, 2_000_000_000),
        ("2000000000", 2_000_000_000),
        ("2_000_000_000", 2_000_000_000),
        ("5GB", 5_000_000_000),
        ("5 gb", 5_000_000_000),
        ("500M", 500_000_000),
        ("500MB", 500_000_000),
        ("1KiB", 1024),
        ("2GiB", 2 << 30),
        ("1.5 MiB", 1_572_864),
        ("1T", 10**12),
        ("1e9", 10**9),
        ("1.5E+6 kB", 1_500_000_000),
        (1e9, 10**9),
        (" 7B ", 7),
        ("9007199254740993", 9007199254740993),  # no float on the way
    ],
)
def test_parse_bytes(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "0", 0, -1, "-5GB", "5XB", "GB", "1.5.5", "0.1", "1e-9", "e9", True, None, "\uff15GB"]
)
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert str(caught.value) == (
        f"{text!r} is not a size in bytes.\nExpected a positive number, or one like 500MB, 5GB, 2GiB, 1e9."
    )


@given(st.integers(1, 10**18))
def test_any_positive_number_is_a_size(nbytes: int) -> None:
    assert parse_bytes(nbytes) == parse_bytes(str(nbytes)) == nbytes


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.größe.重み", "model.größe.重み"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("right\u202eleft", r"right\u202eleft"),
        ("", ""),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_is_printable(text: str) -> None:
    assert printable(text).isprintable()


def test_some() -> None:
    assert some([]) == ""
    assert some(["a", "b"]) == "a, b"
    assert some(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert some(name for name in ("a\n", "b")) == r"a\n, b"


# --- tables -----------------------------------------------------------------------------------------------------

ROWS = [("model.w", 12, "1.00 kB"), ("b", 7, "-")]


def test_a_text_table() -> None:
    assert text_table(("key", "count", "bytes"), ROWS) == (
        "key        count    bytes\n-------  -------  -------\nmodel.w       12  1.00 kB\nb              7        -"
    )


def test_a_text_table_says_what_it_leaves_out() -> None:
    rows = [(f"k{n}", n) for n in range(30)]
    lines = text_table(("key", "n"), rows, most=3).splitlines()
    assert lines[-1] == "... 27 more of 30 rows"
    assert len(lines) == 2 + 3 + 1
    assert text_table(("key", "n"), rows[:5], total=1200).splitlines()[-1] == "... 1,195 more of 1,200 rows"
    assert "more of" not in text_table(("key", "n"), rows, most=30)


def test_a_text_table_without_rows() -> None:
    assert text_table(("key", "n"), []).split() == ["key", "n", "-----", "---"]


def test_clip() -> None:
    assert clip(ROWS, 5, None) == (ROWS, "")
    assert clip(ROWS, 1, None) == (ROWS[:1], "... 1 more of 2 rows")


def test_cells_of_a_text_table_stay_on_their_line() -> None:
    table = text_table(("key",), [("a\nb",), ("\x1b[2J",), ("1e5",), ("001",)])
    assert table.splitlines()[2:] == [r"a\nb", r"\x1b[2J", "1e5", "001"]  # and numbers are left as they are


def test_an_html_table_is_escaped_and_says_what_it_leaves_out() -> None:
    name = "<script>alert('x')</script>&"
    table = html_table((name,), [(name,), ("b",), ("c",)], title=name, most=2)
    assert "<script" not in table
    assert table.count(html.escape(name)) == 3
    assert table.endswith("<p>... 1 more of 3 rows</p>")


def test_long_cells_of_an_html_table_go_on_in_another_line_and_short_ones_do_not() -> None:
    sentence = "model.lm_head.weight: read it in config.json"
    table = html_table(("key", "shape"), [("model.layers.0.self_attn.q_proj.weight", "[128, 256]"), (sentence, "a.b")])
    name = "model.<wbr>layers.<wbr>0.<wbr>self_attn.<wbr>q_proj.<wbr>weight"
    assert f"overflow-wrap:anywhere'>{name}</td>" in table and "white-space:nowrap'>[128, 256]</td>" in table
    assert f"overflow-wrap:anywhere'>{sentence}</td>" in table and "white-space:nowrap'>a.b</td>" in table


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("größe._重み.w0.1", "größe.<wbr>_重み.<wbr>w0.1"),
        ("step-1000/model.safetensors", "step-1000/model.<wbr>safetensors"),
        ("0.25, ..., .w, w.", "0.25, ..., .<wbr>w, w."),
        ("<w.b>&.", "&lt;w.<wbr>b&gt;&amp;."),
    ],
)
def test_a_name_goes_on_behind_a_dot(name: str, shown: str) -> None:
    assert html_name(name) == shown


@given(st.text())
def test_where_a_name_goes_on_changes_nothing_else(name: str) -> None:
    assert html_name(name).replace("<wbr>", "") == html.escape(printable(name))


@given(st.text(), st.text())
def test_no_text_breaks_an_html_table(header: str, cell: str) -> None:
    table = html_table((header,), [(cell,)], title=cell)
    assert (table.count("<tr>"), table.count("</td>"), table.count("</th>")) == (2, 1, 1)
    assert table.isprintable()


def test_lines_of_a_message_stay_lines_and_cannot_drive_a_terminal() -> None:
    assert printable_lines("one\n\x1b[31mtwo\r\n\ud800ü") == "one\n\\x1b[31mtwo\\r\n\\ud800ü"


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 400 + ".5", "1." + "0" * 5000])
def test_a_number_of_very_many_digits_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size in bytes"):
        parse_bytes(text)
