"""Boxes, arrows and words as an SVG file. Sizes are in pixels of a page 720 wide, which a phone shows at half."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

FIGURES = Path(__file__).resolve().parents[2] / "documentation" / "figures"
INK, GREY, PAPER = "#1b1f24", "#57606a", "#ffffff"
# Light tints of M. Okabe and K. Ito's colours, and the colours themselves for borders.
TINTS = {"blue": "#dcecf7", "orange": "#fdeecb", "green": "#d6f0e7", "pink": "#f7e3ee", "grey": "#eef0f2"}
LINES = {"blue": "#0072b2", "orange": "#b97a00", "green": "#00805f", "pink": "#a64d7f", "grey": "#8c959f"}


class Drawing:
    """An SVG picture.

    Args:
        height: In pixels.
        title: Read aloud by screen readers.
    """

    def __init__(self, height: int, title: str, width: int = 720) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" font-family="Helvetica, Arial, Liberation Sans, sans-serif">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{GREY}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, lines: Sequence[str], colour: str = "grey") -> None:
        """A rounded box with centred lines; the first one is bold."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="{TINTS[colour]}" '
            f'stroke="{LINES[colour]}" stroke-width="2"/>'
        )
        step = 26
        top = y + height / 2 - step * (len(lines) - 1) / 2 + 7
        for index, line in enumerate(lines):
            self.text(x + width / 2, top + index * step, line, size=24 if index == 0 else 22, bold=index == 0)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 22,
        bold: bool = False,
        anchor: str = "middle",
        colour: str = INK,
    ) -> None:
        """One line; `anchor` is start, middle or end."""
        weight = ' font-weight="bold"' if bold else ""
        place = f'x="{x}" y="{y}" font-size="{size}"{weight} text-anchor="{anchor}"'
        self.parts.append(f'<text {place} fill="{colour}">{escape(words)}</text>')

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """A line along the points that ends in a tip."""
        path = " ".join(f"{x},{y}" for x, y in points)
        dash = ' stroke-dasharray="7 6"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{GREY}" stroke-width="2.5"{dash} marker-end="url(#tip)"/>'
        )

    def save(self, name: str) -> None:
        """Write `documentation/figures/NAME.svg`."""
        FIGURES.mkdir(exist_ok=True)
        (FIGURES / f"{name}.svg").write_text("\n".join([*self.parts, "</svg>", ""]), encoding="utf-8")
