"""The steps as widgets, without a kernel: what they show, what they hand on, and what they refuse."""

from __future__ import annotations

import html.parser
import json
import re
import shlex
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets as W
import pytest
import torch
from checkpoints import broken, models, saved
from pandas.testing import assert_frame_equal
from safetensors.torch import save_file

import dcptools
from dcptools import plots, widgets
from dcptools._option import speaking
from dcptools._text import format_bytes
from dcptools.checkpoint import Checkpoint, read
from dcptools.demo import Demo
from dcptools.errors import Cancelled, DcptoolsError, NotACheckpoint, OutputExists, UsageError
from dcptools.expected import Expected, Naming, NotExpected, asking
from dcptools.loading import continuation, loss, open_tokenizer
from dcptools.mapping import KeyMapping, MappingOptions, Rename, preview
from dcptools.recipe import command_line, python_call, to_inspect, to_plan, to_preview, to_try
from dcptools.shards import ShardPlan, plan
from dcptools.tensors import TensorReader
from dcptools.widgets import _convert, _job, _mapping, _open, _shards, _try
from dcptools.widgets._base import Step, alert, handler
from dcptools.widgets._cards import Cards
from dcptools.widgets._chooser import Chooser
from dcptools.widgets._inspect import FINDINGS, KEYS, SIZES
from dcptools.widgets._job import Job
from dcptools.widgets._labels import by_label
from dcptools.widgets._mapping import MODEL, OUTPUTS
from dcptools.widgets._table import Table
from dcptools.writer import Report, write

SCRIPT = "<script>window.__xss=1</script>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read(saved.trained(tmp_path_factory.mktemp("widgets") / "step-100"))


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_assets(tmp_path_factory.mktemp("widgets") / "assets"))


@pytest.fixture
def mapping(checkpoint: Checkpoint, assets: str) -> KeyMapping:
    return preview(checkpoint, model_assets_dir=assets)


def make_assets(directory: Path) -> Path:
    """A config and a tokenizer that nothing is wrong with."""
    directory.mkdir()
    (directory / "config.json").write_text(models.UNKNOWN_CONFIG)
    (directory / "tokenizer.json").write_text("{}")
    return directory


class _Reader(html.parser.HTMLParser):
    """Text, roles and tags of a page, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.roles: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.roles += [value or "" for name, value in attrs if name == "role"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def text(widget: Any) -> str:
    return "".join(_Reader(widget.value).words)


def told(cards: Cards) -> str:
    """What is on the cards."""
    return "\n".join(text(card.children[0]) for card in cards.shown.children)


def roles(widget: Any) -> list[str]:
    return _Reader(widget.value).roles


def tags(widget: Any) -> set[str]:
    return set(_Reader(widget.value).tags)


def shown_keys(table: Table) -> list[str]:
    """The first column of the rows that are shown, as the browser gets them."""
    table.receive({"kind": "look"})
    return [row["cells"][0] for row in table.answer["rows"]]


def kinds(table: Table, column: str) -> dict[str, int]:
    """The filters of a column, with their counts."""
    table.receive({"kind": "look"})
    return dict(table.answer["counts"][column])


def cells(table: Table) -> set[str]:
    """All that the rows say."""
    table.receive({"kind": "look"})
    return {cell for row in table.answer["rows"] for cell in row["cells"]}


def children(widget: W.Widget) -> Iterator[W.Widget]:
    """The widget and all below it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from children(child)


def finished(step: Any) -> Any:
    """The step, once its job is over."""
    step.job.join(30)
    assert not step.job.running
    return step


# --- what every step shares -------------------------------------------------------------------------------------


class Failing(Step):
    title = "Failing"

    @handler
    def fail(self, error: BaseException) -> None:
        raise error


def test_a_handlers_error_is_shown_and_not_raised() -> None:
    step = Failing()
    step.fail(UsageError("The size is wrong.\nGive another one."))
    assert text(step.message) == "The size is wrong.Give another one."
    assert roles(step.message) == ["alert"]
    assert "details" not in tags(step.message)


def test_an_unexpected_error_has_its_traceback_folded_away() -> None:
    step = Failing()
    step.fail(ZeroDivisionError("division by zero"))
    assert text(step.message).startswith("Something went wrong: ZeroDivisionError: division by zeroDetails")
    assert {"details", "summary", "pre"} <= tags(step.message)
    assert "Traceback (most recent call last)" in text(step.message)


@pytest.mark.parametrize("error", [UsageError(SCRIPT), RuntimeError(SCRIPT), OSError(5, SCRIPT)])
def test_errors_are_escaped(error: BaseException) -> None:
    step = Failing()
    step.fail(error)
    assert "script" not in tags(step.message)
    assert SCRIPT in text(step.message)


def test_the_next_success_takes_the_error_away() -> None:
    class Both(Failing):
        @handler
        def succeed(self) -> None:
            pass

    step = Both()
    step.fail(UsageError("no"))
    step.succeed()
    assert step.message.value == ""


def test_only_errors_and_warnings_interrupt_a_screen_reader() -> None:
    boxes = {kind: _Reader(alert(kind, "text")).roles for kind in ("error", "warning", "info", "success")}
    assert boxes == {"error": ["alert"], "warning": ["alert"], "info": ["status"], "success": ["status"]}


def all_widgets(wizard: widgets.Wizard) -> Iterator[W.Widget]:
    return (widget for widget in children(wizard) if type(widget).__module__.startswith("dcptools."))


def test_nothing_hides_what_ipywidgets_needs(checkpoint: Checkpoint) -> None:
    """Widgets have methods and traits named open, close, keys, layout, comm: an attribute of that name breaks them."""

    class Plain(W.VBox):  # type: ignore[misc]
        pass

    plain = Plain()
    taken, allowed = set(dir(plain)), {*vars(Plain), *vars(plain), "__init__", "_repr_mimebundle_"}
    found = set()
    for widget in all_widgets(widgets.Wizard(checkpoint.path)):
        ours = [cls for cls in type(widget).__mro__ if cls.__module__.startswith("dcptools.")]
        names = {*vars(widget), *(name for cls in ours for name in vars(cls))}
        found |= {f"{type(widget).__name__}.{name}" for name in (names & taken) - allowed}
    assert found == set()


def test_all_kinds_of_widgets_were_looked_at(checkpoint: Checkpoint) -> None:
    kinds = {type(widget).__name__ for widget in all_widgets(widgets.Wizard(checkpoint.path))}
    assert kinds == {
        "Wizard", "Open", "Inspect", "Mapping", "Try", "Shards", "Convert", "Result",
        "Table", "Values", "Detail", "Job", "Rules", "Cards", "Lines", "Review", "Chooser", "Folders", "Bar", "Slider",
    }  # fmt: skip


def in_total(planned: ShardPlan) -> str:
    return format_bytes(sum(file.nbytes for file in planned.files))


def test_without_a_kernel_every_step_shows_a_table(mapping: KeyMapping, planned: ShardPlan, written: Report) -> None:
    checkpoint, uncast = mapping.checkpoint, plan(mapping, 1000)
    converted = widgets.Convert(planned)
    converted.report = written
    headlines = {
        widgets.Open(checkpoint.path): "tensors (",
        widgets.Inspect(checkpoint): f"{checkpoint.path}: 104 keys",
        widgets.Mapping(checkpoint): "25 outputs",
        widgets.Shards(mapping, 1000): f"{len(uncast.files)} files, {in_total(uncast)}",
        converted: f"Wrote 25 tensors in {len(planned.files)} files, {in_total(planned)} in total",
        widgets.Result(written): f"Wrote 25 tensors in {len(planned.files)} files, {in_total(planned)} in total",
        widgets.Wizard(checkpoint.path): "tensors (",
    }
    for step, headline in headlines.items():
        data = bundle(step)
        assert headline in data["text/plain"] and headline in data["text/html"], type(step)
        assert "<table>" in data["text/html"]
        assert "Run the notebook for the live view." in data["text/html"]


def test_without_a_kernel_an_empty_step_says_so() -> None:
    empty = (
        widgets.Open(),
        widgets.Inspect(),
        widgets.Mapping(),
        widgets.Try(),
        widgets.Shards(),
        widgets.Convert(),
        widgets.Result(),
    )
    assert [bundle(step)["text/plain"] for step in (*empty, widgets.Wizard())] == [
        "No checkpoint is open. (Run the notebook for the live view.)",
        "No checkpoint is open. (Run the notebook for the live view.)",
        "No mapping yet. (Run the notebook for the live view.)",
        "Nothing has been tried. (Run the notebook for the live view.)",
        "No plan yet. (Run the notebook for the live view.)",
        "Nothing has been written yet. (Run the notebook for the live view.)",
        "Nothing has been written yet. (Run the notebook for the live view.)",
        "No checkpoint is open. (Run the notebook for the live view.)",
    ]


def test_the_static_view_stands_beside_the_live_one_and_is_escaped(tmp_path: Path) -> None:
    hostile = read(saved.save(tmp_path / "hostile", {"model": {SCRIPT: torch.ones(2)}}))
    data = bundle(widgets.Inspect(hostile))
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "<script" not in data["text/html"] and "&lt;script&gt;" in data["text/html"]


def bundle(widget: W.Widget) -> dict[str, Any]:
    made = widget._repr_mimebundle_()
    data: dict[str, Any] = made[0] if isinstance(made, tuple) else made
    return data


# --- Job --------------------------------------------------------------------------------------------------------


class Watch:
    """A job whose end is in the test's hands, and what it told."""

    def __init__(self, result: Any = "result") -> None:
        self.result = result
        self.go, self.started = threading.Event(), threading.Event()
        self.runs, self.done, self.failed = 0, list[Any](), list[BaseException]()
        self.job = Job("Start", self.run, self.done.append, self.failed.append)

    def run(self, progress: Any, cancel: threading.Event) -> Any:
        self.runs += 1
        self.started.set()
        while not self.go.wait(0.01):
            if cancel.is_set():
                raise Cancelled("cancelled")
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def test_a_job_hands_on_its_result() -> None:
    watch = Watch()
    job = watch.job
    assert (text(job.text), job.start.disabled, job.cancel.disabled) == ("not started", False, True)
    job.start.click()
    watch.started.wait(5)
    assert (job.running, job.start.disabled, job.cancel.disabled) == (True, True, False)
    watch.go.set()
    job.join(5)
    assert watch.done == ["result"] and watch.failed == []
    assert (job.running, job.start.disabled, job.cancel.disabled) == (False, False, True)
    assert (job.bar.value, job.bar.bar_style) == (1.0, "success")
    assert text(job.text).startswith("done in ")
    assert roles(job.text) == ["status"]


def test_cancel_ends_a_job_without_a_result() -> None:
    watch = Watch()
    watch.job.start.click()
    watch.started.wait(5)
    watch.job.cancel.click()
    watch.job.join(5)
    assert watch.done == [] and watch.failed == []
    assert (text(watch.job.text), watch.job.bar.bar_style) == ("cancelled; nothing half-written is left", "warning")
    assert not watch.job.start.disabled


def test_a_job_after_a_cancelled_one_runs() -> None:
    watch = Watch()
    watch.job.start.click()
    watch.started.wait(5)
    watch.job.cancel.click()
    watch.job.join(5)
    watch.go.set()
    watch.job.start.click()
    watch.job.join(5)
    assert (watch.runs, watch.done) == (2, ["result"])


def test_a_failing_job_hands_on_its_error() -> None:
    error = RuntimeError("no")
    watch = Watch(error)
    watch.go.set()
    watch.job.start.click()
    watch.job.join(5)
    assert watch.failed == [error] and watch.done == []
    assert (text(watch.job.text), watch.job.bar.bar_style) == ("failed", "danger")


def test_an_error_in_what_follows_the_job_is_not_lost() -> None:
    failed: list[BaseException] = []

    def done(result: int) -> None:
        raise ValueError(f"cannot show {result}")

    job = Job("Start", lambda progress, cancel: 3, done, failed.append)
    job.begin()
    job.join(5)
    assert [str(error) for error in failed] == ["cannot show 3"]
    assert text(job.text) == "failed"


def test_a_second_start_is_ignored_while_a_job_runs() -> None:
    watch = Watch()
    watch.job.begin()
    watch.started.wait(5)
    watch.job.begin()
    watch.go.set()
    watch.job.join(5)
    assert (watch.runs, watch.done) == (1, ["result"])


def test_progress_sets_traits_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set is a message to the browser; a write reports far more often."""
    clock = iter(range(10**9))
    monkeypatch.setattr(_job, "time", SimpleNamespace(monotonic=lambda: next(clock) / 1000))  # a call a millisecond

    def run(progress: Any, cancel: threading.Event) -> None:
        for step in range(10_000):
            progress(step, 10_000, "model.w")

    job = Job("Start", run, lambda _: None, lambda _: None)
    said: list[str] = []
    job.text.observe(lambda change: said.append(change["new"]), "value")
    job.begin()
    job.join(30)
    assert 90 <= len(said) <= 105  # in ten seconds of that clock


def test_progress_says_share_bytes_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 10.0])
    monkeypatch.setattr(_job, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    said: list[str] = []

    def run(progress: Any, cancel: threading.Event) -> None:
        progress(500_000_000, 2_000_000_000, f"model.{SCRIPT}")
        said.append(job.text.value)

    job = Job("Start", run, lambda _: None, lambda _: None)
    job.begin()
    job.join(5)
    page = _Reader(said[0])
    expected = f"25%: 500 MB of 2.00 GB, 50.00 MB/s, about 30 s left model.{SCRIPT}"
    assert "".join(page.words) == expected and "script" not in page.tags


# --- Open -------------------------------------------------------------------------------------------------------


def test_open_reads_what_it_is_given(checkpoint: Checkpoint) -> None:
    step = widgets.Open(checkpoint.path)
    assert step.checkpoint.digest == checkpoint.digest
    assert step.blocked == ""
    assert "100 tensors (4,417 elements, 17.67 kB, float32) and 4 pickled objects" in text(step.found)


def test_open_waits_when_it_is_given_nothing() -> None:
    step = widgets.Open()
    assert (step.checkpoint, step.blocked, step.message.value) == (None, "Read a checkpoint first.", "")


def test_a_path_that_is_typed_is_read(checkpoint: Checkpoint) -> None:
    step = widgets.Open()
    step.path.value = f"  {checkpoint.path} "
    assert step.checkpoint.digest == checkpoint.digest


def test_a_path_from_home(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(checkpoint.path)
    monkeypatch.setenv("HOME", str(path.parent))
    assert widgets.Open(f"~/{path.name}").checkpoint.path == checkpoint.path


def test_what_is_no_checkpoint_is_said_in_words(tmp_path: Path, checkpoint: Checkpoint) -> None:
    step = widgets.Open(checkpoint.path)
    step.path.value = str(tmp_path / "nowhere")
    with pytest.raises(NotACheckpoint) as error:
        read(tmp_path / "nowhere")
    assert text(step.message) == str(error.value).replace("\n", "")
    assert roles(step.message) == ["alert"]
    assert (step.checkpoint, step.found.value) == (None, "")
    assert step.blocked == "This is not a readable checkpoint."


@pytest.mark.parametrize("path", ["", "   ", "x" * 5000, "a\0b", SCRIPT])
def test_paths_that_cannot_be_are_said(path: str) -> None:
    step = widgets.Open(path)
    step.read.click()
    assert roles(step.message) == ["alert"]
    assert step.checkpoint is None
    assert "script" not in tags(step.message)


def test_a_broken_checkpoint_opens_with_its_findings(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Open(tmp_path / "hole")
    assert step.checkpoint is not None and step.blocked == ""
    assert "alert" in roles(step.found)
    assert "error[hole] model.model.w:" in text(step.found)


def test_how_far_a_job_is_is_spoken_every_ten_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9))
    monkeypatch.setattr(_job, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # every step is shown
    spoken: list[str] = []

    def run(progress: Any, cancel: threading.Event) -> None:
        for step in range(1, 101):
            progress(step, 100, "model.w")

    job = Job("Convert", run, lambda _: None, lambda _: None)
    job.bar.observe(lambda change: spoken.append(change["new"].partition(",")[0]), "spoken")
    job.begin()
    job.join(30)
    assert spoken[:-1] == [f"{share}%" for share in range(10, 101, 10)] and spoken[-1].startswith("done in ")
    assert "aria-live='off'" in job.text.value and job.bar.label == "Convert: progress"


def test_the_slider_says_the_size_in_words(mapping: KeyMapping) -> None:
    step = widgets.Shards(mapping)
    assert (step.slider.description, step.slider.words) == ("Shard size", "2.00 GB")
    step.slider.value = 10**6
    assert step.slider.words == "1.00 MB"


# --- Chooser ----------------------------------------------------------------------------------------------------


def browsed(chooser: Chooser) -> list[list[str]]:
    """The folders, as the browser gets them."""
    chooser.join(30)
    assert chooser.folders.shown
    return list(chooser.folders.entries)


def browser_says(chooser: Chooser, kind: str, name: str = "") -> None:
    """What the browser says when somebody does this with a folder."""
    names = [entry[0] for entry in chooser.folders.entries]
    chooser.receive({"kind": kind, "at": names.index(name) if name else -1})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    (tmp_path / "runs" / ".hidden").mkdir()
    saved.trained(tmp_path / "runs" / "step-2", saved.model_state(layers=1), optimizer=False)
    shutil.copytree(tmp_path / "runs" / "step-2", tmp_path / "runs" / "step-10")
    make_assets(tmp_path / "runs" / "qwen")
    return tmp_path / "runs"


def test_browsing_lists_folders_marks_checkpoints_and_reads_the_one_that_is_chosen(
    runs: Path, counted: Counted
) -> None:
    step = widgets.Open(runs.parent)
    step.join(30)
    counted.taken()
    step.chooser.browse.click()
    assert browsed(step.chooser) == [["runs", ""]] and step.chooser.folders.here == str(runs.parent)
    browser_says(step.chooser, "enter", "runs")
    marked = [["empty", ""], ["qwen", ""], ["step-2", "DCP checkpoint"], ["step-10", "DCP checkpoint"]]
    assert browsed(step.chooser) == marked
    assert step.checkpoint is None and counted.taken() == {}  # whatever was passed
    browser_says(step.chooser, "take", "step-2")
    assert step.checkpoint.path == str(runs / "step-2") and counted.taken() == {"read": 1}
    assert not step.chooser.folders.shown
    step.chooser.browse.click()  # begins where it is, beside its neighbours
    assert browsed(step.chooser) == marked and step.chooser.folders.at == 2
    browser_says(step.chooser, "up")
    assert browsed(step.chooser) == [["runs", ""]] and step.chooser.folders.at == 0
    browser_says(step.chooser, "close")
    assert not step.chooser.folders.shown and step.path.value == str(runs / "step-2")


def test_browsing_begins_at_what_was_typed_or_the_nearest_above_it(runs: Path, planned: ShardPlan) -> None:
    step = widgets.Convert(planned, save_dir=str(runs / "not" / "there"))
    step.place.browse.click()
    assert [name for name, _ in browsed(step.place)] == ["empty", "qwen", "step-2", "step-10"]
    assert step.place.folders.here == str(runs)
    step.place.browse.click()
    assert not step.place.folders.shown
    step.save_dir.value = "a\0b"
    step.place.browse.click()
    step.place.join(30)
    assert step.place.folders.entries == [] and "null" in step.place.folders.note


def test_a_new_folder_can_be_named_to_save_to(runs: Path, planned: ShardPlan) -> None:
    step = widgets.Convert(planned, save_dir=str(runs))
    assert step.place.folders.renames and not step.assets_place.folders.renames
    step.place.browse.click()
    step.place.receive({"kind": "name", "name": " hf model "})
    assert step.save_dir.value == str(runs / "hf model") and not (runs / "hf model").exists()
    assert str(runs / "hf model") in text(step.found)


def test_assets_are_chosen_in_both_steps_and_both_sides_when_comparing(runs: Path, planned: ShardPlan) -> None:
    convert, compare = widgets.Convert(planned), widgets.Compare(runs)
    review = widgets.Mapping()
    for chooser in (convert.assets_place, review.rules.assets):
        chooser.field.value = str(runs)
        chooser.browse.click()
        assert ["qwen", "model"] in browsed(chooser) and ["step-2", ""] in browsed(chooser)
        browser_says(chooser, "take", "qwen")
        assert chooser.field.value == str(runs / "qwen")
    assert review.model_assets_dir == convert.model_assets_dir == str(runs / "qwen")
    side = compare.sides[0]
    side.browse.click()
    assert ["qwen", "model"] in browsed(side) and ["step-2", "DCP checkpoint"] in browsed(side)
    browser_says(side, "take")
    assert compare.a.value == str(runs)


@pytest.mark.parametrize(
    "message", [{}, {"kind": "take", "at": 99, "name": 3}, {"kind": "enter"}, {"kind": "enter", "at": "x"}, {"kind": 3}]
)
def test_a_message_that_makes_no_sense_chooses_nothing_that_is_not_there(message: Any, runs: Path) -> None:
    chooser = Chooser("Path", str(runs))
    chooser.browse.click()
    before = browsed(chooser)
    chooser.receive(message)
    assert chooser.field.value == str(runs) and list(chooser.folders.entries) == before and chooser.folders.shown


# --- Inspect ----------------------------------------------------------------------------------------------------


def test_inspect_shows_the_frame_of_inspect(checkpoint: Checkpoint) -> None:
    step = widgets.Inspect(checkpoint)
    expected = dcptools.inspect(checkpoint)
    assert_frame_equal(step.key_table.frame[list(expected.columns)], expected)
    step.key_table.ask(chips={"root": ["model"]})
    assert step.key_table.found == 25
    step.key_table.ask(chips={"root": ["model"], "dtype": ["object"]})
    assert step.key_table.found == 0


def test_inspect_marks_keys_with_findings(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Inspect(read(tmp_path / "hole"))
    step.key_table.ask(chips={"warning": ["hole"]})
    assert shown_keys(step.key_table) == ["model.model.w"]


def test_sizes_are_pictures_with_words_and_drawn_when_looked_at(checkpoint: Checkpoint) -> None:
    step = widgets.Inspect(checkpoint)
    assert step.sizes.value == ""
    step.tabs.selected_index = SIZES
    assert step.sizes.value.count("<svg") == 3
    for by in ("root", "dtype", "module"):
        assert f'aria-label="{plots.describe(plots.sizes(checkpoint, by=by))}"' in step.sizes.value


def test_checked_values_mark_the_keys(tmp_path: Path) -> None:
    state = saved.model_state(layers=1)
    state["model.norm.weight"][1] = float("nan")
    state["model.norm.weight"][2:4] = float("inf")
    bad = read(saved.trained(tmp_path / "bad", state, optimizer=False))
    step = widgets.Inspect(bad)
    step.values.job.start.click()
    finished(step.values)
    assert_frame_equal(step.stats, dcptools.stats(bad))
    assert text(step.values.note) == (
        "1 of 14 tensors has NaN or Inf: model.model.norm.weight. Checked 14 of the checkpoint's 14 tensors."
    )
    assert "alert" in roles(step.values.note)
    assert kinds(step.key_table, "warning") == {"NaN": 1, "Inf": 1}
    step.key_table.ask(chips={"warning": ["NaN"]})
    assert list(step.key_table.selected["warning"]) == ["1 NaN, 2 Inf"]
    step.values.table.ask(chips={"nan": ["some"]})
    assert shown_keys(step.values.table) == ["model.model.norm.weight"]


def test_checked_values_are_a_picture_of_what_is_chosen(tmp_path: Path) -> None:
    bad = read(saved.trained(tmp_path / "bad", saved.model_state(layers=2), optimizer=False))
    step = widgets.Inspect(bad)
    assert (step.values.figure.value, step.values.drawn.layout.display) == ("", "none")
    step.values.job.start.click()
    finished(step.values)
    assert step.values.drawn.layout.display == ""
    for name in [name for _, name in step.values.drawn.options]:
        step.values.drawn.value = name
        assert f'aria-label="{plots.describe(plots.values(step.stats, name))}"' in step.values.figure.value
    step.checkpoint = None
    assert (step.values.figure.value, step.values.drawn.layout.display) == ("", "none")


def test_all_that_is_converted_is_looked_at(tmp_path: Path) -> None:
    """Bare names too, whatever characters they have, and no optimizer state."""
    state = {**saved.model_state(layers=1), "model.odd[*].weight": torch.ones(2)}
    state["lm_head.weight"][0, 0] = float("nan")
    optimizer = {"optimizer": {name: torch.full((2,), torch.nan) for name in state}}
    step = widgets.Inspect(read(saved.save(tmp_path / "bare", {**state, **optimizer})))
    step.values.job.start.click()
    finished(step.values)
    assert text(step.values.note) == (
        "1 of 15 tensors has NaN or Inf: lm_head.weight. Checked 15 of the checkpoint's 30 tensors."
    )
    assert set(step.stats["key"]) == set(state)


def test_in_the_wizard_it_is_what_the_rules_convert(wizard: widgets.Wizard) -> None:
    wizard.mapping_step.rules.fields["exclude"].value = "*mlp*"
    values = wizard.inspect_step.values
    values.job.start.click()
    finished(values)
    assert set(wizard.inspect_step.stats["key"]) == {output.sources[0].key for output in wizard.mapping.outputs}
    total = len(wizard.checkpoint.tensors)
    assert f"{len(wizard.mapping.outputs)} of the checkpoint's {total} tensors" in text(values.note)


def test_globs_without_a_match_are_said(checkpoint: Checkpoint) -> None:
    step = widgets.Inspect(checkpoint)
    step.values.globs.value = "nothing.*"
    step.values.job.start.click()
    finished(step.values)
    assert "No tensor's key matches 'nothing.*'." in text(step.message)
    assert roles(step.message) == ["alert"]


def test_another_checkpoint_forgets_the_values_of_the_last(checkpoint: Checkpoint, tmp_path: Path) -> None:
    step = widgets.Inspect(checkpoint)
    step.tabs.selected_index = SIZES
    step.values.job.start.click()
    finished(step.values)
    assert step.stats is not None and step.values.table.found
    before = step.sizes.value
    step.checkpoint = read(saved.trained(tmp_path / "other", saved.model_state(layers=1), optimizer=False))
    assert step.stats is None
    assert (step.values.table.found, step.values.note.value, text(step.values.job.text)) == (0, "", "not started")
    assert step.sizes.value not in ("", before)


def test_values_that_come_too_late_are_dropped(checkpoint: Checkpoint, tmp_path: Path) -> None:
    step = widgets.Inspect(checkpoint)
    step.values._reading = checkpoint
    step.checkpoint = read(saved.trained(tmp_path / "other", saved.model_state(layers=1), optimizer=False))
    step.values._done(dcptools.stats(checkpoint, "model.*"))
    assert step.stats is None and step.values.table.found == 0


def choose(step: Any, key: str) -> Any:
    """Click on the row of a key."""
    row = list(step.key_table.frame["key"]).index(key)
    step.key_table.show(row)
    step.detail.join(60)
    return step.detail


def test_a_chosen_row_shows_chunks_values_and_facts(checkpoint: Checkpoint) -> None:
    step = widgets.Inspect(checkpoint)
    assert step.detail.layout.display == "none"
    detail = choose(step, "model.lm_head.weight")
    assert detail.layout.display == ""
    assert text(detail.facts) == "model.lm_head.weightshape[16, 8]dtypefloat32elements128bytes512 B"
    (chunk,) = checkpoint["model.lm_head.weight"].chunks
    crc = TensorReader(checkpoint["model.lm_head.weight"]).checksums()[((0, 16), (0, 8))]
    assert f"1 chunkchunkrankfilestoredCRC-32[0:16, 0:8]0{chunk.file}" in text(detail.values)
    assert f"{crc:08x}" in text(detail.values)
    assert plots.describe(plots.histogram(checkpoint, "model.lm_head.weight")) in detail.values.value
    values = dcptools.load_tensor(checkpoint, "model.lm_head.weight")[:6, :6]
    assert str(values).replace("\n", "") in text(detail.values)
    detail.hide.click()
    assert detail.layout.display == "none"


def test_a_row_of_any_table_shows_its_key(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Inspect(read(tmp_path / "hole"))
    row = list(step.findings.frame["code"]).index("hole")
    step.findings.show(row)
    detail = step.details[step.findings]
    detail.join(60)
    assert text(detail.facts).startswith("model.model.w") and detail.layout.display == ""
    step.checkpoint = read(saved.trained(tmp_path / "c", saved.model_state(layers=1), optimizer=False))
    assert detail.layout.display == "none"
    step.values.job.start.click()
    finished(step.values)
    step.values.table.show(list(step.stats["key"]).index("model.lm_head.weight"))
    detail = step.details[step.values.table]
    detail.join(60)
    assert "First values" in text(detail.values) and text(detail.facts).startswith("model.lm_head.weight")
    assert step.values.rows.children[0].children == (step.values.table, detail)


def test_an_object_that_is_chosen_is_not_read(checkpoint: Checkpoint) -> None:
    detail = choose(widgets.Inspect(checkpoint), "step")
    assert "a pickled object; it is never unpickled" in text(detail.facts) and detail.values.value == ""


def test_a_damaged_tensor_that_is_chosen_says_so(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Inspect(read(tmp_path / "hole"))
    detail = choose(step, "model.model.w")
    assert "nothing is stored for [2:4] of 6 along dimension 0" in text(detail.values)
    assert "alert" in roles(detail.values)


def test_a_finding_leads_to_its_row_and_back(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Inspect(read(tmp_path / "hole"))
    step.tabs.selected_index = FINDINGS
    (row,) = [n for n, code in enumerate(step.findings.frame["code"]) if code == "hole"]
    step.findings.show(row)
    below = step.tabs.children[FINDINGS].children[1].children[0].children[1]
    assert text(below).startswith("error[hole] model.model.w: nothing is stored") and roles(below) == ["alert"]
    step.key_table.ask(search="nothing that is there")
    step.findings.opened = row
    assert step.tabs.selected_index == KEYS
    assert step.key_table.frame["key"][step.key_table.chosen] == "model.model.w"
    assert step.key_table.found == len(step.key_table.frame)  # the search would have hidden it
    step.detail.join(60)
    (finding,) = step.detail.found.children
    assert finding.description.startswith("error[hole] nothing is stored for [2:4]")
    finding.click()
    assert (step.tabs.selected_index, step.findings.chosen) == (FINDINGS, row)


def test_in_the_wizard_a_chosen_key_says_its_name_in_the_result(wizard: widgets.Wizard) -> None:
    step = wizard.inspect_step
    assert "in the resultmodel.norm.weight" in text(choose(step, "model.model.norm.weight").facts)
    assert "in the resultleft out: " in text(choose(step, "step").facts)


AWKWARD = {
    "$x^{$": torch.ones(2),  # what matplotlib would read as a formula
    SCRIPT: torch.ones(2),
    "new\nline": torch.ones(2),
    "scalar": torch.tensor(1.0),
    "empty": torch.empty(0, 3),
    "complex": torch.ones(2, dtype=torch.complex64),
    "float8": torch.ones(2).to(torch.float8_e4m3fn),
    "bool": torch.tensor([True, False]),
}


def test_awkward_tensors_and_names_can_be_looked_at(tmp_path: Path) -> None:
    step = widgets.Inspect(read(saved.save(tmp_path / "awkward", AWKWARD)))
    for key in AWKWARD:
        detail = choose(step, key)
        assert "First values" in text(detail.values), text(detail.values)
        assert "script" not in tags(detail.values) | tags(detail.facts)


def test_without_a_checkpoint_no_keys_of_the_last_one_stay(checkpoint: Checkpoint) -> None:
    step = widgets.Inspect(checkpoint)
    assert step.tabs.layout.display != "none"
    step.checkpoint = None
    assert (step.blocked, step.tabs.layout.display) == ("Read a checkpoint first.", "none")


# --- Mapping ----------------------------------------------------------------------------------------------------


def test_mapping_shows_what_preview_says(checkpoint: Checkpoint, assets: str) -> None:
    step = widgets.Mapping(checkpoint, model_assets_dir=assets)
    with speaking(by_label):
        expected = preview(checkpoint, model_assets_dir=assets)
    assert step.mapping.to_json() == expected.to_json()
    assert list(step.outputs.frame["name"]) == [output.name for output in expected.outputs]
    assert_frame_equal(step.leftovers.frame, expected.leftovers_frame())
    assert text(step.found) == "25 outputs, 79 keys left out. No warnings."
    assert (step.blocked, step.accept.layout.display) == ("", "none")


@pytest.fixture
def review(checkpoint: Checkpoint, assets: str) -> widgets.Mapping:
    return widgets.Mapping(checkpoint, model_assets_dir=assets)


def test_a_rename_changes_the_preview_at_once(review: widgets.Mapping) -> None:
    review.rules.fields["rename"].value = "model\\.norm\\.(.*)=model.final.\\1\n\nlm_head.weight=head.weight\n"
    names = {output.name for output in review.mapping.outputs}
    assert {"model.final.weight", "head.weight"} < names and "lm_head.weight" not in names
    assert "head.weight" in shown_keys(review.outputs)


def test_the_layout_changes_the_preview_at_once(tmp_path: Path) -> None:
    step = widgets.Mapping(read(saved.bare(tmp_path / "bare")))
    assert step.mapping.layout == "bare" and "model.norm.weight" in list(step.outputs.frame["name"])
    step.rules.fields["layout"].value = "container"
    assert step.mapping.layout == "container" and "norm.weight" in list(step.outputs.frame["name"])


def test_numbers_count_as_numbers_wherever_names_are_listed(tmp_path: Path) -> None:
    parts = {f"part_{n}": {"layers": {str(i): torch.ones(2) for i in (10, 9, 2)}} for n in (10, 9, 2)}
    bad = {str(n): torch.full((2,), float("nan")) for n in (10, 9, 2)}
    checkpoint = read(saved.save(tmp_path / "parts", {**parts, "model": {"odd": bad}}))
    step = widgets.Mapping(checkpoint)
    assert re.findall(r"^part_\d+", checkpoint.keys_table(1), re.MULTILINE) == ["part_2", "part_9", "part_10"]
    keys = [key for key in step.findings.frame["key"] if key.startswith("model.odd")]
    assert keys == ["model.odd.2", "model.odd.9", "model.odd.10"]
    look = widgets.Inspect(checkpoint)
    look.values.globs.value = "model.odd.*"
    look.values.job.start.click()
    finished(look.values)
    assert shown_keys(look.values.table) == shown_keys(look.key_table)[:3] == keys


def test_the_root_changes_the_preview_at_once(review: widgets.Mapping) -> None:
    assert set(review.rules.fields["root"].options) == {"model", "optimizer"}
    review.rules.fields["root"].value = "optimizer"
    assert review.mapping.root == "optimizer"
    assert all(view.key.startswith("optimizer.") for output in review.mapping.outputs for view in output.sources)


def test_globs_change_the_preview_at_once(review: widgets.Mapping) -> None:
    review.rules.fields["include"].value = "*norm* *lm_head*"
    assert len(review.mapping.outputs) == 10
    review.rules.fields["exclude"].value = "*lm_head*"
    assert len(review.mapping.outputs) == 9
    assert "excluded by '*lm_head*'" in set(review.leftovers.frame["reason"])


@pytest.mark.parametrize("by_trait", [False, True])
def test_the_dtype_changes_the_preview_at_once(review: widgets.Mapping, by_trait: bool) -> None:
    assert set(review.outputs.frame["written as"]) == {"bfloat16"}
    if by_trait:
        review.dtype = "keep"
    else:
        review.dtype_choice.value = "keep"
    assert (review.dtype, review.dtype_choice.value) == ("keep", "keep")
    assert set(review.outputs.frame["written as"]) == {"float32"}


def test_a_bad_rule_is_said_and_no_older_mapping_stays(review: widgets.Mapping) -> None:
    review.rules.fields["rename"].value = "(=x"
    assert "The rename rule (=x is not a valid regular expression" in text(review.message)
    assert roles(review.message) == ["alert"]
    assert review.children.index(review.message) == review.children.index(review.rules) + 1  # where it was typed
    assert review.rules.children[-1].children == (review.rules.fields["rename"],)
    assert (review.mapping, review.blocked) == (None, "There is no mapping yet.")
    assert review.tabs.layout.display == "none"
    review.rules.fields["rename"].value = ""
    assert (review.message.value, review.blocked, review.tabs.layout.display) == ("", "", "")


def test_an_assets_directory_that_is_not_there_is_said(checkpoint: Checkpoint, tmp_path: Path) -> None:
    step = widgets.Mapping(checkpoint, model_assets_dir=str(tmp_path / "nowhere"))
    assert "does not exist" in text(step.message) and roles(step.message) == ["alert"]
    assert step.mapping is None and step.blocked


def test_warnings_ask_to_be_read(checkpoint: Checkpoint) -> None:
    step = widgets.Mapping(checkpoint)  # no assets: a warning
    assert "warning[assets-none]" in told(step.cards) and "alert" in roles(step.found)
    assert (step.accept.layout.display, step.blocked) == ("", "There are warnings: tick that you have read them.")
    step.accept.value = True
    assert step.blocked == ""
    step.rules.fields["exclude"].value = "*lm_head*"  # other rules, other warnings
    assert not step.accept.value and step.blocked


def test_errors_block_and_cannot_be_ticked_away(tmp_path: Path, assets: str) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Mapping(read(tmp_path / "hole"), model_assets_dir=assets)
    assert "error[hole] model.model.w:" in told(step.cards) and "alert" in roles(step.found)
    step.accept.value = True
    assert step.accept.layout.display == "none"
    assert step.blocked == "The mapping has errors; change a rule, or use another checkpoint."
    step.rules.fields["exclude"].value = "model.model.w"
    assert (step.blocked, len(step.mapping.outputs)) == ("There are warnings: tick that you have read them.", 1)


def test_outputs_with_findings_can_be_picked_out(tmp_path: Path) -> None:
    state = {**saved.model_state(layers=1), "projector.weight": torch.ones(2)}
    step = widgets.Mapping(read(saved.trained(tmp_path / "odd", state, optimizer=False)))
    step.outputs.ask(chips={"findings": ["unusual-key"]})
    assert shown_keys(step.outputs) == ["projector.weight"]
    step.outputs.show(list(step.outputs.frame["name"]).index("projector.weight"))
    assert "in the resultprojector.weight" in text(step.detail.facts)
    (finding,) = step.detail.found.children
    finding.click()
    assert step.tabs.get_title(step.tabs.selected_index).startswith("Findings")
    assert step.findings.frame["code"][step.findings.chosen] == "unusual-key"
    step.findings.opened = step.findings.chosen
    assert step.tabs.selected_index == OUTPUTS


def test_weights_and_leftovers_show_what_they_are_made_of(model: str, assets: str, tmp_path: Path) -> None:
    step = held(without_norm(tmp_path / "c"), model, assets)
    weights, left = step.details[step.weights], step.details[step.leftovers]
    step.weights.show(list(step.weights.frame["name"]).index("lm_head.weight"))
    weights.join(60)
    assert "model.lm_head.weight" in text(weights.facts) and "in the resultlm_head.weight" in text(weights.facts)
    assert any("weight-shape" in button.description for button in weights.found.children)
    step.weights.show(list(step.weights.frame["state"]).index("missing"))
    assert weights.layout.display == "none" and step.message.value == ""
    step.rules.fields["exclude"].value = "model.projector*"
    step.leftovers.show(0)
    assert text(left.facts).startswith("model.projector.weight")
    assert "in the resultleft out: excluded by 'model.projector*'" in text(left.facts)


# The model beside the checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A HuggingFace model of two layers, to hold checkpoints against."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(saved.model_state(), path)
    return str(path)


def held(checkpoint: Checkpoint, model: str, assets: str) -> widgets.Mapping:
    step = widgets.Mapping(checkpoint, model_assets_dir=assets)
    step.rules.fields["reference"].value = model
    return step


def without_norm(directory: Path) -> Checkpoint:
    """A checkpoint that lacks a weight, has another one in another shape, and a tensor of its own."""
    state = {**saved.model_state(), "lm_head.weight": torch.ones(17, 8), "projector.weight": torch.ones(2)}
    del state["model.norm.weight"]
    return read(saved.trained(directory, state, optimizer=False))


def test_the_verdict_stands_on_top_with_the_readings(checkpoint: Checkpoint, model: str, assets: str) -> None:
    step = held(checkpoint, model, assets)
    assert step.children[1] is step.verdict
    assert text(step.verdict).startswith(f"This is {model}: 25 of 25 weights, every shape fits.Read as: below 'model.'")
    assert roles(step.verdict) == ["status"] and "dcp-success" in step.verdict.value
    page = _Reader(step.verdict.value)
    assert "Readings that were tried: 1" in page.words and page.words[-4:] == [
        "below 'model.', with the names of the live model", "25 of 25", "0", "0",
    ]  # fmt: skip
    assert "<details open>" not in step.verdict.value
    assert_frame_equal(step.weights.frame, step.mapping.model_frame())
    assert step.tabs.selected_index == MODEL and step.blocked == ""
    assert bundle(step)["text/plain"].startswith(step.mapping.fit.sentence)


def test_where_no_model_is_known_the_outputs_are_shown(checkpoint: Checkpoint, model: str, assets: str) -> None:
    step = widgets.Mapping(checkpoint, model_assets_dir=assets)
    assert text(step.verdict).startswith("Nothing is known about the model") and roles(step.verdict) == ["status"]
    assert step.tabs.selected_index == OUTPUTS
    step.rules.fields["reference"].value = model
    assert step.tabs.selected_index == MODEL
    step.tabs.selected_index = OUTPUTS  # and there it stays while the model is known
    step.rules.fields["exclude"].value = "*nothing*"
    assert step.tabs.selected_index == OUTPUTS


def test_what_is_not_the_model_is_told_apart_by_state(model: str, assets: str, tmp_path: Path) -> None:
    step = held(without_norm(tmp_path / "c"), model, assets)
    assert text(step.verdict).startswith(
        f"This is not {model}: 23 of 25 weights fit, 1 missing, 1 of another shape, 1 unexpected."
    )
    assert roles(step.verdict) == ["alert"] and "<details open>" in step.verdict.value
    assert kinds(step.weights, "state") == {"fits": 23, "missing": 1, "shape differs": 1, "unexpected": 1}
    shown = {}
    for state in ("missing", "shape differs", "unexpected"):
        step.weights.ask(chips={"state": [state]})
        shown[state] = shown_keys(step.weights)
    assert shown == {
        "missing": ["model.norm.weight"], "shape differs": ["lm_head.weight"], "unexpected": ["projector.weight"],
    }  # fmt: skip
    step.weights.ask(chips={"state": ["shape differs"]})
    assert {"[17, 8]", "[16, 8]"} <= cells(step.weights)


def test_a_mismatch_blocks_until_it_is_allowed(model: str, assets: str, tmp_path: Path) -> None:
    step = held(without_norm(tmp_path / "c"), model, assets)
    assert step.blocked == "The mapping has errors; change a rule, or use another checkpoint."
    assert "error[model-mismatch]" in told(step.cards)
    step.rules.fields["allow_mismatch"].value = True
    assert roles(step.verdict) == ["alert"]  # it still is not the model
    assert step.blocked == "There are warnings: tick that you have read them."
    step.accept.value = True
    assert step.blocked == ""


OTHER_VALUES = {
    "layout": ("container", "container"),
    "mode": ("full", "full"),
    "root": ("model", "model"),
    "names": ("published", "published"),
    "tied": ("drop", "drop"),
    "unexpected": ("drop", "drop"),
    "allow_mismatch": (True, True),
    "include": ("model.* *norm*", ("model.*", "*norm*")),
    "exclude": ("*lm_head*", ("*lm_head*",)),
    "rename": ("\na=b\n", (Rename("a", "b"),)),
}


def test_of_several_adapters_one_is_named(review: widgets.Mapping, tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {"lora_A": (2, 8), "lora_B": (8, 2)}
    state = {f"{stem}.{part}.{name}.weight": torch.ones(s) for part, s in shapes.items() for name in ("one", "two")}
    review.checkpoint = read(saved.save(tmp_path / "adapters", {"model": state}))
    assert "one" in text(review.message) and "two" in text(review.message)
    review.rules.fields["adapter"].value = " two "
    assert text(review.message) == ""
    assert (review.mapping.kind, review.mapping.options.adapter) == ("adapter", "two")
    assert "This is a LoRA adapter" in text(review.verdict)


@pytest.mark.parametrize("name", [field.name for field in fields(MappingOptions) if field.name != "adapter"])
def test_every_option_of_preview_has_a_field_and_is_passed_on_whole(
    name: str, review: widgets.Mapping, model: str, tmp_path: Path
) -> None:
    family, adapter_config = tmp_path / "family.toml", tmp_path / "adapter_config.json"
    adapter_config.write_text('{"peft_type": "LORA"}')
    family.write_text('trainer = "Mine"\nmodel = "mine"\n[weights]\n"model.model.norm.weight" = "model.norm.weight"\n')
    typed, taken = {
        **OTHER_VALUES, "family": (f" {family} ", str(family)), "reference": (f" {model} ", model),
        "adapter_config_path": (f" {adapter_config} ", str(adapter_config)),
        "model_assets_dir": (f" {make_assets(tmp_path / 'mine')} ", str(tmp_path / "mine")),
    }[name]  # fmt: skip
    before = review.mapping.options
    review.rules.fields[name].value = typed
    assert text(review.message) == ""
    assert review.mapping.options == replace(before, **{name: taken}) != before


def test_what_was_allowed_for_one_checkpoint_is_not_for_the_next(model: str, assets: str, tmp_path: Path) -> None:
    step = held(without_norm(tmp_path / "c"), model, assets)
    step.rules.fields["allow_mismatch"].value = True
    step.checkpoint = read(saved.trained(tmp_path / "other", saved.model_state(layers=1), optimizer=False))
    options = step.mapping.options
    assert (options.reference, options.model_assets_dir, options.allow_mismatch) == (None, None, False)
    assert not step.rules.fields["allow_mismatch"].value


class Building:
    """Stands for the process that builds a model: it answers when the test says so, and counts."""

    def __init__(self, answer: Expected | NotExpected) -> None:
        self.answer, self.begun, self.go = answer, threading.Event(), threading.Event()
        self.configs: list[str] = []

    def __call__(self, config: str) -> Expected | NotExpected:
        self.configs.append(config)
        self.begun.set()
        assert self.go.wait(30)
        return self.answer


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> Iterator[Building]:
    naming = Naming({name: tuple(tensor.shape) for name, tensor in saved.model_state().items()})
    stands = Building(Expected("Qwen3ForCausalLM", naming, naming, base="model"))
    monkeypatch.setattr(asking, "_built", stands)
    monkeypatch.setattr(asking, "_answers", {})
    yield stands
    stands.go.set()


@pytest.fixture
def config(tmp_path: Path) -> str:
    """An assets directory whose model has to be built."""
    directory = make_assets(tmp_path / "qwen3")
    (directory / "config.json").write_text(json.dumps(models.QWEN3_CONFIG))
    return str(directory)


def test_a_model_is_built_beside_and_the_step_says_so(building: Building, checkpoint: Checkpoint, config: str) -> None:
    step = widgets.Mapping(checkpoint, model_assets_dir=config)  # comes back at once
    assert building.begun.wait(30)
    assert "Building the model of config.json" in text(step.verdict) and roles(step.verdict) == ["status"]
    assert (step.mapping, step.blocked) == (None, "The model is being built; wait a moment.")
    assert step.tabs.layout.display == "none"
    building.go.set()
    step.join(30)
    assert text(step.verdict).startswith("This is Qwen3ForCausalLM: 25 of 25 weights, every shape fits.")
    assert (step.blocked, step.tabs.layout.display) == ("", "")


def test_rules_that_change_meanwhile_count_and_nothing_is_built_twice(
    building: Building, checkpoint: Checkpoint, config: str
) -> None:
    step = widgets.Mapping(checkpoint, model_assets_dir=config)
    assert building.begun.wait(30)
    seen: list[Any] = []
    step.observe(lambda change: seen.append(change["new"]), "mapping")
    step.rules.fields["exclude"].value = "*lm_head*"
    step.rules.fields["exclude"].value = "*norm*"
    assert "Building the model of config.json" in text(step.verdict)
    building.go.set()
    step.join(30)
    assert [mapping.options.exclude for mapping in seen] == [("*norm*",)]
    step.rules.fields["exclude"].value = ""  # now it is known
    assert text(step.verdict).startswith("This is Qwen3ForCausalLM")
    assert len(building.configs) == 1


def test_what_goes_wrong_while_a_model_is_built_is_said(
    building: Building, checkpoint: Checkpoint, config: str
) -> None:
    step = widgets.Mapping(checkpoint, model_assets_dir=config)
    assert building.begun.wait(30)
    step.rules.fields["rename"].value = "(=x"
    building.go.set()
    step.join(30)
    assert "The rename rule (=x" in text(step.message) and roles(step.message) == ["alert"]
    assert (step.mapping, step.verdict.value, step.blocked) == (None, "", "There is no mapping yet.")


def test_a_checkpoint_that_is_closed_while_a_model_is_built_does_not_come_back(
    building: Building, checkpoint: Checkpoint, config: str
) -> None:
    step = widgets.Mapping(checkpoint, model_assets_dir=config)
    assert building.begun.wait(30)
    step.checkpoint = None
    building.go.set()
    step.join(30)
    assert (step.mapping, step.verdict.value, text(step.message)) == (None, "", "")


def test_the_wizard_goes_on_while_a_model_is_built(building: Building, checkpoint: Checkpoint, config: str) -> None:
    wizard = widgets.Wizard(checkpoint.path, model_assets_dir=config)
    assert building.begun.wait(30)
    wizard.next.click()
    wizard.next.click()
    assert heading(wizard) == "Step 3 of 7" and wizard.next.disabled
    assert text(wizard.why) == "The model is being built; wait a moment." and wizard.plan is None
    building.go.set()
    wizard.mapping_step.join(30)
    assert not wizard.next.disabled and wizard.plan.mapping is wizard.mapping


# --- Try it -----------------------------------------------------------------------------------------------------


@pytest.fixture
def spoken(demo: Demo) -> ShardPlan:
    """A plan of a model that has a tokenizer."""
    return plan(preview(demo.checkpoint, model_assets_dir=demo.assets), dtype="keep")


def test_the_model_speaks_before_it_is_written(spoken: ShardPlan, demo: Demo, tmp_path: Path) -> None:
    write(spoken, tmp_path / "model", fsync=False)
    step = widgets.Try(spoken)
    assert "Loads the model into 2.89 MB of memory and writes nothing." in text(step.facts) and step.blocked == ""
    step.prompt.value, step.most.value = "The shards", 8
    step.sample.value, step.reference.value = "The shards are written.", str(tmp_path / "model")
    step.job.start.click()
    here, beside = finished(step).said
    assert text(step.message) == "" and here.who == "this checkpoint" and beside.who == str(tmp_path / "model")
    assert (here.text, here.loss) == (beside.text, beside.loss)
    model = dcptools.load_model(spoken.mapping, dtype="keep")
    tokenizer = open_tokenizer(demo.assets)
    assert here.text == continuation(model, tokenizer, "The shards", 8) != ""
    assert here.loss == loss(model, tokenizer, "The shards are written.")
    assert pre(step.answer, "said").endswith(here.text)
    assert f"Loss on the text: {here.loss:.3f} nats per token" in text(step.answer)
    assert not step.free.disabled
    step.free.click()
    assert step.free.disabled and not step.job.start.disabled


def test_another_plan_is_another_model(spoken: ShardPlan, mapping: KeyMapping) -> None:
    step = widgets.Try(spoken)
    step.most.value = 2
    step.job.start.click()
    assert finished(step).said
    step.plan = plan(spoken.mapping)
    assert (step.said, step.answer.value, step.free.disabled) == ((), "", True)
    assert "1.45 MB" in text(step.facts)
    step.plan = None
    assert text(step.facts) == "Review the mapping first." and step.job.start.disabled


def test_what_cannot_be_tried_says_why_and_is_left_out(
    spoken: ShardPlan, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = widgets.Try(plan(checkpoint))
    assert (
        "No config.json says which model this is" in text(step.facts) and step.job.start.disabled and step.blocked == ""
    )
    monkeypatch.setattr(_try, "available_bytes", lambda: 1_000_000)
    step.plan = spoken
    assert "The model takes 2.89 MB of memory, and 1.00 MB is free." in text(step.facts)
    assert "You can skip this step." in text(step.facts)
    assert step.job.start.disabled and step.blocked == "" and roles(step.facts) == ["alert"]
    step.job.begin()
    assert not step.job.running


def test_what_goes_wrong_while_it_is_tried_is_said(spoken: ShardPlan, tmp_path: Path) -> None:
    step = widgets.Try(spoken)
    step.reference.value = str(tmp_path)
    step.job.start.click()
    finished(step)
    assert f"transformers cannot load the model of {tmp_path}" in text(step.message)
    assert step.said == () and not step.job.start.disabled


def test_what_a_model_says_is_text_and_no_page(spoken: ShardPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_try, "continuation", lambda *_: f"\n{SCRIPT}")
    step = widgets.Try(spoken)
    step.prompt.value = SCRIPT
    step.job.start.click()
    finished(step)
    assert pre(step.answer, "said") == f"{SCRIPT}\n{SCRIPT}" and "script" not in tags(step.answer)


# --- Shards -----------------------------------------------------------------------------------------------------


def test_shards_shows_what_plan_says(mapping: KeyMapping) -> None:
    step = widgets.Shards(mapping, shard_size="1kB")
    expected = plan(mapping, 1000)
    assert step.plan.fingerprint == expected.fingerprint
    assert_frame_equal(step.files.frame, expected.files_frame())
    assert text(step.found).startswith(f"{len(expected.files)} files, {in_total(expected)} in total, the largest ")
    assert f'aria-label="{plots.describe(plots.shards(expected))}"' in step.figure.value
    step.color.value = "module"
    assert f'aria-label="{plots.describe(plots.shards(expected, color_by="module"))}"' in step.figure.value
    assert (step.blocked, step.size.value) == ("", "1.00 kB")


def test_a_size_that_is_typed_is_taken(mapping: KeyMapping) -> None:
    step = widgets.Shards(mapping)
    assert len(step.plan.files) == 1
    step.size.value = "500 B"
    assert (step.shard_size, step.plan.options.shard_size) == (500, 500)
    assert len(step.plan.files) > 4
    step.size.value = "1234567"
    assert (step.shard_size, step.size.value) == (1_234_567, "1234567")


def test_the_slider_is_taken(mapping: KeyMapping) -> None:
    step = widgets.Shards(mapping)
    step.slider.value = 10**6
    assert (step.shard_size, step.plan.options.shard_size, step.size.value) == (1_000_000, 1_000_000, "1.00 MB")


def test_the_size_by_trait_moves_the_fields(mapping: KeyMapping) -> None:
    step = widgets.Shards(mapping)
    step.shard_size = 10**5
    assert (step.plan.options.shard_size, step.size.value, step.slider.value) == (100_000, "100 kB", 100_000)


def test_a_size_that_is_none_is_said_and_no_older_plan_stays(mapping: KeyMapping) -> None:
    step = widgets.Shards(mapping, shard_size=1000)
    step.size.value = "many"
    assert "'many' is not a size in bytes." in text(step.message) and roles(step.message) == ["alert"]
    assert (step.plan, step.blocked) == (None, "There is no plan yet.")
    step.size.value = "1kB"  # the size that it was
    assert (step.message.value, step.blocked, step.plan.options.shard_size) == ("", "", 1000)


def test_another_dtype_plans_again(mapping: KeyMapping) -> None:
    step = widgets.Shards(mapping)
    before = step.plan.total_bytes
    step.dtype = "float32"
    assert step.plan.total_bytes == 2 * before


def test_a_mapping_with_errors_is_not_planned(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Shards(preview(read(tmp_path / "hole")))
    assert "1 error prevents the conversion" in text(step.message) and roles(step.message) == ["alert"]
    assert (step.plan, step.files.layout.display) == (None, "none") and step.blocked


def test_warnings_that_only_the_plan_has_ask_to_be_read(mapping: KeyMapping, tmp_path: Path) -> None:
    state = {**saved.model_state(layers=1), "model.norm.weight": torch.ones(8).to(torch.float8_e4m3fn)}
    step = widgets.Shards(preview(saved.trained(tmp_path / "fp8", state, optimizer=False)), shard_size=1000)
    warnings = [finding for finding in step.plan.found_while_planning if finding.severity == "warning"]
    assert warnings and all(str(each).splitlines()[0] in text(step.found) for each in warnings)
    assert (step.accept.layout.display, step.blocked) == ("", "There are warnings: tick that you have read them.")
    step.accept.value = True
    assert step.blocked == ""
    step.size.value = "500"  # the same warnings
    assert step.accept.value and step.blocked == ""
    step.mapping = mapping
    assert (step.accept.layout.display, step.blocked) == ("none", "")


def test_shards_waits_for_a_mapping() -> None:
    step = widgets.Shards()
    assert (step.plan, step.blocked) == (None, "Review the mapping first.")


def test_the_review_is_written_where_the_field_says(wizard: widgets.Wizard, tmp_path: Path) -> None:
    for step, name in ((wizard.mapping_step, "it's mine.html"), (wizard.shards_step, "plan.html")):
        wizard.step = wizard.steps.index(step)
        page = tmp_path / name
        step.review.path.value = f" {page} "
        step.review.job.start.click()
        finished(step.review)
        assert text(step.review.said).startswith(f"Wrote {page} (") and roles(step.review.said) == ["status"]
        assert "Content-Security-Policy" in page.read_text() and "model.embed_tokens.weight" in page.read_text()
        assert f"--html {shlex.quote(str(page))}" in step.review.lines.texts["Shell"]
        step.review.path.value = str(tmp_path / "nowhere" / "review.html")
        step.review.job.start.click()
        finished(step.review)
        assert "cannot be written" in text(step.message) and roles(step.message) == ["alert"]
        assert (step.review.said.value, step.review.lines.lines) == ("", [])


def test_a_mapping_with_errors_can_be_reviewed(tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    step = widgets.Mapping(read(tmp_path / "hole"))
    step.review.path.value = str(tmp_path / "review.html")
    step.review.job.start.click()
    finished(step.review)
    assert "nothing is stored for [2:4]" in (tmp_path / "review.html").read_text()
    step.checkpoint = None
    step.review.job.start.click()
    assert not step.review.job.running and step.review.layout.display == "none"


def test_each_step_says_the_lines_that_do_the_same(wizard: widgets.Wizard) -> None:
    wizard.mapping_step.rules.fields["exclude"].value = "*lm_head*"
    steps = (wizard.open_step, wizard.inspect_step, wizard.mapping_step, wizard.try_step, wizard.shards_step)
    looked_at = to_inspect(wizard.checkpoint)
    plans = (to_try(wizard.plan), to_plan(wizard.plan))
    recipes = (looked_at, looked_at, to_preview(wizard.mapping), *plans)
    for step, (shell, python) in zip(steps, recipes, strict=True):
        assert step.lines.texts == {"Shell": shell, "Python": python} if shell else {"Python": python}
    assert "--exclude '*lm_head*'" in wizard.shards_step.lines.texts["Shell"]
    wizard.mapping_step.rules.fields["rename"].value = "(=x"  # nothing is shown, so nothing does the same
    assert wizard.mapping_step.lines.lines == wizard.shards_step.lines.lines == []


# --- Convert and Result -----------------------------------------------------------------------------------------


@pytest.fixture
def planned(mapping: KeyMapping) -> ShardPlan:
    return plan(mapping, 1000, "float16")


@pytest.fixture(scope="module")
def written(checkpoint: Checkpoint, assets: str, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The plan as a model on the disk. Do not change its files."""
    planned = plan(preview(checkpoint, model_assets_dir=assets), 1000, "float16")
    return write(planned, tmp_path_factory.mktemp("widgets") / "model", fsync=False)


def pre(widget: Any, testid: str) -> str:
    _, _, rest = widget.value.partition(f"data-testid='{testid}'>")
    return "".join(_Reader(rest.partition("</pre>")[0]).words)


def test_convert_shows_the_command_and_the_call(planned: ShardPlan) -> None:
    step = widgets.Convert(planned, save_dir="it's <b>here</b>")
    assert step.lines.texts["Shell"] == command_line(planned, "it's <b>here</b>")
    assert step.lines.texts["Python"] == python_call(planned, "it's <b>here</b>")
    step.overwrite.value = True
    step.save_dir.value = "out"
    assert step.lines.texts["Shell"] == command_line(planned, "out", overwrite=True)
    assert step.lines.texts["Python"] == python_call(planned, "out", overwrite=True)
    step.resume.value = True
    assert step.lines.texts["Shell"] == command_line(planned, "out", overwrite=True, resume=True)
    assert step.lines.texts["Python"] == python_call(planned, "out", overwrite=True, resume=True)


def test_convert_says_what_it_will_write(planned: ShardPlan, assets: str) -> None:
    step = widgets.Convert(planned, save_dir="out")
    files = (
        f"Writes {len(planned.files)} files, {in_total(planned)} in total, to out, and copies 2 files from {assets}."
    )
    assert text(step.found) == files


def test_convert_writes_the_plan(planned: ShardPlan, tmp_path: Path) -> None:
    step = widgets.Convert(planned, save_dir=str(tmp_path / "model"))
    assert step.blocked
    step.job.start.click()
    finished(step)
    assert isinstance(step.report, Report) and step.report.fingerprint == planned.fingerprint
    assert step.blocked == ""
    assert text(step.message) == f"Wrote {in_total(planned)} to {tmp_path / 'model'}." and roles(step.message) == [
        "status"
    ]
    written = {path.name for path in (tmp_path / "model").iterdir()}
    shards = {file.filename for file in planned.files}
    assert written == shards | {"model.safetensors.index.json", "config.json", "tokenizer.json"}


def test_what_is_there_is_not_overwritten_unasked(planned: ShardPlan, tmp_path: Path) -> None:
    write(planned, tmp_path / "model", fsync=False)
    step = widgets.Convert(planned, save_dir=str(tmp_path / "model"))
    step.job.start.click()
    finished(step)
    assert "already holds" in text(step.message) and roles(step.message) == ["alert"]
    assert "details" not in tags(step.message)
    assert step.report is None and step.blocked and not step.job.start.disabled
    step.overwrite.value = True
    step.job.start.click()
    finished(step)
    assert step.report is not None


def test_what_is_there_is_said_before_a_click(planned: ShardPlan, written: Report, tmp_path: Path) -> None:
    step = widgets.Convert(planned, save_dir=str(tmp_path / "new"))
    assert step.there.value == ""
    step.save_dir.value = written.save_dir
    assert text(step.there).startswith(f"{written.save_dir} already holds model-00001-of-")
    assert "Give another directory, or overwrite (“Overwrite an existing model”)" in text(step.there)
    assert roles(step.there) == ["alert"] and "Nothing was written" not in text(step.there)
    step.overwrite.value = True
    assert text(step.there).endswith("It will be replaced.") and roles(step.there) == ["status"]
    (tmp_path / "file").write_text("")
    step.save_dir.value = str(tmp_path / "file")
    assert f"The output {tmp_path / 'file'} is a file." in text(step.there) and roles(step.there) == ["alert"]
    step.save_dir.value = "a\0b"
    assert roles(step.there) == ["alert"]


def test_another_place_takes_away_what_was_said_of_the_last(planned: ShardPlan, tmp_path: Path) -> None:
    step = widgets.Convert(planned, save_dir=str(tmp_path / "model"))
    step.job.start.click()
    finished(step)
    assert step.there.value == ""  # it is there because it was written just now
    step.save_dir.value = str(tmp_path / "other")
    assert (step.message.value, text(step.job.text), step.blocked) == (
        "",
        "not started",
        "Nothing has been written yet.",
    )
    assert not step.job.start.disabled
    step.save_dir.value = str(tmp_path / "model")
    assert text(step.message) == f"Wrote {format_bytes(step.report.file_bytes)} to {tmp_path / 'model'}."
    assert step.blocked == ""
    assert step.job.start.disabled and step.there.value == ""


def test_a_run_that_was_stopped_goes_on(planned: ShardPlan, tmp_path: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(planned, tmp_path / "model", resume=True, progress=stop)
    step = widgets.Convert(planned, save_dir=str(tmp_path / "model"))
    step.resume.value = True
    step.job.start.click()
    finished(step)
    assert step.report.taken_over == tuple(file.filename for file in planned.files)


def test_a_conversion_can_be_cancelled(planned: ShardPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()

    def slow(*_: Any, cancel: threading.Event, **__: Any) -> Report:
        started.set()
        assert cancel.wait(10)
        raise Cancelled("Cancelled; what was half-written is removed.")

    monkeypatch.setattr(_convert, "write", slow)
    step = widgets.Convert(planned, save_dir="out")
    step.job.start.click()
    started.wait(5)
    assert step.job.start.disabled and not step.job.cancel.disabled
    step.job.cancel.click()
    finished(step)
    assert text(step.job.text) == "cancelled; nothing half-written is left"
    assert step.report is None and step.blocked and not step.job.start.disabled


def test_without_a_plan_or_a_place_nothing_starts(planned: ShardPlan, tmp_path: Path) -> None:
    step = widgets.Convert()
    assert step.job.start.disabled and text(step.found) == "Plan the files first."
    step = widgets.Convert(planned, save_dir=str(tmp_path))
    step.save_dir.value = "  "
    assert text(step.found) == "Give the directory to save to." and not step.lines.texts
    step.job.begin()
    assert step.job.start.disabled and not step.job.running and step.report is None


def test_a_place_in_the_home_directory(planned: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    step = widgets.Convert(planned, save_dir="~/model")
    assert f"--save-dir {tmp_path}/model" in step.lines.texts["Shell"]
    step.job.start.click()
    assert finished(step).report.save_dir == str(tmp_path / "model")


def test_the_default_place_follows_the_checkpoint(checkpoint: Checkpoint, planned: ShardPlan, tmp_path: Path) -> None:
    other = plan(read(saved.trained(tmp_path / "other", saved.model_state(layers=1), optimizer=False)))
    step = widgets.Convert(planned)
    assert step.save_dir.value == f"{checkpoint.path}/hf_ckpt"
    step.plan = other
    assert step.save_dir.value == f"{tmp_path}/other/hf_ckpt"
    step.save_dir.value = "mine"
    step.overwrite.value = True
    step.plan = plan(other.mapping, 100)
    assert (step.save_dir.value, step.overwrite.value) == ("mine", True)
    step.plan = None  # while the next checkpoint is read
    step.plan = planned
    assert (step.save_dir.value, step.overwrite.value) == (f"{checkpoint.path}/hf_ckpt", False)


def test_another_checkpoint_of_the_same_program_is_another_one(planned: ShardPlan, tmp_path: Path) -> None:
    copied = shutil.copytree(planned.checkpoint.path, tmp_path / "step_2")
    step = widgets.Convert(planned)
    step.overwrite.value = True
    step.plan = plan(preview(read(copied)))
    assert (step.save_dir.value, step.overwrite.value) == (f"{copied}/hf_ckpt", False)


def test_a_strict_plan_stays_strict_with_other_assets(checkpoint: Checkpoint, assets: str) -> None:
    lax = plan(preview(checkpoint), 1000, "float16", dtype_for=["*norm*=float32"])
    strict = replace(lax, options=replace(lax.options, strict=True))  # made by hand: without assets it is refused
    step = widgets.Convert(strict)
    step.assets.value = assets
    assert step.plan.options == strict.options and step.plan.mapping.assets is not None
    assert "--strict" in step.lines.texts["Shell"]


def test_a_second_click_does_not_undo_a_success(planned: ShardPlan, tmp_path: Path) -> None:
    """It was on its way when the first conversion ended."""
    step = widgets.Convert(planned, save_dir=str(tmp_path / "model"))
    step.job.start.click()
    report = finished(step).report
    assert step.job.start.disabled
    for _ in range(3):
        step.job.begin()
    assert not step.job.running and step.report is report and step.blocked == ""
    assert text(step.message).startswith("Wrote ") and roles(step.message) == ["status"]
    step.overwrite.value = True  # now it means something
    step.job.start.click()
    assert finished(step).report not in (None, report)


def test_assets_that_are_typed_flow_into_the_plan(checkpoint: Checkpoint, assets: str, tmp_path: Path) -> None:
    rules = {"exclude": ["*lm_head*"], "rename": [("(.*)norm(.*)", r"\1n\2")], "layout": "container", "root": "model"}
    before = plan(preview(checkpoint, **rules), 1000, "float16", dtype_for=["*.n.weight=float32"])
    step = widgets.Convert(before, save_dir=str(tmp_path / "model"))
    step.assets.value = assets
    expected = plan(
        preview(checkpoint, model_assets_dir=assets, **rules), 1000, "float16", dtype_for=["*.n.weight=float32"]
    )
    assert step.plan.fingerprint == expected.fingerprint
    assert step.plan.mapping.options == expected.mapping.options
    assert step.model_assets_dir == assets
    assert f"--model-assets-dir {assets}" in step.lines.texts["Shell"]
    step.job.start.click()
    assert finished(step).report.assets == ("config.json", "tokenizer.json")


def test_assets_that_are_not_there_are_said_and_nothing_starts(planned: ShardPlan, assets: str, tmp_path: Path) -> None:
    step = widgets.Convert(planned, save_dir="out")
    step.assets.value = str(tmp_path / "nowhere")
    assert "does not exist" in text(step.message) and roles(step.message) == ["alert"]
    step.save_dir.value = "elsewhere"
    assert step.job.start.disabled
    assert step.plan is planned and step.model_assets_dir == assets
    step.assets.value = assets
    assert (step.message.value, step.job.start.disabled) == ("", False)


def test_another_plan_forgets_the_report_of_the_last(planned: ShardPlan, mapping: KeyMapping, tmp_path: Path) -> None:
    step = widgets.Convert(planned, save_dir=str(tmp_path / "model"))
    step.job.start.click()
    assert finished(step).report is not None
    step.plan = plan(mapping, 500)
    assert (step.report, step.message.value, text(step.job.text)) == (None, "", "not started")
    assert step.blocked == "Nothing has been written yet."


@pytest.fixture
def waiting_write(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The step Convert says when it has begun to write, and waits until it may go on."""
    started, go_on = threading.Event(), threading.Event()

    def slow(given: ShardPlan, target: str, **_: Any) -> Report:
        started.set()
        assert go_on.wait(30)
        return write(given, target, fsync=False)

    monkeypatch.setattr(_convert, "write", slow)
    return started, go_on


def test_a_plan_that_changes_while_the_last_is_written_is_not_reported_as_written(
    planned: ShardPlan, mapping: KeyMapping, tmp_path: Path, waiting_write: tuple[threading.Event, threading.Event]
) -> None:
    started, go = waiting_write
    step = widgets.Convert(planned, save_dir=str(tmp_path / "model"))
    step.job.start.click()
    started.wait(5)
    step.plan = plan(mapping, 500)
    go.set()
    finished(step)
    assert step.report is None and step.blocked
    assert "The plan has changed since: this is the result of the earlier one." in text(step.message)
    assert roles(step.message) == ["alert"]


def test_result_shows_files_checksums_and_how_to_load(planned: ShardPlan, tmp_path: Path) -> None:
    report = write(planned, tmp_path / SCRIPT.replace("/", ""), fsync=False)
    step = widgets.Result(report)
    shown = text(step.body)
    for name in (*(name for name, _ in report.files), "model.safetensors.index.json", "config.json"):
        assert name in shown
    assert report.headline() in shown and report.facts() in shown
    assert f"AutoModelForCausalLM.from_pretrained({report.save_dir!r}, dtype='auto')" in shown
    assert "script" not in tags(step.body)


def test_result_says_how_to_load_before_it_lists_the_files(written: Report) -> None:
    body = widgets.Result(written).body.value
    assert body.index("Load it:") < body.index(f"<details><summary>{len(written.files) + 3} files</summary>")
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        assert format_bytes((Path(written.save_dir) / name).stat().st_size) in body.partition(f">{name}</td>")[2][:60]


def test_result_waits_and_forgets(written: Report) -> None:
    step = widgets.Result()
    assert text(step.body) == "Nothing has been written yet." and step.blocked
    step.report = written
    assert step.blocked == ""
    step.report = None
    assert text(step.body) == "Nothing has been written yet." and step.blocked


def test_result_tells_of_values_that_overflowed(tmp_path: Path, assets: str) -> None:
    state = saved.model_state(layers=1)
    state["model.norm.weight"][0] = 1e30
    path = saved.trained(tmp_path / "large", state, optimizer=False)
    report = write(plan(preview(path, model_assets_dir=assets), dtype="float16"), tmp_path / "model", fsync=False)
    step = widgets.Result(report)
    assert "warning[cast-overflow] model.norm.weight: 1 finite value became Inf" in text(step.body)
    assert "alert" in roles(step.body)


# --- Wizard -----------------------------------------------------------------------------------------------------


@pytest.fixture
def wizard(checkpoint: Checkpoint, assets: str, tmp_path: Path) -> widgets.Wizard:
    return widgets.Wizard(checkpoint.path, save_dir=tmp_path / "model", model_assets_dir=assets, shard_size="1kB")


def converted(wizard: widgets.Wizard) -> Report:
    """Click through to the end."""
    while wizard.step < 5:
        wizard.next.click()
    wizard.convert_step.job.start.click()
    report: Report = finished(wizard.convert_step).report
    wizard.next.click()
    return report


def heading(wizard: widgets.Wizard) -> str:
    return text(wizard.heading).partition(":")[0]


def test_the_wizard_clicks_through_to_a_model(wizard: widgets.Wizard, tmp_path: Path) -> None:
    report = converted(wizard)
    assert wizard.report is report and wizard.step == 6
    assert heading(wizard) == "Step 7 of 7"
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    assert report.headline() in text(wizard.result_step.body)
    assert wizard.next.disabled and not wizard.back.disabled


def test_the_wizards_values_are_the_cores(wizard: widgets.Wizard, checkpoint: Checkpoint, assets: str) -> None:
    report = converted(wizard)
    with speaking(by_label):
        mapping = preview(checkpoint, model_assets_dir=assets)
    assert "“Layout” overrides it" in str(mapping)
    assert wizard.checkpoint.to_json() == checkpoint.to_json()
    assert wizard.mapping.to_json() == mapping.to_json()
    assert wizard.plan.to_json() == plan(mapping, 1000).to_json()
    assert report.fingerprint == wizard.plan.fingerprint
    assert wizard.plan.mapping is wizard.mapping and wizard.mapping.checkpoint is wizard.checkpoint


def test_next_waits_for_a_checkpoint(checkpoint: Checkpoint) -> None:
    wizard = widgets.Wizard()
    assert (wizard.next.disabled, wizard.back.disabled) == (True, True)
    assert text(wizard.why) == "Read a checkpoint first." and roles(wizard.why) == ["status"]
    wizard.next.click()
    assert wizard.step == 0
    wizard.open_step.path.value = checkpoint.path
    assert (wizard.next.disabled, wizard.why.value.count("Read")) == (False, 0)


@pytest.mark.parametrize(("step", "shown"), [(99, "Step 7 of 7"), (-1, "Step 1 of 7")])
def test_a_step_that_is_not_there_is_the_nearest(step: int, shown: str, checkpoint: Checkpoint) -> None:
    wizard = widgets.Wizard(checkpoint.path)
    wizard.step = step
    assert heading(wizard) == shown


def test_warnings_block_next_until_they_are_read(checkpoint: Checkpoint) -> None:
    wizard = widgets.Wizard(checkpoint.path)
    wizard.next.click()
    wizard.next.click()
    assert heading(wizard) == "Step 3 of 7" and wizard.next.disabled
    wizard.mapping_step.accept.value = True
    assert not wizard.next.disabled
    wizard.next.click()
    assert heading(wizard) == "Step 4 of 7"


def test_a_wrong_assets_directory_is_mended_in_the_step_that_complains(checkpoint: Checkpoint, assets: str) -> None:
    wizard = widgets.Wizard(checkpoint.path, model_assets_dir="/no/such/assets")
    wizard.step = 2
    assert "The assets directory /no/such/assets does not exist." in text(wizard.mapping_step.message)
    assert wizard.next.disabled
    wizard.mapping_step.rules.fields["model_assets_dir"].value = f" {assets} "
    assert text(wizard.mapping_step.message) == "" and not wizard.next.disabled
    assert wizard.convert_step.assets.value == wizard.plan.mapping.options.model_assets_dir == assets


def test_errors_block_next(tmp_path: Path, assets: str) -> None:
    broken.truncated_file(tmp_path / "truncated")
    wizard = widgets.Wizard(tmp_path / "truncated", model_assets_dir=assets)
    wizard.step = 2
    assert wizard.next.disabled and wizard.plan is None
    assert text(wizard.why) == "The mapping has errors; change a rule, or use another checkpoint."
    assert "error[truncated-file]" in told(wizard.mapping_step.cards)


def test_the_step_is_said_to_programs_and_people(wizard: widgets.Wizard) -> None:
    wizard.step = 4
    page = wizard.heading.value
    assert "Step 5 of 7: Shards" in text(wizard.heading)
    assert page.count("aria-current='step'") == 1
    assert wizard.stack.selected_index == 4


def test_the_later_steps_follow_the_dtype_and_the_rules(wizard: widgets.Wizard) -> None:
    wizard.mapping_step.dtype_choice.value = "float32"
    assert wizard.plan.options.dtype == "float32"
    wizard.mapping_step.rules.fields["exclude"].value = "*lm_head*"
    assert wizard.plan.mapping is wizard.mapping and len(wizard.mapping.outputs) == 24
    assert "--exclude '*lm_head*'" in wizard.convert_step.lines.texts["Shell"]


def change_dtype(wizard: widgets.Wizard, tmp_path: Path) -> None:
    wizard.mapping_step.dtype_choice.value = "float32"


def change_rename(wizard: widgets.Wizard, tmp_path: Path) -> None:
    wizard.mapping_step.rules.fields["rename"].value = "lm_head.weight=head.weight"


def change_size(wizard: widgets.Wizard, tmp_path: Path) -> None:
    wizard.shards_step.size.value = "500"


def change_checkpoint(wizard: widgets.Wizard, tmp_path: Path) -> None:
    other = saved.trained(tmp_path / "other", saved.model_state(layers=1), optimizer=False)
    wizard.open_step.path.value = str(other)


def change_assets(wizard: widgets.Wizard, tmp_path: Path) -> None:
    wizard.convert_step.assets.value = str(make_assets(tmp_path / "assets"))


@pytest.mark.parametrize("change", [change_dtype, change_rename, change_size, change_checkpoint, change_assets])
def test_a_change_in_an_earlier_step_forgets_the_report(wizard: widgets.Wizard, tmp_path: Path, change: Any) -> None:
    converted(wizard)
    before = wizard.plan
    while wizard.step > 2:
        wizard.back.click()
    change(wizard, tmp_path)
    assert wizard.plan is not None and wizard.plan is not before
    assert wizard.report is None
    assert text(wizard.result_step.body) == "Nothing has been written yet."
    assert text(wizard.convert_step.job.text) == "not started"
    wizard.step = 5
    assert wizard.next.disabled


@pytest.mark.parametrize("change", ["open", "mapping", "shards"])
def test_an_error_in_an_earlier_step_leaves_no_later_values(wizard: widgets.Wizard, change: str) -> None:
    converted(wizard)
    if change == "open":
        wizard.open_step.path.value = "/nowhere"
        assert wizard.checkpoint is wizard.mapping is None
    elif change == "mapping":
        wizard.mapping_step.rules.fields["rename"].value = "(=x"
        assert wizard.mapping is None
    else:
        wizard.shards_step.size.value = "many"
    assert wizard.plan is None and wizard.report is None
    assert wizard.convert_step.job.start.disabled


def test_going_back_without_a_change_keeps_the_report(wizard: widgets.Wizard) -> None:
    report = converted(wizard)
    while wizard.step > 0:
        wizard.back.click()
    while not wizard.next.disabled:
        wizard.next.click()
    assert wizard.step == 6 and wizard.report is report


def test_assets_typed_in_convert_reach_mapping_and_plan(checkpoint: Checkpoint, assets: str) -> None:
    wizard = widgets.Wizard(checkpoint.path)
    assert wizard.mapping.assets is None
    wizard.convert_step.assets.value = assets
    assert wizard.mapping_step.model_assets_dir == assets
    assert wizard.mapping.assets is not None and wizard.mapping.assets.directory == assets
    assert wizard.plan.mapping is wizard.mapping


def test_another_checkpoint_in_the_wizard_starts_afresh(wizard: widgets.Wizard, tmp_path: Path) -> None:
    """Nothing of the first model is one click from being replaced by the second one, or given to it."""
    converted(wizard)
    wizard.convert_step.overwrite.value = True
    first = wizard.convert_step.save_dir.value
    wizard.step = 0
    other = saved.trained(tmp_path / "other", saved.model_state(layers=1), optimizer=False)
    wizard.open_step.path.value = str(other)
    convert = wizard.convert_step
    assert (convert.save_dir.value, convert.overwrite.value) == (f"{other}/hf_ckpt", False)
    assert convert.save_dir.value != first
    assert wizard.mapping_step.model_assets_dir == convert.model_assets_dir == convert.assets.value == ""
    assert wizard.plan.assets is None


def test_the_same_checkpoint_read_again_keeps_what_was_typed(wizard: widgets.Wizard, tmp_path: Path) -> None:
    assets = wizard.mapping_step.model_assets_dir
    wizard.convert_step.save_dir.value = str(tmp_path / "mine")
    wizard.open_step.read.click()
    assert wizard.convert_step.save_dir.value == str(tmp_path / "mine")
    assert wizard.plan.assets is not None and wizard.mapping_step.model_assets_dir == assets != ""


def test_the_same_checkpoint_by_another_path_keeps_what_was_typed(
    checkpoint: Checkpoint, assets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(checkpoint.path).parent)
    wizard = widgets.Wizard(Path(checkpoint.path).name, model_assets_dir=assets)
    wizard.open_step.path.value = checkpoint.path  # as the chooser gives it
    assert wizard.mapping_step.model_assets_dir == assets


def test_assets_that_are_not_there_are_said_in_convert(wizard: widgets.Wizard, assets: str, tmp_path: Path) -> None:
    before = wizard.plan
    wizard.convert_step.assets.value = str(tmp_path / "nowhere")
    assert "does not exist" in text(wizard.convert_step.message)
    assert wizard.plan is before and wizard.mapping_step.model_assets_dir == assets
    assert wizard.convert_step.job.start.disabled


def test_with_no_model_weights_the_words_of_the_core_are_shown(tmp_path: Path) -> None:
    path = saved.save(tmp_path / "other", {"weights": {"a": torch.ones(2)}})
    wizard = widgets.Wizard(path)
    assert "No model weights found!" in told(wizard.mapping_step.cards)
    assert wizard.plan is None


def test_outputexists_is_an_error_of_the_core() -> None:
    """The wizard shows it without a traceback because of that."""
    assert issubclass(OutputExists, DcptoolsError)


class TestCompare:
    @pytest.fixture
    def sides(self, tmp_path: Path) -> tuple[Path, Path]:
        state = saved.model_state(layers=2)
        later = {name: tensor.clone() for name, tensor in state.items()}
        later["model.layers.1.mlp.up_proj.weight"] *= 1.5
        return saved.bare(tmp_path / "a", state), saved.bare(tmp_path / "b", later)

    @staticmethod
    def run(step: widgets.Compare) -> None:
        step.job.begin()
        step.job.join(60)

    def test_it_shows_what_diff_says(self, sides: tuple[Path, Path]) -> None:
        step = widgets.Compare(*sides)
        assert (step.blocked, step.job.start.disabled, step.result.layout.display) == ("", False, "none")
        self.run(step)
        assert step.comparison.to_json()["tensors"] == dcptools.diff(*sides).to_json()["tensors"]
        assert "A and B differ: of 25 tensors, 24 equal, 1 with other values." in step.found.value
        assert step.table.selected["name"].iloc[0] == "model.layers.1.mlp.up_proj.weight"
        assert "Heat map of A and B by layer and module: 2 layers" in step.figure.value
        assert step.result.layout.display == ""
        step.statistic.value = "max_abs"
        assert plots.describe(plots.diff(step.comparison, "max_abs")) in step.figure.value
        headline, _, rows = step.summary()
        assert headline == step.comparison.headline() and len(rows) == 1

    def test_options_are_those_of_the_fields(self, sides: tuple[Path, Path], tmp_path: Path) -> None:
        dcptools.convert(sides[0], tmp_path / "m", fsync=False)
        step = widgets.Compare(sides[0], tmp_path / "m", cast=True)
        self.run(step)
        assert step.comparison.same and "alert" not in step.found.value.split("dcp-")[0]
        step.globs.value = "*norm.weight lm_head*"
        assert step.comparison is None and step.found.value == ""
        self.run(step)
        assert len(step.comparison.tensors) == 10

    def test_without_two_paths_there_is_nothing_to_start(self, sides: tuple[Path, Path]) -> None:
        step = widgets.Compare(sides[0])
        assert (step.blocked, step.job.start.disabled) == ("Give two directories.", True)
        step.b.value = str(sides[1])
        assert (step.blocked, step.job.start.disabled) == ("", False)

    def test_a_path_that_is_neither_is_told(self, sides: tuple[Path, Path], tmp_path: Path) -> None:
        step = widgets.Compare(sides[0], tmp_path / "nothing")
        self.run(step)
        assert step.comparison is None and "There is no directory" in step.message.value
        assert "Or give the directory of a HuggingFace model" in step.message.value

    def test_a_result_of_other_fields_is_not_shown(self, sides: tuple[Path, Path]) -> None:
        step = widgets.Compare(*sides)
        asked, found = step._run(lambda *_: None, threading.Event())
        step.globs.value = "*norm*"
        step._done((asked, found))
        assert step.comparison is None and "The fields have changed since" in step.found.value


# --- what is computed, and when ---------------------------------------------------------------------------------


class Counted:
    """What the steps call, really called, and how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.gate: threading.Semaphore | None = None  # what is called waits until it is let go
        for module, name in (
            (_open, "read"), (_mapping, "preview"), (_convert, "preview"),
            (_shards, "plan"), (_convert, "plan"), (plots, "shards"),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, self._wrapped(name, getattr(module, name)))

    def _wrapped(self, name: str, call: Any) -> Any:
        def counting(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            assert self.gate is None or self.gate.acquire(timeout=30)
            return call(*args, **options)

        return counting

    def taken(self) -> dict[str, int]:
        """The counts since this was asked last."""
        taken, self.calls = dict(self.calls), Counter()
        return taken


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_each_thing_is_computed_once_and_when_it_is_looked_at(
    counted: Counted, checkpoint: Checkpoint, assets: str, tmp_path: Path
) -> None:
    wizard = widgets.Wizard(checkpoint.path, save_dir=tmp_path / "model", model_assets_dir=assets, shard_size="1kB")
    assert counted.taken() == {"read": 1, "preview": 1}
    clicks: list[tuple[Any, dict[str, int]]] = [
        (wizard.next.click, {}),  # Inspect
        (wizard.next.click, {}),  # Mapping
        (lambda: change_dtype(wizard, tmp_path), {}),
        (lambda: setattr(wizard.mapping_step.rules.fields["exclude"], "value", "optimizer.*"), {"preview": 1}),
        (wizard.next.click, {"plan": 1}),  # Try it
        (wizard.next.click, {"shards": 1}),  # Shards
        (lambda: setattr(wizard.shards_step.color, "value", "module"), {"shards": 1}),
        (lambda: change_size(wizard, tmp_path), {"plan": 1, "shards": 1}),
        (wizard.next.click, {}),  # Convert
        (lambda: setattr(wizard.convert_step.save_dir, "value", str(tmp_path / "other")), {}),
        (lambda: setattr(wizard.convert_step.assets, "value", ""), {"preview": 1, "plan": 1}),
        (wizard.back.click, {"shards": 1}),
        (wizard.back.click, {}),
        (wizard.back.click, {}),
        (lambda: setattr(wizard.mapping_step.rules.fields["model_assets_dir"], "value", assets), {"preview": 1}),
        (lambda: wizard.plan, {"plan": 1}),  # looked at in the next cell
        (wizard.back.click, {}),
        (wizard.back.click, {}),
        (wizard.open_step.read.click, {"read": 1, "preview": 1}),
    ]
    for number, (click, expected) in enumerate(clicks):
        click()
        assert counted.taken() == expected, number
    other = saved.trained(tmp_path / "other", saved.model_state(layers=1), optimizer=False)
    counted.taken()
    wizard.open_step.path.value = str(other)  # its assets are forgotten too, and that maps nothing once more
    assert counted.taken() == {"read": 1, "preview": 1}


def test_a_path_that_is_typed_and_then_read_with_the_mouse_is_read_once(
    counted: Counted, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The click on Read takes the field its focus, and with that the path arrives."""
    clock = [100.0]
    monkeypatch.setattr(_open, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    step = widgets.Open()
    step.path.value = checkpoint.path
    clock[0] += 0.2
    step.read.click()
    assert counted.taken() == {"read": 1}
    step.read.click()  # this one means it
    assert counted.taken() == {"read": 1}
    clock[0] += 60
    step.read.click()
    assert counted.taken() == {"read": 1} and step.checkpoint is not None


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint is one that takes long."""
    monkeypatch.setattr(_open, "SMALL_METADATA", 0)
    monkeypatch.setattr(_mapping, "MANY_KEYS", 0)
    monkeypatch.setattr(_shards, "MANY_KEYS", 0)


@pytest.mark.usefixtures("large")
def test_what_takes_long_is_said_at_once_and_nothing_contradicts_it(
    counted: Counted, checkpoint: Checkpoint, assets: str
) -> None:
    counted.gate = threading.Semaphore(0)
    wizard = widgets.Wizard(model_assets_dir=assets)
    wizard.open_step.path.value = checkpoint.path  # comes back at once
    assert text(wizard.open_step.found) == f"Reading {checkpoint.path} …" and roles(wizard.open_step.found) == [
        "status"
    ]
    assert text(wizard.why) == "The checkpoint is being read; wait a moment." and wizard.next.disabled
    wizard.open_step.read.click()  # on its way while it is read
    go(counted, 1, wizard.open_step)
    assert "100 tensors (" in text(wizard.open_step.found) and text(wizard.why) == ""

    wizard.step = 2
    mapping = wizard.mapping_step
    assert text(mapping.verdict) == "Mapping 100 keys …" and roles(mapping.verdict) == ["status"]
    assert text(wizard.why) == "The keys are being mapped; wait a moment."
    assert (mapping.found.value, mapping.tabs.layout.display, mapping.message.value) == ("", "none", "")
    go(counted, 1, mapping)
    assert text(mapping.verdict).startswith("Nothing is known about the model") and not wizard.next.disabled
    wizard.mapping_step.dtype_choice.value = "float32"
    assert mapping.tabs.layout.display == "" and text(mapping.verdict).startswith("Nothing is known about the model")

    wizard.next.click()
    assert text(wizard.try_step.facts) == "Planning the files of 25 tensors …"
    wizard.next.click()
    shards = wizard.shards_step
    assert text(shards.found) == "Planning the files of 25 tensors …" and roles(shards.found) == ["status"]
    assert text(wizard.why) == "The files are being planned; wait a moment."
    assert (shards.files.layout.display, shards.figure.value) == ("none", "")
    go(counted, 2, shards)
    assert text(shards.found).startswith("1 file, ") and "<svg" in shards.figure.value
    wizard.next.click()
    convert = wizard.convert_step
    convert.assets.value = ""
    assert text(convert.found) == "Mapping 100 keys …" and not convert.lines.texts and convert.job.start.disabled
    go(counted, 2, mapping, shards)
    assert text(convert.found).startswith("Writes 1 file, ")
    assert counted.taken() == {"read": 1, "preview": 2, "plan": 2, "shards": 1}


def go(counted: Counted, calls: int, *steps: Any) -> None:
    """Let so many calls pass, and wait for the steps."""
    assert counted.gate is not None
    counted.gate.release(calls)
    for step in steps:
        step.join(30)


def enabled(step: Any) -> set[str]:
    """The fields and buttons that can be used, by what is written on them."""
    shown = (widget for widget in children(step) if getattr(widget, "layout", W.Layout()).display != "none")
    return {widget.description for widget in shown if not getattr(widget, "disabled", True)}


BESIDE = {"Close", "Write a review", "Review", "Show 3 infos", "Colour by"}  # nothing that is written depends on them


def test_nothing_that_a_run_depends_on_can_be_changed_meanwhile(
    wizard: widgets.Wizard, waiting_write: tuple[threading.Event, threading.Event]
) -> None:
    started, go_on = waiting_write
    while wizard.step < 5:
        wizard.next.click()
    steps = wizard.steps[:1] + wizard.steps[2:6]
    before = [enabled(step) for step in steps]
    convert = wizard.convert_step
    convert.job.start.click()
    assert started.wait(30)
    assert enabled(convert) == {"Cancel"} and wizard.under_way.layout.display == "none"
    assert convert.blocked == "The model is being written; wait for it, or cancel." and wizard.next.disabled
    wizard.back.click()
    assert [enabled(step) for step in steps] == [
        set(), before[1] & BESIDE, set(), before[3] & BESIDE, {"Cancel"},
    ]  # fmt: skip
    assert wizard.under_way.layout.display == "" and roles(wizard.running) == ["status"]
    assert text(wizard.running).startswith("The model is being written.")
    wizard.return_.click()
    assert heading(wizard) == "Step 6 of 7"
    go_on.set()
    finished(convert)
    assert [enabled(step) for step in steps[:4]] == before[:4]
    assert enabled(convert) == before[4] - {"Convert"}  # that is done
    assert wizard.under_way.layout.display == "none" and not wizard.next.disabled


@pytest.mark.usefixtures("large")
def test_what_is_changed_while_it_is_computed_is_not_shown(counted: Counted, mapping: KeyMapping) -> None:
    counted.gate = threading.Semaphore(0)
    step = widgets.Shards(mapping, shard_size=1000)
    sizes: list[int] = []
    step.observe(lambda change: sizes.append(change["new"] and change["new"].options.shard_size), "plan")
    step.size.value = "500"
    step.size.value = "many"
    assert "'many' is not a size in bytes." in text(step.message) and step.found.value == ""
    step.size.value = "700"
    go(counted, 4, step)
    assert sizes == [700] and step.plan.options.shard_size == 700 and "<svg" in step.figure.value
    counted.gate = threading.Semaphore(0)  # how often the step above planned is a matter of the moment
    reading = widgets.Open(mapping.checkpoint.path)
    reading.path.value = "/nowhere"
    go(counted, 2, reading)
    assert reading.checkpoint is None and "/nowhere" in text(reading.message)
