"""Findings are data: documented codes, one line each, and a list that stays short."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

import dcptools
from dcptools.findings import CODES, SEVERITIES, SHOWN_PER_CODE, Finding, of_severity, summary_lines

HOLE = Finding("hole", "model.w", "rows are missing", "save again")
WARNING = Finding("foreign-class", "", "a class is unknown")
INFO = Finding("layout", "", "the usual one")


def test_a_finding_is_one_line() -> None:
    assert str(HOLE) == "error[hole] model.w: rows are missing (save again)"
    assert str(WARNING) == "warning[foreign-class]: a class is unknown"


def test_a_key_cannot_break_the_line() -> None:
    assert str(dataclasses.replace(HOLE, key="a\n\x1b[2J")).startswith(r"error[hole] a\n\x1b[2J: ")


def test_a_code_must_be_documented() -> None:
    with pytest.raises(KeyError, match="undocumented finding code 'whole'"):
        Finding("whole", "", "")


def test_codes_are_words_and_their_meaning_is_a_sentence() -> None:
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in CODES)
    assert all(re.fullmatch(r"[A-Za-z.].*\.", meaning) for _, meaning in CODES.values())


def test_every_documented_code_is_used_and_no_other() -> None:
    package = Path(dcptools.__file__).parent
    text = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "findings.py")
    unused = {code for code in CODES if f'"{code}"' not in text}
    assert unused == set()


def test_findings_are_json() -> None:
    assert json.loads(json.dumps(HOLE.to_json())) == {
        "code": "hole",
        "severity": "error",
        "key": "model.w",
        "message": "rows are missing",
        "hint": "save again",
    }


def test_findings_are_frozen_and_equal_by_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HOLE.key = "other"  # type: ignore[misc]
    assert {HOLE, dataclasses.replace(HOLE)} == {HOLE}


def test_strict_makes_an_error_of_a_warning() -> None:
    assert WARNING.as_error() == dataclasses.replace(WARNING, severity="error")
    assert WARNING.severity == "warning"


def test_of_severity() -> None:
    assert of_severity([HOLE, WARNING, HOLE], "error") == (HOLE, HOLE)
    assert SEVERITIES == ("info", "warning", "error")


def test_errors_come_first_in_the_order_they_were_found() -> None:
    other = dataclasses.replace(HOLE, key="a")
    lines = list(summary_lines([INFO, HOLE, WARNING, other]))
    assert lines == [str(HOLE), str(other), str(WARNING), str(INFO)]


def test_many_of_one_code_are_counted() -> None:
    holes = [dataclasses.replace(HOLE, key=f"w{n}") for n in range(SHOWN_PER_CODE + 3)]
    lines = list(summary_lines([*holes, WARNING]))
    assert lines == [*map(str, holes[:SHOWN_PER_CODE]), "error[hole]: and 3 more", str(WARNING)]


def test_codes_are_counted_apart_and_so_are_severities() -> None:
    findings = [HOLE, HOLE, WARNING, WARNING.as_error()]
    assert list(summary_lines(findings, most=1)) == [
        str(HOLE),
        "error[hole]: and 1 more",
        str(WARNING.as_error()),
        str(WARNING),
    ]


def test_many_keys_of_one_prefix_are_one_line() -> None:
    ema = [Finding("unusual-key", f"model.ema.layers.{n}.w", f"it is named {n}", "look") for n in range(36)]
    visual = [Finding("left-out-tensor", f"model.visual.{n}", "it is not converted") for n in range(4)]
    alone = Finding("unusual-key", "model.other.w", "it is named x", "look")
    assert list(summary_lines([*ema, *visual, alone, HOLE])) == [
        str(HOLE),
        "warning[unusual-key] 36 keys under model.ema.layers.*, such as model.ema.layers.0.w: it is named 0 (look)",
        str(alone),
        "warning[left-out-tensor] 4 keys under model.visual.*: it is not converted",
    ]


def test_layers_are_no_prefixes() -> None:
    alike = [Finding("weight-unexpected", f"layers.{n}.{name}", "odd") for n in range(4) for name in ("a.w", "b.w")]
    assert list(summary_lines(alike)) == ["warning[weight-unexpected] 8 keys under layers.*: odd"]


def test_three_of_a_code_are_told_one_by_one() -> None:
    few = [Finding("unusual-key", f"model.ema.{n}", "odd") for n in range(3)]
    assert list(summary_lines(few)) == [str(finding) for finding in few]


def test_infos_never_hide_a_warning() -> None:
    infos = [Finding("large-tensor", f"model.layers.{n}.w", "large") for n in range(1000)]
    assert list(summary_lines([*infos, WARNING])) == [
        str(WARNING), "info[large-tensor] 1,000 keys under model.layers.*: large"
    ]  # fmt: skip


def test_keys_of_a_group_cannot_drive_a_terminal() -> None:
    bad = [Finding("unusual-key", f"model.\x1b[31m.{n}", "odd") for n in range(5)]
    assert list(summary_lines(bad)) == ["warning[unusual-key] 5 keys under model.\\x1b[31m.*: odd"]


def test_nothing_found_is_nothing_printed() -> None:
    assert list(summary_lines([])) == []
