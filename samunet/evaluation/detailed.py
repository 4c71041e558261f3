"""Surface and volume scores, for ``metrics.json`` and ``metrics.csv``.

Rules for a class that is empty in one case are those of :mod:`metrics` and :func:`distances.surface_scores`. The
volume difference needs no rule, only its relative form does: it is undefined where the reference is empty. What is
undefined is NaN, ``null`` in JSON and nothing in CSV, and is left out of means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samunet.dataset.labels import Labels
from samunet.dataset.names import case_stem
from samunet.dataset.outputs import check_place, check_replaced
from samunet.errors import UsageError
from samunet.evaluation.distances import surface_scores
from samunet.evaluation.metrics import confusion_counts, dice, iou
from samunet.evaluation.summary import class_key, mean_of, read_pair, regions_of
from samunet.files import csv_text, write_json, write_text
from samunet.imageio.base import Geometry, Reader
from samunet.imageio.registry import reader_for
from samunet.tables import number, text_table
from samunet.workers import map_cases

KEYS = ("Dice", "IoU", "HD95", "SurfaceDice", "VolumeDifference_ml", "RelativeVolumeDifference")
DEFAULT_TOLERANCE = 2.0


def detailed_case(
    prediction_file: Path,
    reference_file: Path,
    regions: Sequence[Sequence[int]],
    reader: Reader,
    known: Labels | None,
    tolerance: float,
    tolerate_geometry: bool = False,
) -> dict[str, Any]:
    """Score one prediction: ``{"case", "unit", "metrics": {"1": {...}}, "prediction_file", "reference_file"}``.

    ``unit`` is that of HD95 and of the tolerance: ``mm``, or ``px`` for images without physical spacing.
    Voxels with the ignore label in the reference belong to no class in either map.
    """
    prediction, reference, geometry = read_pair(prediction_file, reference_file, reader, known, tolerate_geometry)
    ignore = None if known is None else known.ignore
    counts = confusion_counts(prediction, reference, regions, ignore)
    if ignore is not None:
        prediction[reference == ignore] = 0
    voxel = millilitres(geometry)
    metrics = {}
    for region, count in zip(regions, counts, strict=True):
        surface = surface_scores(
            np.isin(prediction, list(region)), np.isin(reference, list(region)), geometry.spacing, tolerance
        )
        difference = count.n_pred - count.n_ref
        metrics[class_key(region)] = {
            "Dice": dice(count),
            "IoU": iou(count),
            "HD95": surface.hd95,
            "SurfaceDice": surface.surface_dice,
            "VolumeDifference_ml": difference * voxel,
            "RelativeVolumeDifference": difference / count.n_ref if count.n_ref else math.nan,
        }
    return {
        "case": case_stem(prediction_file),
        "unit": "mm" if geometry.physical else "px",
        "metrics": metrics,
        "prediction_file": str(prediction_file),
        "reference_file": str(reference_file),
    }


def detailed_metrics(
    summary: dict[str, Any],
    labels: Labels | Sequence[int],
    file_ending: str,
    reader_override: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    num_workers: int = 0,
    tolerate_geometry: bool = False,
) -> dict[str, Any]:
    """Score all cases of a ``summary.json`` once more.

    Args:
        summary: As :func:`samunet.evaluation.summary.evaluate_files` returns it.
        labels, file_ending, reader_override, num_workers, tolerate_geometry: As there.
        tolerance: Of the surface Dice, in millimetres (pixels where there are none).

    Returns:
        ``{"tolerance", "mean": {class: {key: mean}}, "metric_per_case": [...]}``, the content of ``metrics.json``.

    Raises:
        UsageError: If the tolerance is not 0 or more.
    """
    if not 0 <= tolerance < math.inf:
        raise UsageError(f"the tolerance of the surface Dice must be 0 or more millimetres, got {tolerance}")
    known = labels if isinstance(labels, Labels) else None
    reader = reader_for(file_ending, reader_override)
    pairs = [(Path(case["prediction_file"]), Path(case["reference_file"])) for case in summary["metric_per_case"]]
    names = [prediction.name for prediction, _ in pairs]
    arguments = [(*pair, regions_of(labels), reader, known, tolerance, tolerate_geometry) for pair in pairs]
    found = dict(map_cases(detailed_case, names, arguments, num_workers=num_workers, description="Measuring surfaces"))
    cases = [found[name] for name in names]
    means = {
        label: {key: mean_of(case["metrics"][label][key] for case in cases) for key in KEYS}
        for label in cases[0]["metrics"]
    }
    return {"tolerance": tolerance, "mean": means, "metric_per_case": cases}


def check_targets(predictions: Path, output: Path | None, surface_metrics: bool) -> Path:
    """The file for the scores: ``summary.json`` among the predictions, wherever these lie, if none is named.

    Raises:
        UsageError: If the predictions are a dataset's images or labels, the file that is named lies in a raw dataset,
            or a file that is there holds no scores.
    """
    summary = output or predictions / "summary.json"
    if output or predictions.resolve().name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        check_place(summary)
    check_replaced(summary, '"foreground_mean"')
    if surface_metrics:
        for name in ("metrics.json", "metrics.csv"):
            check_replaced(summary.parent / name, "SurfaceDice")
    return summary


def write_detailed(metrics: dict[str, Any], folder: Path, labels: Labels | None = None) -> None:
    """Write ``metrics.json``, and ``metrics.csv`` with a line for each case and class."""
    write_json(folder / "metrics.json", metrics)
    names = {class_key(region): name for name, region in labels.foreground} if labels else {}
    rows = [["case", "class", "name", *KEYS, "unit", "tolerance"]]
    for case in metrics["metric_per_case"]:
        for label, scores in case["metrics"].items():
            numbers = ["" if math.isnan(scores[key]) else f"{scores[key]:.6g}" for key in KEYS]
            rows.append(
                [case["case"], label, names.get(label, ""), *numbers, case["unit"], f"{metrics['tolerance']:g}"]
            )
    write_text(folder / "metrics.csv", csv_text(rows))


def format_detailed(metrics: dict[str, Any], labels: Labels | None = None) -> str:
    """A table for people: the means of each class."""
    names = {class_key(region): name for name, region in labels.foreground} if labels else {}
    units = {case["unit"] for case in metrics["metric_per_case"]}
    unit = units.pop() if len(units) == 1 else "mm or px"
    rows = []
    for label, mean in metrics["mean"].items():
        volume, relative = mean["VolumeDifference_ml"], 100 * mean["RelativeVolumeDifference"]
        cells = (
            number(mean["HD95"], ".2f"),
            number(mean["SurfaceDice"]),
            number(volume, "+.2f"),
            number(relative, "+.1f"),
        )
        rows.append([f"{label} {names.get(label, '')}".strip(), *cells])
    surface = f"surface Dice ({metrics['tolerance']:g} {unit})"
    return "\n".join(text_table(["class", f"HD95 {unit}", surface, "volume ml", "volume %"], rows))


def millilitres(geometry: Geometry) -> float:
    """Volume of a voxel; NaN for pictures and 2D images, whose third side means nothing."""
    return math.prod(geometry.spacing) / 1000 if geometry.physical and geometry.dimension == 3 else math.nan
