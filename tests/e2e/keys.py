"""The wizard by keyboard alone: each stop is in sight, and none is a trap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcptools.demo import Demo
from e2e.conftest import Opened, Page, expect

MOST_STOPS = 60  # presses of Tab from one end of a step to the other

# Where the focus is: in the wizard or not, what it is called, and whether one sees it: in the window, with a ring.
FOCUSED = """() => {
  const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
  const name = element.getAttribute('aria-label') || element.labels?.[0]?.textContent || element.textContent;
  const ringed = element.closest('.dcp-rows') && element.role === 'grid' ? element.closest('.dcp-rows') : element;
  const {outlineStyle, outlineWidth} = getComputedStyle(ringed);
  return {
    inside: element.closest('.dcptools') !== null,
    name: name.trim().replace(/[▲▼]$/, ''),
    ring: outlineStyle === 'solid' && parseFloat(outlineWidth) >= 2,
    seen: box.bottom > 0 && box.top < innerHeight,
  };
}"""


class Keys:
    """The keyboard of a page with the wizard."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def check(self) -> dict[str, Any]:
        """Where the focus is; in the wizard one must see it."""
        stop: dict[str, Any] = self.page.evaluate(FOCUSED)
        assert not stop["inside"] or (stop["ring"] and stop["seen"]), stop
        return stop

    def to(self, name: str, key: str = "Tab") -> None:
        """Press Tab until what is called so has the focus."""
        passed = []
        for _ in range(MOST_STOPS):
            self.press(key)
            stop = self.check()
            passed.append(stop["name"])
            if stop["inside"] and stop["name"] == name:
                return
        raise AssertionError(f"{name!r} is not among {passed}")

    def fill(self, name: str, text: str) -> None:
        """Go to a field, and put the text in place of what is in it."""
        self.to(name)
        self.press("Control+A")
        self.page.keyboard.insert_text(text)

    def back_to(self, name: str) -> None:
        self.to(name, "Shift+Tab")

    def go_on(self) -> None:
        """Back to the buttons above the step, and to the next one."""
        expect(self.page.get_by_role("button", name="Next", exact=True)).to_be_enabled()
        self.back_to("Next")
        self.press("Enter")

    def leave(self) -> None:
        """Press Tab until the focus is out of the wizard again."""
        for _ in range(MOST_STOPS):
            self.press("Tab")
            if not self.page.evaluate(FOCUSED)["inside"]:
                return
        raise AssertionError("the focus does not leave the wizard")


def walk(shown: Opened, demo: Demo, target: Path) -> Iterator[str]:
    """From an empty path to a model, and out of the wizard; stops where something may be looked at."""
    page, keys = shown.page, Keys(shown.page)
    shown.at(1, "Checkpoint")
    keys.to("Path")
    page.keyboard.insert_text(str(demo.checkpoint))
    keys.press("Enter")
    expect(page.get_by_role("status").filter(has_text="pickled objects, written by 4 ranks")).to_be_visible()
    yield "Checkpoint"
    keys.go_on()

    shown.at(2, "Inspect")
    keys.to("Keys")  # a tab, and its neighbours by the arrow keys
    keys.press("ArrowRight", "Enter")
    expect(page.get_by_role("tab", name="Sizes", exact=True)).to_have_attribute("aria-selected", "true")
    keys.press("ArrowLeft", "Enter")
    expect(page.get_by_role("tab", name="Keys", exact=True)).to_have_attribute("aria-selected", "true")
    keys.to("Search keys")
    page.keyboard.insert_text("layers.0.mlp")
    expect(page.get_by_role("status").filter(has_text=" of 204 keys")).to_be_visible()
    keys.to("Table of keys")
    keys.press("ArrowDown")
    expect(page.get_by_role("heading", name="model.model.layers.0.mlp.down_proj.weight")).to_be_visible()
    yield "Inspect, a key and its detail"
    keys.to("Close")  # behind the table, which is no trap
    keys.press("Space")
    expect(page.get_by_role("heading", name="model.model.layers.0.mlp.down_proj.weight")).to_be_hidden()
    keys.go_on()

    shown.at(3, "Mapping")
    keys.to("Assets")
    page.keyboard.insert_text(str(demo.assets))
    keys.press("Enter")
    expect(page.get_by_role("status").filter(has_text="every shape fits")).to_be_visible(timeout=120_000)
    keys.to("Write as")
    keys.press("ArrowDown")
    expect(page.get_by_role("combobox", name="Write as")).to_have_value("float16")
    yield "Mapping"
    keys.go_on()

    shown.at(4, "Try it")
    yield "Try it"
    keys.go_on()

    shown.at(5, "Shards")
    keys.to("Shard size")
    slider = page.get_by_role("slider", name="Shard size")
    before = slider.get_attribute("aria-valuetext")
    keys.press("ArrowLeft")
    expect(slider).not_to_have_attribute("aria-valuetext", str(before))
    yield "Shards"
    keys.go_on()

    shown.at(6, "Convert")
    keys.fill("Save to", str(target))
    keys.press("Enter")
    keys.to("Convert")
    yield "Convert"
    keys.press("Enter")
    expect(page.get_by_role("status").filter(has_text="Wrote").first).to_be_visible()
    assert (target / "config.json").exists()
    keys.go_on()
    shown.at(7, "Result")
    yield "Result"
    keys.leave()
