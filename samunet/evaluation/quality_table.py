"""``quality.csv`` and ``quality.json``: the cases of a prediction, the most doubtful first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet.errors import SamunetError
from samunet.evaluation.predicted_dice import WORST_SHARE, Calibration, read_calibration
from samunet.evaluation.uncertainty_files import case_file, measured_cases, read_case
from samunet.files import csv_text, read_as, write_json, write_text

_AGAIN = "remove it and predict the case again"
_MEASURE = "predict again with --save_uncertainty"
_OF_CLASS = ("predicted_Dice", "entropy", "tta_disagreement", "fold_disagreement", "voxels", "millilitres")


class ClassQuality(TypedDict):
    """A class of a case in ``quality.json``."""

    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    predicted_Dice: float | None
    fold_disagreement: float | None
    voxels: int
    millilitres: NotRequired[float | None]


class CaseQuality(TypedDict):
    """A case in ``quality.json``; ``look`` are the reasons to look at it."""

    case: str
    look: list[str]
    predicted_Dice: float | None
    entropy: float | None
    classes: dict[str, ClassQuality]


class CalibrationSummary(TypedDict):
    """What the predicted Dice rests on; a case is marked where its mean is ``threshold`` or lower."""

    about: str
    threshold: float | None
    mean_error: NotRequired[dict[str, float]]


class Quality(TypedDict):
    """A ``quality.json``."""

    calibration: CalibrationSummary
    cases: list[CaseQuality]


def read_quality(masks: Path, classes: set[str]) -> Quality | None:
    """The ``quality.json`` of a folder of masks; None if there is none.

    Raises:
        SamunetError: If it is damaged, or does not have these classes.
    """
    file = masks / "quality.json"
    if not file.is_file():
        return None
    quality = read_as(Quality, file, _MEASURE)
    if not all(classes <= row["classes"].keys() for row in quality["cases"]):
        raise SamunetError(f"{file} lacks classes that dataset.json has", _MEASURE)
    return quality


def write_quality(masks: Path, folds: Sequence[Path], cases: Sequence[str] | None = None) -> dict[str, Any]:
    """Write ``quality.csv`` and ``quality.json`` beside the masks of a prediction.

    Args:
        masks: The folder of the masks.
        folds: Folders of the folds that predicted, with their calibrations; none if they predicted with the best
            checkpoint.
        cases: Names; those that are not predicted yet are left out. None for all that lie there.

    Returns:
        The content of ``quality.json``.
    """
    found = measured_cases(masks)
    if cases is not None:
        found = [name for name in cases if name in set(found)]
    seen = {name: read_case(case_file(masks, name), _AGAIN) for name in found}
    tta = any(case["tta"] for case in seen.values())
    calibration, why = read_calibration(folds, tta)
    first = calibration.cases[0] if calibration else next((case["classes"] for case in seen.values()), {})
    for name, case in seen.items():
        if case["classes"].keys() != first.keys():
            raise SamunetError(
                f"{case_file(masks, name)} has other classes than other cases or the folds' calibration", _AGAIN
            )
    rows = [_row(name, case, calibration) for name, case in seen.items()]
    rows.sort(key=_doubtful_first)
    if calibration is None:
        for row in rows[: math.ceil(WORST_SHARE * len(rows))]:
            row["look"].append(f"among the {WORST_SHARE:.0%} of these cases with the highest entropy")
    quality = {
        "calibration": {
            "about": why,
            "threshold": calibration.threshold if calibration else None,
            "mean_error": calibration.errors if calibration else {},
        },
        "cases": rows,
    }
    write_json(masks / "quality.json", quality)
    write_text(masks / "quality.csv", _csv(rows))
    return quality


def _row(name: str, case: dict, calibration: Calibration | None) -> dict[str, Any]:
    classes = {key: dict(doubt) for key, doubt in case["classes"].items()}
    predicted = calibration.predict(classes) if calibration else {}
    for key, doubt in classes.items():
        doubt["predicted_Dice"] = predicted.get(key, math.nan)
    entropies = [doubt["entropy"] for doubt in classes.values() if doubt["entropy"] is not None]
    score, look = math.nan, []
    if calibration:
        score = calibration.score(classes)
        if score <= calibration.threshold:
            look.append(f"predicted Dice as of the worst {WORST_SHARE:.0%} in validation")
        look += [f"no {classes[key]['name']} found" for key in calibration.missing(classes)]
    return {
        "case": name,
        "look": look,
        "predicted_Dice": score,
        "entropy": sum(entropies) / len(entropies) if entropies else math.nan,
        "classes": classes,
    }


def _csv(rows: list[dict[str, Any]]) -> str:
    classes = rows[0]["classes"] if rows else {}
    columns = [f"{what}_{doubt['name']}" for doubt in classes.values() for what in _OF_CLASS]
    lines = [["case", "look", "why", "predicted_Dice", "entropy", *columns]]
    for row in rows:
        numbers = [doubt.get(what) for doubt in row["classes"].values() for what in _OF_CLASS]
        head = [row["case"], "yes" if row["look"] else "", "; ".join(row["look"])]
        lines.append([*head, *(_cell(value) for value in (row["predicted_Dice"], row["entropy"], *numbers))])
    return csv_text(lines)


def _cell(value: float | int | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _doubtful_first(row: dict[str, Any]) -> tuple[float, float, str]:
    """By the predicted Dice, then by the entropy; what is not known comes last."""
    dice, entropy = row["predicted_Dice"], row["entropy"]
    return math.inf if math.isnan(dice) else dice, math.inf if math.isnan(entropy) else -entropy, row["case"]
