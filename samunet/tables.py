"""Tables for people, as text."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines with columns as wide as their content, two blanks between them.

    Args:
        head: Titles of the columns.
        rows: As many cells each.
        left: How many of the first columns are aligned left; the others are aligned right.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in [head, *rows]:
        cells = [f"{cell:{'<' if index < left else '>'}{widths[index]}}" for index, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return lines


def number(value: float | None, form: str = ".4f") -> str:
    """A number as text; a dash where there is none (None or NaN)."""
    return "-" if value is None or value != value else f"{value:{form}}"
