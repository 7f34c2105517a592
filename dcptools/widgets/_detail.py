"""What is shown beside a table: everything about the key of the chosen row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import ipywidgets as W

from dcptools import plots
from dcptools._table import html_name
from dcptools._text import counted, format_bytes, format_count, format_shape, printable
from dcptools.checkpoint import Checkpoint, StoredTensor, rank_of
from dcptools.errors import DcptoolsError
from dcptools.findings import Finding
from dcptools.tensors import TensorReader
from dcptools.values import load_tensor
from dcptools.widgets._base import alert, escape, figure_html, table_html
from dcptools.widgets._latest import Latest

SHOWN_CHUNKS = 20
MOST_CRC = 256  # chunks; each is opened to read its CRC-32
FIRST_VALUES = 6  # along each dimension
WIDTH = 460  # pixels of a figure: about as many as the column beside a table has


@dataclass(frozen=True)
class About:
    """What there is to say about a key."""

    checkpoint: Checkpoint
    key: str
    names: Sequence[str] = ()  # what it is called in the result; none: it is left out, or that is not known
    left_out: str = ""  # the reason
    findings: Sequence[Finding] = ()


class Detail(W.VBox):  # type: ignore[misc]
    """Facts and findings at once; chunks, histogram and first values as soon as they are read.

    ``finding_chosen`` is called with the finding whose button is clicked.
    """

    def __init__(self, finding_chosen: Callable[[Finding], None]) -> None:
        self._finding_chosen = finding_chosen
        self.facts, self.found, self.values = W.HTML(), W.VBox(), W.HTML()
        self.hide = W.Button(description="Close", tooltip="Close the details")
        self.hide.layout = W.Layout(width="80px", align_self="flex-end", margin="0")
        super().__init__([self.hide, self.facts, self.found, self.values])
        self.add_class("dcp-detail")
        self.hide.on_click(lambda _: self.tell(None))
        self._about: About | None = None
        self._later = Latest(self._read)
        self.tell(None)

    def tell(self, about: About | None) -> None:
        """Show this key; None: nothing, and the table has all the room."""
        self._about = about
        self.layout.display = "none" if about is None else ""
        self.values.value = ""
        if about is None:
            return
        self.facts.value = _facts(about)
        self.found.children = [self._button(finding) for finding in about.findings]
        if about.key in about.checkpoint.tensors:
            self.values.value = "<p class='dcp-soft' role='status'>Reading the values …</p>"
            self._later.ask()

    def join(self, timeout: float | None = None) -> None:
        """Wait until all is shown."""
        self._later.join(timeout)

    def _button(self, finding: Finding) -> W.Button:
        words = printable(f"{finding.severity}[{finding.code}] {finding.message}")
        button = W.Button(description=words, tooltip=f"{words}\nShow it among the findings", layout={"width": "auto"})
        button.add_class("dcp-finding")
        button.add_class(f"dcp-{finding.severity}")
        button.on_click(lambda _: self._finding_chosen(finding))
        return button

    def _read(self) -> None:
        about = self._about
        if about is None or about.key not in about.checkpoint.tensors:
            return
        try:
            text = "".join(_values(about.checkpoint, about.checkpoint[about.key]))
        except (DcptoolsError, OSError) as error:
            text = alert("error", str(error))
        except Exception as error:
            text = alert("error", f"Something went wrong: {type(error).__name__}: {error}")
        if about is self._about:  # otherwise another row has been chosen in the meantime
            self.values.value = text


def _facts(about: About) -> str:
    """Key, shape, dtype, sizes, and its name in the result."""
    rows: list[tuple[str, str]] = []
    if about.key in about.checkpoint.tensors:
        tensor = about.checkpoint[about.key]
        rows += [("shape", format_shape(tensor.shape)), ("dtype", tensor.dtype.name)]
        rows += [("elements", format_count(tensor.numel)), ("bytes", format_bytes(tensor.nbytes))]
    else:
        stored = about.checkpoint.objects[about.key]
        rows += [("kind", "a pickled object; it is never unpickled"), ("bytes", format_bytes(stored.nbytes or 0))]
        rows += [("file", stored.file)]
    if about.names:
        rows.append(("in the result", ", ".join(about.names)))
    elif about.left_out:
        rows.append(("in the result", f"left out: {about.left_out}"))
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{html_name(value)}</dd>" for name, value in rows)
    return f"<h3 class='dcp'>{html_name(about.key)}</h3><dl class='dcp'>{lines}</dl>"


def _values(checkpoint: Checkpoint, tensor: StoredTensor) -> Iterable[str]:
    """Where the chunks are, and what is in them."""
    yield _chunks(tensor)
    if len(tensor.offsets) > 1 or not tensor.covered:
        yield figure_html(plots.chunks(checkpoint, tensor.key), WIDTH)
    if tensor.dtype.kind == "opaque":
        return
    first = load_tensor(checkpoint, tensor.key, tuple(slice(0, FIRST_VALUES) for _ in tensor.shape))
    if tensor.numel:
        yield figure_html(plots.histogram(checkpoint, tensor.key), WIDTH)
    lines = "<br>".join(map(escape, str(first).splitlines()))
    yield f"<p>First values</p><pre class='dcp dcp-scroll' tabindex='0'>{lines}</pre>"


def _chunks(tensor: StoredTensor) -> str:
    """A row per chunk: who wrote it, where, and its CRC-32."""
    crcs = _crcs(tensor)
    rows = []
    for chunk in tensor.chunks[:SHOWN_CHUNKS]:
        box = tuple((start, start + size) for start, size in zip(chunk.offsets, chunk.shape, strict=True))
        where = f"[{', '.join(f'{start}:{stop}' for start, stop in box)}]"
        rank, crc = rank_of(chunk.file), crcs.get(box)
        rows.append(
            (where, "" if rank is None else rank, chunk.file, format_bytes(chunk.nbytes), f"{crc:08x}" if crc else "")
        )
    header = ("chunk", "rank", "file", "stored", "CRC-32")
    more = f"<p class='dcp-soft'>and {len(tensor.offsets) - len(rows):,} more</p>"
    title = f"<p>{counted(len(tensor.offsets), 'chunk')}</p>"
    return title + table_html(header, rows, numeric=(1, 3)) + (more if len(rows) < len(tensor.offsets) else "")


def _crcs(tensor: StoredTensor) -> dict[tuple[tuple[int, int], ...], int]:
    """The CRC-32 that was saved with each chunk, by its box; those that cannot be read are reported by what follows."""
    if not tensor.covered or len(tensor.offsets) > MOST_CRC or tensor.dtype.kind == "opaque":
        return {}
    try:
        return TensorReader(tensor).checksums() or {}
    except DcptoolsError:
        return {}
