"""The fingerprint: what the planner knows of a dataset, measured once per case and written to JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from annotated_types import Len
from pydantic import model_validator

from samunet.dataset.cases import Case, Dataset
from samunet.dataset.description import Description
from samunet.errors import SamunetError, call
from samunet.files import read_as
from samunet.planning.asymmetry import asymmetry, thumbnail
from samunet.plans import AtLeastOne, IntensityStatistics, Orientation, PlainModel, Positive, fingerprint_of
from samunet.preprocessing.case import read_case
from samunet.preprocessing.chunks import chunks, sample_positions
from samunet.preprocessing.crop import bounding_box, content_mask, crop
from samunet.preprocessing.orientation import (
    UNKNOWN,
    common_orientation,
    orientation_of,
    reorient,
    reorient_axes,
    wanted_orientation,
)
from samunet.workers import map_cases

Item = TypeVar("Item")
Three = Annotated[list[Item], Len(3, 3)]
Nothing = Annotated[list[float], Len(0, 0)]
FILE_NAME = "dataset_fingerprint.json"
FOREGROUND_SAMPLES = 1_000_000  # over all cases and per channel; nnU-Net draws a hundred times as many per case
_SEED = 1234
_MEASURES = 3  # raised when a figure is added or its rule changes, so that datasets are measured again


class CaseFingerprint(PlainModel):
    """Of one case.

    Attributes:
        spacing: Millimetres ``[z, y, x]`` in the file's own axes.
        shape: Before cropping.
        shape_after_crop: After cropping to the content.
        class_voxels: Voxels of every foreground class, by label value as text; 0 where the class is absent.
        class_faces: Faces between voxels of the class and others, by the array axis they are crossed along; those to
            voxels without annotation are left out.
        class_centres: Centre of mass of every class in voxels ``[z, y, x]``; empty where the class is absent.
        class_spreads: Standard deviation of its voxels' positions, likewise.
        integer: Whether every voxel is a whole number.
        minimum, maximum: Intensities per channel.
        orientation: Which way its axes run in the patient (:mod:`samunet.preprocessing.orientation`); empty if unknown.
    """

    spacing: Three[Positive]
    shape: Three[AtLeastOne]
    shape_after_crop: Three[AtLeastOne]
    class_voxels: dict[str, int]
    class_faces: dict[str, Three[int]]
    class_centres: dict[str, Three[float] | Nothing]
    class_spreads: dict[str, Three[float] | Nothing]
    integer: bool
    minimum: list[float]
    maximum: list[float]
    orientation: Orientation = ""

    @model_validator(mode="before")
    @classmethod
    def _without_unread_figures(cls, data: Any) -> Any:
        """Of samunet 0.1.0, which measured more than it used."""
        unread = ("class_slices", "class_components")
        return {key: value for key, value in data.items() if key not in unread} if isinstance(data, dict) else data


class Fingerprint(PlainModel):
    """Of a dataset; the first four fields are nnU-Net's.

    Attributes:
        spacings, shapes_after_crop: One entry per case, in the order of ``cases``.
        foreground_intensity_properties_per_channel: Over all training cases' foreground.
        median_relative_size_after_cropping: Median share of the volume that cropping keeps.
        cases: By name.
        asymmetry: By array axis of their common orientation, how far images agree in what mirroring would change
            (:mod:`.asymmetry`).
        empty_cases: Cases without any foreground.
        physical_spacing: False for photographs and other images without millimetres.
        source: Hash of the file names, sizes and times the fingerprint was taken from.
    """

    spacings: list[Three[Positive]]
    shapes_after_crop: list[Three[AtLeastOne]]
    foreground_intensity_properties_per_channel: dict[str, IntensityStatistics]
    median_relative_size_after_cropping: float
    cases: dict[str, CaseFingerprint]
    asymmetry: Three[float]
    empty_cases: list[str]
    physical_spacing: bool
    source: str


def read_fingerprint(path: Path) -> Fingerprint:
    """Read what :meth:`Fingerprint.write` wrote.

    Raises:
        SamunetError: If the file is missing or damaged.
    """
    again = f"make it again, and the plans with it: {call('plan_and_preprocess', path.parent.name, clean=True)}"
    fingerprint = read_as(Fingerprint, path, again)
    problem = _contradiction(fingerprint)
    if problem:
        raise SamunetError(f"{path}: {problem}", again)
    return fingerprint


def _contradiction(fingerprint: Fingerprint) -> str | None:
    """What does not belong together in a fingerprint that somebody edited."""
    cases = fingerprint.cases
    if not len(cases) == len(fingerprint.spacings) == len(fingerprint.shapes_after_crop):
        return "spacings and shapes_after_crop must have one entry per case"
    classes, channels = None, len(fingerprint.foreground_intensity_properties_per_channel)
    for name, case in cases.items():
        by_class = [value for key, value in case if key.startswith("class_")]
        classes = classes or by_class[0].keys()
        if any(value.keys() != classes for value in by_class) or not all(key.isdecimal() for key in classes):
            return f"cases: {name} has other classes than the first case"
        if len(case.minimum) != channels or len(case.maximum) != channels:
            return f"cases: {name} has other channels than foreground_intensity_properties_per_channel"
    return None


def source_hash(dataset: Dataset) -> str:
    """Hash of the dataset's file names, sizes and times, of its labels and channels, and of what is measured."""
    files = [path for case in dataset.cases.values() for path in (*case.images, case.label) if path is not None]
    stamps = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return fingerprint_of(_MEASURES, stamps, dataset.description.labels, list(dataset.description.channel_names))


def extract_fingerprint(
    dataset: Dataset, *, num_workers: int = 0, progress: bool = True, tolerate_geometry: bool = False
) -> Fingerprint:
    """Measure every training case.

    Args:
        dataset: Loaded and checked.
        num_workers: Worker processes; 0 means this one.
        progress: Whether to show a progress bar.
        tolerate_geometry: See :func:`samunet.preprocessing.case.read_case`.

    Raises:
        SamunetError: Naming the case, if one cannot be read or its label does not fit.
    """
    per_case = FOREGROUND_SAMPLES // len(dataset.cases)
    description = dataset.description.without_lists()
    jobs = [(case, description, per_case, tolerate_geometry) for case in dataset.cases.values()]
    results = map_cases(
        _measure_case, list(dataset.cases), jobs, num_workers=num_workers, description="Fingerprint", progress=progress
    )
    measured = dict(results)
    measured = {name: measured[name] for name in dataset.cases}
    cases = {name: case for name, (case, *_) in measured.items()}
    physical = {is_physical for *_, is_physical in measured.values()}
    common = common_orientation(case.orientation for case in cases.values())
    kept = [np.prod(case.shape_after_crop) / np.prod(case.shape) for case in cases.values()]
    return Fingerprint(
        spacings=[case.spacing for case in cases.values()],
        shapes_after_crop=[case.shape_after_crop for case in cases.values()],
        foreground_intensity_properties_per_channel=_statistics([values for _, values, *_ in measured.values()]),
        median_relative_size_after_cropping=float(np.median(kept)),
        cases=cases,
        asymmetry=asymmetry([reorient(small, case.orientation, common) for case, _, small, _ in measured.values()]),
        empty_cases=[name for name, case in cases.items() if not any(case.class_voxels.values())],
        physical_spacing=physical == {True},
        source=source_hash(dataset),
    )


def _measure_case(
    case: Case, description: Description, samples: int, tolerate_geometry: bool
) -> tuple[CaseFingerprint, np.ndarray, np.ndarray, bool]:
    """One case's fingerprint, ``(channels, n)`` foreground intensities, a thumbnail, and whether spacing is physical.

    Holds the image, its label (half a copy of one channel) and less than half a copy more; reading takes more.
    """
    image, label = read_case(case, description, tolerate_geometry=tolerate_geometry)
    own, wanted = orientation_of(image.geometry), wanted_orientation(image.geometry, UNKNOWN)
    spacing, physical = reorient_axes(image.geometry.spacing, own, wanted), image.geometry.physical
    image.array, label = (np.ascontiguousarray(reorient(array, own, wanted)) for array in (image.array, label))
    labels = description.labels
    classes = labels.values[1:]
    faces = _faces(label, max(classes) + 1, labels.ignore)
    if labels.ignore is not None:
        label[label == labels.ignore] = 0
    counts = _count(label, max(classes) + 1)
    box = bounding_box(content_mask(image.array))
    chosen = sample_positions(label, lambda piece: piece > 0, lambda number: _draw(number, samples))
    intensities = image.array.reshape(len(image.array), -1)[:, chosen]
    integer = all(bool((piece == np.rint(piece)).all()) for (piece,) in chunks(image.array))
    positions = _positions(label, max(classes) + 1)
    extrema = [(float(channel.min()), float(channel.max())) for channel in image.array]
    small = thumbnail(crop(image.array, box))
    fingerprint = CaseFingerprint(
        spacing=spacing,
        shape=list(label.shape),
        shape_after_crop=[stop - start for start, stop in box],
        class_voxels={str(value): int(counts[value]) for value in classes},
        class_faces={str(value): faces[:, value].tolist() for value in classes},
        class_centres={str(value): positions[value][0] for value in classes},
        class_spreads={str(value): positions[value][1] for value in classes},
        integer=integer,
        minimum=[minimum for minimum, _ in extrema],
        maximum=[maximum for _, maximum in extrema],
        orientation=wanted or own,
    )
    return fingerprint, intensities, small, physical


def _count(label: np.ndarray, length: int) -> np.ndarray:
    """Voxels of each of the values 0 to ``length`` - 1."""
    return sum(np.bincount(piece, minlength=length) for (piece,) in chunks(label))


def _faces(label: np.ndarray, length: int, ignore: int | None) -> np.ndarray:
    """``(3, length)``: for each of the values 0 to ``length`` - 1, its faces to other values along every axis."""
    faces = np.zeros((3, length), dtype=np.int64)
    for index, plane in enumerate(label):
        neighbours = [(label[max(0, index - 1)], plane), (plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])]
        for axis, pair in enumerate(neighbours):
            differ = pair[0] != pair[1]
            if ignore is not None:
                differ &= (pair[0] != ignore) & (pair[1] != ignore)
            faces[axis] += sum(np.bincount(side[differ], minlength=length) for side in pair)
    return faces


def _positions(label: np.ndarray, length: int) -> list[tuple[list[float], list[float]]]:
    """Of each of the values 0 to ``length`` - 1 the mean and the deviation of its voxels' indices; 0 is not counted."""
    count, total, squares = np.zeros(length), np.zeros((3, length)), np.zeros((3, length))
    start = 0
    for (piece,) in chunks(label):
        places = np.flatnonzero(piece)
        values = piece[places]
        count += np.bincount(values, minlength=length)
        for axis, index in enumerate(np.unravel_index(places + start, label.shape)):
            total[axis] += np.bincount(values, index, minlength=length)
            squares[axis] += np.bincount(values, index.astype(np.float64) ** 2, minlength=length)
        start += piece.size
    present = np.maximum(count, 1)
    mean = total / present
    deviation = np.sqrt(np.maximum(squares / present - mean**2, 0))
    return [
        (mean[:, value].tolist(), deviation[:, value].tolist()) if number else ([], [])
        for value, number in enumerate(count)
    ]


def _draw(number: int, samples: int) -> np.ndarray:
    """Ranks of the foreground voxels whose intensities are kept: all of them, or ``samples`` at random."""
    if number <= samples:
        return np.arange(number)
    return np.sort(np.random.default_rng(_SEED).integers(0, number, samples))


def _statistics(samples: list[np.ndarray]) -> dict[str, IntensityStatistics]:
    together = np.concatenate(samples, axis=1).astype(np.float64)
    if together.shape[1] == 0:
        raise SamunetError(
            "no training case has any foreground: every label is background", "annotate some cases, then run again"
        )
    low, median, high = np.percentile(together, (0.5, 50, 99.5), axis=1)
    return {
        str(channel): IntensityStatistics(
            mean=float(values.mean()),
            median=float(median[channel]),
            std=float(values.std()),
            min=float(values.min()),
            max=float(values.max()),
            percentile_00_5=float(low[channel]),
            percentile_99_5=float(high[channel]),
        )
        for channel, values in enumerate(together)
    }
