"""The page that ``dcptools review`` writes, in a real Chromium: without a network, and with hostile keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import saved

import dcptools
from dcptools.demo import Demo
from e2e.conftest import Browser, expect
from e2e.looking import AUDIT, AXE, FAINT

pytestmark = pytest.mark.e2e
SCRIPT = "<script>window.__xss=1</script>"
CLOSING = "</script><script>window.__xss=2</script>"
IMAGE = "<img src=x onerror=window.__xss=3>"
COMMENT = "<!--<script>"

LINES = """cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return new Set([...range.getClientRects()].map(box => box.top)).size;
}"""


def test_a_colleague_searches_and_filters(chromium: Browser, demo: Demo, tmp_path: Path) -> None:
    target = tmp_path / "review.html"
    words = ["review", demo.checkpoint, "--html", target, "--model-assets-dir", demo.assets, "--shard-size", "400kB"]
    subprocess.run([sys.executable, "-m", "dcptools", *words, "--dtype-for", "*norm*=float32"], check=True)
    context = chromium.new_context(offline=True)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(target.as_uri())
    assert asked == [target.as_uri()] and said == []  # nothing else is loaded, and the policy had nothing to refuse

    expect(page.get_by_text("This is Qwen3ForCausalLM: 47 of 47 weights, every shape fits")).not_to_have_count(0)
    mapping, left = page.locator("section[data-rows=outputs]"), page.locator("section[data-rows=leftovers]")
    expect(mapping.get_by_role("status")).to_have_text("47 of 47 rows shown, 47 in all")
    mapping.get_by_role("searchbox", name="Search").fill("LAYERS.0.mlp")
    expect(mapping.get_by_role("status")).to_have_text("3 of 3 rows shown, 47 in all")
    expect(mapping.get_by_role("cell", name="model.layers.0.mlp.up_proj.weight", exact=True)).to_be_visible()
    mapping.get_by_role("searchbox", name="Search").fill("")
    mapping.get_by_role("combobox", name="written as").select_option("float32")
    expect(mapping.get_by_role("status")).to_have_text("17 of 17 rows shown, 47 in all")
    expect(left.get_by_role("status")).to_have_text("157 of 157 rows shown, 157 in all")
    left.get_by_role("combobox", name="kind").select_option("object")
    expect(left.get_by_role("status")).to_have_text("15 of 15 rows shown, 157 in all")

    page.evaluate(AXE.read_text("utf-8"))
    assert page.evaluate(AUDIT, "html") == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(FAINT, "html") == []
    for width in (360, 700, 1400):  # what is wider scrolls in its own box, and no name is cut into pieces
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        key = mapping.get_by_role("cell", name="model.model.layers.0.input_layernorm.weight", exact=True)
        assert key.evaluate(LINES) == 1

    expect(page.get_by_role("img", name="coloured by layer")).to_be_visible()
    expect(page.get_by_text(f"--load-dir {demo.checkpoint}").first).to_contain_text("--dtype-for '*norm*=float32'")
    expect(page.get_by_role("cell", name=dcptools.__version__, exact=True)).to_be_visible()
    context.close()


def test_more_rows_are_shown_when_they_are_asked_for(chromium: Browser, tmp_path: Path) -> None:
    state = {f"model.layers.{n}.w": torch.ones(1) for n in range(450)}
    target = dcptools.review(saved.save(tmp_path / "c", {"model": state}), tmp_path / "review.html")
    page = chromium.new_page()
    page.goto(target.as_uri())
    mapping = page.locator("section[data-rows=outputs]")
    for shown in (200, 400, 450):
        expect(mapping.get_by_role("status")).to_have_text(f"{shown} of 450 rows shown, 450 in all")
        if shown < 450:
            mapping.get_by_role("button", name="Show more").click()
    expect(mapping.get_by_role("button", name="Show more")).to_be_hidden()
    page.close()


def test_names_of_a_checkpoint_run_no_code(chromium: Browser, tmp_path: Path) -> None:
    keys = (SCRIPT, CLOSING, IMAGE, COMMENT)
    state = {f"model.{key}.{number}": torch.ones(2) for number, key in enumerate(keys)}
    checkpoint = saved.save(tmp_path / IMAGE.replace("/", ""), {"model": state, CLOSING: torch.ones(2), IMAGE: 1})
    target = dcptools.review(checkpoint, tmp_path / "review.html", shard_size=8)
    page = chromium.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(target.as_uri())
    expect(page.locator("section[data-rows=outputs]").get_by_role("status")).to_have_text("4 of 4 rows shown, 4 in all")
    for number, key in enumerate(keys):
        expect(page.get_by_role("cell", name=f"model.{key}.{number}", exact=True).first).to_be_visible()
    assert page.evaluate("() => window.__xss") is None
    assert page.locator("script").count() == 3 and page.locator("img").count() == 0
    assert said == []

    tampered = tmp_path / "tampered.html"  # the policy holds also where the escaping would not
    tampered.write_text(target.read_text().replace("<main>", f"<main>{SCRIPT}{IMAGE}"))
    page.goto(tampered.as_uri())
    expect(page.locator("section[data-rows=outputs]").get_by_role("status")).to_have_text("4 of 4 rows shown, 4 in all")
    assert page.evaluate("() => window.__xss") is None
    assert any("Content Security Policy" in text for text in said)
    page.close()
