"""Where the bytes of a checkpoint are: by module, by root, or by dtype; as bars, and for modules as a treemap too."""

from __future__ import annotations

import os
from collections import Counter
from typing import Literal

from matplotlib.figure import Figure

from dcptools._text import format_bytes
from dcptools.checkpoint import NO_ROOT, Checkpoint, StoredObject, StoredTensor, as_checkpoint
from dcptools.errors import UsageError
from dcptools.plots import _figure as page
from dcptools.plots._treemap import HEIGHT, treemap
from dcptools.tree import Tree, tree

MOST_BARS = 20  # and one for all others


def sizes(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    by: Literal["module", "root", "dtype"] = "module",
    depth: int | None = None,
) -> Figure:
    """Draw the bytes of a checkpoint as sorted horizontal bars; the largest 20, and the others as one.

    Below the bars of modules stands a treemap of them: bytes are areas, a module lies in the one that holds it and is
    lighter, and layers that are alike are one. What would be too small to be seen is put together.

    Bytes are those of the values or, for pickled objects, the stored ones.

    Parameters
    ----------
    checkpoint
        What :func:`dcptools.read` returned, or a path.
    by
        ``module`` (a key without its last segment, numbers as ``*``: all layers are one bar), ``root`` (the container
        in the saved state dict), or ``dtype``.
    depth
        With ``module``: how many segments of the key are distinguished; 4 gives ``model.model.layers.*``. All by
        default.

    Raises
    ------
    UsageError
        ``by`` or ``depth`` is something else.
    DcptoolsError
        What :func:`dcptools.read` raises for a path.

    Examples
    --------
    >>> from dcptools import plots
    >>> figure = plots.sizes(demo.checkpoint, by="module", depth=4)
    >>> print(plots.describe(figure))  # doctest: +ELLIPSIS
    Bar chart of the bytes of a checkpoint by module: 8.70 MB; ...
    """
    if by not in ("module", "root", "dtype"):
        raise UsageError(f"Cannot group by {by!r}.\nExpected 'module', 'root' or 'dtype'.")
    if depth is not None and (by != "module" or depth < 1):
        raise UsageError(f"depth={depth!r} cannot be used.\nExpected a positive number of segments, with by='module'.")
    checkpoint = as_checkpoint(checkpoint)
    counts: Counter[str] = Counter()
    entries: list[StoredTensor | StoredObject] = [*checkpoint.tensors.values(), *checkpoint.objects.values()]
    for entry in entries:
        counts[_group(entry, by, depth)] += entry.nbytes or 0
    return _draw(counts, by, tree(checkpoint) if by == "module" else None, depth)


def _group(entry: StoredTensor | StoredObject, by: str, depth: int | None) -> str:
    if by == "root":
        return entry.root or NO_ROOT
    if by == "dtype":
        return entry.dtype.name if isinstance(entry, StoredTensor) else "object"
    parts = entry.key.split(".")
    kept = (parts[:-1] or parts)[:depth]
    return ".".join("*" if part.isdecimal() else part for part in kept)


def _draw(counts: Counter[str], by: str, modules: Tree | None, depth: int | None) -> Figure:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], page.natural(item[0])))
    bars = [(page.name_label(group) or "(no name)", nbytes) for group, nbytes in ranked[:MOST_BARS]]
    rest = ranked[MOST_BARS:]
    if rest:
        bars.append((f"other ({len(rest):,} more)", sum(nbytes for _, nbytes in rest)))
    total = counts.total()
    largest = max((nbytes for _, nbytes in bars), default=0) or 1

    height = 1.3 + 0.28 * max(2, len(bars))
    if modules and total:
        figure, axes, below = page.halved_figure(height, HEIGHT + 0.2)
        treemap(figure, below, modules, depth)
    else:
        figure, axes = page.new_figure(height)
    drawn = axes.barh(range(len(bars)), [nbytes for _, nbytes in bars], height=0.72, color=page.BLUE)
    if rest:
        drawn[-1].set_facecolor(page.GREY)
    names = [page.tip_name(group) or "(no name)" for group, _ in ranked[:MOST_BARS]] + [f"{len(rest):,} more"]
    for number, (bar, name) in enumerate(zip(drawn, names, strict=False)):
        nbytes = bars[number][1]
        page.explain(figure, bar, f"bar {number}", [f"{name}\n{nbytes:,} bytes, {_percent(nbytes, total)}"])
    texts = [f"{format_bytes(nbytes)}  {_percent(nbytes, total)}" for _, nbytes in bars]
    axes.bar_label(drawn, texts, padding=4, fontsize=page.SMALL, color=page.INK)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=page.SMALL)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.22 * largest), ylim=(max(1, len(bars)) - 0.4, -0.6))
    page.byte_axis(axes, largest)
    headline = f"{format_bytes(total)} by {by}"
    page.titled(figure, headline, ["numbers in names are shown as *"] if any("*" in g for g in counts) else [])
    top = ", ".join(f"{label} {format_bytes(nbytes)}" for label, nbytes in bars[:3]) or "nothing is stored"
    return page.finished(figure, f"Bar chart of the bytes of a checkpoint by {by}: {format_bytes(total)}; {top}.")


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0
    return "<1%" if 0 < share < 1 else f"{share:.0f}%"
