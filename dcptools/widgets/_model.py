"""What the step Mapping says: the verdict, the readings, and tables of the model, the outputs and what is left out."""

from __future__ import annotations

from dcptools._text import format_bytes, format_shape
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
OUTPUT_COLUMNS = (
    Column("name", searched=True),
    Column("findings", optional=True, kinds=lambda codes: codes.split(", ") if codes else []),
    Column("key", searched=True),
    Column("shape", format_shape),
    Column("dtype", label="stored as", kinds=lambda dtype: [dtype]),
    Column("written as"),
    Column("rule", kinds=lambda rule: [rule]),
)
LEFTOVER_COLUMNS = (
    Column("key", searched=True),
    Column("reason", kinds=lambda reason: [reason]),
    Column("kind"),
    Column("nbytes", format_bytes, "bytes", numeric=True),
)
BUSY = "Building the model of config.json, to learn its weights. This takes a few seconds, once."
ADAPTER = "This is a LoRA adapter, and is written as peft saves it. Mode “full” writes the base model, if it is there."
UNKNOWN = (
    "Nothing is known about the model, so names are found by rules. A config.json or a reference would settle them."
)


def model_table() -> Table:
    """A table for ``KeyMapping.model_frame``, with filters by state."""
    return Table(COLUMNS, noun="weight", order="name")


def outputs_table() -> Table:
    """A table for ``KeyMapping.to_frame``, with a column for the written dtype."""
    return Table(OUTPUT_COLUMNS, noun="output", order="name")


def leftovers_table() -> Table:
    """A table for ``KeyMapping.leftovers_frame``."""
    return Table(LEFTOVER_COLUMNS, order="key")


def verdict_html(mapping: KeyMapping) -> str:
    """Whether it is the model, how that was read, and the other readings with their scores."""
    if mapping.kind == "adapter":
        return alert("info", ADAPTER)
    if mapping.fit is None:
        return alert("info", UNKNOWN)
    kind = "success" if mapping.fit.complete else "error"
    return alert(kind, f"{mapping.fit.sentence}.\nRead as: {mapping.fit.reading}.") + _readings_html(mapping)


def _readings_html(mapping: KeyMapping) -> str:
    """The readings, folded away if the first one gives the whole model."""
    if not mapping.readings:
        return ""
    rows = [
        (each.reading, f"{each.fitting:,} of {each.weights:,}", f"{len(each.missing):,}", f"{len(each.misshapen):,}")
        for each in mapping.readings
    ]
    table = table_html(("reading", "weights that fit", "missing", "other shapes"), rows, numeric=(1, 2, 3))
    opened = "" if mapping.readings[0].complete else " open"
    return f"<details{opened}><summary>Readings that were tried: {len(rows)}</summary>{table}</details>"
