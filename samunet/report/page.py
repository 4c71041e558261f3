"""Pages of reports: HTML without scripts and without anything from elsewhere, readable on a phone.

Content of a page are texts and blocks. The templates escape whatever comes from files (names of cases, classes,
reasons); :data:`BLOCKS` has a function for each block of ``templates/blocks.html``.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from samunet import __version__
from samunet.inference.colour_table import colour_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATES = Environment(
    loader=PackageLoader("samunet.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
BLOCKS: Any = _TEMPLATES.get_template("blocks.html").module
MADE_BY = "Made by samunet"

# As wide as a phone: on a wider screen charts stand side by side and are scaled up a little.
_WIDTH = 5.2
_STYLES = ("-", "--", "-.", ":")


class Column(NamedTuple):
    """A column of a table; ``kind`` is ``name``, ``number`` (aligned right) or ``long`` (text)."""

    title: str
    cells: Sequence[object]
    kind: str = "name"


def page(title: str, lead: Sequence[object], sections: Sequence[tuple[str, Sequence[object]]]) -> str:
    """A whole page.

    Args:
        title: Its heading.
        lead: Paragraphs or blocks under the heading.
        sections: Title and content of each, paragraphs or blocks.
    """
    footer = f"{MADE_BY} {__version__}."
    return _TEMPLATES.get_template("page.html").render(title=title, lead=lead, sections=sections, footer=footer) + "\n"


def scores(title: str, values: Sequence[float | None]) -> Column:
    """A column of scores."""
    return Column(title, [score(value) for value in values], "number")


def score(value: float | None) -> str:
    """A score as text; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def training_curves(logs: dict[str, list[dict[str, Any]]], key: str, label: str, bounds: tuple | None = None) -> str:
    """One line for each fold over iterations, as an SVG image; folds differ by colour and by the line's style.

    Args:
        logs: Name of a fold to its ``training_log.json``.
        key: What to draw; entries without it are left out.
        label: Of the axis.
        bounds: Of the axis; by the data if None.
    """
    figure, axes = _figure(3.2)
    for index, (fold, entries) in enumerate(logs.items()):
        points = [(entry["iteration"], entry[key]) for entry in entries if entry.get(key) is not None]
        style = {"color": colour_of(index + 1), "linestyle": _STYLES[index % len(_STYLES)], "linewidth": 1.6}
        axes.plot(*zip(*points), label=fold, **style) if points else None
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    if bounds:
        axes.set_ylim(*bounds)
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def strip_chart(groups: dict[str, Sequence[float]], label: str) -> str:
    """Every case as a point, one row for each class, with the median as a line; an SVG image."""
    import numpy as np

    figure, axes = _figure(1.1 + 0.5 * len(groups))
    rng = np.random.default_rng(0)
    for row, values in enumerate(groups.values()):
        offsets = rng.uniform(-0.22, 0.22, len(values))
        axes.scatter(values, row + offsets, s=14, color=colour_of(row + 1), alpha=0.75, linewidths=0)
        if len(values):
            middle = float(np.median(values))
            axes.plot([middle, middle], [row - 0.36, row + 0.36], color="#1f2933", linewidth=2)
    # A dollar sign would begin a formula.
    names = [(name if len(name) <= 22 else name[:21] + "…").replace("$", r"\$") for name in groups]
    axes.set_yticks(range(len(groups)), names)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#d5dae0", linewidth=0.8)
    axes.set_axisbelow(True)
    return _svg(figure)


def image_address(content: bytes, kind: str) -> str:
    """A file's content as a ``data:`` address; ``kind`` such as ``image/jpeg``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _figure(height: float) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.BytesIO()
    # Text as outlines: an image cannot take the page's fonts. The salt and no date make equal charts equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "samunet"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return image_address(buffer.getvalue(), "image/svg+xml")
