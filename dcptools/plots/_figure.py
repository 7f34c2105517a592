"""What all figures share: the page they are on, their colours, and text that comes from a file."""

from __future__ import annotations

import base64
import functools
import html
import io
import math
import re
from collections.abc import Sequence
from textwrap import wrap
from typing import Any, Final

import matplotlib
import numpy as np
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
PLAIN: Final = "#e8e8e8"  # of parts about which there is nothing to say
GROUND: Final = "#ffffff"  # of the page
EDGE: Final = "#171717"  # what keeps parts apart: 3:1 or more to each colour of them, and a gap on a dark page
# The colours of Okabe and Ito, which people with any colour vision can tell apart
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
RED, SKY, YELLOW, GREY = "#D55E00", "#56B4E9", "#F0E442", "#8C8C8C"
QUALITATIVE: Final = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW, GREY)

WIDTH: Final = 9.0  # inches
MAX_HEIGHT: Final = 12.0  # inches
SMALL: Final = 8  # points; nothing is smaller
LABEL_LENGTH: Final = 60  # characters of a key or file name
MOST_TIPS: Final = 2500  # parts of a figure that have a tooltip each; more of them are drawn as one image
TIP_LENGTH: Final = 160  # characters of a name in a tooltip
PIXELS: Final = 100  # an inch, on a page
_SHARP: Final = 2  # pixels of a picture in a notebook for each that it takes: screens have more than they report
_UNITS: Final = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
# A page that is not trusted loses the style with the SVG, and what is hidden stays hidden (`hidden` needs a value for
# that)
_SHOWN: Final = "<style>.dcp-shown>img{display:none}.dcp-shown>div[hidden]{display:block!important}</style>"


class DescribedFigure(Figure):
    """A figure that shows itself in a notebook. Jupyter shows a plain one only after pyplot was imported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tips: dict[str, list[str]] = {}  # the gid of an artist -> what each of its parts is

    def _png(self) -> bytes:
        target = io.BytesIO()
        self.savefig(target, format="png", dpi=_SHARP * PIXELS, facecolor="white", pil_kwargs={"optimize": True})
        return target.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """SVG in the colours of the page. What forbids SVG and styles shows the picture instead, without its texts."""
        from dcptools.plots._svg import svg

        data = base64.b64encode(self._png()).decode()
        width = round(self.get_figwidth() * PIXELS)
        alt = html.escape(describe(self))
        image = f"<img src='data:image/png;base64,{data}' width='{width}' style='max-width:100%' alt='{alt}'>"
        return {
            "text/html": f"<div class='dcp-shown'>{image}<div hidden='hidden'>{svg(self)}</div></div>{_SHOWN}",
            "image/png": data,
            "text/plain": repr(self),
        }

    def __repr__(self) -> str:
        return f"<Figure: {describe(self)}>"


def describe(figure: Figure) -> str:
    """What a figure of this module shows, in one sentence: the text alternative to its picture.

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
    """A white figure with that height in inches, whatever style sheet is in use, with one pair of axes."""
    figure, (axes,) = stacked_figure(height, [1])
    return figure, axes


def stacked_figure(height: float, ratios: Sequence[float]) -> tuple[DescribedFigure, list[Axes]]:
    """A figure with several pairs of axes below each other, with their heights in these ratios."""
    figure = DescribedFigure(
        figsize=(WIDTH, min(height, MAX_HEIGHT)), dpi=PIXELS, layout="constrained", facecolor="white"
    )
    made = figure.subplots(len(ratios), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for axes in made[:, 0]:
        plain(axes)
    return figure, list(made[:, 0])


def plain(axes: Axes) -> None:
    """White axes without a grid, with lines at the left and below."""
    axes.set_facecolor("white")
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.grid(visible=False, which="both")
    for side, spine in axes.spines.items():
        spine.set(edgecolor=FAINT, visible=side in ("left", "bottom"))


def halved_figure(above: float, below: float) -> tuple[DescribedFigure, Axes, Axes]:
    """A figure with two pairs of axes of these heights in inches, each as wide as its own labels leave it."""
    height = min(above + below, MAX_HEIGHT)
    figure = DescribedFigure(figsize=(WIDTH, height), dpi=PIXELS, layout="constrained", facecolor="white")
    halves: Any = figure.subfigures(2, 1, height_ratios=[above, below])
    top, bottom = (half.add_subplot() for half in halves)
    plain(top)
    plain(bottom)
    return figure, top, bottom


def titled(figure: Figure, title: str, notes: Sequence[str]) -> None:
    """A headline at the top left with smaller notes below it, one line each."""
    lines = [line for line in notes if line]
    room = "\n" * len(lines)  # empty lines of the headline, since only that takes part in the layout
    figure.suptitle(title + room, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    figure.add_artist(
        Annotation(
            "\n".join(lines), (0.01, 1), (0, -20), xycoords=figure.transFigure, textcoords="offset points", va="top",
            fontsize=9, color=FAINT, annotation_clip=False,
        )
    )  # fmt: skip


def narrow(figure: Figure, width: float) -> None:
    """Fit a figure into that many pixels of a page: text keeps its size, the headline is cut, its notes are wrapped."""
    inches, height = width / PIXELS, figure.get_figheight()
    ratio = inches / figure.get_figwidth()
    if ratio >= 1:
        return
    figure.set_size_inches(inches, height * math.sqrt(ratio))
    notes = [each for each in figure.artists if isinstance(each, Annotation)]
    lines = [piece for each in notes for line in each.get_text().split("\n") for piece in wrap(line, int(14 * inches))]
    for each in notes:
        each.remove()
    most = int((8 if figure.legends else 10) * inches)  # letters of the headline, to the left of a legend
    titled(figure, elided(figure.get_suptitle().strip(), most), lines)
    for text in figure.artists:
        if isinstance(text, Text):
            text.set(parse_math=False, usetex=False)


def finished(figure: DescribedFigure, description: str) -> Figure:
    """Keep the description, and make every text plain: names contain ``$`` and ``_``, which are no mathematics here."""
    figure.set_label(description)
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set(parse_math=False, usetex=False)
    return figure


def explain(figure: DescribedFigure, artist: Artist, name: str, texts: Sequence[str]) -> None:
    """Say what each part of a patch or a collection is: its tooltip on a page."""
    if len(texts) > MOST_TIPS:
        artist.set_rasterized(True)
        return
    artist.set_gid(name)
    figure.tips[name] = [*texts]


def tip_name(text: str) -> str:
    """An untrusted name as a tooltip shows it."""
    return elided(
        printable(text if len(text) <= 2 * TIP_LENGTH else text[:TIP_LENGTH] + text[-TIP_LENGTH:]), TIP_LENGTH
    )


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
    return elided(shown, most)


def elided(text: str, most: int) -> str:
    """At most that many characters, with the middle left out."""
    tail = (most - 1) // 2
    return text if len(text) <= most else text[: most - 1 - tail] + "…" + text[-tail:]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers in names as numbers.

    >>> sorted(["experts.10", "experts.9", "layers"], key=natural)
    ['experts.9', 'experts.10', 'layers']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() and len(part) < 20 else (1, 0, part) for part in parts]


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
    """Label the x axis with as many digits as neighbours need to differ, and without a factor or offset at its end."""
    step = (high - low) / 7
    digits = min(12, 2 + max(0, math.ceil(math.log10(max(abs(low), abs(high)) / step))))

    def text(value: float, _: object) -> str:
        return "0" if abs(value) < step / 1e6 else f"{value:.{digits}g}".replace("-", "−")  # noqa: RUF001

    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10], integer=whole_numbers))
    axes.xaxis.set_major_formatter(FuncFormatter(text))


def sequential(count: int) -> list[str]:
    """Colours from dark to light for an order of ``count`` things; both ends show on a white and on a dark page."""
    from matplotlib.colors import to_hex

    return [to_hex(graded(i / max(1, count - 1))) for i in range(count)]


def graded(share: float) -> tuple[float, float, float, float]:
    """The colour at a share of the way from dark, which is 3:1 to a dark page, to light."""
    stops = np.linspace(0, 1, 256)
    red, green, blue, _ = matplotlib.colormaps["viridis"](stops).T  # between its colours, too: many ranks all differ
    at = 0.34 + 0.58 * share
    return float(np.interp(at, stops, red)), float(np.interp(at, stops, green)), float(np.interp(at, stops, blue)), 1.0


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on the colour (relative luminance of WCAG 2)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.179 else "black"
