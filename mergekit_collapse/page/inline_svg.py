"""A drawing of matplotlib as part of a page: the page's colours, its typeface, ids of its own."""

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from markupsafe import Markup

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_FONT_FAMILY = re.compile(r"\s*font-family:[^;]*;?")
# matplotlib writes black for axes and text, which in a dark page would be black on black.
INK = "#000000"


def inline_svg(
    drawing: str,
    *,
    prefix: str,
    title: str,
    description: str,
    colours: Mapping[str, str],
    texts: Mapping[str, str],
) -> Markup:
    """The drawing as an ``<svg>`` element for HTML.

    Args:
        drawing: a whole SVG file, as matplotlib writes it.
        prefix: put before every id, so that several drawings can share a page.
        title: its name for those who cannot see it.
        description: what it shows, in words.
        colours: colour as drawn, in lower case, to what CSS shall take in its place.
        texts: text as drawn to the text that is meant. Names are put in only here: no font has
            to know their letters, and no markup in them is obeyed.
    """
    root = ElementTree.fromstring(drawing)
    for parent in root.iter():
        for child in [c for c in parent if c.tag in (f"{_SVG}metadata", f"{_SVG}style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        _rename(element, prefix)
        if "style" in element.attrib:
            element.set("style", _themed(element.attrib["style"], colours))
        if element.tag == "text" and element.text is not None:
            element.text = texts.get(element.text, element.text)
        # The file is indented; HTML would keep every blank of it.
        if not (element.text or "").strip():
            element.text = None
        element.tail = None
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": f"{title}. {description}", "class": "chart"}
    named = ElementTree.Element("title")
    named.text = title
    described = ElementTree.Element("desc")
    described.text = description
    root[:0] = [named, described]
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _rename(element: ElementTree.Element, prefix: str) -> None:
    if link := element.attrib.pop(_LINK, None):
        element.set("href", link)
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{prefix}-{value}")
        elif value.startswith("#") and key == "href":
            element.set(key, f"#{prefix}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{prefix}-"))


def _themed(style: str, colours: Mapping[str, str]) -> str:
    style = _FONT_FAMILY.sub("", style)
    for drawn, meant in {**colours, INK: "currentColor"}.items():
        style = style.replace(drawn, meant)
    return style.strip()
