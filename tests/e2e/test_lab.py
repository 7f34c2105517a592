"""The wizard in a real JupyterLab in a real Chromium: what a user clicks, and what is on the disk afterwards."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import broken, saved
from safetensors import safe_open

pytestmark = pytest.mark.e2e
Run = Callable[..., Any]


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as expected

    return expected(locator)


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def go_on(page: Any, step: int, title: str) -> None:
    accept = page.get_by_label("I have read the warnings")
    if accept.is_visible():
        accept.check()
    button(page, "Next").click()
    expect(page.get_by_role("heading", name=f"Step {step} of 6: {title}")).to_be_visible(timeout=20_000)


def test_click_through_to_a_model(run_notebook: Run, demo: Any, tmp_path: Path) -> None:
    out = tmp_path / "model"
    paths = {"load_dir": demo.checkpoint, "model_assets_dir": demo.assets, "save_dir": out}
    page = run_notebook("5-wizard.ipynb", **{name: str(path) for name, path in paths.items()})
    expect(page.get_by_text("written by 4 ranks in 4 files")).to_be_visible(timeout=20_000)
    go_on(page, 2, "Inspect")
    page.get_by_role("tab", name="Tree", exact=True).click()
    expect(page.get_by_role("button", name="layers.{0..3}")).to_be_visible(timeout=20_000)
    go_on(page, 3, "Mapping")
    expect(page.get_by_role("cell", name="model.embed_tokens.weight", exact=True)).to_be_visible()
    go_on(page, 4, "Shards")
    page.get_by_label("Bytes").fill("500kB")
    page.get_by_label("Bytes").press("Enter")
    expect(page.get_by_role("cell", name="model-00001-of-00004.safetensors")).to_be_visible(timeout=20_000)
    go_on(page, 5, "Convert")
    assert not out.exists()
    expect(page.locator("[data-testid=command]")).to_contain_text("--shard-size 500000")
    button(page, "Convert").click()
    expect(page.get_by_text("Wrote 1.45 MB to")).to_be_visible(timeout=60_000)
    go_on(page, 6, "Result")
    expect(page.get_by_role("cell", name="model.safetensors.index.json")).to_be_visible()
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < names
    assert {f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)} < names
    with safe_open(out / "model-00001-of-00004.safetensors", framework="pt") as file:
        assert file.get_tensor("lm_head.weight").dtype == torch.bfloat16


def test_a_broken_checkpoint_is_explained_and_goes_no_further(run_notebook: Run, demo: Any, tmp_path: Path) -> None:
    broken.hole(tmp_path / "hole")
    page = run_notebook("5-wizard.ipynb", load_dir=str(tmp_path / "hole"), model_assets_dir=str(demo.assets))
    go_on(page, 2, "Inspect")
    go_on(page, 3, "Mapping")
    expect(page.get_by_role("alert").filter(has_text="error[hole]").first).to_be_visible()
    expect(button(page, "Next")).to_be_disabled()
    expect(page.get_by_text("The mapping has errors")).to_be_visible()


def test_what_is_no_checkpoint_is_said_in_plain_words(run_notebook: Run, tmp_path: Path) -> None:
    page = run_notebook("5-wizard.ipynb", load_dir=str(tmp_path))
    expect(page.get_by_role("alert").filter(has_text="is an empty directory").first).to_be_visible()
    expect(button(page, "Next")).to_be_disabled()


def test_cancel_leaves_nothing(run_notebook: Run, tmp_path: Path) -> None:
    state = {f"model.layers.{n}.weight": torch.zeros(64, 1 << 20) for n in range(6)}  # 1.6 GB: seconds to write
    saved.save(tmp_path / "large", {"model": {f"model.{name}": value for name, value in state.items()}})
    out = tmp_path / "model"
    page = run_notebook("5-wizard.ipynb", load_dir=str(tmp_path / "large"), save_dir=str(out))
    for step, title in ((2, "Inspect"), (3, "Mapping"), (4, "Shards"), (5, "Convert")):
        go_on(page, step, title)
    page.evaluate(
        """() => {
        const named = (name) => [...document.querySelectorAll('button')].find(b => b.innerText.trim() === name);
        named('Convert').click();
        const timer = setInterval(() => { const b = named('Cancel');
          if (b && !b.disabled) { clearInterval(timer); b.click(); } }, 5); }"""
    )
    expect(page.get_by_text("cancelled; nothing half-written is left")).to_be_visible(timeout=30_000)
    assert not out.exists() or not list(out.iterdir())


def many_keys(directory: Path, count: int) -> None:
    """A checkpoint of so many tensors, as metadata and one sparse file."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    directory.mkdir()
    none, shape, properties = torch.Size((0, 0)), torch.Size((8, 8)), TensorProperties(dtype=torch.bfloat16)
    keys = [f"model.model.layers.{n // 1000}.mlp.experts.{n % 1000}.weight" for n in range(count)]
    metadata = Metadata(
        {key: TensorStorageMetadata(properties, shape, [ChunkStorageMetadata(none, shape)]) for key in keys},
        {key: ("model", key[6:]) for key in keys},
        {MetadataIndex(key, none): _StorageInfo("__0_0.distcp", n * 2048, 2048) for n, key in enumerate(keys)},
    )
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    with (directory / "__0_0.distcp").open("wb") as file:
        file.truncate(count * 2048)


def test_a_hundred_thousand_keys_are_searched_at_once(run_notebook: Run, tmp_path: Path) -> None:
    many_keys(tmp_path / "many", 100_000)
    page = run_notebook("5-wizard.ipynb", load_dir=str(tmp_path / "many"))
    go_on(page, 2, "Inspect")
    expect(page.get_by_text("Rows 1 to 20 of 100,000")).to_be_visible(timeout=30_000)
    started = time.monotonic()
    page.get_by_placeholder("Search keys", exact=True).first.fill("layers.77.mlp.experts.123.")
    expect(page.get_by_text("Rows 1 to 1 of 1 (of 100,000 in all)")).to_be_visible(timeout=30_000)
    print(f"search among 100,000 keys: {time.monotonic() - started:.2f} s until the row is there")
    expect(page.get_by_role("cell", name="model.model.layers.77.mlp.experts.123.weight")).to_be_visible()


def test_names_from_the_file_are_never_markup(run_notebook: Run, tmp_path: Path) -> None:
    names = ("<script>window.__owned=1</script>", "<img src=x onerror='window.__owned=1'>")
    saved.save(tmp_path / "hostile", {"model": {f"model.{name}": torch.ones(2, 2) for name in names}})
    page = run_notebook("5-wizard.ipynb", load_dir=str(tmp_path / "hostile"))
    go_on(page, 2, "Inspect")
    expect(page.get_by_role("cell", name=f"model.model.{names[0]}")).to_be_visible()
    go_on(page, 3, "Mapping")
    expect(page.get_by_role("cell", name=f"model.{names[1]}", exact=True)).to_be_visible()
    assert page.evaluate("window.__owned") is None
