"""Report of a prediction: which of its cases to look at, and what is known about them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet import paths
from samunet.dataset.cases import Case, mask_files
from samunet.dataset.description import Description, description_from_json
from samunet.dataset.layout import list_cases
from samunet.dataset.outputs import ARGUMENTS
from samunet.errors import SamunetError, UsageError, quoted
from samunet.evaluation.quality_table import ClassQuality, Quality, read_quality
from samunet.evaluation.summary import class_key, mean_of
from samunet.evaluation.uncertainty_files import map_file
from samunet.files import read_as, read_json
from samunet.models.folder import ModelFolder
from samunet.plans import Plans, read_plans
from samunet.report.model import report_page
from samunet.report.overlays import CaseFigure, overlay, planned_window
from samunet.report.page import Column, cards, heading, score, scores, table, tag
from samunet.report.scores import CaseScore, case_table, class_table, dice_chart, read_scores, worst_first


@dataclass(frozen=True)
class _Predicted:
    """A folder of masks and what lies beside them."""

    folder: Path
    arguments: dict[str, Any]
    plans: Plans
    description: Description
    quality: Quality | None
    scores: list[CaseScore]
    masks: dict[str, Path]


def prediction_report(
    folder: Path, images: Path | None, pictures: int, window: tuple[float, float] | None = None
) -> str:
    """The page.

    Args:
        folder: That ``samunet_predict`` wrote.
        images: Where the images lie; None for where they were when they were predicted.
        pictures: How many of the worst cases to show.
        window: Intensities shown black and white; None for the plans' percentiles of CT, the slices' own of others.

    Raises:
        SamunetError: If a file is missing or damaged.
    """
    predicted = _read(folder)
    order = _order(predicted)
    model = _model(predicted)
    folds = [fold for fold in predicted.arguments.get("folds", []) if model and model.fold(fold).is_dir()]
    sections = [("Cases, worst first", _cases(predicted))]
    if predicted.scores:
        cases, labels = predicted.scores, predicted.description.labels
        content = [class_table(cases, labels), dice_chart(cases, labels), case_table(cases, labels)]
        sections.append(("Scores against references", content))
    sections.append(("Pictures", _pictures(predicted, order[:pictures], images, window)))
    title = f"Prediction of {len(predicted.masks)} case{'s' * (len(predicted.masks) != 1)}"
    return report_page(title, _lead(predicted), sections, predicted.plans, _configuration(predicted), model, folds)


class _Arguments(TypedDict, total=False):
    """What is read of the record of a prediction."""

    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    folds: list[int | str]


def _read(folder: Path) -> _Predicted:
    arguments = read_as(_Arguments, folder / ARGUMENTS, "predict again, or restore the file")
    description = description_from_json(read_json(folder / "dataset.json"), str(folder / "dataset.json"))
    masks = mask_files(folder)
    if not masks:
        raise SamunetError(f"{folder} holds no masks", f"predict first: samunet_predict -i IMAGES -o {quoted(folder)}")
    quality = read_quality(folder, {class_key(region) for _, region in description.labels.foreground})
    summary = folder / "summary.json"
    scores = read_scores(summary) if summary.is_file() else []
    plans = read_plans(folder / "plans.json")
    return _Predicted(folder, arguments, plans, description, quality, scores, masks)


def _order(predicted: _Predicted) -> list[str]:
    """Names of the cases: those with a reference by their true Dice, then others by what is predicted of them."""
    scored = [case.name for case in worst_first(predicted.scores) if not math.isnan(case.dice)]
    looked_at = [row["case"] for row in predicted.quality["cases"]] if predicted.quality else []
    return list(dict.fromkeys(name for name in [*scored, *looked_at, *predicted.masks] if name in predicted.masks))


def _lead(predicted: _Predicted) -> list[object]:
    arguments, quality = predicted.arguments, predicted.quality
    folds = [str(fold) for fold in arguments.get("folds", [])]
    used = f"fold{'s' * (len(folds) > 1)} {', '.join(folds)}"
    averaged = "with" if arguments.get("tta") else "without"
    model = f"{arguments.get('dataset')}/{arguments.get('model')}"
    lead: list[object] = [f"Model {model}, {used}, {averaged} test-time augmentation."]
    figures: list[tuple[object, str]] = [(len(predicted.masks), "cases")]
    if quality:
        rows = quality["cases"]
        figures.append((sum(bool(row["look"]) for row in rows), "to look at"))
        mean = mean_of(row["predicted_Dice"] for row in rows)
        if not math.isnan(mean):
            figures.append((score(mean), "mean predicted Dice"))
    if predicted.scores:
        mean = mean_of(case.dice for case in predicted.scores)
        figures.append((score(mean), "mean Dice of cases with a reference"))
    return [*lead, cards(figures)]


def _cases(predicted: _Predicted) -> list[object]:
    if not predicted.quality:
        names = _order(predicted)
        return [
            "Nothing was measured that would tell good cases from bad ones: samunet_predict does so with "
            "--save_uncertainty.",
            table([Column("case", names), Column("mask", [predicted.masks[name].name for name in names])], first=15),
        ]
    calibration, rows = predicted.quality["calibration"], predicted.quality["cases"]
    named = {name: class_key(region) for name, region in predicted.description.labels.foreground}
    classes = {name: [row["classes"][key] for row in rows] for name, key in named.items()}
    true = {case.name: case.dice for case in predicted.scores}
    names = Column("case", [row["case"] for row in rows])
    columns = [
        names,
        Column("", [tag("look") if row["look"] else "" for row in rows]),
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
    volumes = [Column(name, list(map(_volume, measured)), "number") for name, measured in classes.items()]
    threshold = calibration["threshold"]
    rule = "" if threshold is None else f" A case is marked where its mean is {threshold:.2f} or lower."
    return [
        f"Predicted Dice: {calibration['about']}.{rule} It is an estimate: look at marked cases first, and do not "
        "take an unmarked one for checked.",
        table(columns, [bool(row["look"]) for row in rows], first=15),
        heading("Volumes"),
        table([names, *volumes], first=5),
    ]


def _pictures(
    predicted: _Predicted, names: list[str], images: Path | None, window: tuple[float, float] | None
) -> list[object]:
    window = window or planned_window(predicted.plans, predicted.description)
    found, lacking = _images(predicted, images)
    if lacking:
        return [lacking]
    rows = {row["case"]: row for row in predicted.quality["cases"]} if predicted.quality else {}
    scores = {case.name: case for case in predicted.scores}
    content: list[object] = []
    for name in names:
        if name not in found:
            content.append(f"{name}: its image is not among those that were given.")
            continue
        row, mask = rows.get(name), predicted.masks[name]
        words = []
        if row and row["predicted_Dice"] is not None:
            words.append(f"predicted Dice {row['predicted_Dice']:.3f}")
        if name in scores and not math.isnan(scores[name].dice):
            words.append(f"true Dice {scores[name].dice:.3f}")
        if row and row["look"]:
            words.append("; ".join(row["look"]))
        reference = scores[name].reference if name in scores else None
        shown = CaseFigure(
            name,
            ", ".join(words) or "not measured",
            found[name].images,
            mask,
            reference,
            map_file(mask, name, "entropy"),
        )
        content.append(overlay(shown, predicted.description, window))
    return content


def _images(predicted: _Predicted, images: Path | None) -> tuple[dict[str, Case], str]:
    """The cases of the images, and what is lacking if they are not found."""
    if images is not None:
        return list_cases(images, predicted.description), ""
    source = Path(str(predicted.arguments.get("input", "")))
    try:
        if source.exists():
            return list_cases(source, predicted.description), ""
    except (SamunetError, OSError):  # a list of files, as it was typed, is no path
        pass
    return {}, f"The images are not at {source} (seen from here): add -i IMAGES, the folder that was predicted."


def _model(predicted: _Predicted) -> ModelFolder | None:
    try:
        folder = (
            paths.results_folder() / str(predicted.arguments.get("dataset")) / str(predicted.arguments.get("model"))
        )
    except SamunetError:
        return None
    return ModelFolder(folder) if folder.is_dir() else None


def _configuration(predicted: _Predicted) -> str:
    # A model's folder may have any name; before the record said the configuration, only that name did.
    arguments = predicted.arguments
    name = str(arguments.get("configuration") or str(arguments.get("model", "")).split("__")[-1])
    if name not in predicted.plans.configurations:
        raise UsageError(
            f"{predicted.folder / ARGUMENTS} names the configuration {name!r}, which the plans do not have (they have "
            f"{', '.join(predicted.plans.configurations)})",
            "predict again, or restore the file",
        )
    return name


def _volume(measured: ClassQuality) -> str:
    millilitres = measured.get("millilitres")
    return f"{measured['voxels']} voxels" if millilitres is None else f"{millilitres:.1f} ml"
