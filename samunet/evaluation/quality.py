"""Quality of predictions without a reference: uncertainty, the Dice predicted from it, ``quality.csv``.

A prediction or a validation may have ``uncertainty/`` among its masks, with figures of every class of a case. A fold
has not seen its validation cases, so its entropy and its disagreement under test-time augmentation mean the same there
as in a new case: for every class, ridge regression on the two, standardised, is fitted to the Dice of the
validation cases of all folds that predict. Disagreement between folds cannot be used: all folds but one have seen the
answer for a training case.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet.errors import SamunetError
from samunet.evaluation.summary import mean_of
from samunet.files import csv_text, read_as, write_json, write_text
from samunet.imageio.registry import ending_of

FOLDER = "uncertainty"
KINDS = ("entropy", "fold_disagreement")
TABLES = ("quality.csv", "quality.json")
FILE_NAME = "calibration.json"
FEATURES = ("entropy", "tta_disagreement")
FEWEST_CASES = 5  # below, no line is fitted
USUAL = 0.9  # a class in at least this share of the validation cases is missed where it is not predicted
WORST_SHARE = 0.2  # of the validation cases: what is as bad is to be looked at
_PENALTY = 1.0  # of ridge regression on standardised features: that of one more case

_LIKE_A_MAP = re.compile(rf"_({'|'.join(KINDS)})(_case)*$")
_OF_CLASS = ("predicted_Dice", "entropy", "tta_disagreement", "fold_disagreement", "voxels", "millilitres")
_AGAIN = "remove it and predict the case again"
_MEASURE = "predict again with `save_uncertainty=True`"
_VALIDATE = "make it again: `api.train(..., validation_only=True)`"

# By the key of a class: its features, its Dice, and whether it is in the reference.
CalibrationCase = Mapping[str, Mapping[str, Any]]


class ClassMeasures(TypedDict):
    """Uncertainty of a class of a case."""

    name: str
    entropy: float | None
    tta_disagreement: float | None
    fold_disagreement: NotRequired[float | None]
    voxels: NotRequired[int]
    millilitres: NotRequired[float | None]


class _Case(TypedDict):
    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    tta: bool
    classes: dict[str, ClassMeasures]


class _Measured(TypedDict):
    entropy: float | None
    tta_disagreement: float | None
    Dice: float | None
    in_reference: bool


class _CalibrationFile(TypedDict):
    tta: bool
    cases: list[dict[str, _Measured]]


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
    """Basis of the predicted Dice; a case is marked where its mean is ``threshold`` or lower."""

    about: str
    threshold: float | None
    mean_error: NotRequired[dict[str, float]]


class Quality(TypedDict):
    """A ``quality.json``."""

    calibration: CalibrationSummary
    cases: list[CaseQuality]


def case_file(masks: Path, case: str) -> Path:
    """Uncertainty of every class of a case, as JSON; ``masks`` is the folder of its mask.

    A case that is called like another one's map, ``p1_entropy``, gets ``p1_entropy_case.json``: a TIFF map has its
    spacing in ``p1_entropy.json``.
    """
    return masks / FOLDER / f"{case}{'_case' * bool(_LIKE_A_MAP.search(case))}.json"


def measured_cases(masks: Path) -> list[str]:
    """Names of the cases that have a :func:`case_file`, sorted."""
    stems = [file.stem for file in (masks / FOLDER).glob("*.json") if not file.name.startswith(".")]
    cases = {stem.removesuffix("_case") if _LIKE_A_MAP.search(stem) else stem for stem in stems}
    return sorted(case for case in cases if case_file(masks, case).stem in stems)


def map_file(mask: Path, case: str, kind: str) -> Path:
    """An image in the geometry of a case; ``kind`` is one of ``KINDS``."""
    return mask.parent / FOLDER / f"{case}_{kind}{ending_of(mask)}"


def delete_stale(mask: Path, case: str) -> None:
    """Delete the uncertainty of a case's earlier mask, and the tables that have it."""
    measured = case_file(mask.parent, case)
    if measured.is_file():
        tables = [mask.parent / name for name in TABLES]
        for file in (*tables, *(map_file(mask, case, kind) for kind in KINDS), measured):
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Calibration:
    """A line from uncertainty to Dice for every class.

    Args:
        cases: The validation cases of all folds, without names.
        tta: Whether they were predicted with mirrored or shifted inputs.
    """

    cases: Sequence[CalibrationCase]
    tta: bool

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        """Of every class a row for each case: its features and its Dice, NaN where there is none."""
        keys = self.cases[0] if self.cases else ()
        return {key: np.array([_values(case[key], (*FEATURES, "Dice")) for case in self.cases]) for key in keys}

    @cached_property
    def usual(self) -> list[str]:
        """Classes that nearly all validation cases have, with enough cases for a line."""
        shares = {key: np.mean([case[key]["in_reference"] for case in self.cases]) for key in self._tables}
        known = {key: len(_known(table, [0])) for key, table in self._tables.items()}
        return [key for key, share in shares.items() if share >= USUAL and known[key] >= FEWEST_CASES]

    @cached_property
    def _left_out(self) -> list[dict[str, float]]:
        """Predicted Dice of every validation case, by lines that are fitted without it."""
        return [
            {key: _dice(table[index, :-1], np.delete(table, index, axis=0)) for key, table in self._tables.items()}
            for index in range(len(self.cases))
        ]

    @cached_property
    def errors(self) -> dict[str, float]:
        """Mean distance of predicted and true Dice of every class, each case predicted from the others."""
        errors = {
            key: mean_of(np.abs(np.array([predicted[key] for predicted in self._left_out]) - table[:, -1]))
            for key, table in self._tables.items()
        }
        return {key: error for key, error in errors.items() if not math.isnan(error)}

    @cached_property
    def threshold(self) -> float:
        """Mean predicted Dice below which lies the worst fifth of the validation cases; NaN with too few of them."""
        scores = [score for predicted in self._left_out if not math.isnan(score := mean_of(predicted.values()))]
        return float(np.quantile(scores, WORST_SHARE)) if len(scores) >= FEWEST_CASES else math.nan

    def predict(self, classes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Predicted Dice of every class of a case; NaN where the class is not predicted, or has too few cases."""
        return {
            key: _dice(_values(measures, FEATURES), self._tables[key]) if key in self._tables else math.nan
            for key, measures in classes.items()
        }

    def missing(self, classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Usual classes that were not predicted."""
        return [key for key in self.usual if np.isnan(_values(classes[key], ("entropy",)))]

    def score(self, classes: Mapping[str, Mapping[str, Any]]) -> float:
        """Mean predicted Dice of a case, in which a usual class that is missing counts as 0."""
        return mean_of({**self.predict(classes), **dict.fromkeys(self.missing(classes), 0.0)}.values())


def _values(measures: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    return np.array([measures[name] for name in names], dtype=float)  # None becomes NaN


def _dice(features: np.ndarray, table: np.ndarray) -> float:
    """Predicted Dice of a case by the line through a table; not all features need be known.

    A slice larger than the input has no shifted views, for example: then the line is one of entropy alone.
    """
    for columns in ([0, 1], [0]):
        rows = _known(table, columns)
        if np.isfinite(features[columns]).all() and len(rows) >= FEWEST_CASES:
            return min(1.0, max(0.0, _along_line(features[columns], rows[:, columns], rows[:, -1])))
    return math.nan


def _known(table: np.ndarray, columns: list[int]) -> np.ndarray:
    """Rows of cases with these features and a Dice."""
    return table[np.isfinite(table[:, [*columns, -1]]).all(axis=1)]


def _along_line(at: np.ndarray, features: np.ndarray, dice: np.ndarray) -> float:
    """Value at ``at`` of a straight line through ``dice``; a feature that never changes says nothing."""
    used = np.ptp(features, axis=0) > 0
    features = features[:, used]
    centre, spread = features.mean(axis=0), features.std(axis=0)
    standard = (features - centre) / spread
    penalty = _PENALTY * np.eye(standard.shape[1])
    slopes = np.linalg.solve(standard.T @ standard + penalty, standard.T @ (dice - dice.mean())) / spread
    return float(dice.mean() + (at[used] - centre) @ slopes)


def write_calibration(fold: Path, cases: Sequence[str], summary: dict[str, Any]) -> None:
    """Write a fold's ``calibration.json`` after its validation; names of cases are not in it.

    Args:
        fold: The fold's folder, in whose ``validation`` lie masks and what was measured of them.
        cases: Names, in the order of ``summary``.
        summary: Content of the validation's ``summary.json``.
    """
    rows, tta = [], False
    for name, scored in zip(cases, summary["metric_per_case"], strict=True):
        file = case_file(fold / "validation", name)
        seen = read_as(_Case, file, _VALIDATE)
        if not scored["metrics"].keys() <= seen["classes"].keys():
            raise SamunetError(f"{file} lacks classes that {name} was scored for", _VALIDATE)
        tta = seen["tta"]
        row = {}
        for key, metrics in scored["metrics"].items():
            features = {feature: seen["classes"][key][feature] for feature in FEATURES}
            row[key] = {**features, "Dice": metrics["Dice"], "in_reference": metrics["n_ref"] > 0}
        rows.append(row)
    write_json(fold / FILE_NAME, {"tta": tta, "cases": rows})


def read_calibration(folds: Sequence[Path], tta: bool) -> tuple[Calibration | None, str]:
    """Join the calibrations of the folds that predict.

    Args:
        folds: Their folders; none where they predict with another checkpoint than the final one.
        tta: Whether they predict with mirrored or shifted inputs.

    Returns:
        None if there is none that fits, and a sentence that says what it rests on, or what is lacking.

    Raises:
        SamunetError: If a file is damaged.
    """
    if not folds:
        return None, "calibrations are made with the final checkpoint, not with the best one"
    found = [fold / FILE_NAME for fold in folds if (fold / FILE_NAME).is_file()]
    cases: list[CalibrationCase] = []
    for path in found:
        content = read_as(_CalibrationFile, path, _VALIDATE)
        if content["tta"] != tta:
            how = "without" if tta else "with"
            return None, f"the folds were calibrated {how} test-time augmentation, this prediction is the other way"
        cases += content["cases"]
        if any(case.keys() != cases[0].keys() for case in cases):
            raise SamunetError(f"{path} is damaged: its cases are not all of the same classes", _VALIDATE)
    if not found:
        return None, "the folds have no calibration.json; `api.train(..., validation_only=True)` makes it"
    if len(cases) < FEWEST_CASES:
        return None, f"{len(cases)} validation cases are too few for a calibration ({FEWEST_CASES} or more)"
    about = f"calibrated on the {len(cases)} validation cases of {len(found)} fold{'s' * (len(found) > 1)}"
    return Calibration(cases, tta), about


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
    """Write ``quality.csv`` and ``quality.json`` among the masks of a prediction: the most doubtful cases first.

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
    seen = {name: read_as(_Case, case_file(masks, name), _AGAIN) for name in found}
    calibration, why = read_calibration(folds, any(case["tta"] for case in seen.values()))
    first = calibration.cases[0] if calibration else next((case["classes"] for case in seen.values()), {})
    for name, case in seen.items():
        if case["classes"].keys() != first.keys():
            raise SamunetError(
                f"{case_file(masks, name)} has other classes than other cases or the folds' calibration", _AGAIN
            )
    rows = [_row(name, case["classes"], calibration) for name, case in seen.items()]
    # By the predicted Dice, then by the entropy; what is not known comes last.
    rows.sort(key=lambda row: (_or_last(row["predicted_Dice"]), _or_last(-row["entropy"]), row["case"]))
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


def _or_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _row(name: str, measured: Mapping[str, Mapping[str, Any]], calibration: Calibration | None) -> dict[str, Any]:
    predicted = calibration.predict(measured) if calibration else {}
    classes = {key: {**measures, "predicted_Dice": predicted.get(key, math.nan)} for key, measures in measured.items()}
    score, look = math.nan, []
    if calibration:
        score = calibration.score(classes)
        if score <= calibration.threshold:
            look.append(f"predicted Dice as of the worst {WORST_SHARE:.0%} in validation")
        look += [f"no {classes[key]['name']} found" for key in calibration.missing(classes)]
    entropy = mean_of(measures["entropy"] for measures in classes.values())
    return {"case": name, "look": look, "predicted_Dice": score, "entropy": entropy, "classes": classes}


def _csv(rows: list[dict[str, Any]]) -> str:
    classes = rows[0]["classes"] if rows else {}
    columns = [f"{what}_{measures['name']}" for measures in classes.values() for what in _OF_CLASS]
    lines = [["case", "look", "why", "predicted_Dice", "entropy", *columns]]
    for row in rows:
        numbers = [measures.get(what) for measures in row["classes"].values() for what in _OF_CLASS]
        head = [row["case"], "yes" if row["look"] else "", "; ".join(row["look"])]
        lines.append([*head, *map(_cell, (row["predicted_Dice"], row["entropy"], *numbers))])
    return csv_text(lines)


def _cell(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"
