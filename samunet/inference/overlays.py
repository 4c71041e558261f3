"""A picture of a prediction, to see at a glance whether it is plausible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_overlay(
    image: np.ndarray,
    label: np.ndarray,
    file: Path,
    reference: np.ndarray | None = None,
    names: Sequence[str] = (),
    *,
    title: str = "prediction",
    channel: int | None = 0,
    intensity: float = 0.3,
) -> None:
    """Write one PNG with up to three slices of a case and its coloured classes.

    The slices are those with most foreground (in the reference, if there is one) in the first, middle and last third
    of its extent. Grey values run from the 1st to the 99th percentile.

    Args:
        image: Image (channels, z, y, x).
        label: Predicted label map (z, y, x).
        file: The PNG to write.
        reference: True label map (z, y, x), shown in a second row.
        names: Names by label value, background first (``Labels.names``), for the legend; empty ones are left out.
        title: What ``label`` is.
        channel: Which one is shown; None shows three channels as red, green and blue.
        intensity: How strongly classes are filled, 0 to 1.

    Raises:
        SamunetError: If the shapes do not agree or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = {title: label} if reference is None else {title: label, "reference": reference}
    for what, row in rows.items():
        if row.shape != image.shape[1:]:
            raise SamunetError(f"the {what} has shape {row.shape}, the image {image.shape[1:]}")
    slices = choose_slices(label if reference is None else reference)
    shown = image if channel is None else image[[channel]]
    low, high = np.percentile(shown, (1, 99))
    shown = np.clip((shown - low) / max(high - low, 1e-6), 0, 1)
    height = 3.2 * image.shape[2] / image.shape[3]
    figure = Figure(figsize=(3.2 * len(slices), min(height, 6.4) * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(slices), squeeze=False)
    for line, (what, row) in zip(axes, rows.items(), strict=True):
        for panel, z in zip(line, slices, strict=True):
            if channel is None:
                panel.imshow(np.moveaxis(shown[:, z], 0, -1))
            else:
                panel.imshow(shown[0, z], cmap="gray", vmin=0, vmax=1)
            _draw_classes(panel, row[z], intensity)
            panel.set_title(f"{what}, slice {z}", fontsize=9)
            panel.axis("off")
    patches = [Patch(color=_color(value), label=name) for value, name in enumerate(names) if value and name]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=9)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def choose_slices(label: np.ndarray, count: int = 3) -> list[int]:
    """Indices along the first axis: where foreground is largest in each of ``count`` equal parts of its extent.

    Without foreground: the middle slice.
    """
    area = np.count_nonzero(label, axis=(1, 2))
    filled = np.flatnonzero(area)
    if not filled.size:
        return [len(area) // 2]
    parts = np.array_split(np.arange(filled[0], filled[-1] + 1), count)
    return [int(part[area[part].argmax()]) for part in parts if part.size]


def _draw_classes(panel: Axes, label: np.ndarray, intensity: float) -> None:
    """Fill every class faintly and draw its outline."""
    filled = np.zeros((*label.shape, 4))
    for value in np.unique(label[label > 0]):
        mask = label == value
        filled[mask] = (*_color(int(value))[:3], intensity)
        # A border of background lets a mask that touches the edge have a closed outline.
        edge = np.pad(mask, 1).astype(float)
        rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
        panel.contour(columns, rows, edge, levels=[0.5], colors=[_color(int(value))], linewidths=1.0)
    panel.imshow(filled)


def _color(value: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["tab10"]((value - 1) % 10)
