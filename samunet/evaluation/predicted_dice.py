"""Predicted Dice: ridge regression from uncertainty to Dice, fitted on validation cases.

A fold has not seen its validation cases, so what its entropy and its disagreement under test-time augmentation say of
them is what they say of a new case. For every class the line is fitted to the validation cases of all folds that
predict, by ridge regression on the two, standardised. Disagreement between folds cannot be used: of every training case
all folds but one have seen the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet.errors import SamunetError
from samunet.evaluation.uncertainty_files import case_file, read_case
from samunet.files import read_as, write_json

FILE_NAME = "calibration.json"
FEATURES = ("entropy", "tta_disagreement")
FEWEST_CASES = 5  # below, no line is fitted
USUAL = 0.9  # a class in at least this share of the validation cases is missed where it is not predicted
WORST_SHARE = 0.2  # of the validation cases: what is as bad is to be looked at
_VALIDATE = "make it again: samunet_train … --val"
_PENALTY = 1.0  # of ridge regression on standardised features: that of one more case

# By the key of a class: its features, its Dice, and whether it is in the reference.
CalibrationCase = Mapping[str, Mapping[str, Any]]


class _Measured(TypedDict):
    entropy: float | None
    tta_disagreement: float | None
    Dice: float | None
    in_reference: bool


class _File(TypedDict):
    """A ``calibration.json``."""

    tta: bool
    cases: list[dict[str, _Measured]]


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
        return {
            key: np.array([[*_features(case[key]), _number(case[key]["Dice"])] for case in self.cases]) for key in keys
        }

    @cached_property
    def usual(self) -> list[str]:
        """Classes that hardly any validation case lacks, and of whose Dice something can be said."""
        if len(self.cases) < FEWEST_CASES:
            return []
        shares = {key: np.mean([case[key]["in_reference"] for case in self.cases]) for key in self.cases[0]}
        return [
            key
            for key, share in shares.items()
            if share >= USUAL and len(_known(self._tables[key], [0])) >= FEWEST_CASES
        ]

    @cached_property
    def _left_out(self) -> list[dict[str, float]]:
        """Predicted Dice of every validation case, by lines that are fitted without it."""
        return [
            {key: self._dice(table[index, :-1], np.delete(table, index, axis=0)) for key, table in self._tables.items()}
            for index in range(len(self.cases))
        ]

    @cached_property
    def errors(self) -> dict[str, float]:
        """Mean distance of predicted and true Dice of every class, each case predicted from the others."""
        errors = {}
        for key, table in self._tables.items():
            distances = np.abs(np.array([predicted[key] for predicted in self._left_out]) - table[:, -1])
            if np.isfinite(distances).any():
                errors[key] = float(np.nanmean(distances))
        return errors

    @cached_property
    def threshold(self) -> float:
        """Mean predicted Dice below which lies the worst fifth of the validation cases; NaN with too few of them."""
        scores = [_mean(predicted) for predicted in self._left_out]
        scores = [score for score in scores if not math.isnan(score)]
        return float(np.quantile(scores, WORST_SHARE)) if len(scores) >= FEWEST_CASES else math.nan

    def predict(self, classes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Predicted Dice of every class of a case; NaN where the class is not predicted, or has too few cases."""
        return {
            key: self._dice(_features(doubt), self._tables[key]) if key in self._tables else math.nan
            for key, doubt in classes.items()
        }

    def missing(self, classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Usual classes that were not predicted."""
        return [key for key in self.usual if math.isnan(_number(classes[key]["entropy"]))]

    def score(self, classes: Mapping[str, Mapping[str, Any]]) -> float:
        """Mean predicted Dice of a case, in which a usual class that is missing counts as 0."""
        return _mean({**self.predict(classes), **dict.fromkeys(self.missing(classes), 0.0)})

    @staticmethod
    def _dice(features: np.ndarray, table: np.ndarray) -> float:
        """What the line through a table says of a case, of which not all features need be known.

        A slice larger than the input has no shifted views, for example: then the line is one of entropy alone.
        """
        entropy, both = [0], [0, 1]
        for columns in (both, entropy):
            rows = _known(table, columns)
            if np.isfinite(features[columns]).all() and len(rows) >= FEWEST_CASES:
                return min(1.0, max(0.0, _along_line(features[columns], rows[:, columns], rows[:, -1])))
        return math.nan


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
        seen = read_case(file, _VALIDATE)
        if not scored["metrics"].keys() <= seen["classes"].keys():
            raise SamunetError(f"{file} lacks classes that {name} was scored for", _VALIDATE)
        tta = seen["tta"]
        rows.append(
            {
                key: {
                    **{feature: seen["classes"][key][feature] for feature in FEATURES},
                    "Dice": metrics["Dice"],
                    "in_reference": metrics["n_ref"] > 0,
                }
                for key, metrics in scored["metrics"].items()
            }
        )
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
        content = read_as(_File, path, _VALIDATE)
        if content["tta"] != tta:
            how = "without" if tta else "with"
            return None, f"the folds were calibrated {how} test-time augmentation, this prediction is the other way"
        cases += content["cases"]
        if any(case.keys() != cases[0].keys() for case in cases):
            raise SamunetError(f"{path} is damaged: its cases are not all of the same classes", _VALIDATE)
    if not found:
        return None, "the folds have no calibration.json; samunet_train … --val makes it for one that was validated"
    if len(cases) < FEWEST_CASES:
        return None, f"{len(cases)} validation cases are too few for a calibration ({FEWEST_CASES} or more)"
    return Calibration(
        cases, tta
    ), f"calibrated on the {len(cases)} validation cases of {len(found)} fold{'s' * (len(found) > 1)}"


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


def _mean(predicted: Mapping[str, float]) -> float:
    values = [value for value in predicted.values() if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan


def _features(doubt: Mapping[str, Any]) -> np.ndarray:
    return np.array([_number(doubt[name]) for name in FEATURES])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
