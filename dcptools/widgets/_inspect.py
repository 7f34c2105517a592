"""The second step: look into the checkpoint: keys, modules, sizes, values, single tensors."""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as W
import pandas as pd
import traitlets as T

from dcptools import plots
from dcptools._text import counted, format_bytes, format_shape, printable, some
from dcptools.checkpoint import Checkpoint
from dcptools.errors import UsageError
from dcptools.mapping import KeyMapping, preview
from dcptools.tree import Tree, tree
from dcptools.values import load_tensor, stats
from dcptools.widgets._base import Step, alert, escape, figure_html, handler
from dcptools.widgets._job import Job
from dcptools.widgets._table import PagedTable

TREE_ROWS = 24
COLUMNS = ["key", "kind", "root", "shape", "dtype", "numel", "nbytes", "chunks", "files", "warning"]
STATISTICS = ["key", "dtype", "numel", "min", "max", "mean", "std", "norm", "zeros", "nan", "inf"]
KEYS, TREE, SIZES, VALUES, TENSOR = range(5)  # the tabs


class Inspect(Step):
    """Search, filter and page through the keys; the tree of modules; sizes; NaN and Inf; one tensor at a time.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned; may be set later.

    Attributes
    ----------
    stats
        The DataFrame of :func:`dcptools.stats`, once it was asked for.
    """

    title = "Inspect"
    checkpoint = T.Any(None, allow_none=True)
    stats = T.Any(None, allow_none=True)

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.key_table = PagedTable(
            pd.DataFrame(
                columns=["key", "kind", "root", "shape", "dtype", "numel", "nbytes", "chunks", "files", "warning"]
            ),
            search=["key"],
            facets=["root", "kind", "dtype"],
            flags={"only warnings": lambda frame: frame["warning"] != ""},
            formats={"nbytes": format_bytes, "shape": _shape, "numel": "{:,}".format, "chunks": "{:,}".format},
            numeric=["numel", "nbytes", "chunks", "files"],
        )
        self.tree = TreeView()
        self.sizes = W.HTML()
        self.values = Values(self._with_stats, self.show_error)
        self.tensor = OneTensor(self.show_error)
        self.tabs = W.Tab(
            [self.key_table, self.tree, self.sizes, self.values, self.tensor],
            titles=("Keys", "Tree", "Sizes", "Values", "One tensor"),
            layout={"width": "99%"},
        )
        super().__init__([self.tabs])
        self.tabs.observe(self._fill, "selected_index")
        self.observe(self._new, "checkpoint")
        self.blocked = "Read a checkpoint first."
        self.checkpoint = checkpoint

    @handler
    def _new(self, _: Any) -> None:
        self.stats, self.sizes.value = None, ""
        self.tree.tree = None
        self.values.checkpoint = self.tensor.checkpoint = self.checkpoint
        self.tabs.layout.display = "none" if self.checkpoint is None else ""
        if self.checkpoint is None:
            self.blocked = "Read a checkpoint first."
            return
        self.blocked = ""
        self._show_keys()
        self._fill()

    def _show_keys(self) -> None:
        frame = self.checkpoint.to_frame()
        warnings: dict[str, list[str]] = {}
        for finding in self.checkpoint.findings:
            warnings.setdefault(finding.key, []).append(finding.code)
        if self.stats is not None:
            for row in self.stats.itertuples():
                counts = [f"{n:,} {name}" for name, n in (("NaN", row.nan), ("Inf", row.inf)) if n]
                warnings.setdefault(row.key, []).extend(counts)
        frame["warning"] = frame["key"].map(lambda key: ", ".join(warnings.get(key, ())))
        self.key_table.frame = frame

    @handler
    def _fill(self, _: Any = None) -> None:
        """Fill the tab that is shown; trees and figures take a moment, so only when they are looked at."""
        if self.checkpoint is None:
            return
        if self.tabs.selected_index == TREE and self.tree.tree is None:
            self.tree.tree = tree(self.checkpoint)
        if self.tabs.selected_index == SIZES and not self.sizes.value:
            parts = []
            for by in ("root", "dtype", "module"):
                parts.append(figure_html(plots.sizes(self.checkpoint, by=by)))
            self.sizes.value = "<br>".join(parts)

    def _with_stats(self, frame: pd.DataFrame) -> None:
        self.stats = frame
        self._show_keys()

    def summary(self) -> tuple[str, list[str], list[list[str]]]:
        if self.checkpoint is None:
            return "No checkpoint is open.", [], []
        frame = self.checkpoint.to_frame()
        rows = [
            [str(row.key), str(row.dtype), _shape(row.shape), format_bytes(row.nbytes or 0)]
            for row in frame.itertuples()
        ]
        return f"{self.checkpoint.path}: {len(frame):,} keys", ["key", "dtype", "shape", "bytes"], rows


class TreeView(W.VBox):  # type: ignore[misc]
    """A tree as pages of indented rows; the button of a row expands it. The rows are one pool of widgets, reused."""

    tree = T.Any(None, allow_none=True)

    def __init__(self) -> None:
        self.rows = [
            (W.Button(layout={"width": "440px", "margin": "0"}), W.HTML(layout={"margin": "0 0 0 12px"}))
            for _ in range(TREE_ROWS)
        ]
        self.lines = [W.HBox(row, layout={"align_items": "center"}) for row in self.rows]
        self.previous = W.Button(description="Previous page", layout={"width": "140px"})
        self.next = W.Button(description="Next page", layout={"width": "140px"})
        self.all = W.Button(description="Expand all", layout={"width": "110px"})
        self.none = W.Button(description="Collapse all", layout={"width": "110px"})
        self.status = W.HTML()
        body = W.VBox(self.lines, layout={"min_height": f"{TREE_ROWS // 2 * 30}px"})
        body.add_class("dcp-tree")
        buttons = [self.all, self.none, self.previous, self.next, self.status]
        super().__init__([W.HBox(buttons, layout={"align_items": "center"}), body])
        self._expanded: set[str] = set()
        self._first = 0
        for number, (button, _) in enumerate(self.rows):
            button.on_click(lambda _, number=number: self._toggle(number))
        self.previous.on_click(lambda _: self._turn(-TREE_ROWS))
        self.next.on_click(lambda _: self._turn(TREE_ROWS))
        self.all.on_click(lambda _: self._expand(True))
        self.none.on_click(lambda _: self._expand(False))
        self.observe(lambda _: self._reset(), "tree")
        self._reset()

    @property
    def labels(self) -> list[str]:
        """What the rows of this page say."""
        return [
            f"{button.description} {text.value}" for (button, text), node in zip(self.rows, self._page, strict=False)
        ]

    def _reset(self) -> None:
        tops = self.tree.nodes if self.tree is not None else ()
        tops = [node for node in tops if node.label.split(".")[0] == "model"]
        self._expanded = {node.path for top in tops for node in (top, *top.children)}
        self._first = 0
        self._show()

    def _expand(self, everything: bool) -> None:
        shown: Tree = self.tree or Tree(())
        self._expanded = {node.path for node in shown.rows() if node.children} if everything else set()
        self._first = 0
        self._show()

    def _toggle(self, number: int) -> None:
        if number < len(self._page):
            self._expanded ^= {self._page[number].path}
            self._show()

    def _turn(self, rows: int) -> None:
        self._first = max(0, self._first + rows)
        self._show()

    def _show(self) -> None:
        nodes = list(self.tree.rows(self._expanded)) if self.tree is not None else []
        self._first = min(self._first, max(0, (len(nodes) - 1) // TREE_ROWS * TREE_ROWS))
        self._page = nodes[self._first : self._first + TREE_ROWS]
        for (button, text), line, number in zip(self.rows, self.lines, range(TREE_ROWS), strict=True):
            line.layout.display = "flex" if number < len(self._page) else "none"
            if number < len(self._page):
                node = self._page[number]
                mark = "" if not node.children else "▾ " if node.path in self._expanded else "▸ "
                button.description = f"{'    ' * node.depth}{mark}{printable(node.label)}"
                button.disabled, button.tooltip = not node.children, printable(node.path)
                text.value = f"<span class='dcp-soft'>{escape(node.describe())}</span>"
        last = self._first + len(self._page)
        self.status.value = f"<span role='status'>Rows {self._first + 1:,} to {last:,} of {len(nodes):,}</span>"
        self.previous.disabled, self.next.disabled = self._first == 0, last >= len(nodes)


class Values(W.VBox):  # type: ignore[misc]
    """Statistics of the values of many tensors, on a worker thread."""

    checkpoint = T.Any(None, allow_none=True)
    mapping = T.Any(None, allow_none=True)  # what is converted; None: what a conversion without options does

    def __init__(self, done: Callable[[pd.DataFrame], None], failed: Callable[[BaseException], None]) -> None:
        self._tell = done
        self.globs = W.Text(
            description="Keys", placeholder="all that is converted; or globs, with spaces between",
            layout={"width": "420px"},
        )  # fmt: skip
        self.job = Job("Check values", self._run, self._done, failed)
        self.note = W.HTML()
        self.table = PagedTable(
            pd.DataFrame(columns=STATISTICS),
            search=["key"],
            flags={"only NaN or Inf": lambda frame: (frame["nan"] > 0) | (frame["inf"] > 0)},
            formats={**dict.fromkeys(("min", "max", "mean", "std", "norm"), "{:.4g}".format), "numel": "{:,}".format},
            numeric=["numel", "min", "max", "mean", "std", "norm", "zeros", "nan", "inf"],
        )
        about = W.HTML(
            "<p>Reads the stored values and looks for NaN and Inf. Memory stays small; it can be cancelled.</p>"
        )
        super().__init__([about, self.globs, self.job, self.note, self.table])
        self._reading: Checkpoint | None = None
        self.observe(self._new, "checkpoint")

    def _new(self, _: Any) -> None:
        self.job.forget()
        self.note.value, self.table.frame = "", pd.DataFrame(columns=STATISTICS)

    def _run(self, progress: Callable[[int, int, str], None], cancel: threading.Event) -> pd.DataFrame:
        self._reading = self.checkpoint
        if self._reading is None:
            raise UsageError("Read a checkpoint first.")
        keys = self.globs.value.split() or self._converted(self._reading)
        return stats(self._reading, keys, progress=progress, cancel=cancel)

    def _converted(self, checkpoint: Checkpoint) -> list[str] | None:
        """The keys that are converted; None, which is all, if there are none."""
        mapping: KeyMapping = self.mapping if self.mapping is not None else preview(checkpoint)
        keys = {view.key for output in mapping.outputs for view in output.sources}
        return [glob.escape(key) for key in sorted(keys)] or None

    def _done(self, frame: pd.DataFrame) -> None:
        if self._reading is None or self._reading is not self.checkpoint:
            return
        bad = frame[(frame["nan"] > 0) | (frame["inf"] > 0)]
        if len(bad):
            found = f"{len(bad):,} of {len(frame):,} tensors have NaN or Inf: {some(bad['key'])}."
        else:
            found = f"No NaN and no Inf in {counted(len(frame), 'tensor')}."
        looked_at = (
            f"{len(frame):,} of the checkpoint's {counted(len(self._reading.tensors), 'tensor')} were looked at."
        )
        self.note.value = alert("warning" if len(bad) else "success", f"{found} {looked_at}")
        self.table.frame = frame
        self._tell(frame)


class OneTensor(W.VBox):  # type: ignore[misc]
    """Where a tensor's chunks lie, how its values are distributed, and the first of them."""

    checkpoint = T.Any(None, allow_none=True)

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self.key = W.Combobox(
            description="Key", placeholder="type a part of a key", ensure_option=False, continuous_update=False,
            layout={"width": "640px"},
        )  # fmt: skip
        self.body = W.HTML()
        super().__init__([self.key, self.body])
        self.key.observe(self._show, "value")
        self.observe(self._new, "checkpoint")

    def _new(self, _: Any) -> None:
        self.body.value = ""
        names = list(self.checkpoint.tensors) if self.checkpoint is not None else []
        self.key.options = names[:200]  # suggestions only; any key can be typed
        self.key.value = ""

    def _show(self, _: Any) -> None:
        try:
            self.body.value = self._describe() if self.key.value else ""
        except Exception as error:
            self.body.value = alert("error", str(error))

    def _describe(self) -> str:
        key = self.key.value
        tensor = self.checkpoint[key]
        first = tuple(slice(0, 6) for _ in tensor.shape)
        size = f"{format_bytes(tensor.nbytes)}, {counted(len(tensor.offsets), 'chunk')}"
        facts = f"{format_shape(tensor.shape)} {tensor.dtype.name}, {size}"
        parts = [f"<p><strong>{escape(key)}</strong>: {escape(facts)}</p>"]
        parts.append(figure_html(plots.chunks(self.checkpoint, key)))
        if tensor.numel and tensor.dtype.kind != "opaque":
            parts.append(figure_html(plots.histogram(self.checkpoint, key)))
        if tensor.dtype.kind != "opaque":
            values = load_tensor(self.checkpoint, key, first)
            parts.append(f"<p>First values</p><pre class='dcp'>{escape_lines(str(values))}</pre>")
        return "".join(parts)


def escape_lines(text: str) -> str:
    return "\n".join(escape(line) for line in text.splitlines())


def _shape(shape: Any) -> str:
    """Of a row of the frame; an object has none."""
    return format_shape(shape) if isinstance(shape, tuple) else ""
