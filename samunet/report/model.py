"""Sections of a report about the model: its training, and the plan with its reasons."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NotRequired

from markupsafe import Markup
from typing_extensions import TypedDict

from samunet import __version__
from samunet.errors import SamunetError
from samunet.files import read_as
from samunet.models.folder import Fold, ModelFolder
from samunet.plans import NetworkPlan, Plans
from samunet.report.charts import training_curves
from samunet.report.page import MADE_BY, Column, charts, heading, page, picture, table

_LEFT_OUT = {"why", "training_images", "memory_bytes", "training_gflops"}
log = logging.getLogger(__name__)

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


def report_page(
    title: str,
    lead: list[object],
    sections: list[tuple[str, list[object]]],
    plans: Plans,
    configuration: str,
    model: ModelFolder | None,
    folds: Sequence[Fold],
) -> str:
    """A page with what it is about, and then the training of the folds and the plan of the encoder that they have.

    Args:
        title: The page's heading.
        lead: Blocks below it.
        sections: Title and blocks of each.
        plans, configuration: Of the model.
        model: None where the folder is not there.
        folds: Of the model, as far as they are there.
    """
    training: list[object] = ["The model's folder is not in samunet_results, so there are no curves."]
    if model and folds:
        training = [runs_table(model, folds), *curves(model, folds)]
    encoder = model.run(folds[0]).get("encoder") if model and folds else None
    sections = [*sections, ("Training", training), ("Plan and reasons", plan_tables(plans, configuration, encoder))]
    return page(title, lead, sections, f"{MADE_BY} {__version__}.")


def runs_table(model: ModelFolder, folds: Sequence[Fold]) -> Markup:
    """How every fold was trained, one row each."""
    runs = [model.run(fold) for fold in folds]
    setups = [run.get("setup") or {} for run in runs]
    return table(
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


class _Point(TypedDict):
    """What is drawn of a point of ``training_log.json``."""

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
            drawn.append(picture(training_curves(logs, key, label, bounds), caption, f"{alt} of every fold"))
    return [charts(drawn)]


def plan_tables(plans: Plans, configuration: str, encoder: str | None) -> list[object]:
    """Every decision of the plans with its reason; of the two networks, the one with this encoder."""
    plan = plans.configuration(configuration)
    general = {
        "slices are cut along array axis": plans.transpose_forward[0],
        "images are turned to": plans.orientation or "as they lie",
        "median spacing in mm (z, y, x)" if plans.physical_spacing else "spacing": (
            _shown(plans.original_median_spacing) if plans.physical_spacing else "none: pictures"
        ),
        "median shape in voxels (z, y, x)": _shown(plans.original_median_shape),
        "planned memory in GB": plans.gpu_memory_target_gb,
    }
    rows = [[name, value, ""] for name, value in general.items()]
    for row, key in enumerate(("transpose_forward", "orientation")):
        rows[row][2] = plans.why.get(key, "")
    decided = {key: value for key, value in plan.model_dump().items() if key not in ("networks", "why")}
    rows += [[_words(key), _shown(value), plan.why.get(key, "")] for key, value in decided.items()]
    content: list[object] = [heading("Data and preprocessing"), _decisions(rows)]
    networks = [network for network in plan.networks.values() if encoder in (None, network.encoder)]
    for network in networks:
        content += [heading(f"Network {network.encoder}"), _network_table(network)]
    return content


def _network_table(network: NetworkPlan) -> Markup:
    decided = {key: value for key, value in network.model_dump().items() if key not in _LEFT_OUT and value is not None}
    rows = [[_words(key), _shown(value), network.why.get(key, "")] for key, value in decided.items()]
    if reason := network.why.get("training_images"):
        rows.append(["training images", _shown(network.training_images), reason])
    return _decisions(rows)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)}: {_shown(item)}" for key, item in value.items() if item is not None)
    words = {True: "yes", False: "no"}
    if value is None or isinstance(value, bool):
        return words.get(value, "none")
    return str(value)


def _decisions(rows: list[list[Any]]) -> Markup:
    what, decided, why = zip(*rows)
    return table([Column("what", what), Column("decision", decided), Column("why", why, "long")], stacked=True)


def _scaled(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.1f}"
