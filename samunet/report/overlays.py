"""Overlays: pictures of cases with their labels or predictions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samunet import paths
from samunet.dataset.cases import Case
from samunet.dataset.description import Description, read_description
from samunet.dataset.labels import Labels
from samunet.dataset.layout import find_dataset, load_dataset, raw_dataset
from samunet.dataset.outputs import PICTURE, PICTURE_MARK, check_folder
from samunet.errors import SamunetError, UsageError, argument, call
from samunet.files import atomic_path, make_folder
from samunet.inference.colour_table import PALETTE, colour_of
from samunet.plans import DEFAULT_PLANS_NAME, Plans, plans_called
from samunet.preprocessing.case import read_case
from samunet.preprocessing.run import stored_cases
from samunet.preprocessing.store import LABELS, StoredCase
from samunet.workers import map_cases

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = 3.4  # inches
_FEWEST_PIXELS = 24  # of a side that is shown: fewer cannot be recognised
_MOST_OF = 0.6  # of a slice: then all of it is shown


def plot_overlays(
    dataset: str | int,
    output: str | Path,
    *,
    configuration: str | None = None,
    plans_name: str = DEFAULT_PLANS_NAME,
    channel: int | None = None,
    intensity: float = 0.6,
    overwrite: bool = False,
    num_workers: int = 0,
    window: tuple[float, float] | None = None,
) -> list[Path]:
    """Write ``CASE.png`` for every training case: up to three of its slices with the label on them.

    Args:
        output: Folder for the pictures; made if missing.
        configuration: None shows the raw files; else the slices that preprocessing stored for it.
        plans_name: Of the stored slices.
        channel: Which one is shown; None for the first, or for colour where there are the three of a picture.
        intensity: How strongly classes are filled, 0 to 1.
        overwrite: Replace pictures of these names that this program did not write.
        window: Intensities shown black and white; None for the plans' percentiles of CT that was planned, and for
            the 1st and 99th percentile of the slices of others.

    Raises:
        UsageError: If there is no such dataset, configuration or channel, or ``output`` is no place for pictures.
        SamunetError: If a case cannot be read; names it.
    """
    name = find_dataset(dataset)
    if not 0 <= intensity <= 1:
        raise UsageError(f"{argument('intensity')} must be 0 to 1, got {intensity:g}")
    if configuration is None:
        loaded = load_dataset(name)
        description = loaded.description
        cases: dict[str, Case | StoredCase] = dict(loaded.cases)
    else:
        source = paths.preprocessed_folder() / name
        plans, description = plans_called(plans_name, source), read_description(source)
        wanted = plans.configuration(configuration)
        stored = (source / wanted.data_identifier / LABELS).glob("[!.]*.b2nd")
        names = sorted(path.name.removesuffix(".b2nd") for path in stored)
        cases = dict(stored_cases(source, plans, wanted, description, names, raw_dataset(name)))
        if not cases:
            raise SamunetError(
                f"{name} has no stored slices of {configuration}",
                call("preprocess", name, [configuration]),
            )
    channels = len(description.channel_names)
    if channel is not None and not 0 <= channel < channels:
        raise UsageError(f"{argument('channel')} must be 0 to {channels - 1}, got {channel}")
    if window is None and configuration is None:
        with suppress(SamunetError):  # a dataset is looked at before it is planned
            window = ct_window(plans_called(plans_name, paths.preprocessed_folder() / name), description, channel or 0)
    check_folder(output, targets=[f"{case}.png" for case in cases], kind=PICTURE, overwrite=overwrite)
    output = make_folder(Path(output))
    files = {case: output / f"{case}.png" for case in cases}
    labels = description.labels
    names = legend(labels) if labels.ignore is None else [*legend(labels), "ignore"]
    options = {"names": names, "channel": channel, "intensity": intensity, "window": window}
    if channel is None and not is_colour(description.channel_names):
        options["channel"] = 0
    arguments = [(case, description.without_lists(), files[name], options) for name, case in cases.items()]
    for _ in map_cases(_plot, list(cases), arguments, num_workers=num_workers, description="Plotting"):
        pass
    return list(files.values())


def _plot(case: Case | StoredCase, description: Description, file: Path, options: dict[str, Any]) -> None:
    if isinstance(case, StoredCase):
        image, label = case.image(), np.maximum(case.label(), 0)  # -1: outside a mask, so background
    else:
        read, label = read_case(case, description, tolerate_geometry=True)
        image = read.array
    save_overlay(image, label, file, title="label", **options)


def save_overlay(image: np.ndarray, label: np.ndarray, file: Path, *columns: Any, **options: Any) -> None:
    """Write what :func:`draw_overlay` draws as a PNG."""
    figure = draw_overlay(image, label, *columns, **options)
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
    window: tuple[float, float] | None = None,
) -> Figure:
    """Draw up to three slices of a case, one below the other: the image, and its coloured classes.

    The slices are those with most foreground (in the reference, if there is one) in the first, middle and last third
    of its extent. They are cropped to the foreground; the whole slice is shown small in a corner.

    Args:
        image: Image (channels, z, y, x).
        label: Predicted label map (z, y, x).
        reference: True label map (z, y, x), shown beside it.
        names: Names by label value, background first (``Labels.names``), for the legend; empty ones are left out.
        title: What ``label`` is.
        channel: Which one is shown; None shows three channels as red, green and blue.
        entropy: Uncertainty (z, y, x) in percent, shown in a column more.
        intensity: How strongly classes are filled, 0 to 1.
        window: Intensities shown black and white; None for the 1st and 99th percentile of the slices.

    Raises:
        SamunetError: If the shapes do not agree.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = {title: label, "reference": reference, "entropy": entropy}
    columns = {what: column for what, column in columns.items() if column is not None}
    for what, column in columns.items():
        if column.shape != image.shape[1:]:
            raise SamunetError(f"the {what} has shape {column.shape}, the image {image.shape[1:]}")
    slices = choose_slices(label if reference is None or not reference.any() else reference)
    shown = (image if channel is None else image[[channel]])[:, slices]
    low, high = window or np.percentile(shown, (1, 99))
    pixels = np.clip((np.moveaxis(shown, 0, -1) - low) / max(high - low, 1e-6), 0, 1)
    foreground = sum((column[slices] > 0).any(0) for what, column in columns.items() if what != "entropy") > 0
    top, bottom, left, right = cut = _surroundings(foreground)
    cropped = (bottom - top, right - left) != image.shape[2:]
    height = float(np.clip(_PANEL * (bottom - top) / (right - left), _PANEL / 2, _PANEL * 1.4))
    figure = Figure(
        figsize=(_PANEL * (len(columns) + 1), (height + 0.25) * len(slices) + 0.35), layout="constrained"
    )  # fmt: skip
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(slices), len(columns) + 1, squeeze=False)
    for line, z, grey in zip(axes, slices, pixels, strict=True):
        where = f", slice {z}" if len(label) > 1 else ""
        for panel, (what, column) in zip(line, {"image": None, **columns}.items(), strict=True):
            panel.imshow(grey, cmap="gray", vmin=0, vmax=1)
            if what == "entropy":
                # inferno reads the same with any colour vision; where the network is certain, the image shows. Two
                # classes of several that are equally likely do not reach 100 %.
                strength = np.clip(column[z] / 15, 0, 0.85)
                panel.imshow(column[z], cmap="inferno", vmin=0, vmax=70, alpha=strength)
            elif column is not None:
                _draw_classes(panel, column[z], intensity)
            meaning = "entropy (bright: uncertain)" if what == "entropy" else what
            panel.set_title(f"{meaning}{where}", fontsize=9)
            panel.set_xlim(left - 0.5, right - 0.5)
            panel.set_ylim(bottom - 0.5, top - 0.5)
            panel.axis("off")
        if cropped:
            _draw_whole(line[0], grey, cut)
    shown_names = [(value, name) for value, name in enumerate(names) if value and name]
    patches = [Patch(color=colour_of(value), label=_plain(name)) for value, name in shown_names]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=9)
    return figure


def ct_window(plans: Plans, description: Description, channel: int = 0) -> tuple[float, float] | None:
    """The training foreground's 0.5 and 99.5 percentiles for CT, whose values mean the same in every image; or None."""
    statistics = plans.foreground_intensity_properties_per_channel.get(str(channel))
    if description.channel_names[channel].casefold() != "ct" or statistics is None:
        return None
    return statistics.percentile_00_5, statistics.percentile_99_5


def legend(labels: Labels) -> list[str]:
    """Names for a legend, by the value in a mask."""
    return [labels.names_in_masks.get(value, str(value)) for value in labels.values]


def is_colour(channel_names: Sequence[str]) -> bool:
    """Whether the channels are red, green and blue."""
    return [name.casefold()[:1] for name in channel_names] == ["r", "g", "b"]


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


def _surroundings(foreground: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is shown of a slice ``(y, x)``: foreground and a third of its size around it.

    At least a quarter of the slice's shorter side; the whole slice where that is most of it, or without foreground.
    """
    whole = (0, foreground.shape[0], 0, foreground.shape[1])
    if not foreground.any():
        return whole
    least = min(foreground.shape) // 4
    bounds: list[int] = []
    for axis in (1, 0):
        places, side = np.flatnonzero(foreground.any(axis)), foreground.shape[1 - axis]
        size = max(int((places[-1] + 1 - places[0]) * 5 / 3), least, _FEWEST_PIXELS)
        first = int((places[0] + places[-1] + 1 - size) / 2)
        bounds += [max(0, first), min(side, first + size)]
    top, bottom, left, right = bounds
    return whole if (bottom - top) * (right - left) > _MOST_OF * foreground.size else (top, bottom, left, right)


def _draw_whole(panel: Axes, grey: np.ndarray, cut: tuple[int, int, int, int]) -> None:
    from matplotlib.patches import Rectangle

    top, bottom, left, right = cut
    inset = panel.inset_axes((0.66, 0.66, 0.34, 0.34), anchor="NE")
    inset.imshow(grey, cmap="gray", vmin=0, vmax=1)
    frame = (left - 0.5, top - 0.5)
    inset.add_patch(Rectangle(frame, right - left, bottom - top, fill=False, edgecolor=PALETTE[-1], linewidth=1.2))
    inset.set_xticks([])
    inset.set_yticks([])
    for spine in inset.spines.values():
        spine.set(color="white", linewidth=1)


def _draw_classes(panel: Axes, label: np.ndarray, intensity: float) -> None:
    from matplotlib.colors import to_rgba

    filled = np.zeros((*label.shape, 4))
    for value in np.unique(label[label > 0]):
        mask = label == value
        filled[mask] = to_rgba(colour_of(int(value)), intensity)
        # A border of background lets a mask that touches the edge have a closed outline.
        edge = np.pad(mask, 1).astype(float)
        rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
        panel.contour(columns, rows, edge, levels=[0.5], colors=[colour_of(int(value))], linewidths=1.0)
    panel.imshow(filled)


def _plain(name: str) -> str:
    """A name in which matplotlib sees no formula, and which it does not leave out of a legend."""
    return name.replace("$", r"\$").lstrip("_") or " "
