"""Predicted Dice: a straight line from a fold's doubt about a class to the Dice that it had on its validation cases.

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

from samunet.errors import SamunetError
from samunet.files import read_json, write_json
from samunet.quality.files import case_file

FILE_NAME = "calibration.json"
FEATURES = ("entropy", "tta_disagreement")
FEWEST_CASES = 5  # below, no line is fitted
USUAL = 0.9  # a class in at least this share of the validation cases is missed where it is not predicted
WORST_SHARE = 0.2  # of the validation cases: what is as bad is to be looked at
_PENALTY = 1.0  # of ridge regression on standardised features: that of one more case

# By the key of a class: its features, its Dice, and whether it is in the reference.
CalibrationCase = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class _Line:
    """Dice = ``mean`` + sum of ``slopes`` x (feature - ``centre``), for the features in use."""

    used: np.ndarray
    centre: np.ndarray
    slopes: np.ndarray
    mean: float

    def dice(self, features: np.ndarray) -> float:
        """Predicted Dice; NaN where a feature that is needed is missing."""
        value = self.mean + float((features[self.used] - self.centre) @ self.slopes)
        return min(1.0, max(0.0, value)) if math.isfinite(value) else math.nan


@dataclass(frozen=True)
class Calibration:
    """What folds learnt from their validation cases about the doubt that they have.

    Args:
        cases: The validation cases of all folds, without names.
        tta: Whether they were predicted with mirrored or shifted inputs.
    """

    cases: Sequence[CalibrationCase]
    tta: bool

    @cached_property
    def lines(self) -> dict[str, _Line]:
        """The line of every class that has enough cases."""
        return _fit_all(self.cases)

    @cached_property
    def usual(self) -> list[str]:
        """Classes that hardly any validation case lacks."""
        if len(self.cases) < FEWEST_CASES:
            return []
        shares = {key: np.mean([case[key]["in_reference"] for case in self.cases]) for key in self.cases[0]}
        return [key for key, share in shares.items() if share >= USUAL]

    @cached_property
    def _left_out(self) -> list[dict[str, float]]:
        """Predicted Dice of every validation case, by lines that are fitted without it."""
        found = []
        for index, case in enumerate(self.cases):
            lines = _fit_all([*self.cases[:index], *self.cases[index + 1 :]])
            found.append({key: lines[key].dice(_features(case[key])) for key in case if key in lines})
        return found

    @cached_property
    def errors(self) -> dict[str, float]:
        """Mean distance of predicted and true Dice of every class, each case predicted from the others."""
        distances: dict[str, list[float]] = {}
        for case, predicted in zip(self.cases, self._left_out, strict=True):
            for key, dice in predicted.items():
                if _known(case[key]["Dice"]) and not math.isnan(dice):
                    distances.setdefault(key, []).append(abs(dice - case[key]["Dice"]))
        return {key: float(np.mean(values)) for key, values in distances.items()}

    @cached_property
    def threshold(self) -> float:
        """Mean predicted Dice below which lies the worst fifth of the validation cases; NaN with too few of them."""
        scores = [self._score(predicted) for predicted in self._left_out]
        scores = [score for score in scores if not math.isnan(score)]
        return float(np.quantile(scores, WORST_SHARE)) if len(scores) >= FEWEST_CASES else math.nan

    def predict(self, classes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Predicted Dice of every class of a case; NaN where the class is not predicted, or has no line."""
        lines = self.lines
        return {key: lines[key].dice(_features(doubt)) if key in lines else math.nan for key, doubt in classes.items()}

    def missing(self, predicted: Mapping[str, float]) -> list[str]:
        """Usual classes that were not predicted."""
        return [key for key in self.usual if key in self.lines and math.isnan(predicted.get(key, math.nan))]

    def score(self, predicted: Mapping[str, float]) -> float:
        """Mean predicted Dice of a case, in which a usual class that is missing counts as 0."""
        return self._score({**predicted, **dict.fromkeys(self.missing(predicted), 0.0)})

    @staticmethod
    def _score(predicted: Mapping[str, float]) -> float:
        values = [value for value in predicted.values() if not math.isnan(value)]
        return float(np.mean(values)) if values else math.nan


def write_calibration(fold: Path, cases: Sequence[str], summary: dict[str, Any]) -> None:
    """Write a fold's ``calibration.json`` after its validation; names of cases are not in it.

    Args:
        fold: The fold's folder, in whose ``validation`` lie masks and what was measured of them.
        cases: Names, in the order of ``summary``.
        summary: Content of the validation's ``summary.json``.
    """
    rows, tta = [], False
    for name, scored in zip(cases, summary["metric_per_case"], strict=True):
        seen = read_json(case_file(fold / "validation", name))
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
        content = read_json(path)
        try:
            if bool(content["tta"]) != tta:
                how = "without" if tta else "with"
                return None, f"the folds were calibrated {how} test-time augmentation, this prediction is the other way"
            cases += [{key: _checked(value) for key, value in case.items()} for case in content["cases"]]
            if any(case.keys() != cases[0].keys() for case in cases):
                raise ValueError("its cases are not all of the same classes")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SamunetError(f"{path} is damaged ({error})", "make it again: samunet_train … --val") from error
    if not found:
        return None, "the folds have no calibration.json; samunet_train … --val makes it for one that was validated"
    if len(cases) < FEWEST_CASES:
        return None, f"{len(cases)} validation cases are too few for a calibration ({FEWEST_CASES} or more)"
    return Calibration(
        cases, tta
    ), f"calibrated on the {len(cases)} validation cases of {len(found)} fold{'s' * (len(found) > 1)}"


def _checked(value: dict) -> dict[str, Any]:
    numbers = {key: math.nan if value[key] is None else float(value[key]) for key in (*FEATURES, "Dice")}
    return {**numbers, "in_reference": bool(value["in_reference"])}


def _fit_all(cases: Sequence[CalibrationCase]) -> dict[str, _Line]:
    lines = {}
    for key in cases[0] if cases else ():
        rows = [
            (*_features(case[key]), case[key]["Dice"])
            for case in cases
            if _known(case[key]["Dice"]) and _known(case[key]["entropy"])
        ]
        if len(rows) >= FEWEST_CASES:
            lines[key] = _fit(np.array(rows))
    return lines


def _fit(rows: np.ndarray) -> _Line:
    features, dice = rows[:, :-1], rows[:, -1]
    # Where inputs are neither mirrored nor shifted there is no second feature; one that never changes says nothing.
    used = np.isfinite(features).all(axis=0)
    used[used] = np.ptp(features[:, used], axis=0) > 0
    features = features[:, used]
    centre, spread = features.mean(axis=0), features.std(axis=0)
    standard = (features - centre) / spread
    penalty = _PENALTY * np.eye(standard.shape[1])
    slopes = np.linalg.solve(standard.T @ standard + penalty, standard.T @ (dice - dice.mean())) / spread
    return _Line(used, centre, slopes, float(dice.mean()))


def _features(doubt: Mapping[str, Any]) -> np.ndarray:
    return np.array([math.nan if doubt[name] is None else doubt[name] for name in FEATURES], float)


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)
