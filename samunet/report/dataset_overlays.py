"""Pictures of all training cases with their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samunet import paths
from samunet.dataset.cases import Case
from samunet.dataset.description import Description, read_description
from samunet.dataset.layout import find_dataset, load_dataset, raw_dataset
from samunet.dataset.outputs import PICTURE, check_folder
from samunet.errors import SamunetError, UsageError, quoted
from samunet.files import make_folder
from samunet.plans import DEFAULT_PLANS_NAME, plans_called
from samunet.preprocessing.case import read_case
from samunet.preprocessing.run import stored_cases
from samunet.preprocessing.store import LABELS, StoredCase
from samunet.report.case_overlay import ct_window, is_colour, legend, save_overlay
from samunet.workers import map_cases


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
        raise UsageError(f"-overlay_intensity must be 0 to 1, got {intensity:g}")
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
                f"samunet_preprocess -d {quoted(name)} -c {quoted(configuration)}",
            )
    if window is None and configuration is None:
        window = _planned_window(name, plans_name, description, channel or 0)
    channels = len(description.channel_names)
    if channel is not None and not 0 <= channel < channels:
        raise UsageError(f"-channel_idx must be 0 to {channels - 1}, got {channel}")
    check_folder(output, targets=[f"{case}.png" for case in cases], kind=PICTURE, overwrite=overwrite)
    output = make_folder(Path(output))
    files = {case: output / f"{case}.png" for case in cases}
    labels = description.labels
    names = legend(labels) if labels.ignore is None else [*legend(labels), "ignore"]
    arguments = [
        (case, description.without_lists(), files[name], channel, intensity, names, window)
        for name, case in cases.items()
    ]
    for _ in map_cases(_plot, list(cases), arguments, num_workers=num_workers, description="Plotting"):
        pass
    return list(files.values())


def _plot(
    case: Case | StoredCase,
    description: Description,
    file: Path,
    channel: int | None,
    intensity: float,
    names: list[str],
    window: tuple[float, float] | None,
) -> None:
    if isinstance(case, StoredCase):
        image, label = case.image(), np.maximum(case.label(), 0)  # -1: outside a mask, so background
    else:
        read, label = read_case(case, description, tolerate_geometry=True)
        image = read.array
    if channel is None and not is_colour(description.channel_names):
        channel = 0
    save_overlay(image, label, file, names=names, title="label", channel=channel, intensity=intensity, window=window)


def _planned_window(name: str, plans_name: str, description: Description, channel: int) -> tuple[float, float] | None:
    """Of CT that has been planned."""
    try:
        statistics = plans_called(plans_name, paths.preprocessed_folder() / name)
    except SamunetError:  # a dataset is looked at before it is planned
        return None
    properties = statistics.foreground_intensity_properties_per_channel
    names = list(description.channel_names)
    return ct_window(names[channel], properties.get(str(channel))) if channel < len(names) else None
