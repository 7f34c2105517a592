"""What the step Mapping says of the model: the verdict, the readings, and the model beside the checkpoint."""

from __future__ import annotations

from dcptools._text import format_shape
from dcptools.mapping import KeyMapping
from dcptools.widgets._base import alert, table_html
from dcptools.widgets._rows import Column
from dcptools.widgets._table import Table

COLUMNS = (
    Column("name", searched=True),
    Column("state", kinds=lambda state: [state]),
    Column("key", searched=True),
    Column("shape", format_shape),
    Column("expected_shape", format_shape, "expected"),
)
BUSY = "Building the model of config.json, to know its weights. This takes some seconds, once."
ADAPTER = "This is a LoRA adapter, and is written as peft saves it. Mode “full” writes the base model, if it is there."
UNKNOWN = (
    "Nothing is known about the model, so names are found by rules. A config.json or a reference would settle them."
)


def model_table() -> Table:
    """A table for ``KeyMapping.model_frame``, with filters by state."""
    return Table(COLUMNS, noun="weight", order="name")


def verdict_html(mapping: KeyMapping) -> str:
    """Whether it is the model, how that was read, and the other readings with their scores."""
    if mapping.kind == "adapter":
        return alert("info", ADAPTER)
    if mapping.fit is None:
        return alert("info", UNKNOWN)
    kind = "success" if mapping.fit.complete else "error"
    return alert(kind, f"{mapping.fit.sentence}.\nRead as: {mapping.fit.reading}.") + _readings_html(mapping)


def _readings_html(mapping: KeyMapping) -> str:
    """The readings, folded away where the first one gives the whole model."""
    if not mapping.readings:
        return ""
    rows = [
        (each.reading, f"{each.fitting:,} of {each.weights:,}", f"{len(each.missing):,}", f"{len(each.misshapen):,}")
        for each in mapping.readings
    ]
    table = table_html(("reading", "weights that fit", "missing", "other shapes"), rows, numeric=(1, 2, 3))
    opened = "" if mapping.readings[0].complete else " open"
    return f"<details{opened}><summary>Readings that were tried: {len(rows)}</summary>{table}</details>"
