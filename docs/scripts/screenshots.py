"""Take the pictures of docs/images: the wizard step by step in a real JupyterLab, and figures of a plan and of values.

    python docs/scripts/screenshots.py [DIRECTORY]

Needs the extras `notebook` and `test`, and a chromium. What the pictures show depends on fonts and on the machine's
free disk space, so nothing compares them; look at them before they are committed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.e2e.servers import CHROMIUM_FLAGS, NO_CHROMIUM, RUN_ALL, find_chromium, jupyterlab  # noqa: E402

IMAGES = ROOT / "docs" / "images"
NOTEBOOK = "5-wizard.ipynb"
STEPS = ("checkpoint", "inspect", "mapping", "try", "shards", "convert", "result")
PARAMETERS = 'load_dir = "step-100"\nmodel_assets_dir = "assets"\nsave_dir = "model"'
SHARD_SIZE = "400kB"  # cuts the demo into a handful of files
WIDTH, HEIGHT, SCALE = 1240, 2000, 2  # CSS pixels of the window, and device pixels of each
MARGIN = 12  # CSS pixels around the wizard
ALONE = """.jp-InputArea, .jp-Collapser, .jp-OutputPrompt, .jp-Toolbar { visibility: hidden !important }
.jp-Notebook .jp-Cell { border-color: transparent !important; background: transparent !important }"""
COLOURS = 128
MAX_BYTES = 200_000  # of a picture


def main() -> None:
    from dcptools.demo import default_demo

    target = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    target.mkdir(parents=True, exist_ok=True)
    demo = default_demo()
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(demo.checkpoint, Path(scratch, "root", "step-100"))
        shutil.copytree(demo.assets, Path(scratch, "root", "assets"))
        write_notebook(Path(scratch, "root", NOTEBOOK))
        with jupyterlab(Path(scratch), Path(scratch, "root"), demo.directory) as server, chromium() as browser:
            photograph(browser, server.url(NOTEBOOK), target)
    draw_shards(demo.checkpoint, target / "shards.png")
    draw_values(demo.checkpoint, target / "values.png")
    for path in sorted(target.glob("*.png")):
        print(f"{path}: {path.stat().st_size:,} bytes")


def write_notebook(path: Path) -> None:
    """The wizard's notebook with short relative paths, which is what the pictures show."""
    notebook = nbformat.read(ROOT / "notebooks" / NOTEBOOK, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source = PARAMETERS
    nbformat.write(notebook, path)


@contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        raise SystemExit(NO_CHROMIUM)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


def photograph(browser: Browser, url: str, target: Path) -> None:
    """Click through the wizard, with a picture of each step."""
    page = browser.new_page(
        viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE, color_scheme="light"
    )
    page.goto(url)
    page.evaluate(RUN_ALL, NOTEBOOK)
    page.evaluate("window.jupyterapp.shell.collapseLeft()")
    page.add_style_tag(content=ALONE)
    for number, step in enumerate(STEPS, start=1):
        page.get_by_role("heading", name=f"Step {number} of {len(STEPS)}").wait_for()
        act(page, step)
        picture(page, target / f"wizard-{number}-{step}.png")
        if number < len(STEPS):
            page.get_by_role("button", name="Next", exact=True).click()


def act(page: Page, step: str) -> None:
    """What a person does in a step before looking at it."""
    if step == "mapping":
        page.get_by_text("every shape fits").first.wait_for()
    if step == "try":
        page.get_by_label("Prompt", exact=True).fill("The shards")
        page.get_by_label("Text", exact=True).fill("The shards are written.")
        page.get_by_role("button", name="Try it", exact=True).click()
        page.get_by_text("Loss on the text").wait_for(timeout=120_000)
    if step == "shards":
        page.get_by_label("Bytes", exact=True).fill(SHARD_SIZE)
        page.keyboard.press("Enter")
        page.get_by_text("model-00001-of-").first.wait_for()
    if step == "convert":
        page.get_by_role("button", name="Convert", exact=True).click()
        page.get_by_text("done in").first.wait_for()  # to be seen, and to be heard


def picture(page: Page, path: Path) -> None:
    """The wizard alone, in few colours, so that it stays small."""
    from PIL import Image

    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(700)  # ms; images inside of it, and the notebook's own scrolling, come to rest
    box = page.locator(".dcptools").first.bounding_box()
    assert box is not None
    width, height = box["width"] + 2 * MARGIN, box["height"] + 2 * MARGIN
    clip = {"x": box["x"] - MARGIN, "y": box["y"] - MARGIN, "width": width, "height": height}
    page.screenshot(path=path, clip=clip)
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}.")


def draw_shards(checkpoint: Path, path: Path) -> None:
    """The figure of notebooks/3-shard-plan.ipynb."""
    import dcptools
    from dcptools import plots

    save(plots.shards(dcptools.plan(checkpoint, shard_size=SHARD_SIZE)), path)


def draw_values(checkpoint: Path, path: Path) -> None:
    """The values of the demo's model after some of its layers were broken."""
    import torch.distributed.checkpoint as dcp

    import dcptools
    from dcptools import plots

    keys = [key for key in dcptools.read(checkpoint).tensors if key.startswith("model.")]
    state = {key: dcptools.load_tensor(checkpoint, key) for key in keys}
    state["model.model.layers.2.mlp.up_proj.weight"] *= 9
    state["model.model.layers.1.self_attn.q_proj.weight"] /= 3
    state["model.model.layers.3.mlp.gate_proj.weight"][0, 0] = float("nan")
    with tempfile.TemporaryDirectory() as scratch:
        dcp.save(state, checkpoint_id=scratch, no_dist=True)
        save(plots.values(scratch), path)


def save(figure: Figure, path: Path) -> None:
    """A figure in few colours, so that it stays small."""
    from PIL import Image

    figure.savefig(path, dpi=180)
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
