"""Pictures of plans and checkpoints as matplotlib figures: output files, bytes, chunks, values.

``from dcptools import plots`` imports it by name: nothing else in the package needs matplotlib, which comes with the
extra ``notebook``. A figure shows itself in a notebook cell, in the colours of a light or a dark page, sharp at any
size, with a tooltip on each part and a sentence for screen readers. ``figure.savefig("shards.png")`` saves it like any
figure of matplotlib, dark on white, and :func:`svg` gives the element for an HTML page. pyplot's global state is
never touched, so figures can be made in any thread.
"""

from __future__ import annotations

from dcptools.errors import DcptoolsError

try:
    import matplotlib.figure  # noqa: F401
except ImportError as error:
    raise DcptoolsError(
        f"dcptools.plots needs matplotlib, which cannot be imported ({error}).\n"
        "Install it with: pip install 'dcptools[notebook]'"
    ) from error

from dcptools.plots._chunks import chunks
from dcptools.plots._diff import diff
from dcptools.plots._figure import describe
from dcptools.plots._histogram import histogram
from dcptools.plots._shards import shards
from dcptools.plots._sizes import sizes
from dcptools.plots._svg import svg
from dcptools.plots._values import values

__all__ = ["chunks", "describe", "diff", "histogram", "shards", "sizes", "svg", "values"]
