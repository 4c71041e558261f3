"""Scores of a folder of predictions: nnU-Net's ``summary.json``, and surfaces and volumes in ``metrics.json``.

``foreground_mean`` is the mean over the classes that occur (in a reference or a prediction of some case). nnU-Net
gives NaN as soon as one class never occurs; here such a class is skipped. :mod:`metrics` states the rule for classes
that are empty in a single case. The volume difference needs no such rule, only its relative form does: it is undefined
where the reference is empty. What is undefined is NaN, ``null`` in JSON and nothing in CSV, and is left out of means.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Required

import numpy as np
from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet.dataset.cases import mask_files, visible
from samunet.dataset.description import description_from_json
from samunet.dataset.labels import Labels
from samunet.dataset.names import case_stem, ending_in
from samunet.dataset.outputs import check_place, check_replaced
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError, UsageError, raise_failures
from samunet.evaluation.metrics import Counts, confusion_counts, dice, iou, surface_scores
from samunet.files import csv_text, read_as, read_json, write_json, write_text
from samunet.imageio.base import Geometry, Reader
from samunet.imageio.registry import MASK_ENDINGS, image_reader_for, reader_for
from samunet.imageio.same_grid import Grid, on_grid, union
from samunet.tables import number, text_table
from samunet.workers import map_cases

log = logging.getLogger(__name__)

FAILED = "mend these masks, then run the same command again; the scores are those of the others"
KEYS = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")
SURFACE_KEYS = ("Dice", "IoU", "HD95", "SurfaceDice", "VolumeDifference_ml", "RelativeVolumeDifference")
_AGAIN = "make it again: `api.evaluate`, or `api.train(..., validation_only=True)`"
_Scores = dict[str, dict[str, float | None]]


class _Case(TypedDict, total=False):
    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    metrics: Required[_Scores]
    prediction_file: str
    reference_file: str
    n_ignored: int


class _Summary(TypedDict, total=False):
    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    mean: _Scores
    foreground_mean: dict[str, float | None]
    metric_per_case: Required[list[_Case]]


def read_summary(file: Path) -> dict[str, Any]:
    """A ``summary.json``.

    Raises:
        SamunetError: If it is missing or damaged, or its cases do not all have a Dice of the same classes.
    """
    summary = read_as(_Summary, file, _AGAIN)
    cases = [case["metrics"] for case in summary["metric_per_case"]]
    classes = {*summary.get("mean", {}), *(key for case in cases for key in case)}
    for scored in (*cases, *([summary["mean"]] if "mean" in summary else [])):
        lacking = [key for key in sorted(classes) if "Dice" not in scored.get(key, {})]
        if lacking:
            raise SamunetError(f"{file} does not have the Dice of class {lacking[0]} everywhere", _AGAIN)
    return summary


def scores(counts: Counts) -> dict[str, float]:
    """The scores of one class in one case, under the keys of ``summary.json``."""
    counted = {"FP": counts.FP, "TP": counts.TP, "FN": counts.FN, "TN": counts.TN}
    return {"Dice": dice(counts), "IoU": iou(counts), **counted, "n_pred": counts.n_pred, "n_ref": counts.n_ref}


def read_pair(
    prediction_file: Path,
    reference_file: Path,
    reader: Reader,
    known: Labels | None = None,
    tolerate_geometry: bool = False,
) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Read a prediction and its reference, ``(z, y, x)`` each on the same grid, and the geometry they share.

    The grid is the reference's; or, where that was cropped, the prediction's; or, where both were, one that holds both.
    A prediction whose axes are swapped or flipped is turned; both lie in the same space then.

    Args:
        tolerate_geometry: Compare voxels as they lie, with a warning, where origin or direction differ.

    Raises:
        SamunetError: If a file cannot be read, has values that ``known`` does not, or the grids differ.
    """
    # Either may have another ending than the dataset: a mask has that of its image.
    prediction, prediction_geometry = image_reader_for(prediction_file, reader).read_label(prediction_file)
    reference, reference_geometry = image_reader_for(reference_file, reader).read_label(reference_file)
    own = Grid(prediction_file, prediction.shape, prediction_geometry)
    first = Grid(reference_file, reference.shape, reference_geometry)
    both = union(own, first) if own.geometry.cropped and first.geometry.cropped else None
    if both is not None:
        prediction, reference = on_grid(prediction, own, both), on_grid(reference, first, both)
    elif first.geometry.cropped and not own.geometry.cropped:
        reference = on_grid(reference, first, own, tolerate_geometry)
    else:
        prediction = on_grid(prediction, own, first, tolerate_geometry)
    if known is not None:
        known.check(np.unique(prediction).tolist(), prediction_file)
        known.check(np.unique(reference).tolist(), reference_file)
    physical = reference_geometry if reference_geometry.physical else prediction_geometry
    return prediction, reference, physical


def _evaluate_case(
    prediction_file: Path,
    reference_file: Path,
    labels: Labels | Sequence[int],
    reader: Reader,
    tolerate_geometry: bool,
    tolerance: float | None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The entries of a case in ``summary.json`` and, with a tolerance, in ``metrics.json``."""
    known = labels if isinstance(labels, Labels) else None
    regions = [region for _, region in labels.foreground] if known else [(value,) for value in labels]
    ignore = known.ignore if known else None
    prediction, reference, geometry = read_pair(prediction_file, reference_file, reader, known, tolerate_geometry)
    counts = confusion_counts(prediction, reference, regions, ignore)
    counted = {class_key(region): count for region, count in zip(regions, counts, strict=True)}
    files = {"prediction_file": str(prediction_file), "reference_file": str(reference_file)}
    summary = {"metrics": {key: scores(count) for key, count in counted.items()}, **files}
    ignored = 0 if ignore is None else int(np.count_nonzero(reference == ignore))
    if ignored:
        summary["n_ignored"] = ignored
    if tolerance is None:
        return summary, None
    if ignore is not None:  # these voxels belong to no class in either map
        prediction[reference == ignore] = 0
    measured = {}
    for region, (key, count) in zip(regions, counted.items()):
        masks = (np.isin(voxels, list(region)) for voxels in (prediction, reference))
        surface = surface_scores(*masks, geometry.spacing, tolerance)
        difference = count.n_pred - count.n_ref
        measured[key] = {
            "Dice": dice(count),
            "IoU": iou(count),
            "HD95": surface.hd95,
            "SurfaceDice": surface.surface_dice,
            "VolumeDifference_ml": difference * millilitres(geometry),
            "RelativeVolumeDifference": difference / count.n_ref if count.n_ref else math.nan,
        }
    unit = "mm" if geometry.physical else "px"
    return summary, {"case": case_stem(prediction_file), "unit": unit, "metrics": measured, **files}


def summarize(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Gather entries of ``metric_per_case`` into the content of ``summary.json``.

    Raises:
        SamunetError: If there is no case.
    """
    if not cases:
        raise SamunetError("there is no case to summarise")
    means = _means(cases, KEYS)
    occurring = [mean for mean in means.values() if not math.isnan(mean["Dice"])]
    foreground = {key: mean_of(mean[key] for mean in occurring) for key in KEYS}
    return {"foreground_mean": foreground, "mean": means, "metric_per_case": cases}


def _means(cases: list[dict[str, Any]], keys: Sequence[str]) -> dict[str, dict[str, float]]:
    classes = cases[0]["metrics"]
    return {label: {key: mean_of(case["metrics"][label][key] for case in cases) for key in keys} for label in classes}


def evaluate_folder(
    predictions: Path,
    references: Path,
    labels: Labels | Sequence[int],
    reader: Reader,
    cases: Sequence[str] | None = None,
    num_workers: int = 0,
    *,
    allow_missing: bool = False,
    failures: dict[str, SamunetError] | None = None,
    tolerate_geometry: bool = False,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Score a folder of predictions against a folder of references.

    Args:
        predictions: Folder with a mask per case, of any ending; a warning names those without a reference.
        references: Folder with a mask per case, of any ending.
        labels, reader, num_workers, failures, tolerate_geometry, tolerance: See :func:`evaluate_files`.
        cases: Score these cases only; by default every case that has a reference.
        allow_missing: Leave out references that have no prediction instead of stopping.

    Returns:
        As :func:`evaluate_files`, with cases in alphabetical order.

    Raises:
        SamunetError: If a folder or a file is missing or a case cannot be scored; the message names the case.
    """
    pairs = _find_cases(Path(predictions), Path(references), reader.endings[0], cases, allow_missing)
    return evaluate_files(
        pairs, labels, reader, num_workers,
        failures=failures, tolerate_geometry=tolerate_geometry, tolerance=tolerance,
    )  # fmt: skip


def evaluate_files(
    pairs: dict[str, tuple[Path, Path]],
    labels: Labels | Sequence[int],
    reader: Reader,
    num_workers: int = 0,
    *,
    failures: dict[str, SamunetError] | None = None,
    tolerate_geometry: bool = False,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Score predictions wherever they and their references lie.

    Args:
        pairs: Case to its prediction and its reference.
        labels: The dataset's labels (a value that they do not have is an error, and their ignore label is left out) or
            only the values to score; voxels with any other value are in no class.
        reader: The dataset's, tried first for every file.
        failures: Where given, cases that cannot be scored are put there and left out, and listed as ``failed_cases``;
            unless none can be scored.
        tolerate_geometry: See :func:`read_pair`.
        tolerance: Of the surface Dice, in millimetres (pixels where there are none); None to measure no surfaces.

    Returns:
        The content of ``summary.json``, with cases in the order of ``pairs``; the key of a region of several values is
        nnU-Net's, ``"(1, 2)"``. A case whose reference has voxels without annotation has their number as ``n_ignored``:
        they count in no score. With ``tolerance`` that of ``metrics.json`` as well, as ``surface_metrics``:
        ``{"tolerance", "mean": {class: {key: mean}}, "metric_per_case": [...]}``, of HD95 and tolerance in the ``unit``
        of each case, ``mm``, or ``px`` for images without physical spacing.

    Raises:
        SamunetError: If a file cannot be read, has unknown values, or the two of a case do not lie on the same grid.
    """
    if not 0 <= (tolerance or 0) < math.inf:
        raise UsageError(f"the tolerance of the surface Dice must be 0 or more millimetres, got {tolerance}")
    arguments = [(*files, labels, reader, tolerate_geometry, tolerance) for files in pairs.values()]
    results = map_cases(
        _evaluate_case, list(pairs), arguments, num_workers=num_workers, description="Evaluating", failures=failures
    )
    by_case = dict(results)
    if failures and not by_case:
        raise_failures(failures, len(pairs), FAILED)
    found = [by_case[case] for case in pairs if case in by_case]
    summary = summarize([entry for entry, _ in found])
    if failures:
        summary["failed_cases"] = {case: failures[case].message for case in pairs if case in failures}
    if tolerance is not None:
        measured = [entry for _, entry in found]
        means = _means(measured, SURFACE_KEYS)
        summary["surface_metrics"] = {"tolerance": tolerance, "mean": means, "metric_per_case": measured}
    return summary


def labels_to_score(
    predictions: Path, references: Path, dataset_json: str | Path | None = None, labels: Sequence[int] | None = None
) -> tuple[Labels | list[int], Reader]:
    """Labels and reader to score masks with.

    Args:
        predictions, references: Folders of masks.
        dataset_json: None for the file among the predictions, else the one beside the references' folder.
        labels: Values in place of it; the reader is then that of the references' ending.

    Raises:
        UsageError: If either is no folder.
        SamunetError: If there is no ``dataset.json``, or the references have several endings.
    """
    if labels is not None:
        return list(dict.fromkeys(labels)), reader_for(_ending_of_all(references))
    if dataset_json is None:
        for folder in (references, predictions):
            if not folder.is_dir():
                raise UsageError(
                    f"{folder} is not a folder", "give the folder with the references, then the predictions"
                )
        candidates = [predictions / "dataset.json", references.resolve().parent / "dataset.json"]
        dataset_json = next((file for file in candidates if file.is_file()), None)
        if dataset_json is None:
            raise SamunetError(
                f"found no dataset.json: neither {candidates[0]} nor {candidates[1]} exists",
                "name it with `dataset_json`, or use `api.evaluate(..., labels=[1, 2, 3])`, which needs only the label "
                "values",
            )
    description = description_from_json(read_json(Path(dataset_json)), str(dataset_json))
    return description.labels, description.reader


def _ending_of_all(folder: Path) -> str:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    present = {ending_in(file.name, MASK_ENDINGS) for file in visible(folder)} - {None}
    found = sorted({ending.lower() for ending in present}, key=lambda ending: (-len(ending), ending))
    if len(found) == 1:
        return found[0]
    got = "files ending in " + " and in ".join(found) if found else "no file with a known ending"
    raise SamunetError(f"{folder} contains {got}; it must hold references of one kind ({', '.join(MASK_ENDINGS)})")


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


def write_surface_metrics(metrics: dict[str, Any], folder: Path, labels: Labels | None = None) -> None:
    """Write ``metrics.json``, and ``metrics.csv`` with a line for each case and class."""
    write_json(folder / "metrics.json", metrics)
    names = class_names(labels)
    rows = [["case", "class", "name", *SURFACE_KEYS, "unit", "tolerance"]]
    for case in metrics["metric_per_case"]:
        for label, measured in case["metrics"].items():
            numbers = ["" if math.isnan(measured[key]) else f"{measured[key]:.6g}" for key in SURFACE_KEYS]
            tolerance = f"{metrics['tolerance']:g}"
            rows.append([case["case"], label, names.get(label, ""), *numbers, case["unit"], tolerance])
    write_text(folder / "metrics.csv", csv_text(rows))


def surface_table(metrics: dict[str, Any], labels: Labels | None = None) -> str:
    """A table for people: the means of each class in the content of ``metrics.json``."""
    names = class_names(labels)
    units = {case["unit"] for case in metrics["metric_per_case"]}
    unit = units.pop() if len(units) == 1 else "mm or px"
    rows = [
        [
            f"{label} {names.get(label, '')}".strip(),
            number(mean["HD95"], ".2f"),
            number(mean["SurfaceDice"]),
            number(mean["VolumeDifference_ml"], "+.2f"),
            number(100 * mean["RelativeVolumeDifference"], "+.1f"),
        ]
        for label, mean in metrics["mean"].items()
    ]
    surface = f"surface Dice ({metrics['tolerance']:g} {unit})"
    return "\n".join(text_table(["class", f"HD95 {unit}", surface, "volume ml", "volume %"], rows))


def format_table(summary: dict[str, Any], labels: Labels | None = None) -> str:
    """A table for people: Dice and IoU of each class, mean and standard deviation over cases, and the worst cases.

    Args:
        summary: The return value of :func:`evaluate_folder`, or ``summary.json`` as read from disk.
        labels: Gives the classes their names; without them the label values stand alone.
    """
    cases = summary["metric_per_case"]
    names = class_names(labels)
    titles = {label: f"{label} {names.get(label, '')}".strip() for label in summary["mean"]}
    rows = []
    for label, title in titles.items():
        columns, scored = [], 0
        for key in ("Dice", "IoU"):
            values = _numbers(case["metrics"][label][key] for case in cases)
            scored = len(values)
            columns += [number(mean_of(values)), number(np.std(values) if values else None)]
        rows.append([title, *columns, str(scored)])
    mean = summary["foreground_mean"]
    rows.append(["mean", number(mean["Dice"]), "", number(mean["IoU"]), "", str(len(cases))])
    table = text_table(["class", "Dice", "std", "IoU", "std", "cases"], rows)
    partly = annotated_in_part([case.get("n_ignored", 0) for case in cases])
    return "\n".join(table + ([partly] if partly else []) + _worst_cases(cases, titles))


def annotated_in_part(ignored: Sequence[int]) -> str | None:
    """What to say of scores of cases whose references have voxels without annotation; None if none has.

    Args:
        ignored: ``n_ignored`` of every case, 0 where it has none.
    """
    partly = sum(number > 0 for number in ignored)
    if not partly:
        return None
    which = "all" if partly == len(ignored) else f"{partly} of {len(ignored)}"
    return (
        f"these scores count annotated voxels only: {which} references are annotated in part, and what is marked "
        "wrongly where they have no annotation is not seen"
    )


def _worst_cases(cases: list[dict[str, Any]], titles: dict[str, str], count: int = 3) -> list[str]:
    """Lines naming the cases with the lowest mean Dice over their own classes, and the lowest class of each."""
    ranked = []
    for case in cases:
        dices = {label: case["metrics"][label]["Dice"] for label in titles}
        dices = {label: value for label, value in dices.items() if _numbers([value])}
        if dices:
            lowest = min(dices, key=dices.__getitem__)
            ranked.append((mean_of(dices.values()), Path(case["prediction_file"]).name, titles[lowest], dices[lowest]))
    if len(ranked) < 2:
        return []
    worst = sorted(ranked)[:count]
    return ["", "lowest mean Dice:"] + [
        f"  {mean:.4f}  {file}" + (f"  (class {title}: {lowest:.4f})" if len(titles) > 1 else "")
        for mean, file, title, lowest in worst
    ]


def _find_cases(
    predictions: Path, references: Path, file_ending: str, cases: Sequence[str] | None, allow_missing: bool
) -> dict[str, tuple[Path, Path]]:
    """Prediction and reference of every case to score."""
    predicted, referenced = mask_files(predictions), mask_files(references)
    if not referenced:
        raise SamunetError(f"{references} contains no reference (such as case{file_ending})")
    wanted = sorted(referenced if cases is None else set(cases))
    unknown = [case for case in wanted if case not in referenced]
    if unknown:
        raise SamunetError(f"no reference in {references} for {shortened(unknown)}")
    missing = [case for case in wanted if case not in predicted]
    surplus = sorted(predicted.keys() - referenced.keys())
    if surplus and cases is None:
        log.warning("not scored, since %s has no reference for them: %s", references, shortened(surplus))
    found = [case for case in wanted if case in predicted]
    if not found:
        raise SamunetError(
            f"{predictions} contains no prediction for any of the {len(wanted)} references in {references}",
            f"a prediction has the name of its reference, for example {(wanted or ['case'])[0]}{file_ending}",
        )
    if missing and not allow_missing:
        raise SamunetError(
            f"no prediction in {predictions} for {len(missing)} of {len(wanted)} references: {shortened(missing)}",
            "predict these cases, or leave them out with `allow_missing=True`",
        )
    if missing:
        log.warning("not scored, since %s has no prediction for them: %s", predictions, shortened(missing))
    return {case: (predicted[case], referenced[case]) for case in found}


def class_key(region: Sequence[int]) -> str:
    """The key of a class in ``summary.json``: ``"1"``, or nnU-Net's ``"(1, 2)"`` for a region of several values."""
    return str(region[0]) if len(region) == 1 else str(tuple(region))


def class_names(labels: Labels | None) -> dict[str, str]:
    """Name of every class by its key in ``summary.json``; empty without labels."""
    return {class_key(region): name for name, region in labels.foreground} if labels else {}


def millilitres(geometry: Geometry) -> float:
    """Volume of a voxel; NaN for pictures and 2D images, whose third side means nothing."""
    return math.prod(geometry.spacing) / 1000 if geometry.physical and geometry.dimension == 3 else math.nan


def _numbers(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers: a missing score is NaN in memory and null in a file."""
    return [value for value in values if value is not None and not math.isnan(value)]


def mean_of(values: Iterable[float | None]) -> float:
    """Mean of the values that are numbers; NaN if there is none."""
    numbers = _numbers(values)
    return float(np.mean(numbers)) if numbers else math.nan
