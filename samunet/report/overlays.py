"""Pictures of cases in a report."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from samunet.dataset.description import Description
from samunet.errors import SamunetError
from samunet.imageio.base import Reader
from samunet.imageio.registry import image_reader_for
from samunet.imageio.same_grid import Grid, on_grid
from samunet.plans import Plans
from samunet.report.case_overlay import ct_window, draw_overlay, is_colour, legend
from samunet.report.charts import image_address
from samunet.report.page import picture


@dataclass(frozen=True)
class CaseFigure:
    """A case to show.

    Attributes:
        caption: What to say of it.
        images: Its image files.
        mask: The prediction.
        reference: The true mask, if there is one.
        entropy: Image of the entropy in percent, if there is one.
    """

    name: str
    caption: str
    images: tuple[Path, ...]
    mask: Path
    reference: Path | None = None
    entropy: Path | None = None


def overlay(case: CaseFigure, description: Description, window: tuple[float, float] | None) -> Markup | str:
    """A picture of the case; a sentence instead where a file is missing or cannot be read.

    Args:
        case: To show.
        window: Intensities shown black and white; None for percentiles of the slices shown.
    """
    reader = description.reader
    try:
        read = image_reader_for(case.images[0], reader).read_image(case.images, tolerate_geometry=True)
        image, place = read.array, Grid(case.images[0], read.array.shape[1:], read.geometry)
        mask, reference, entropy = (_read(file, reader, place) for file in (case.mask, case.reference, case.entropy))
        if reference is not None and description.labels.ignore is not None:
            reference = np.where(reference == description.labels.ignore, 0, reference)
        names = legend(description.labels)
        channel = None if is_colour(description.channel_names) else 0
        figure = draw_overlay(image, mask, reference, names, entropy, channel=channel, window=window)
    except SamunetError as error:
        return f"{case.name}: no picture, {error.message}"
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="jpeg", pil_kwargs={"quality": 88})
    columns = {"the image": image, "the prediction": mask, "the reference": reference, "the entropy": entropy}
    shown = ", ".join(name for name, column in columns.items() if column is not None)
    alt = f"{case.name}, side by side: {shown}"
    return picture(image_address(buffer.getvalue(), "image/jpeg"), f"{case.name}: {case.caption}", alt, wide=True)


def planned_window(plans: Plans, description: Description) -> tuple[float, float] | None:
    """What is shown black and white of a first channel that is CT; None for others."""
    statistics = plans.foreground_intensity_properties_per_channel.get("0")
    return ct_window(next(iter(description.channel_names)), statistics)


def _read(file: Path | None, reader: Reader, place: Grid) -> np.ndarray | None:
    """A map on the grid of the image."""
    if file is None or not file.is_file():
        return None
    label, geometry = image_reader_for(file, reader).read_label(file)
    return on_grid(label, Grid(file, label.shape, geometry), place, tolerate_geometry=True)
