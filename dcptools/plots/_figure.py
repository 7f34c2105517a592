"""What all figures share: the page they stand on, their colours, and text that comes from a file."""

from __future__ import annotations

import base64
import functools
import html
import io
import math
from collections.abc import Sequence
from typing import Any, Final

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dcptools._text import printable
from dcptools.errors import UsageError

INK: Final = "#1a1a1a"
FAINT: Final = "#595959"  # 7:1 on white
GRID: Final = "#dddddd"
# The colours of Okabe and Ito, which people with any colour vision can tell apart
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
RED, SKY, YELLOW, GREY = "#D55E00", "#56B4E9", "#F0E442", "#999999"
QUALITATIVE: Final = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW, GREY)

WIDTH: Final = 9.0  # inches
MAX_HEIGHT: Final = 12.0  # inches
SMALL: Final = 8  # points; nothing is smaller
LABEL_LENGTH: Final = 60  # characters of a key or file name
_DPI: Final = 100
_SHARP: Final = 2  # pixels of a picture in a notebook for each that it takes: screens have more than they say
_UNITS: Final = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


class DescribedFigure(Figure):
    """A figure that shows itself in a notebook. Jupyter shows a plain one only after pyplot was imported."""

    def _png(self) -> bytes:
        target = io.BytesIO()
        self.savefig(target, format="png", dpi=_SHARP * _DPI, facecolor="white", pil_kwargs={"optimize": True})
        return target.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        data = base64.b64encode(self._png()).decode()
        width = round(self.get_figwidth() * _DPI)
        image = f"<img src='data:image/png;base64,{data}' width='{width}' style='max-width:100%'"
        alt = html.escape(describe(self))
        return {"text/html": f"{image} alt='{alt}'>", "image/png": data, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"<Figure: {describe(self)}>"


def describe(figure: Figure) -> str:
    """What a figure of this module shows, in a sentence: the text alternative to its picture.

    Parameters
    ----------
    figure
        Of a function of this module.

    Raises
    ------
    UsageError
        It is another figure, and has no description.

    Examples
    --------
    >>> from dcptools import plots
    >>> plots.describe(plots.sizes(demo.checkpoint, by="dtype")).split(":")[0]
    'Bar chart of the bytes of a checkpoint by dtype'
    """
    label = figure.get_label()
    if not isinstance(figure, DescribedFigure) or not label:
        raise UsageError("This figure was not made by dcptools.plots.\nGive what one of its functions returned.")
    return str(label)


def new_figure(height: float) -> tuple[DescribedFigure, Axes]:
    """A white figure of that height in inches, whatever style sheet is in use, with one pair of axes."""
    size = (WIDTH, min(height, MAX_HEIGHT))
    figure = DescribedFigure(figsize=size, dpi=_DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot(facecolor="white", axisbelow=True)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.grid(visible=False, which="both")
    for side, spine in axes.spines.items():
        spine.set(edgecolor=FAINT, visible=side in ("left", "bottom"))
    return figure, axes


def titled(figure: Figure, title: str, notes: Sequence[str]) -> None:
    """A headline at the top left with smaller notes below it, a line each."""
    lines = [line for line in notes if line]
    room = "\n" * len(lines)  # empty lines of the headline, since only that takes part in the layout
    figure.suptitle(title + room, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    figure.add_artist(
        Annotation(
            "\n".join(lines), (0.01, 1), (0, -20), xycoords=figure.transFigure, textcoords="offset points", va="top",
            fontsize=9, color=FAINT, annotation_clip=False,
        )
    )  # fmt: skip


def finished(figure: DescribedFigure, description: str) -> Figure:
    """Keep the description, and make every text plain: names hold ``$`` and ``_``, which are no mathematics here."""
    figure.set_label(description)
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set(parse_math=False, usetex=False)
    return figure


def legend(figure: Figure, handles: Sequence[Artist], title: str) -> None:
    """A legend to the right of the axes, if there is anything to explain; in columns as long as the figure is high."""
    if not handles:
        return
    lines = max(1, int((figure.get_figheight() - 0.5) / 0.2))  # 0.2 inches each, and one for the title
    shown = figure.legend(
        handles=list(handles), title=title, loc="outside right upper", ncols=-(-len(handles) // lines), frameon=False,
        fontsize=9, title_fontsize=9, labelcolor=INK, alignment="left",
    )  # fmt: skip
    shown.get_title().set_color(INK)


def name_label(text: str, most: int = LABEL_LENGTH) -> str:
    """An untrusted name as it can be drawn: printable, in letters that the font has, the middle left out if long.

    >>> name_label("model.layers.0.self_attn.q_proj.weight", most=21)
    'model.laye…roj.weight'
    """
    ends = text if len(text) <= 2 * most else text[:most] + "…" + text[-most:]
    shown = "".join(c if ord(c) in _letters() else c.encode("unicode_escape").decode() for c in printable(ends))
    if len(shown) <= most:
        return shown
    tail = (most - 1) // 2
    return shown[: most - 1 - tail] + "…" + shown[-tail:]


def plural(count: int, what: str) -> str:
    """A count with its noun.

    >>> plural(1, "file"), plural(2000, "file")
    ('1 file', '2,000 files')
    """
    return f"{count:,} {what}" + ("" if count == 1 else "s")


@functools.cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def byte_axis(axes: Axes, largest: float) -> None:
    """Label the x axis in the decimal unit that fits ``largest``, in bytes."""
    scale, unit = next(((s, u) for s, u in _UNITS if largest >= s), _UNITS[-1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / scale:g} {unit}" if x else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10], integer=scale == 1))


def value_axis(axes: Axes, low: float, high: float, *, whole_numbers: bool) -> None:
    """Label the x axis with as many digits as neighbours need to differ, and no factor or offset at its end."""
    step = (high - low) / 7
    digits = min(12, 2 + max(0, math.ceil(math.log10(max(abs(low), abs(high)) / step))))

    def text(value: float, _: object) -> str:
        return "0" if abs(value) < step / 1e6 else f"{value:.{digits}g}".replace("-", "−")  # noqa: RUF001

    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10], integer=whole_numbers))
    axes.xaxis.set_major_formatter(FuncFormatter(text))


def sequential(count: int) -> list[str]:
    """Colours from dark to light for an order of ``count`` things; the lightest still show on white."""
    from matplotlib.colors import to_hex

    colours = matplotlib.colormaps["viridis"]
    return [to_hex(colours(0.85 * i / max(1, count - 1))) for i in range(count)]


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on the colour (relative luminance of WCAG 2)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.179 else INK
