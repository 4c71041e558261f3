"""Scores of cases as reports show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from samunet.dataset.labels import Labels
from samunet.dataset.names import case_stem
from samunet.evaluation.summary import class_key, mean_of, read_summary
from samunet.report.charts import strip_chart
from samunet.report.page import Column, picture, score, scores, table


@dataclass(frozen=True)
class CaseScore:
    """A case with its scores.

    Attributes:
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
        return mean_of(metrics["Dice"] for metrics in self.metrics.values())


def read_scores(file: Path, fold: str = "") -> list[CaseScore]:
    """The cases of a ``summary.json``; masks are looked for in its folder.

    Raises:
        SamunetError: If the file is damaged.
    """
    cases = []
    for case in read_summary(file)["metric_per_case"]:
        mask = file.parent / Path(case.get("prediction_file", "")).name
        cases.append(CaseScore(case_stem(mask), fold, case["metrics"], mask, Path(case.get("reference_file", ""))))
    return cases


def worst_first(cases: Sequence[CaseScore]) -> list[CaseScore]:
    """By mean Dice; cases in which there is nothing to score come last."""
    return sorted(cases, key=lambda case: (math.isnan(case.dice), case.dice, case.name))


def scored_classes(cases: Sequence[CaseScore], labels: Labels) -> list[tuple[str, str]]:
    """Name and key of the classes that all cases were scored for, which may be fewer than the dataset has."""
    named = [(name, class_key(region)) for name, region in labels.foreground]
    return [(name, key) for name, key in named if all(key in case.metrics for case in cases)]


def class_table(cases: Sequence[CaseScore], labels: Labels) -> Markup:
    """Dice and IoU of every class: mean, spread and range over cases."""
    classes = scored_classes(cases, labels)
    dice = [numbers(cases, key, "Dice") for _, key in classes]
    missed = [
        sum((case.metrics[key].get("n_ref") or 0) > 0 and case.metrics[key].get("TP") == 0 for case in cases)
        for _, key in classes
    ]
    spread, middle = ([of(values) if values else math.nan for values in dice] for of in (np.std, np.median))
    return table(
        [
            Column("class", [name for name, _ in classes]),
            Column("value", [key for _, key in classes]),
            scores("Dice", [mean_of(values) for values in dice]),
            scores("std", spread),
            scores("median", middle),
            scores("lowest", [min(values, default=math.nan) for values in dice]),
            scores("IoU", [mean_of(numbers(cases, key, "IoU")) for _, key in classes]),
            Column("cases", [len(values) for values in dice], "number"),
            Column("missed", missed, "number"),
        ]
    )


def fold_table(cases: Sequence[CaseScore], labels: Labels) -> Markup:
    """Mean Dice of every class in every fold."""
    folds: dict[str, list[CaseScore]] = {}
    for case in cases:
        folds.setdefault(case.fold, []).append(case)
    classes = scored_classes(cases, labels)
    means = [[mean_of(numbers(own, key, "Dice")) for own in folds.values()] for _, key in classes]
    return table(
        [
            Column("fold", [f"fold {fold}" for fold in folds]),
            *(scores(name, values) for (name, _), values in zip(classes, means)),
            scores("mean", [mean_of(values) for values in zip(*means)]),
            Column("cases", [len(own) for own in folds.values()], "number"),
        ]
    )


def case_table(cases: Sequence[CaseScore], labels: Labels) -> Markup:
    """Every case, worst first, with the Dice of each class."""
    cases = worst_first(cases)
    columns = [Column("case", [case.name for case in cases])]
    if cases[0].fold:
        columns.append(Column("fold", [case.fold for case in cases], "number"))
    columns.append(scores("mean Dice", [case.dice for case in cases]))
    for name, key in scored_classes(cases, labels):
        columns.append(scores(name, [case.metrics[key]["Dice"] for case in cases]))
    return table(columns, first=15)


def dice_chart(cases: Sequence[CaseScore], labels: Labels) -> Markup | str:
    """Every case's Dice as a point."""
    groups = {name: numbers(cases, key, "Dice") for name, key in scored_classes(cases, labels)}
    if not any(groups.values()):
        return "No case has a class to score."
    caption = "Dice of every case (a point each); the line is the median"
    return picture(strip_chart(groups, "Dice"), caption, "Dice of every case, by class")


def case_caption(case: CaseScore, labels: Labels) -> str:
    """The Dice of every class in words."""
    values = [f"{name} {score(case.metrics[key]['Dice'])}" for name, key in scored_classes([case], labels)]
    return f"mean Dice {score(case.dice)} ({', '.join(values)})" + (f", fold {case.fold}" if case.fold else "")


def numbers(cases: Sequence[CaseScore], key: str, metric: str) -> list[float]:
    """One metric of one class in all cases that have it."""
    return [value for case in cases if (value := case.metrics[key].get(metric)) is not None]
