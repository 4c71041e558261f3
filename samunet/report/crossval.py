"""Report of a cross-validation."""

from __future__ import annotations

import math
from pathlib import Path

from samunet.dataset.labels import Labels
from samunet.dataset.layout import load_dataset
from samunet.errors import SamunetError, quoted
from samunet.evaluation.predicted_dice import read_calibration
from samunet.evaluation.summary import class_key, mean_of
from samunet.evaluation.uncertainty_files import map_file
from samunet.models.folder import ModelFolder
from samunet.report.model import report_page
from samunet.report.overlays import CaseFigure, overlay, planned_window
from samunet.report.page import Column, cards, score, scores, table
from samunet.report.scores import (
    CaseScore,
    case_caption,
    case_table,
    class_table,
    dice_chart,
    fold_table,
    numbers,
    read_scores,
    scored_classes,
    worst_first,
)


def crossval_report(model: ModelFolder, pictures: int, window: tuple[float, float] | None = None) -> str:
    """The page, from the validations that the folds have finished.

    Args:
        pictures: How many of the worst cases to show.
        window: Intensities shown black and white; None for the plans' percentiles of CT, the slices' own of others.

    Raises:
        SamunetError: If no fold has been validated, or a file is damaged.
    """
    labels = model.description.labels
    folds = [fold for fold in model.finished_folds() if (model.fold(fold) / "validation" / "summary.json").is_file()]
    if not folds:
        raise SamunetError(
            f"no fold of {model.path} has been validated",
            f"train one: samunet_train {quoted(model.plans.dataset_name)} {quoted(model.configuration_name)} 0",
        )
    cases = [
        case for fold in folds for case in read_scores(model.fold(fold) / "validation" / "summary.json", str(fold))
    ]
    if not cases:
        raise SamunetError(f"the validations in {model.path} have no cases", "validate again: samunet_train … --val")
    means = [mean_of(numbers(cases, key, "Dice")) for _, key in scored_classes(cases, labels)]
    worst = worst_first(cases)
    sections = [
        ("Classes", [class_table(cases, labels), _EMPTY_RULE, dice_chart(cases, labels)]),
        ("Folds", [fold_table(cases, labels)]),
        ("Cases, worst first", [case_table(cases, labels)]),
        ("The worst cases", _pictures(model, [case for case in worst if not math.isnan(case.dice)][:pictures], window)),
        ("Predicted Dice", _calibration(model, folds, labels)),
    ]
    lead = [
        f"{model.path.name}: every case was predicted by the fold that had not seen it in training.",
        cards(
            [
                (score(mean_of(means)), "mean Dice over classes"),
                (len(cases), "cases"),
                (len(folds), "folds" if len(folds) > 1 else "fold"),
                (score(worst[0].dice), "mean Dice of the worst case"),
            ]
        ),
    ]
    title = f"Cross-validation of {model.plans.dataset_name}"
    return report_page(title, lead, sections, model.plans, model.configuration_name, model, folds)


_EMPTY_RULE = (
    "A class that is in neither the reference nor the prediction of a case has no score there. One that is in only one "
    "of the two scores 0. Missed: in the reference, and no voxel of it found."
)


def _pictures(model: ModelFolder, cases: list[CaseScore], window: tuple[float, float] | None) -> list[object]:
    window = window or planned_window(model.plans, model.description)
    try:
        dataset = load_dataset(model.plans.dataset_name)
    except SamunetError as error:
        return [f"There are no pictures without the raw dataset: {error.message}"]
    content: list[object] = []
    for case in cases:
        files = dataset.cases.get(case.name)
        if files is None:
            content.append(f"{case.name} is not in the raw dataset any more.")
            continue
        entropy = map_file(case.mask, case.name, "entropy")
        caption = case_caption(case, model.description.labels)
        shown = CaseFigure(case.name, caption, files.images, case.mask, files.label or case.reference, entropy)
        content.append(overlay(shown, model.description, window))
    return content


def _calibration(model: ModelFolder, folds: list, labels: Labels) -> list[object]:
    paths = [Path(model.fold(fold)) for fold in folds]
    calibration, about = read_calibration(paths, tta=True)
    if calibration is None:
        calibration, without = read_calibration(paths, tta=False)
        about = without if calibration is not None else about
    if calibration is None:
        return [f"New predictions cannot tell how good they are: {about}."]
    errors = [calibration.errors.get(class_key(region)) for _, region in labels.foreground]
    content: list[object] = [
        "samunet_predict --save_uncertainty predicts the Dice of new cases from entropy and from how far mirrored or "
        f"shifted images disagree, {about}. Each validation case predicted from the others is off by:",
        table(
            [
                Column("class", [name for name, _ in labels.foreground]),
                scores("mean error of the predicted Dice", errors),
            ]
        ),
    ]
    if not math.isnan(calibration.threshold):
        content.append(f"A case is marked where its mean predicted Dice is {calibration.threshold:.3f} or lower.")
    return content
