"""Sections of reports: scores of cases, pictures of cases, the training of a model, and its plan with the reasons."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet.dataset.description import Description
from samunet.dataset.labels import Labels
from samunet.dataset.names import case_stem
from samunet.errors import SamunetError
from samunet.evaluation.quality import map_file
from samunet.evaluation.summary import class_key, mean_of, read_summary
from samunet.files import read_as
from samunet.imageio.registry import image_reader_for
from samunet.imageio.same_grid import Grid, on_grid
from samunet.models.folder import Fold, ModelFolder
from samunet.plans import NetworkPlan, Plans
from samunet.report.overlays import draw_overlay, is_colour, legend
from samunet.report.page import BLOCKS, Column, image_address, scores, strip_chart, training_curves

log = logging.getLogger(__name__)

_FIRST_ROWS = 15  # of a table of cases; the others are folded away
_LEFT_OUT = {"why", "training_images", "memory_bytes", "training_gflops"}
_CURVES = (
    ("loss", "training loss", None, "Training loss, mean since the point before", "Training loss over iterations"),
    (
        "dice",
        "mean foreground Dice",
        (0, 1),
        "Dice of the monitored validation cases, on their stored grid, without test-time augmentation",
        "Dice of the monitored cases over iterations",
    ),
)


@dataclass(frozen=True)
class CaseScore:
    """A case with its scores.

    Attributes:
        fold: That predicted it; empty for a prediction by several.
        metrics: By class, as in ``summary.json``.
        mask, reference: The files.
        ignored: Voxels of the reference without annotation.
    """

    name: str
    fold: str
    metrics: Mapping[str, Mapping[str, float | None]]
    mask: Path
    reference: Path
    ignored: int = 0

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
        reference, ignored = Path(case.get("reference_file", "")), case.get("n_ignored", 0)
        cases.append(CaseScore(case_stem(mask), fold, case["metrics"], mask, reference, ignored))
    return cases


def worst_first(cases: Sequence[CaseScore]) -> list[CaseScore]:
    """By mean Dice; cases in which there is nothing to score come last."""
    return sorted(cases, key=lambda case: (math.isnan(case.dice), case.dice, case.name))


def dice_by_class(cases: Sequence[CaseScore], labels: Labels) -> dict[str, list[float | None]]:
    """Dice in all cases, by name, of the classes that all were scored for, which may be fewer than the dataset has."""
    named = {name: class_key(region) for name, region in labels.foreground}
    return {
        name: [case.metrics[key]["Dice"] for case in cases]
        for name, key in named.items()
        if all(key in case.metrics for case in cases)
    }


def class_table(cases: Sequence[CaseScore], labels: Labels) -> str:
    """Dice and IoU of every class: mean, spread and range over cases."""
    keys = {name: class_key(region) for name, region in labels.foreground}
    classes = {
        name: [value for value in values if value is not None] for name, values in dice_by_class(cases, labels).items()
    }
    metrics = [[case.metrics[keys[name]] for case in cases] for name in classes]
    spread, middle = ([of(values) if values else math.nan for values in classes.values()] for of in (np.std, np.median))
    missed = [sum((one.get("n_ref") or 0) > 0 and one.get("TP") == 0 for one in every) for every in metrics]
    return BLOCKS.table(
        [
            Column("class", list(classes)),
            Column("value", [keys[name] for name in classes]),
            scores("Dice", [mean_of(values) for values in classes.values()]),
            scores("std", spread),
            scores("median", middle),
            scores("lowest", [min(values, default=math.nan) for values in classes.values()]),
            scores("IoU", [mean_of(one.get("IoU") for one in every) for every in metrics]),
            Column("cases", [len(values) for values in classes.values()], "number"),
            Column("missed", missed, "number"),
        ]
    )


def fold_table(cases: Sequence[CaseScore], labels: Labels) -> str:
    """Mean Dice of every class in every fold."""
    folds: dict[str, list[CaseScore]] = {}
    for case in cases:
        folds.setdefault(case.fold, []).append(case)
    found = [dice_by_class(own, labels) for own in folds.values()]
    means = {name: [mean_of(classes[name]) for classes in found] for name in dice_by_class(cases, labels)}
    return BLOCKS.table(
        [
            Column("fold", [f"fold {fold}" for fold in folds]),
            *(scores(name, values) for name, values in means.items()),
            scores("mean", [mean_of(values) for values in zip(*means.values())]),
            Column("cases", [len(own) for own in folds.values()], "number"),
        ]
    )


def case_table(cases: Sequence[CaseScore], labels: Labels) -> str:
    """Every case, worst first, with the Dice of each class."""
    cases = worst_first(cases)
    columns = [Column("case", [case.name for case in cases])]
    if cases[0].fold:
        columns.append(Column("fold", [case.fold for case in cases], "number"))
    columns.append(scores("mean Dice", [case.dice for case in cases]))
    columns += [scores(name, values) for name, values in dice_by_class(cases, labels).items()]
    return BLOCKS.table(columns, first=_FIRST_ROWS)


def dice_chart(cases: Sequence[CaseScore], labels: Labels) -> str:
    """Every case's Dice as a point."""
    groups = {
        name: [value for value in values if value is not None] for name, values in dice_by_class(cases, labels).items()
    }
    if not any(groups.values()):
        return "No case has a class to score."
    caption = "Dice of every case (a point each); the line is the median"
    return BLOCKS.picture(strip_chart(groups, "Dice"), caption, "Dice of every case, by class")


def case_picture(
    name: str,
    caption: str,
    images: Sequence[Path],
    mask: Path,
    reference: Path | None,
    description: Description,
    window: tuple[float, float] | None,
) -> str:
    """A picture of a case, with its entropy if that was saved; a sentence where a file is missing or cannot be read.

    Args:
        caption: What to say of it.
        images: Its image files.
        mask: The prediction.
        reference: The true mask, if there is one.
        window: Intensities shown black and white; None for percentiles of the slices shown.
    """
    reader, ignore = description.reader, description.labels.ignore
    files = {"the prediction": mask, "the reference": reference, "the entropy": map_file(mask, name, "entropy")}
    maps: dict[str, np.ndarray] = {}
    try:
        image = image_reader_for(images[0], reader).read_image(images, tolerate_geometry=True)
        place = Grid(images[0], image.array.shape[1:], image.geometry)
        for what, file in files.items():
            if file is mask or (file is not None and file.is_file()):
                voxels, geometry = image_reader_for(file, reader).read_label(file)
                maps[what] = on_grid(voxels, Grid(file, voxels.shape, geometry), place, tolerate_geometry=True)
        if ignore is not None and "the reference" in maps:
            maps["the reference"] = np.where(maps["the reference"] == ignore, 0, maps["the reference"])
        figure = draw_overlay(
            image.array, maps.get("the prediction"), maps.get("the reference"), legend(description.labels),
            maps.get("the entropy"), channel=None if is_colour(description.channel_names) else 0, window=window,
        )  # fmt: skip
    except SamunetError as error:
        return f"{name}: no picture, {error.message}"
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="jpeg", pil_kwargs={"quality": 88})
    alt = f"{name}, side by side: {', '.join(['the image', *maps])}"
    return BLOCKS.picture(image_address(buffer.getvalue(), "image/jpeg"), f"{name}: {caption}", alt, wide=True)


def training_section(model: ModelFolder, folds: Sequence[Fold]) -> list[object]:
    """How every fold was trained, one row each, and its curves."""
    runs = [model.run(fold) for fold in folds]
    setups = [run.get("setup") or {} for run in runs]
    table = BLOCKS.table(
        [
            Column("fold", [f"fold {fold}" for fold in folds]),
            Column("encoder", [run.get("encoder", "") for run in runs]),
            Column("device", [run.get("device", "") for run in runs]),
            Column("iterations", [run.get("iterations") or "" for run in runs], "number"),
            Column("batch", [setup.get("batch_size", "") for setup in setups], "number"),
            Column("minutes", [_scaled(run.get("training_seconds"), 60) for run in runs], "number"),
            Column("peak GB", [_scaled(run.get("peak_memory_bytes") or None, 1e9) for run in runs], "number"),
            Column("seed", [setup.get("seed", run.get("seed", "")) for run, setup in zip(runs, setups)], "number"),
            Column("samunet", [(run.get("versions") or {}).get("samunet", "") for run in runs]),
        ]
    )
    return [table, *curves(model, folds)]


class _Point(TypedDict):
    """A point of ``training_log.json``, as far as it is drawn."""

    iteration: int
    loss: NotRequired[float | None]
    dice: NotRequired[float | None]
    learning_rate: NotRequired[float | None]


def curves(model: ModelFolder, folds: Sequence[Fold]) -> list[object]:
    """Loss and Dice of every fold that has a training log; a sentence if none has."""
    logs = {}
    for fold in folds:
        path = model.fold(fold) / "training_log.json"
        if path.is_file():
            try:
                logs[f"fold {fold}"] = read_as(list[_Point], path)
            except SamunetError as error:  # no reason to go without the report
                log.warning("%s; its curve is left out", error.message)
    if not logs:
        return ["There is no training log in the folds' folders."]
    drawn = []
    for key, label, bounds, caption, alt in _CURVES:
        if any(entry.get(key) is not None for entries in logs.values() for entry in entries):  # no empty axes
            drawn.append(BLOCKS.picture(training_curves(logs, key, label, bounds), caption, f"{alt} of every fold"))
    return [BLOCKS.charts(drawn)]


def plan_section(plans: Plans, configuration: str, encoder: str | None) -> list[object]:
    """Every decision of the plans with its reason; of the networks, the one with this encoder, or all."""
    plan = plans.configuration(configuration)
    rows = [
        ("slices are cut along array axis", plans.transpose_forward[0], plans.why.get("transpose_forward", "")),
        ("images are turned to", plans.orientation or "as they lie", plans.why.get("orientation", "")),
        ("median spacing in mm (z, y, x)", _shown(plans.original_median_spacing), "")
        if plans.physical_spacing
        else ("spacing", "none: pictures", ""),
        ("median shape in voxels (z, y, x)", _shown(plans.original_median_shape), ""),
        ("planned memory in GB", plans.gpu_memory_target_gb, ""),
        *_decided(plan.model_dump(exclude={"networks", "why"}), plan.why),
    ]
    content: list[object] = [BLOCKS.heading("Data and preprocessing"), _decisions(rows)]
    for network in plan.networks.values():
        if encoder in (None, network.encoder):
            content += [BLOCKS.heading(f"Network {network.encoder}"), _decisions(_of_network(network))]
    return content


def _of_network(network: NetworkPlan) -> list[tuple[object, ...]]:
    rows = _decided(network.model_dump(exclude=_LEFT_OUT, exclude_none=True), network.why)
    if reason := network.why.get("training_images"):
        rows.append(("training images", _shown(network.training_images), reason))
    return rows


def _decided(values: Mapping[str, Any], why: Mapping[str, str]) -> list[tuple[object, ...]]:
    return [(key.replace("_", " "), _shown(value), why.get(key, "")) for key, value in values.items()]


def _decisions(rows: Sequence[tuple[object, ...]]) -> str:
    what, decided, why = zip(*rows)
    return BLOCKS.table([Column("what", what), Column("decision", decided), Column("why", why, "long")], stacked=True)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')}: {_shown(item)}" for key, item in value.items() if item is not None)
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)


def _scaled(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.1f}"
