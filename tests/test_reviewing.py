"""The page of a review: what is on it, and that it is written whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from checkpoints import saved
from click.testing import CliRunner

import dcptools
from dcptools.cli import main_group
from dcptools.demo import Demo
from dcptools.errors import UsageError
from dcptools.recipe import command_line


def rows(page: str, name: str) -> list[list[str]]:
    """What the script is given to show."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)
    assert found
    listed: list[list[str]] = json.loads(found[1])["rows"]
    return listed


def test_the_page_has_every_output_and_every_leftover(demo: Demo, tmp_path: Path) -> None:
    mapping = dcptools.preview(demo.checkpoint, model_assets_dir=demo.assets)
    plan = dcptools.plan(mapping, "400kB")
    page = dcptools.review(mapping, tmp_path / "r.html", shard_size="400kB").read_text()
    placed = {t.output.name: (t.dtype.name, file.filename) for file in plan.files for t in file.tensors}
    assert [(row[1], tuple(row[5:7])) for row in rows(page, "outputs")] == [
        (output.name, placed[output.name]) for output in mapping.outputs
    ]
    assert [row[0] for row in rows(page, "leftovers")] == [left.key for left in mapping.leftovers]
    assert plan.fingerprint in page and mapping.checkpoint.digest in page
    found = re.search(r"<svg.*</svg>", page)
    assert found
    svg = ElementTree.fromstring(found[0])
    assert [text.text for text in svg.iter("text")] == [file.filename for file in plan.files]
    widths = sum(float(rect.attrib["width"]) for rect in svg.iter("rect"))
    assert widths / 720 == pytest.approx(plan.total_bytes / max(file.data_nbytes for file in plan.files), rel=0.05)
    assert not re.search(r"(src|href)=.?https?:|url\(|@import", page)


def test_what_cannot_be_converted_is_reviewed_too(tmp_path: Path) -> None:
    page = dcptools.review(saved.colliding(tmp_path / "c"), tmp_path / "r.html").read_text()
    assert "error[collision]" in page and "There is no plan: the errors above must be fixed first." in page
    assert rows(page, "outputs")


def test_the_command_line_writes_it_with_the_command_that_does_the_same(demo: Demo, tmp_path: Path) -> None:
    words = ["review", str(demo.checkpoint), "--html", str(tmp_path / "r.html"), "--save-dir", "out", "--dtype", "keep"]
    done = CliRunner().invoke(main_group, [*words, "--exclude", "*lm_head*"])
    assert (done.exit_code, done.stdout) == (0, f"Wrote {tmp_path / 'r.html'}.\n")
    assert "warning[weight-missing] lm_head.weight: left out by " in done.stderr and "info[" not in done.stderr
    planned = dcptools.plan(dcptools.preview(demo.checkpoint, exclude="*lm_head*"), dtype="keep")
    assert command_line(planned, "out").replace("'", "&#x27;") in (tmp_path / "r.html").read_text()


def test_a_place_that_cannot_be_written_to_is_said_and_left_as_it_was(demo: Demo, tmp_path: Path) -> None:
    nowhere, name = tmp_path / "nowhere", "Give the name of a file in an existing directory."
    with pytest.raises(UsageError) as caught:
        dcptools.review(demo.checkpoint, nowhere / "r.html")
    said = f"The review {nowhere / 'r.html'} cannot be written: there is no directory {nowhere}.\n{name}"
    assert str(caught.value) == said
    (tmp_path / "r.html").mkdir()
    with pytest.raises(UsageError) as caught:
        dcptools.review(demo.checkpoint, tmp_path / "r.html")
    assert str(caught.value) == f"The review {tmp_path / 'r.html'} is a directory.\n{name}"
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
