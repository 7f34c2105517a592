"""The fields of the step Mapping: one for each option of ``preview``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools.assets import CONFIG
from dcptools.layouts import LAYOUTS
from dcptools.mapping import CHOICES
from dcptools.widgets._base import typed_path
from dcptools.widgets._chooser import Chooser
from dcptools.widgets._labels import LABELS

OF_ONE_MODEL = (
    "model_assets_dir",
    "reference",
    "family",
    "allow_mismatch",
    "adapter",
    "adapter_config_path",
)  # another checkpoint has its own

_ROWS = (
    ("model_assets_dir",),
    ("reference", "family"),
    ("layout", "root"),
    ("mode", "adapter", "adapter_config_path"),
    ("names", "tied", "unexpected", "allow_mismatch"),
    ("include", "exclude"),
    ("rename",),
)


class Rules(W.VBox):  # type: ignore[misc]
    """The options of ``preview`` as fields; ``beside`` are widgets in the row of the layout."""

    options = T.Dict()  # the keyword arguments of preview, as the fields say them

    def __init__(self, beside: Iterable[W.Widget] = ()) -> None:
        self.fields = _fields()
        placed = [[self.fields[name] for name in row] for row in _ROWS]
        placed[2] += beside
        self.assets = Chooser(LABELS["model_assets_dir"], field=self.fields["model_assets_dir"], marks=(CONFIG,))
        placed[0] = [self.assets]
        rows = [W.HBox(row, layout=W.Layout(align_items="center")) for row in placed]
        for row in rows:
            row.add_class("dcp-fields")  # as wide as there is room
        super().__init__(rows)
        self._quiet = False
        for field in self.fields.values():
            field.observe(self._read, "value")
        self._read()

    def forget(self) -> None:
        """Empty the fields whose values belong to another checkpoint."""
        self._quiet = True
        for name in OF_ONE_MODEL:
            self.fields[name].value = type(self.fields[name].value)()
        self._quiet = False
        self._read()

    def _read(self, _: Any = None) -> None:
        if not self._quiet:
            self.options = {name: _MEANING.get(name, _as_it_is)(field.value) for name, field in self.fields.items()}


def _fields() -> dict[str, W.Widget]:
    """By option, in the order of the form."""
    return {
        "model_assets_dir": _text("model_assets_dir", "directory with config.json and tokenizer", "640px"),
        "reference": _text("reference", "HuggingFace model, in place of config.json", "420px"),
        "family": _text("family", "TOML file with a trainer's names", "420px"),
        "layout": _choice("layout", LAYOUTS, "how keys become HuggingFace names"),
        "root": W.Combobox(
            description=LABELS["root"], placeholder="model", continuous_update=False, layout={"width": "240px"}
        ),
        "mode": _choice("mode", CHOICES["mode"], "full: the base model; lora: the adapter; auto: either"),
        "adapter": W.Text(
            description=LABELS["adapter"], placeholder="its name", continuous_update=False, layout={"width": "240px"}
        ),
        "adapter_config_path": _text("adapter_config_path", "adapter_config.json", "420px"),
        "names": _choice("names", CHOICES["names"], "those of the live model, or those of save_pretrained"),
        "tied": _choice("tied", CHOICES["tied"], "auto: one if they are equal; keep: all; drop: one, uncompared"),
        "unexpected": _choice("unexpected", CHOICES["unexpected"], "tensors that the model has no weight for"),
        "allow_mismatch": W.Checkbox(
            description=LABELS["allow_mismatch"], indent=False, layout={"width": "auto", "margin": "2px 2px 2px 16px"},
            tooltip="write the result even if weights are missing or have another shape",
        ),
        "include": _text("include", "globs on keys", "420px"),
        "exclude": _text("exclude", "globs on keys", "420px"),
        "rename": W.Textarea(
            description=LABELS["rename"], continuous_update=False, rows=3, layout={"width": "640px"},
            placeholder="REGEX=REPLACEMENT on whole names, one per line; the first that matches wins",
        ),
    }  # fmt: skip


def _text(name: str, hint: str, width: str) -> W.Text:
    return W.Text(description=LABELS[name], placeholder=hint, continuous_update=False, layout={"width": width})


def _choice(name: str, values: Iterable[str], hint: str) -> W.Dropdown:
    return W.Dropdown(options=list(values), description=LABELS[name], tooltip=hint, layout={"width": "240px"})


def _as_it_is(value: Any) -> Any:
    return value


def _path(text: str) -> str | None:
    return typed_path(text) or None


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


_MEANING: dict[str, Callable[[Any], Any]] = {
    **{"model_assets_dir": _path, "reference": _path, "family": _path, "adapter_config_path": _path},
    **{"root": lambda text: text or None, "adapter": lambda text: text.strip() or None},
    **{"include": str.split, "exclude": str.split, "rename": _lines},
}
