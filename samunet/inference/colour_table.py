"""Names and colours of a mask's values, in the form that 3D Slicer reads."""

from __future__ import annotations

from pathlib import Path

from samunet.dataset.labels import Labels
from samunet.files import write_text

FILE_NAME = "labels.ctbl"
# M. Okabe and K. Ito's colours, which colour-blind people can tell apart, without black; yellow last, as white is near.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")


def write_colour_table(folder: Path, labels: Labels) -> None:
    """Write ``labels.ctbl``: a line ``value name red green blue opacity`` for every value that masks may have.

    Names have no blanks in this format: underscores stand for them. The colours are those of overlays and reports.
    """
    lines = ["# Color table file labels.ctbl", f"# {len(labels.names_in_masks)} values"]
    for value, name in sorted(labels.names_in_masks.items()):
        hexadecimal = "#000000" if value == 0 else colour_of(value)
        red, green, blue = bytes.fromhex(hexadecimal[1:])
        word = "_".join(name.split()) or f"class_{value}"
        lines.append(f"{value} {word} {red} {green} {blue} {255 if value else 0}")
    write_text(folder / FILE_NAME, "\n".join(lines) + "\n")


def colour_of(value: int) -> str:
    """The colour of a class's value, such as ``#E69F00``."""
    return PALETTE[(value - 1) % len(PALETTE)]
