"""Scores of cases as reports show them: tables and a chart from the content of ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samunet.dataset.labels import Labels
from samunet.dataset.names import case_stem
from samunet.evaluation.summary import class_key, mean_of, read_summary
from samunet.report.charts import strip_chart
from samunet.report.html import Html, long_table, picture, table


@dataclass(frozen=True)
class Scored:
    """A case with its scores.

    Attributes:
        name: Of the case.
        fold: That predicted it; empty for a prediction by several.
        metrics: By class, as in ``summary.json``.
        mask, reference: The files.
    """

    name: str
    fold: str
    metrics: Mapping[str, Mapping[str, float | None]]
    mask: Path
    reference: Path

    @property
    def dice(self) -> float:
        """Mean over the classes that have one; NaN if none has."""
        return mean_of(scores["Dice"] for scores in self.metrics.values())


def read_scores(file: Path, fold: str = "") -> list[Scored]:
    """The cases of a ``summary.json``; masks are looked for beside it.

    Raises:
        SamunetError: If the file is damaged.
    """
    return [_scored(case, file.parent, fold) for case in read_summary(file)["metric_per_case"]]


def worst_first(cases: Sequence[Scored]) -> list[Scored]:
    """By mean Dice; cases in which there is nothing to score come last."""
    return sorted(cases, key=lambda case: (math.isnan(case.dice), case.dice, case.name))


def scored_classes(cases: Sequence[Scored], labels: Labels) -> list[tuple[str, str]]:
    """Name and key of the classes that all cases were scored for, which may be fewer than the dataset has."""
    named = [(name, class_key(region)) for name, region in labels.foreground]
    return [(name, key) for name, key in named if all(key in case.metrics for case in cases)]


def class_table(cases: Sequence[Scored], labels: Labels) -> Html:
    """Dice and IoU of every class: mean, spread and range over cases."""
    rows = []
    for name, key in scored_classes(cases, labels):
        dice = numbers(cases, key, "Dice")
        iou = numbers(cases, key, "IoU")
        missed = sum((case.metrics[key].get("n_ref") or 0) > 0 and case.metrics[key].get("TP") == 0 for case in cases)
        rows.append(
            [
                name,
                key,
                _cell(np.mean(dice) if dice else math.nan),
                _cell(np.std(dice) if dice else math.nan),
                _cell(np.median(dice) if dice else math.nan),
                _cell(min(dice, default=math.nan)),
                _cell(np.mean(iou) if iou else math.nan),
                len(dice),
                missed,
            ]
        )
    columns = ["class", "value", "Dice", "std", "median", "lowest", "IoU", "cases", "missed"]
    return table(columns, rows, "ccnnnnnnn")


def fold_table(cases: Sequence[Scored], labels: Labels) -> Html:
    """Mean Dice of every class in every fold."""
    classes = scored_classes(cases, labels)
    rows = []
    for fold in dict.fromkeys(case.fold for case in cases):
        own = [case for case in cases if case.fold == fold]
        values = [mean_of(numbers(own, key, "Dice")) for _, key in classes]
        rows.append([f"fold {fold}", *map(_cell, values), _cell(mean_of(values)), len(own)])
    columns = ["fold", *(name for name, _ in classes), "mean", "cases"]
    return table(columns, rows, "c" + "n" * (len(columns) - 1))


def case_table(cases: Sequence[Scored], labels: Labels) -> Html:
    """Every case, worst first, with the Dice of each class."""
    classes = scored_classes(cases, labels)
    rows = []
    for case in worst_first(cases):
        values = [case.metrics[key]["Dice"] for _, key in classes]
        rows.append([case.name, *([case.fold] if case.fold else []), _cell(case.dice), *map(_cell, values)])
    columns = ["case", *(["fold"] if cases[0].fold else []), "mean Dice", *(name for name, _ in classes)]
    return long_table(columns, rows, "c" + "n" * (len(columns) - 1))


def dice_chart(cases: Sequence[Scored], labels: Labels) -> Html:
    """Every case's Dice as a point."""
    groups = {name: numbers(cases, key, "Dice") for name, key in scored_classes(cases, labels)}
    if not any(groups.values()):
        return Html("<p>No case has a class to score.</p>")
    return picture(
        strip_chart(groups, "Dice"),
        "Dice of every case (a point each); the line is the median",
        "Dice of every case, by class",
    )


def case_caption(case: Scored, labels: Labels) -> str:
    """The Dice of every class in words."""
    values = [f"{name} {_cell(case.metrics[key]['Dice'])}" for name, key in scored_classes([case], labels)]
    return f"mean Dice {_cell(case.dice)} ({', '.join(values)})" + (f", fold {case.fold}" if case.fold else "")


def numbers(cases: Sequence[Scored], key: str, metric: str) -> list[float]:
    """One metric of one class in all cases that have it."""
    return [value for case in cases if (value := case.metrics[key].get(metric)) is not None]


def _scored(case: dict[str, Any], folder: Path, fold: str) -> Scored:
    mask = folder / Path(case.get("prediction_file", "")).name
    return Scored(case_stem(mask), fold, case["metrics"], mask, Path(case.get("reference_file", "")))


def _cell(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"
