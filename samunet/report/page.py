"""Pages of reports: HTML without scripts and without anything from elsewhere, readable on a phone.

Templates escape whatever comes from files (names of cases, classes, reasons). All functions take text and blocks, and
return blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Environment(
    loader=PackageLoader("samunet.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_BLOCKS = _TEMPLATES.get_template("blocks.html").module
MADE_BY = "Made by samunet"


class Column(NamedTuple):
    """A column of a table; ``kind`` is ``name``, ``number`` (aligned right) or ``long`` (text)."""

    title: str
    cells: Sequence[object]
    kind: str = "name"


def page(title: str, lead: Sequence[object], sections: Sequence[tuple[str, Sequence[object]]], footer: str) -> str:
    """A whole page.

    Args:
        title: Its heading.
        lead: Paragraphs or blocks under the heading.
        sections: Title and content of each, paragraphs or blocks.
        footer: Where it comes from.
    """
    content = {"title": title, "lead": lead, "sections": sections, "footer": footer}
    return _TEMPLATES.get_template("page.html").render(content) + "\n"


def blocks(content: Sequence[object]) -> Markup:
    """Plain texts as paragraphs, and blocks, as one block."""
    return _BLOCKS.blocks(content)


def cards(figures: Sequence[tuple[object, str]]) -> Markup:
    """Large figures, each with its name."""
    return _BLOCKS.cards(figures)


def table(
    columns: Sequence[Column], marked: Sequence[bool] = (), *, stacked: bool = False, first: int | None = None
) -> Markup:
    """A table that scrolls by itself where the screen is narrow.

    Args:
        columns: With as many cells each.
        marked: Which rows to mark.
        stacked: On narrow screens, show the cells of a row one below the other.
        first: Rows to show; the others are folded away.
    """
    rows = list(zip(*(column.cells for column in columns), strict=True))
    lines = list(zip([*marked, *[False] * (len(rows) - len(marked))], rows, strict=True))
    return _BLOCKS.table(columns, lines, stacked, len(lines) if first is None else first)


def scores(title: str, values: Sequence[float | None]) -> Column:
    """A column of scores."""
    return Column(title, [score(value) for value in values], "number")


def score(value: float | None) -> str:
    """A score as text; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def picture(source: str, caption: str, alt: str, wide: bool = False) -> Markup:
    """An image given as a ``data:`` address; a wide one scrolls by itself on narrow screens."""
    return _BLOCKS.picture(source, caption, alt, wide)


def charts(items: Sequence[Markup]) -> Markup:
    """Pictures side by side where there is room."""
    return _BLOCKS.charts(items)


def heading(words: str) -> Markup:
    """A heading within a section."""
    return _BLOCKS.heading(words)


def tag(words: str) -> Markup:
    """A word that stands out by weight, sign and colour."""
    return _BLOCKS.tag(words)
