"""Confidence intervals of a mean Dice, by resampling patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_RESAMPLES = 2000
_SEED = 12345


class Interval(NamedTuple):
    """A 95 % interval; None where there is only one patient, or no score at all."""

    low: float | None
    high: float | None

    def __str__(self) -> str:
        return "" if self.low is None else f"[{self.low:.4f}, {self.high:.4f}]"

    def as_list(self) -> list[float] | None:
        """As JSON has it."""
        return None if self.low is None else list(self)


def dice_table(summary: Mapping[str, Any]) -> np.ndarray:
    """Dice ``(cases, classes)`` of a ``summary.json``, in its orders; NaN where a case has no score for a class."""
    classes = list(summary["mean"])
    rows = [[case["metrics"][key]["Dice"] for key in classes] for case in summary["metric_per_case"]]
    return np.array(rows, dtype=float).reshape(len(rows), len(classes))


def class_means(dice: np.ndarray) -> np.ndarray:
    """Mean of every class over the cases that have a score for it; NaN where none has."""
    scored = ~np.isnan(dice)
    with np.errstate(invalid="ignore"):
        return np.where(scored, dice, 0).sum(0) / scored.sum(0)


def mean_dice(dice: np.ndarray) -> float:
    """Mean over the classes that occur, as ``foreground_mean``."""
    means = class_means(dice)
    return float(np.nanmean(means)) if not np.isnan(means).all() else float("nan")


def mean_interval(dice: np.ndarray, patients: Sequence[str]) -> Interval:
    """Interval of :func:`mean_dice`.

    Cases of one patient resemble each other, so that patients are drawn and not cases: with replacement, as many as
    there are, 2000 times (Efron's percentile bootstrap, fixed seed).

    Args:
        dice: ``(cases, classes)``, NaN where there is no score.
    """
    return _percentiles(_resampled(dice, patients))


def difference_interval(dice: np.ndarray, other: np.ndarray, patients: Sequence[str]) -> Interval:
    """Interval of the difference ``mean_dice(dice) - mean_dice(other)`` of two models on the same cases."""
    return _percentiles(_resampled(dice, patients) - _resampled(other, patients))


def class_intervals(dice: np.ndarray, patients: Sequence[str]) -> list[Interval]:
    """:func:`mean_interval` of every class alone."""
    return [mean_interval(dice[:, [index]], patients) for index in range(dice.shape[1])]


def _resampled(dice: np.ndarray, patients: Sequence[str]) -> np.ndarray:
    """:func:`mean_dice` of every resample; empty where nothing can be drawn."""
    units, membership = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if len(units) < 2:
        return np.empty(0)
    rng = np.random.default_rng(_SEED)
    drawn = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=_RESAMPLES)
    weights = drawn[:, membership].astype(float)
    scored = ~np.isnan(dice)
    totals, counts = weights @ np.where(scored, dice, 0), weights @ scored
    means = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
    # A class that a resample does not have is left out of its mean, as in the score itself.
    present = ~np.isnan(means)
    number = present.sum(1)
    return np.divide(np.where(present, means, 0).sum(1), number, out=np.full(_RESAMPLES, np.nan), where=number > 0)


def _percentiles(values: np.ndarray) -> Interval:
    values = values[~np.isnan(values)]
    return Interval(*map(float, np.percentile(values, (2.5, 97.5)))) if values.size else Interval(None, None)
