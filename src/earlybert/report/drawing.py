"""One figure, twice: a file for a paper, and SVG on a page that follows its light and dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from ..ticket.files import write_atomically

INK, FAINT, GRID = "#1b1c1e", "#6b6c70", "#d3d4d8"
FIRST, SECOND, THIRD = "#1f6fb2", "#c85a12", "#3f7f4d"
VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid", FIRST: "--first", SECOND: "--second", THIRD: "--third"}
"""Colours of a figure, and the property of the page that stands for each."""
WIDTH = 4.0
"""Of a figure in inches: narrow enough that its letters can be read on a phone, and a column of a paper."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names are shown as they are written, dollars included
    "image.composite_image": False,
}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


@dataclass(frozen=True)
class Drawing:
    """A figure and what is said about it."""

    name: str
    """Of its files, and of its place on the page."""
    title: str
    about: str
    """What it shows, for those who cannot see it."""
    figure: Figure
    tips: Mapping[str, str] = field(default_factory=dict)
    """What hovering says, by the `gid` of an artist."""

    def save(self, folder: Path) -> list[Path]:
        """Write `NAME.svg` and `NAME.pdf`; the same results give the same bytes."""
        files = {"svg": {"Date": None, "Title": self.title}, "pdf": {"CreationDate": None, "Title": self.title}}
        for suffix, metadata in files.items():
            write_atomically(folder / f"{self.name}.{suffix}", self._bytes(suffix, metadata))
        return [folder / f"{self.name}.{suffix}" for suffix in files]

    def inline(self, place: str) -> str:
        """SVG text for an HTML page, transparent, without ids that another figure may have.

        Args:
            place: What its ids begin with.
        """
        root = ElementTree.fromstring(
            self._bytes("svg", {"Date": None, "Creator": None, "Format": None, "Type": None}, transparent=True)
        )
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                    parent.remove(child)
        _name_tips(root, self.tips)
        _keep_needed_ids(root, place)
        for name in ("width", "height", "version"):
            root.attrib.pop(name, None)
        root.set("role", "img")
        root.set("aria-labelledby", f"{place}-title {place}-about")
        for text, tag in ((self.about, "desc"), (self.title, "title")):
            element = ElementTree.Element(
                f"{{{SVG}}}{tag}", {"id": f"{place}-{'title' if tag == 'title' else 'about'}"}
            )
            element.text = text
            root.insert(0, element)
        svg = ElementTree.tostring(root, encoding="unicode")
        return re.sub("|".join(VARIABLES), lambda found: f"var({VARIABLES[found[0]]})", svg)

    def _bytes(self, format: str, metadata: Mapping[str, str | None], *, transparent: bool = False) -> bytes:
        content = io.BytesIO()
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}):
            self.figure.savefig(content, format=format, metadata=dict(metadata), transparent=transparent)
        return content.getvalue()


def drawn(draw: Callable[..., Drawing]) -> Callable[..., Drawing]:
    """Give a function that makes a drawing the style of all of them."""

    def styled(*arguments: Any, **options: Any) -> Drawing:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    styled.__doc__ = draw.__doc__
    return styled


def empty(height: float) -> Figure:
    """A figure of the common width, nothing on it."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _name_tips(root: ElementTree.Element, tips: Mapping[str, str]) -> None:
    for element in root.iter():
        tip = tips.get(element.get("id", ""))
        if tip is not None:
            element.set("data-tip", tip)
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = tip
            element.insert(0, title)


def _keep_needed_ids(root: ElementTree.Element, place: str) -> None:
    """Ids are the page's, not the figure's: those that nothing points to go, the others get a name of their own."""
    wanted: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            wanted.update(re.findall(r"url\(#([^)]+)\)", value))
            if name == f"{{{XLINK}}}href" and value.startswith("#"):
                wanted.add(value[1:])
    for element in root.iter():
        if element.get("id") in wanted:
            element.set("id", f"{place}-{element.get('id')}")
        else:
            element.attrib.pop("id", None)
        for name, value in list(element.attrib.items()):
            if name == f"{{{XLINK}}}href" and value.startswith("#"):
                element.set(name, f"#{place}-{value[1:]}")
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{place}-"))
