"""A figure of matplotlib as SVG that may stand inside a page: its text selectable, its colors the page's, nothing else.

Matplotlib writes a document: a prolog, metadata, a style sheet that would hold for the whole page, style attributes
that a strict content policy refuses, ids that two figures share, a fixed size and fixed colors. What is kept are
shapes and text with presentation attributes; the colors that figures are drawn in are names (`INKS`) for variables of
the page's style sheet, so that one figure does for light, dark and print. The same figure has the same bytes.
"""

import io
import re
from collections.abc import Mapping
from xml.etree import ElementTree as ET

from matplotlib import rc_context
from matplotlib.figure import Figure

# Drawn color -> variable of the page. Any unlikely color would do: none of them is ever seen.
INKS: Mapping[str, str] = {
    "#010101": "--ink", "#010102": "--muted", "#010103": "--rule", "#010104": "--surface", "#010105": "--good-wash",
    **{f"#0102{place:02x}": f"--series-{place}" for place in range(1, 7)},
}  # fmt: skip
NAMED = {variable.removeprefix("--"): color for color, variable in INKS.items()}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_DROPPED = {"metadata", "style"}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)px")


def page_svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """Return a figure as an `<svg role="img">` with title and description; `name` is unique on its page."""
    written = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "viker", "path.simplify": False}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    root = ET.fromstring(written.getvalue())  # noqa: S314 (our own figure)
    _without(root)
    for element in root.iter():
        _restyle(element)
        _rename(element, name)
    svg = ET.Element(
        "svg",
        {
            "viewBox": root.attrib["viewBox"], "role": "img", "class": "figure", "aria-labelledby": f"{name}-title",
            "aria-describedby": f"{name}-description",
        },
    )  # fmt: skip
    for label, text in (("title", title), ("description", description)):
        ET.SubElement(svg, label.replace("description", "desc"), {"id": f"{name}-{label}"}).text = text
    svg.extend(list(root))
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]
    return ET.tostring(svg, encoding="unicode")


def _without(root: ET.Element) -> None:
    """Take out what belongs to a document of its own."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in _DROPPED:
                parent.remove(child)


def _restyle(element: ET.Element) -> None:
    """Turn a style attribute into presentation attributes, and drawn colors into the page's."""
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = _SIZE.search(value)
            element.set("font-size", size.group(1) if size else "10")
        elif name:
            element.set(name, value)
    for name in ("fill", "stroke"):
        if element.get(name) in INKS:
            element.set(name, f"var({INKS[element.attrib[name]]})")


def _rename(element: ET.Element, name: str) -> None:
    """Put the figure's name before its ids and what refers to them; ids that nothing can refer to are harmless."""
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.attrib['id']}")
    target = element.attrib.pop(f"{{{_XLINK}}}href", None)
    if target is not None:
        element.set("href", f"#{name}-{target.removeprefix('#')}")
    clip = element.get("clip-path")
    if clip is not None:
        element.set("clip-path", _REFERENCE.sub(rf"url(#{name}-\1)", clip))
