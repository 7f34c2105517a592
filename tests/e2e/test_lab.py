"""The wizard in a real JupyterLab in a real Chromium, as somebody would click through it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import broken, models, saved
from checkpoints.edit import dump_metadata, torch_item
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from dcptools.demo import Demo
from e2e.conftest import Opened, Page, expect
from e2e.servers import RUN_ALL, Server

pytestmark = pytest.mark.e2e
Wizard = Callable[..., Opened]


def test_from_checkpoint_to_model_by_clicking(wizard: Wizard, demo: Demo, tmp_path: Path) -> None:
    shown = wizard()
    page, target = shown.page, tmp_path / "model"

    shown.at(1, "Checkpoint")
    expect(
        page.get_by_role("status").filter(has_text="pickled objects, written by 4 ranks in 4 files.")
    ).to_be_visible()
    shown.click("Next")

    shown.at(2, "Inspect")
    expect(page.get_by_role("gridcell", name="extra_state.loss", exact=True)).to_be_visible()
    page.get_by_role("button", name="Tree", exact=True).click()
    expect(page.get_by_role("gridcell", name="layers.{0..3}")).to_be_visible()
    shown.click("Next")

    shown.at(3, "Mapping")
    verdict = "This is Qwen3ForCausalLM: 47 of 47 weights, every shape fits."
    expect(page.get_by_role("status").filter(has_text=verdict)).to_be_visible(timeout=120_000)
    expect(page.get_by_role("gridcell", name="model.lm_head.weight", exact=True)).to_be_visible()
    expect(page.get_by_role("gridcell", name="lm_head.weight", exact=True)).to_be_visible()
    read_warnings = page.get_by_role("checkbox", name="I have read the warnings")
    if read_warnings.is_visible():
        read_warnings.check()
    shown.click("Next")

    shown.at(4, "Try it")
    shown.click("Try it")
    expect(page.get_by_test_id("said")).to_have_text(re.compile("^The"), timeout=120_000)
    assert not target.exists()
    shown.click("Next")
    shown.at(5, "Shards")
    shown.enter("Bytes", "400kB")
    expect(page.get_by_role("gridcell", name=re.compile("^model-00002-of-"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("of the output files of a plan"))).to_be_visible()
    shown.click("Next")

    shown.at(6, "Convert")
    shown.enter("Save to", str(target))
    assert not target.exists()
    command = page.get_by_test_id("shell-line").filter(visible=True)
    expect(command).to_contain_text(f"--save-dir {target} --model-assets-dir {demo.assets} --shard-size 400000")
    expect(page.get_by_role("button", name="Copy the line for Shell", exact=True)).to_be_visible()
    convert = page.get_by_role("button", name="Convert", exact=True)
    convert.dblclick()
    page.wait_for_timeout(200)
    convert.click(force=True)
    expect(page.get_by_role("status").filter(has_text=f"to {target}.").filter(has_text="Wrote")).to_be_visible()
    expect(convert).to_be_disabled()
    shown.click("Next")

    shown.at(7, "Result")
    names = {path.name for path in target.iterdir()}
    page.locator("summary").filter(has_text=f"{len(names)} files").click()
    for name in names:
        expect(page.get_by_role("cell", name=name, exact=True)).to_be_visible()
    assert {"model.safetensors.index.json", "config.json", "tokenizer.json"} < names
    expect(page.get_by_text(f"AutoModelForCausalLM.from_pretrained('{target}', dtype='auto')")).to_be_visible()
    expect(page.get_by_role("button", name="Next", exact=True)).to_be_disabled()
    assert_is_the_model(target, demo)

    page.get_by_role("button", name="Back", exact=True).click()
    page.get_by_role("checkbox", name="Overwrite an existing model").check()
    for _ in range(5):
        shown.click("Back")
    other = saved.trained(tmp_path / "other", saved.model_state(layers=1), optimizer=False)
    shown.enter("Path", str(other))
    expect(page.get_by_role("status").filter(has_text="14 tensors")).to_be_visible()
    for number, name in ((2, "Inspect"), (3, "Mapping")):
        shown.click("Next")
        shown.at(number, name)
    page.get_by_role("checkbox", name="I have read the warnings").check()
    for number, name in ((4, "Try it"), (5, "Shards"), (6, "Convert")):
        shown.click("Next")
        shown.at(number, name)
    expect(page.get_by_role("textbox", name="Save to")).to_have_value(f"{other}/hf_ckpt")
    expect(page.get_by_role("checkbox", name="Overwrite an existing model")).not_to_be_checked()
    expect(page.get_by_role("textbox", name="Assets").last).to_have_value("")


def assert_is_the_model(directory: Path, demo: Demo) -> None:
    weight_map = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    live = load_file(demo.live)
    assert weight_map.keys() == live.keys()
    assert len(set(weight_map.values())) > 1
    for name, filename in weight_map.items():
        with safe_open(directory / filename, framework="pt") as file:
            assert torch.equal(file.get_tensor(name), live[name].bfloat16()), name


def of_no_known_model(directory: Path) -> Path:
    """A config and a tokenizer of which nothing is known, so that nothing is held against a model."""
    directory.mkdir()
    (directory / "config.json").write_text(models.UNKNOWN_CONFIG)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_a_broken_checkpoint_is_said_in_words_and_goes_no_further(wizard: Wizard, tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    shown = wizard(load_dir=tmp_path / "hole", model_assets_dir=of_no_known_model(tmp_path / "assets"))
    page, following = shown.page, shown.page.get_by_role("button", name="Next", exact=True)
    words = "error[hole] model.model.w: nothing is stored for [2:4] of 6 along dimension 0"
    expect(page.get_by_role("alert").filter(has_text=words)).to_be_visible()
    shown.click("Next")
    shown.at(2, "Inspect")
    shown.click("Next")
    shown.at(3, "Mapping")
    expect(page.get_by_role("alert").filter(has_text=words).first).to_be_visible()
    expect(
        page.get_by_role("alert").filter(has_text="1 error: this cannot be converted with these options.")
    ).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="The mapping has errors")).to_be_visible()
    expect(following).to_be_disabled()
    shown.click("Back")
    shown.click("Back")
    shown.at(1, "Checkpoint")
    shown.enter("Path", str(tmp_path / "nowhere"))
    expect(page.get_by_role("alert").filter(has_text="nowhere")).to_be_visible()
    expect(following).to_be_disabled()


def test_a_checkpoint_that_is_not_the_model_is_told_and_goes_on_when_that_is_allowed(
    wizard: Wizard, tmp_path: Path
) -> None:
    """The config is that of a real architecture, which is built while the first steps are looked at."""
    assets = of_no_known_model(tmp_path / "assets")
    (assets / "config.json").write_text(json.dumps(models.QWEN3_CONFIG))
    state = saved.model_state()
    del state["model.norm.weight"]
    shown = wizard(load_dir=saved.trained(tmp_path / "step-100", state), model_assets_dir=assets)
    page, following = shown.page, shown.page.get_by_role("button", name="Next", exact=True)
    shown.click("Next")
    shown.click("Next")
    shown.at(3, "Mapping")
    verdict = page.get_by_role("alert").filter(
        has_text="This is not Qwen3ForCausalLM: 24 of 25 weights fit, 1 missing."
    )
    expect(verdict).to_be_visible(timeout=120_000)
    expect(page.get_by_role("cell", name="24 of 25", exact=True).first).to_be_visible()
    expect(following).to_be_disabled()

    expect(page.get_by_role("status").filter(has_text="25 weights")).to_be_visible()
    page.get_by_role("button", name="missing 1", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="1 of 25 weights")).to_be_visible()
    expect(page.get_by_role("gridcell", name="model.norm.weight", exact=True)).to_be_visible()
    expect(page.get_by_role("gridcell", name="lm_head.weight", exact=True)).to_be_hidden()

    page.get_by_role("checkbox", name="Allow a mismatch").check()
    expect(page.get_by_role("alert").filter(has_text="look at them before you go on.")).to_be_visible()
    expect(verdict).to_be_visible()
    page.get_by_role("checkbox", name="I have read the warnings").check()
    shown.click("Next")
    shown.at(4, "Try it")
    shown.click("Next")
    shown.at(5, "Shards")
    shown.click("Next")
    shown.at(6, "Convert")
    expect(page.get_by_test_id("shell-line").filter(visible=True)).to_contain_text("--allow-mismatch")


def large(directory: Path, keys: int, megabytes: int) -> Path:
    """Zeros in gigabytes that take no room on the disk: one item in a file of holes, under many keys."""
    directory.mkdir()
    payload = torch_item(torch.zeros(megabytes << 18))
    with (directory / "__0_0.distcp").open("wb") as file:
        for start in range(0, len(payload), 1 << 20):
            piece = payload[start : start + (1 << 20)]
            if any(piece):
                file.seek(start)
                file.write(piece)
        file.truncate(len(payload))
    info = _StorageInfo("__0_0.distcp", 0, len(payload))
    write_metadata(directory, {f"model.model.w{n:02d}": ((megabytes << 18,), info) for n in range(keys)})
    return directory


def write_metadata(directory: Path, tensors: dict[str, tuple[tuple[int, ...], _StorageInfo]]) -> None:
    """float32 tensors of one chunk each, as torch lists them."""
    metadata = Metadata({}, planner_data={}, storage_data={})
    for key, (shape, info) in tensors.items():
        zero, size = torch.Size((0,) * len(shape)), torch.Size(shape)
        properties = TensorProperties(dtype=torch.float32)
        metadata.state_dict_metadata[key] = TensorStorageMetadata(properties, size, [ChunkStorageMetadata(zero, size)])
        metadata.planner_data[key] = ("model", key.removeprefix("model."))
        metadata.storage_data[MetadataIndex(key, zero, 0)] = info
    dump_metadata(directory, metadata)


def test_a_running_conversion_is_cancelled_and_leaves_nothing(wizard: Wizard, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    checkpoint = large(tmp_path / "large", keys=32, megabytes=256)
    shown = wizard(load_dir=checkpoint, model_assets_dir=of_no_known_model(tmp_path / "assets"), save_dir=target)
    page = shown.page
    for _ in range(5):
        shown.click("Next")
    shown.at(6, "Convert")
    shown.click("Convert")
    expect(page.get_by_role("status").filter(has_text=re.compile(r"^\d+%: .* of 4.29 GB"))).to_be_visible()
    expect(page.get_by_role("progressbar", name="Convert: progress")).to_have_attribute("aria-valuemax", "100")
    expect(page.get_by_role("textbox", name="Save to")).to_be_disabled()
    shown.click("Back")
    shown.at(5, "Shards")
    expect(page.get_by_role("slider", name="Shard size")).to_be_disabled()
    expect(page.get_by_role("status").filter(has_text="The model is being written.")).to_be_visible()
    shown.click("Show it")
    shown.at(6, "Convert")
    start = time.monotonic()
    shown.click("Cancel")
    expect(page.get_by_role("status").filter(has_text="cancelled; nothing half-written is left")).to_be_visible()
    print(f"cancel: {time.monotonic() - start:.2f} s from the click to the message")
    assert [path.name for path in target.iterdir()] == ["notes.txt"]
    expect(page.get_by_role("button", name="Convert", exact=True)).to_be_enabled()
    expect(page.get_by_role("button", name="Next", exact=True)).to_be_disabled()
    expect(page.locator(".dcp-voice").filter(has_text="cancelled")).to_have_attribute("aria-live", "polite")

    place = page.get_by_role("textbox", name="Save to")
    expect(place).to_be_enabled()
    shown.enter("Save to", str(tmp_path / "not" / "there"))
    place.press("Tab")
    page.keyboard.press("Enter")
    folders = page.get_by_role("listbox", name=str(tmp_path))
    expect(folders).to_be_focused()
    expect(folders.get_by_role("option")).to_have_text(["assets/", "large/", "model/"])
    for key in ("ArrowDown", "End", "ArrowRight"):
        page.keyboard.press(key)
    inside = page.get_by_role("group", name=str(target), exact=True)  # without folders no list box
    expect(inside).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(folders.get_by_role("option", selected=True)).to_have_text("model/")
    page.keyboard.press("Escape")
    expect(folders).to_be_hidden()
    expect(place).to_have_value(str(tmp_path / "not" / "there"))
    browse = page.get_by_role("button", name="Browse").filter(visible=True).first
    expect(browse).to_be_focused()
    page.keyboard.press("Enter")
    expect(folders.get_by_role("option")).to_have_text(["assets/", "large/", "model/"])
    page.keyboard.press("m")
    page.get_by_role("button", name="Choose model", exact=True).click()
    expect(place).to_have_value(str(target))


KEYS = 100_000


@pytest.fixture(scope="session")
def hundred_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a hundred thousand keys: true metadata, and a file of the right size with nothing in it."""
    directory = tmp_path_factory.mktemp("many") / "checkpoint"
    directory.mkdir()
    names = ("gate_proj", "up_proj", "down_proj", "shared")
    keys = [
        f"model.model.layers.{layer}.mlp.experts.{expert}.{name}.weight"
        for layer in range(50)
        for expert in range(500)
        for name in names
    ]
    assert len(keys) == KEYS
    places = {key: ((32, 32), _StorageInfo("__0_0.distcp", 8192 * n, 5500)) for n, key in enumerate(keys)}
    with (directory / "__0_0.distcp").open("wb") as file:
        file.truncate(8192 * KEYS)
    write_metadata(directory, places)
    return directory


def test_a_hundred_thousand_keys_are_searched(
    wizard: Wizard, hundred_thousand: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = wizard(load_dir=hundred_thousand)
    page, at_first = shown.page, shown.traffic.received
    start = time.monotonic()
    shown.click("Next")
    shown.at(2, "Inspect")
    expect(page.get_by_role("status").filter(has_text=f"{KEYS:,} keys")).to_be_visible()
    expect(page.get_by_role("gridcell", name=re.compile(r"^model\.model\.layers\.0\.")).first).to_be_visible()
    first_rows, first_bytes = time.monotonic() - start, shown.traffic.received - at_first

    before, start = shown.traffic.received, time.monotonic()
    page.get_by_role("searchbox", name="Search keys").filter(visible=True).fill("layers.49.mlp.experts.499.")
    expect(page.get_by_role("status").filter(has_text=f"4 of {KEYS:,} keys")).to_be_visible()
    search, search_bytes = time.monotonic() - start, shown.traffic.received - before
    for name in ("down_proj", "gate_proj", "shared", "up_proj"):
        key = f"model.model.layers.49.mlp.experts.499.{name}.weight"
        expect(page.get_by_role("gridcell", name=key, exact=True)).to_be_visible()
    with capsys.disabled():
        print(
            f"\n{KEYS:,} keys: notebook run in {shown.seconds:.1f} s ({at_first:,} bytes), "
            f"first rows after Next {first_rows:.2f} s ({first_bytes:,} bytes), "
            f"search {search:.2f} s ({search_bytes:,} bytes)"
        )
    assert shown.traffic.received < 2_000_000  # bytes; all rows would be 20 MB


SCRIPT = "<script>window.__xss=1</script>"
IMAGE = "<img src=x onerror=window.__xss=2>"


def test_names_of_a_checkpoint_run_no_code(wizard: Wizard, tmp_path: Path) -> None:
    state = {f"model.{SCRIPT}": torch.ones(2), f"model.{IMAGE}.w": torch.ones(2), f"{IMAGE}": torch.ones(2)}
    checkpoint = saved.save(tmp_path / IMAGE, {"model": state, SCRIPT: 1})
    shown = wizard(load_dir=checkpoint)
    page = shown.page
    expect(page.get_by_role("status").filter(has_text="tensors (").first).to_be_visible()
    shown.click("Next")
    shown.at(2, "Inspect")
    expect(page.get_by_role("gridcell", name=f"model.model.{SCRIPT}", exact=True)).to_be_visible()
    shown.click("Tree")
    shown.click("Expand all")
    expect(page.get_by_role("gridcell", name=re.compile(re.escape("<img src=x"))).first).to_be_visible()
    shown.click("Tree")
    page.get_by_role("searchbox").filter(visible=True).fill("<img")
    page.get_by_role("gridcell", name=f"model.model.{IMAGE}.w", exact=True).click()
    expect(page.get_by_text("First values")).to_be_visible()
    shown.click("Next")
    shown.at(3, "Mapping")
    expect(page.get_by_role("gridcell", name=f"model.{SCRIPT}", exact=True)).to_be_visible()
    page.get_by_role("checkbox", name="I have read the warnings").check()
    shown.click("Next")
    shown.at(4, "Try it")
    shown.click("Next")
    shown.at(5, "Shards")
    shown.enter("Bytes", IMAGE)
    expect(page.get_by_role("alert").filter(has_text=IMAGE)).to_be_visible()
    shown.enter("Bytes", "1MB")
    shown.click("Next")
    shown.at(6, "Convert")
    expect(page.get_by_test_id("shell-line").filter(visible=True)).to_contain_text(IMAGE)
    assert page.evaluate("() => window.__xss") is None
    assert page.locator(".dcptools script, .dcptools img[src='x']").count() == 0


def test_comparing_two_models_by_clicking(lab: Server, pages: Callable[[], Page]) -> None:
    page = pages()
    page.goto(lab.url("6-compare.ipynb"))
    ended = page.evaluate(RUN_ALL, "6-compare.ipynb")
    assert ended and all(number and not error for number, error in ended), ended
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="46 equal, 1 with other values.")).to_be_visible()
    widget = page.locator(".dcptools")
    expect(widget.get_by_role("img", name=re.compile("^Heat map of A and B"))).to_be_visible()
    first = widget.get_by_role("row").nth(1)
    expect(first.get_by_role("gridcell", name="model.layers.0.mlp.up_proj.weight", exact=True)).to_be_visible()
    widget.get_by_role("combobox", name="Colour").select_option("share of values that differ")
    expect(widget.get_by_role("img", name=re.compile("of layer 0: 1\\.$"))).to_be_visible()
