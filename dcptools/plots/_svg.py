"""A figure as SVG for a page: a clear background, text in the page's colours, and what each part is as its tooltip.

matplotlib draws it; here its file becomes an element of a page. Whatever comes from a checkpoint is put in as text of
an element tree, which escapes it when it is written.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
from matplotlib.figure import Figure

from dcptools.plots import _figure as page

# What JupyterLab calls the colours of its page. `currentColor`, `Canvas`: those of any other page.
_STYLE: Final = (
    "--dcp-text:var(--jp-ui-font-color1,currentColor);--dcp-soft:color-mix(in srgb,var(--dcp-text) 75%,transparent);"
    "--dcp-line:var(--jp-border-color2,rgba(128,128,128,.35));--dcp-fill:var(--jp-layout-color2,rgba(128,128,128,.18));"
    "--dcp-ground:var(--jp-layout-color0,Canvas);font-family:var(--jp-ui-font-family,sans-serif)"
)
_RULES: Final = (
    ".dcp-figure .tip :hover{filter:brightness(1.25);stroke:var(--dcp-text);stroke-width:1}"
    ".dcp-figure text{pointer-events:none;white-space:pre}"  # a text on a cell must not hide the cell's tooltip
)
_OF_PAGE: Final = {
    page.INK: "var(--dcp-text)",
    page.FAINT: "var(--dcp-soft)",
    page.GRID: "var(--dcp-line)",
    page.PLAIN: "var(--dcp-fill)",
    page.GROUND: "var(--dcp-ground)",
}
_REFERENCE = re.compile(r"#([\w-]+)\)?$")
_NUMBER = re.compile(r"-?\d+\.\d+")
_POINT = re.compile(r"([ML]) (\S+) (\S+)|z")
_ONE_AT_A_TIME = threading.Lock()  # matplotlib's settings are those of the process, and steps draw in threads


def svg(figure: Figure, *, width: float | None = None) -> str:
    """A figure of this module as an SVG element to put into an HTML page.

    The ground is clear, and text has the colours of the page around it: those of JupyterLab's theme, or of any other
    page. Each bar, segment, box and cell says on hovering what it is.

    Parameters
    ----------
    figure
        Of a function of this module.
    width
        CSS pixels that the page has for it: a wider figure is narrowed to that, with text of the same size.

    Raises
    ------
    UsageError
        It is another figure.

    Examples
    --------
    >>> from dcptools import plots
    >>> element = plots.svg(plots.sizes(demo.checkpoint, by="dtype"))
    >>> element[:29], element.count("<title>")
    ('<svg xmlns="http://www.w3.org', 3)
    """
    described = page.describe(figure)
    if width is not None:
        page.narrow(figure, width)
    root = ElementTree.fromstring(_drawn(figure))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text = element.text if element.tag == "text" else None
        element.tail = None
        if target := element.attrib.pop("{http://www.w3.org/1999/xlink}href", ""):
            element.set("href", target)
    for name in ("metadata", "defs/style/.."):
        for found in root.findall(name):
            root.remove(found)
    _explain(root, getattr(figure, "tips", {}))
    for element in root.iter():
        _compact(element)
        _colour(element)
    for group in root.iter("g"):
        _hoist(group)
    _forget_ids(root)
    most = round(page.PIXELS * figure.get_figwidth())
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": root.get("viewBox", ""), "class": "dcp-figure",
        "role": "img", "aria-label": described, "style": f"width:100%;max-width:{most}px;height:auto;{_STYLE}",
    }  # fmt: skip
    style = Element("style")
    style.text = _RULES
    root.insert(0, style)
    return ElementTree.tostring(root, encoding="unicode")


def _drawn(figure: Figure) -> str:
    target = io.StringIO()
    with _ONE_AT_A_TIME, matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(target, format="svg", transparent=True, dpi=2 * page.PIXELS)
    return target.getvalue()


def _explain(root: Element, tips: dict[str, list[str]]) -> None:
    """Put the tooltips into the parts that they belong to."""
    for group in root.iter("g"):
        texts = tips.get(group.get("id", ""), [])
        parts = group.findall("path") or list(group.iter("use"))  # matplotlib refers to the only part of a collection
        if not texts or len(parts) != len(texts):  # if a part is not drawn, nothing tells which one it was
            continue
        group.set("class", "tip")
        for part, text in zip(parts, texts, strict=True):
            title = Element("title")
            title.text = text
            part.insert(0, title)


def _compact(element: Element) -> None:
    """As many digits as can be seen: hundredths of a point."""
    for name in ("d", "x", "y", "transform", "width", "height"):
        if name in element.attrib and element.tag != "image":
            element.set(name, _NUMBER.sub(_rounded, element.attrib[name]))
    if "d" in element.attrib:
        element.set("d", _short_path(" ".join(element.attrib["d"].split())))
    if re.match(r"rotate\(-?0 ", element.get("transform", "")):
        del element.attrib["transform"]


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")


def _short_path(d: str) -> str:
    """Straight lines along an axis in one number; a path with curves as it is."""
    if _POINT.sub("", d).strip():
        return d
    short, at = "", ("", "")
    for point in _POINT.finditer(d):
        command, x, y = point.groups()
        if not command:
            short += "z"
        elif command == "M":
            short += f"M{x} {y}"
        elif (x, y) != at:
            short += f"V{y}" if x == at[0] else f"H{x}" if y == at[1] else f"L{x} {y}"
        at = (x, y) if command else at
    return short


def _colour(element: Element) -> None:
    """The colours of the white page become those of the page around; white letters stand on a colour, and stay."""
    styles = dict(part.strip().split(": ", 1) for part in element.attrib.pop("style", "").split(";") if part.strip())
    styles |= {name: element.attrib.pop(name) for name in ("fill", "stroke") if name in element.attrib}
    styles.pop("font-family", None)
    for name in ("fill", "stroke"):
        if name in styles and styles[name].startswith("#") and (element.tag, styles[name]) != ("text", page.GROUND):
            styles[name] = _OF_PAGE.get(styles[name], styles[name])
    if styles:
        element.set("style", ";".join(f"{name}:{value}" for name, value in styles.items()))
    if element.get("clip-path") == "":
        del element.attrib["clip-path"]


def _hoist(group: Element) -> None:
    """What all parts of a group have in common is stated once, by the group."""
    if len(group) < 2 or any(part.tag != "path" for part in group):
        return
    common = set.intersection(*(set(part.get("style", "").split(";")) for part in group)) - {""}
    for part in group:
        own = [style for style in part.attrib.pop("style", "").split(";") if style and style not in common]
        if own:
            part.set("style", ";".join(own))
    if common:
        group.set("style", ";".join(sorted(common)))
    clips = {part.get("clip-path") for part in group}
    if len(clips) == 1 and (clip := clips.pop()):
        group.set("clip-path", clip)
        for part in group:
            del part.attrib["clip-path"]


def _forget_ids(root: Element) -> None:
    """Two figures on a page must not share ids: those that are left are matplotlib's random ones."""
    used = {found.group(1) for value in _references(root) if (found := _REFERENCE.search(value))}
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)


def _references(root: Element) -> Iterator[str]:
    for element in root.iter():
        yield element.get("href", "")
        yield element.get("clip-path", "")
        yield from (style for style in element.get("style", "").split(";"))
