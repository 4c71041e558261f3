"""A picture of a prediction, to see at a glance whether it is plausible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.dataset.outputs import PICTURE_MARK
from samunet.errors import SamunetError
from samunet.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# M. Okabe and K. Ito's colours, which colour-blind people can tell apart, without black; yellow last, as white is near.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")


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
    of its extent. Grey values run from the 1st to the 99th percentile in these slices.

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
    figure = draw_overlay(image, label, reference, names, title=title, channel=channel, intensity=intensity)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=100, format="png", metadata=PICTURE_MARK)


def draw_overlay(
    image: np.ndarray,
    label: np.ndarray,
    reference: np.ndarray | None = None,
    names: Sequence[str] = (),
    entropy: np.ndarray | None = None,
    *,
    title: str = "prediction",
    channel: int | None = 0,
    intensity: float = 0.3,
) -> Figure:
    """The picture that :func:`save_overlay` writes, with a row more where ``entropy`` (z, y, x) in percent is given.

    Raises:
        SamunetError: If the shapes do not agree.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = {title: label, "reference": reference, "entropy": entropy}
    rows = {what: row for what, row in rows.items() if row is not None}
    for what, row in rows.items():
        if row.shape != image.shape[1:]:
            raise SamunetError(f"the {what} has shape {row.shape}, the image {image.shape[1:]}")
    slices = choose_slices(label if reference is None else reference)
    shown = image if channel is None else image[[channel]]
    low, high = np.percentile(shown[:, slices], (1, 99))
    height = 3.2 * image.shape[2] / image.shape[3]
    figure = Figure(figsize=(3.2 * len(slices), min(height, 6.4) * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(slices), squeeze=False)
    for line, (what, row) in zip(axes, rows.items(), strict=True):
        for panel, z in zip(line, slices, strict=True):
            grey = (shown[:, z] - low) / max(high - low, 1e-6)
            panel.imshow(np.clip(np.moveaxis(grey, 0, -1), 0, 1), cmap="gray", vmin=0, vmax=1)
            if what == "entropy":
                # inferno reads the same with any colour vision; where the network is certain, the image shows. Two
                # classes of several that are equally likely do not reach 100 %.
                strength = np.clip(row[z] / 15, 0, 0.85)
                panel.imshow(row[z], cmap="inferno", vmin=0, vmax=70, alpha=strength)
            else:
                _draw_classes(panel, row[z], intensity)
            meaning = "entropy (bright: uncertain)" if what == "entropy" else what
            panel.set_title(f"{meaning}, slice {z}", fontsize=9)
            panel.axis("off")
    shown_names = [(value, name) for value, name in enumerate(names) if value and name]
    patches = [Patch(color=_color(value), label=_plain(name)) for value, name in shown_names]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=9)
    return figure


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
    from matplotlib.colors import to_rgba

    filled = np.zeros((*label.shape, 4))
    for value in np.unique(label[label > 0]):
        mask = label == value
        filled[mask] = to_rgba(_color(int(value)), intensity)
        # A border of background lets a mask that touches the edge have a closed outline.
        edge = np.pad(mask, 1).astype(float)
        rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
        panel.contour(columns, rows, edge, levels=[0.5], colors=[_color(int(value))], linewidths=1.0)
    panel.imshow(filled)


def _color(value: int) -> str:
    return PALETTE[(value - 1) % len(PALETTE)]


def _plain(name: str) -> str:
    """A name in which matplotlib sees no formula, and which it does not leave out of a legend."""
    return name.replace("$", r"\$").lstrip("_") or " "
