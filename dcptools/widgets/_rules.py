"""The fields of the step Mapping: one for each option of ``preview``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as W
import traitlets as T

from dcptools.layouts import LAYOUTS
from dcptools.mapping import CHOICES
from dcptools.widgets._base import typed_path

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
    """The options of ``preview`` as fields; ``beside`` are widgets that stand in the row of the layout."""

    options = T.Dict()  # the keyword arguments of preview, as the fields say them

    def __init__(self, beside: Iterable[W.Widget] = ()) -> None:
        self.fields = _fields()
        placed = [[self.fields[name] for name in row] for row in _ROWS]
        placed[2] += beside
        wrap = W.Layout(flex_flow="row wrap", align_items="center")
        super().__init__([W.HBox(row, layout=wrap) for row in placed])
        self._quiet = False
        for field in self.fields.values():
            field.observe(self._read, "value")
        self._read()

    def forget(self) -> None:
        """Empty the fields whose meaning is that of another checkpoint."""
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
        "model_assets_dir": _text("Assets", "directory with config.json and tokenizer", "640px"),
        "reference": _text("Reference", "a HuggingFace model to compare with", "420px"),
        "family": _text("Family", "TOML file with a trainer's names", "420px"),
        "layout": _choice("Layout", LAYOUTS, "how names are found in the keys"),
        "root": W.Combobox(
            description="Root", placeholder="model", continuous_update=False, layout={"width": "240px"}
        ),
        "mode": _choice("Mode", CHOICES["mode"], "the model, a LoRA adapter, or the adapter if there is one"),
        "adapter": W.Text(
            description="Adapter", placeholder="its name", continuous_update=False, layout={"width": "240px"}
        ),
        "adapter_config_path": _text("Its config", "adapter_config.json of the training", "420px"),
        "names": _choice("Names", CHOICES["names"], "of the live model, or those that save_pretrained writes"),
        "tied": _choice("Tied", CHOICES["tied"], "weights that the model ties: one if they are equal, all, or one"),
        "unexpected": _choice("Unexpected", CHOICES["unexpected"], "tensors that the model has no weight for"),
        "allow_mismatch": W.Checkbox(
            description="Allow a mismatch", indent=False, layout={"width": "auto", "margin": "2px 2px 2px 16px"},
            tooltip="write it though weights are missing or have another shape",
        ),
        "include": _text("Include", "globs on keys", "420px"),
        "exclude": _text("Exclude", "globs on keys", "420px"),
        "rename": W.Textarea(
            description="Rename", placeholder="REGEX=REPLACEMENT on whole names, one a line; the first match wins",
            continuous_update=False, rows=3, layout={"width": "640px"},
        ),
    }  # fmt: skip


def _text(label: str, hint: str, width: str) -> W.Text:
    return W.Text(description=label, placeholder=hint, continuous_update=False, layout={"width": width})


def _choice(label: str, values: Iterable[str], hint: str) -> W.Dropdown:
    return W.Dropdown(options=list(values), description=label, tooltip=hint, layout={"width": "240px"})


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
