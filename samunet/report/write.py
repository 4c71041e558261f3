"""``report.html`` about a cross-validation or a prediction, whichever a folder holds."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet import paths
from samunet.dataset.cases import Case, mask_files
from samunet.dataset.description import Description, description_from_json
from samunet.dataset.layout import find_dataset, list_cases, load_dataset
from samunet.dataset.outputs import ARGUMENTS, check_place, check_replaced
from samunet.errors import Blank, SamunetError, UsageError, call
from samunet.evaluation.quality import Quality, read_calibration, read_quality
from samunet.evaluation.summary import annotated_in_part, class_key, mean_of
from samunet.files import read_as, read_json, write_text
from samunet.models.choose import trained_model
from samunet.models.folder import ModelFolder
from samunet.plans import DEFAULT_PLANS_NAME, read_plans
from samunet.report.overlays import ct_window
from samunet.report.page import BLOCKS, MADE_BY, Column, page, score, scores
from samunet.report.sections import (
    CaseScore,
    case_picture,
    case_table,
    class_table,
    dice_by_class,
    dice_chart,
    fold_table,
    plan_section,
    read_scores,
    training_section,
    worst_first,
)

log = logging.getLogger(__name__)

_EMPTY_RULE = (
    "A class that is in neither the reference nor the prediction of a case has no score there. One that is in only one "
    "of the two scores 0. Missed: in the reference, and no voxel of it found."
)
_Window = tuple[float, float] | None


def report(
    source: str | int | Path,
    configuration: str = "2d",
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    images: str | Path | None = None,
    pictures: int = 6,
    window: tuple[float, float] | None = None,
    output: str | Path | None = None,
) -> Path:
    """Write one self-contained page, worst cases first.

    Args:
        source: A dataset or a model's folder, for its cross-validation; or a folder of predicted masks.
        configuration, plans_name: Of a dataset: which model.
        images: Of a prediction: where its images are; None for where they were when predicted.
        pictures: Cases to show in pictures.
        window: Intensities shown black and white; None for the plans' percentiles of CT, the slices' own of others.
        output: File to write; None for ``report.html`` in the model's folder or among the masks.

    Returns:
        The file.

    Raises:
        UsageError: If ``source`` is none of the three or not trained, or ``output`` is no place for a report.
        SamunetError: If a file is missing or damaged.
    """
    folder = Path(str(source))
    model = None if (folder / ARGUMENTS).is_file() else _model(folder, configuration, plans_name, images is not None)
    target = check_place(Path(output)) if output else (model.path if model else folder) / "report.html"
    check_replaced(target, MADE_BY)
    if model is None:
        content = _prediction_page(folder, None if images is None else Path(images), pictures, window)
    else:
        content = _crossval_page(model, pictures, window)
    write_text(target, content)
    return target


def _model(folder: Path, configuration: str, plans_name: str, with_images: bool) -> ModelFolder:
    if with_images:
        raise UsageError("`images` is for the report of a prediction", "give the folder that `api.predict` wrote")
    if folder.is_dir():
        if not (folder / "plans.json").is_file():
            raise UsageError(
                f"{folder} is neither a folder that `api.predict` wrote nor a model's folder",
                "give a dataset (`api.report('027')`), a model's folder, or a folder of masks (`api.report('preds')`)",
            )
        return ModelFolder(Path(os.path.abspath(folder)))  # "." has no name
    return trained_model(find_dataset(str(folder)), configuration, plans_name)


def _crossval_page(model: ModelFolder, pictures: int, window: _Window) -> str:
    """The page about the validations that the folds have finished."""
    labels, plans = model.description.labels, model.plans
    folds = {fold: model.fold(fold) for fold in model.finished_folds()}
    folds = {fold: folder for fold, folder in folds.items() if (folder / "validation" / "summary.json").is_file()}
    if not folds:
        raise SamunetError(
            f"no fold of {model.path} has been validated",
            f"train one: {call('train', plans.dataset_name, model.configuration_name, 0)}",
        )
    summaries = {str(fold): folder / "validation" / "summary.json" for fold, folder in folds.items()}
    cases = [case for fold, summary in summaries.items() for case in read_scores(summary, fold)]
    if not cases:
        raise SamunetError(
            f"the validations in {model.path} have no cases", "validate again: `api.train(..., validation_only=True)`"
        )
    worst = worst_first(cases)
    shown = [case for case in worst if not math.isnan(case.dice)][:pictures]
    means = [mean_of(values) for values in dice_by_class(cases, labels).values()]
    figures = [
        (score(mean_of(means)), "mean Dice over classes"),
        (len(cases), "cases"),
        (len(folds), "folds" if len(folds) > 1 else "fold"),
        (score(worst[0].dice), "mean Dice of the worst case"),
    ]
    about = f"{model.path.name}: every case was predicted by the fold that had not seen it in training."
    encoder = model.run(next(iter(folds))).get("encoder")
    sections = [
        ("Classes", [class_table(cases, labels), _EMPTY_RULE, *_annotated(cases), dice_chart(cases, labels)]),
        ("Folds", [fold_table(cases, labels)]),
        ("Cases, worst first", [case_table(cases, labels)]),
        ("The worst cases", _crossval_pictures(model, shown, window)),
        ("Predicted Dice", _calibration(model, list(folds.values()))),
        ("Training", training_section(model, list(folds))),
        ("Plan and reasons", plan_section(plans, model.configuration_name, encoder)),
    ]
    return page(f"Cross-validation of {plans.dataset_name}", [about, BLOCKS.cards(figures)], sections)


def _crossval_pictures(model: ModelFolder, cases: list[CaseScore], window: _Window) -> list[object]:
    window = window or ct_window(model.plans, model.description)
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
        dice = {name: values[0] for name, values in dice_by_class([case], model.description.labels).items()}
        listed = ", ".join(f"{name} {score(value)}" for name, value in dice.items())
        caption = f"mean Dice {score(case.dice)} ({listed}), fold {case.fold}"
        reference = files.label or case.reference
        content.append(case_picture(case.name, caption, files.images, case.mask, reference, model.description, window))
    return content


def _calibration(model: ModelFolder, folds: list[Path]) -> list[object]:
    calibration, about = read_calibration(folds, tta=True)
    if calibration is None:
        calibration, without = read_calibration(folds, tta=False)
        about = without if calibration is not None else about
    if calibration is None:
        return [f"New predictions cannot tell how good they are: {about}."]
    errors = {name: calibration.errors.get(class_key(region)) for name, region in model.description.labels.foreground}
    columns = [Column("class", list(errors)), scores("mean error of the predicted Dice", list(errors.values()))]
    content: list[object] = [
        "A prediction with uncertainty predicts the Dice of new cases from entropy and from how far mirrored or "
        f"shifted images disagree, {about}. Each validation case predicted from the others is off by:",
        BLOCKS.table(columns),
    ]
    if not math.isnan(calibration.threshold):
        content.append(f"A case is marked where its mean predicted Dice is {calibration.threshold:.3f} or lower.")
    return content


class _Arguments(TypedDict, total=False):
    """The record of a prediction, as far as it is checked."""

    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    folds: list[int | str]


def _prediction_page(folder: Path, images: Path | None, pictures: int, window: _Window) -> str:
    """The page about a folder that ``samunet_predict`` wrote."""
    arguments: dict[str, Any] = read_as(_Arguments, folder / ARGUMENTS, "predict again, or restore the file")
    description = description_from_json(read_json(folder / "dataset.json"), str(folder / "dataset.json"))
    labels = description.labels
    masks = mask_files(folder)
    if not masks:
        raise SamunetError(f"{folder} holds no masks", f"predict first: {call('predict', Blank('IMAGES'), folder)}")
    quality = read_quality(folder, {class_key(region) for _, region in labels.foreground})
    summary = folder / "summary.json"
    cases = read_scores(summary) if summary.is_file() else []
    plans = read_plans(folder / "plans.json")
    # A model's folder may have any name; before the record said the configuration, only that name did.
    configuration = str(arguments.get("configuration") or str(arguments.get("model", "")).split("__")[-1])
    if configuration not in plans.configurations:
        raise UsageError(
            f"{folder / ARGUMENTS} names the configuration {configuration!r}, which the plans do not have (they have "
            f"{', '.join(plans.configurations)})",
            "predict again, or restore the file",
        )
    order = order_of_cases(masks, cases, quality)
    model = _model_of(arguments)
    folds = [fold for fold in arguments.get("folds", []) if model and model.fold(fold).is_dir()]
    training: list[object] = ["The model's folder is not in samunet_results, so there are no curves."]
    if model and folds:
        training = training_section(model, folds)
    encoder = model.run(folds[0]).get("encoder") if model and folds else None
    sections = [("Cases, worst first", _cases(masks, order, cases, quality, description))]
    if cases:
        scored = [class_table(cases, labels), *_annotated(cases), dice_chart(cases, labels), case_table(cases, labels)]
        sections.append(("Scores against references", scored))
    found, lacking = _images(arguments, images, description)
    window = window or ct_window(plans, description)
    shown = [lacking] if lacking else _pictures(found, masks, order[:pictures], cases, quality, description, window)
    sections += [
        ("Pictures", shown),
        ("Training", training),
        ("Plan and reasons", plan_section(plans, configuration, encoder)),
    ]
    title = f"Prediction of {len(masks)} case{'s' * (len(masks) != 1)}"
    return page(title, _lead(arguments, len(masks), cases, quality), sections)


def _annotated(cases: list[CaseScore]) -> list[object]:
    partly = annotated_in_part([case.ignored for case in cases])
    return [f"{partly[:1].upper()}{partly[1:]}."] if partly else []


def order_of_cases(masks: dict[str, Path], cases: list[CaseScore], quality: Quality | None) -> list[str]:
    """Names of the cases: those with a reference by their true Dice, then others by what is predicted of them."""
    scored = [case.name for case in worst_first(cases) if not math.isnan(case.dice)]
    looked_at = [row["case"] for row in quality["cases"]] if quality else []
    return list(dict.fromkeys(name for name in [*scored, *looked_at, *masks] if name in masks))


def _lead(arguments: dict[str, Any], number: int, cases: list[CaseScore], quality: Quality | None) -> list[object]:
    folds = [str(fold) for fold in arguments.get("folds", [])]
    used = f"fold{'s' * (len(folds) > 1)} {', '.join(folds)}"
    averaged = "with" if arguments.get("tta") else "without"
    model = f"{arguments.get('dataset')}/{arguments.get('model')}"
    figures: list[tuple[object, str]] = [(number, "cases")]
    if quality:
        figures.append((sum(bool(row["look"]) for row in quality["cases"]), "to look at"))
        mean = mean_of(row["predicted_Dice"] for row in quality["cases"])
        if not math.isnan(mean):
            figures.append((score(mean), "mean predicted Dice"))
    if cases:
        figures.append((score(mean_of(case.dice for case in cases)), "mean Dice of cases with a reference"))
    return [f"Model {model}, {used}, {averaged} test-time augmentation.", BLOCKS.cards(figures)]


def _cases(
    masks: dict[str, Path], order: list[str], cases: list[CaseScore], quality: Quality | None, description: Description
) -> list[object]:
    if not quality:
        columns = [Column("case", order), Column("mask", [masks[name].name for name in order])]
        log.warning("nothing tells good cases from bad ones: `api.predict(..., save_uncertainty=True)` measures it")
        return [
            "Nothing was measured that would tell good cases from bad ones: predictions with uncertainty do so.",
            BLOCKS.table(columns, first=15),
        ]
    calibration, rows = quality["calibration"], quality["cases"]
    named = {name: class_key(region) for name, region in description.labels.foreground}
    classes = {name: [row["classes"][key] for row in rows] for name, key in named.items()}
    true = {case.name: case.dice for case in cases}
    names = Column("case", [row["case"] for row in rows])
    columns = [
        names,
        Column("", [BLOCKS.tag("look") if row["look"] else "" for row in rows]),
        scores("predicted Dice", [row["predicted_Dice"] for row in rows]),
        *(scores(name, [one["predicted_Dice"] for one in measured]) for name, measured in classes.items()),
    ]
    if true:
        columns.append(scores("true Dice", [true.get(row["case"]) for row in rows]))
    columns.append(scores("entropy", [row["entropy"] for row in rows]))
    disagreement = [mean_of(one["fold_disagreement"] for one in measured) for measured in zip(*classes.values())]
    if not all(map(math.isnan, disagreement)):
        columns.append(scores("fold disagreement", disagreement))
    columns.append(Column("why", ["; ".join(row["look"]) for row in rows], "long"))
    volumes = [
        Column(
            name,
            [
                f"{one['voxels']} voxels" if one.get("millilitres") is None else f"{one['millilitres']:.1f} ml"
                for one in measured
            ],
            "number",
        )
        for name, measured in classes.items()
    ]
    threshold = calibration["threshold"]
    rule = "" if threshold is None else f" A case is marked where its mean is {threshold:.2f} or lower."
    return [
        f"Predicted Dice: {calibration['about']}.{rule} It is an estimate: look at marked cases first, and do not "
        "take an unmarked one for checked.",
        BLOCKS.table(columns, [bool(row["look"]) for row in rows], first=15),
        BLOCKS.heading("Volumes"),
        BLOCKS.table([names, *volumes], first=5),
    ]


def _pictures(
    found: dict[str, Case],
    masks: dict[str, Path],
    names: list[str],
    cases: list[CaseScore],
    quality: Quality | None,
    description: Description,
    window: _Window,
) -> list[object]:
    rows = {row["case"]: row for row in quality["cases"]} if quality else {}
    scored = {case.name: case for case in cases}
    content: list[object] = []
    for name in names:
        if name not in found:
            content.append(f"{name}: its image is not among those that were given.")
            continue
        row, case, words = rows.get(name), scored.get(name), []
        if row and row["predicted_Dice"] is not None:
            words.append(f"predicted Dice {row['predicted_Dice']:.3f}")
        if case and not math.isnan(case.dice):
            words.append(f"true Dice {case.dice:.3f}")
        if row and row["look"]:
            words.append("; ".join(row["look"]))
        caption, reference = ", ".join(words) or "not measured", case.reference if case else None
        content.append(case_picture(name, caption, found[name].images, masks[name], reference, description, window))
    return content


def _images(arguments: dict[str, Any], images: Path | None, description: Description) -> tuple[dict[str, Case], str]:
    """The cases of the images, and what is lacking if they are not found."""
    if images is not None:
        return list_cases(images, description), ""
    source = Path(str(arguments.get("input", "")))
    try:
        if source.exists():
            return list_cases(source, description), ""
    except (SamunetError, OSError):  # a list of files, as it was typed, is no path
        pass
    log.warning("no pictures, because the images are not at %s: add `images=FOLDER`, which was predicted", source)
    return {}, f"The images are not at {source} (seen from here): make the report again with their folder."


def _model_of(arguments: dict[str, Any]) -> ModelFolder | None:
    try:
        folder = paths.results_folder() / str(arguments.get("dataset")) / str(arguments.get("model"))
    except SamunetError:
        return None
    return ModelFolder(folder) if folder.is_dir() else None
