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
    image: np.ndarray, label: np.ndarray, file: Path, reference: np.ndarray | None = None, names: Sequence[str] = ()
) -> None:
    """Write one PNG with up to three slices of a case and its coloured classes.

    The slices are those with most foreground (in the reference, if there is one) in the first, middle and last third
    of its extent. Grey values run from the 1st to the 99th percentile of the first channel.

    Args:
        image: Image (channels, z, y, x).
        label: Predicted label map (z, y, x).
        file: The PNG to write.
        reference: True label map (z, y, x), shown in a second row.
        names: Names by label value, background first (``Labels.names``), for the legend.

    Raises:
        SamunetError: If the shapes do not agree or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = {"prediction": label} if reference is None else {"prediction": label, "reference": reference}
    for title, row in rows.items():
        if row.shape != image.shape[1:]:
            raise SamunetError(f"the {title} has shape {row.shape}, the image {image.shape[1:]}")
    slices = choose_slices(label if reference is None else reference)
    low, high = np.percentile(image[0], (1, 99))
    height = 3.2 * image.shape[2] / image.shape[3]
    figure = Figure(figsize=(3.2 * len(slices), min(height, 6.4) * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(slices), squeeze=False)
    for line, (title, row) in zip(axes, rows.items(), strict=True):
        for panel, z in zip(line, slices, strict=True):
            panel.imshow(image[0, z], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            _draw_classes(panel, row[z])
            panel.set_title(f"{title}, slice {z}", fontsize=9)
            panel.axis("off")
    patches = [Patch(color=_color(value), label=name) for value, name in enumerate(names) if value > 0]
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


def _draw_classes(panel: Axes, label: np.ndarray) -> None:
    """Fill every class faintly and draw its outline."""
    filled = np.zeros((*label.shape, 4))
    for value in np.unique(label[label > 0]):
        mask = label == value
        filled[mask] = (*_color(int(value))[:3], 0.3)
        # A border of background lets a mask that touches the edge have a closed outline.
        edge = np.pad(mask, 1).astype(float)
        rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
        panel.contour(columns, rows, edge, levels=[0.5], colors=[_color(int(value))], linewidths=1.0)
    panel.imshow(filled)


def _color(value: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["tab10"]((value - 1) % 10)
