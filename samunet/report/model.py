"""What reports say of a model: its folds, their training, and the plan with its reasons."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import (
    Any,
    NotRequired,  # pydantic needs these before Python 3.12
)

from typing_extensions import TypedDict

from samunet.errors import SamunetError
from samunet.files import read_as
from samunet.models.folder import Fold, ModelFolder
from samunet.plans import NetworkPlan, Plans
from samunet.report.charts import training_curves
from samunet.report.html import Html, charts, heading, picture, table

_COLUMNS = ("what", "decision", "why")
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


def runs_table(model: ModelFolder, folds: Sequence[Fold]) -> Html:
    """How every fold was trained, one row each."""
    rows = []
    for fold in folds:
        run = model.run(fold)
        setup = run.get("setup") or {}
        rows.append(
            [
                f"fold {fold}",
                run.get("encoder", ""),
                run.get("device", ""),
                run.get("iterations") or "",
                setup.get("batch_size", ""),
                _minutes(run.get("training_seconds")),
                _gigabytes(run.get("peak_memory_bytes")),
                setup.get("seed", run.get("seed", "")),
                (run.get("versions") or {}).get("samunet", ""),
            ]
        )
    columns = ["fold", "encoder", "device", "iterations", "batch", "minutes", "peak GB", "seed", "samunet"]
    return table(columns, rows, "cccnnnnnc")


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
    content: list[object] = [heading("Data and preprocessing"), table(_COLUMNS, rows, "ccl", stacked=True)]
    networks = [network for network in plan.networks.values() if encoder in (None, network.encoder)]
    for network in networks:
        content += [heading(f"Network {network.encoder}"), _network_table(network)]
    return content


def _network_table(network: NetworkPlan) -> Html:
    decided = {key: value for key, value in network.model_dump().items() if key not in _LEFT_OUT and value is not None}
    rows = [[_words(key), _shown(value), network.why.get(key, "")] for key, value in decided.items()]
    if reason := network.why.get("training_images"):
        rows.append(["training images", _shown(network.training_images), reason])
    return table(_COLUMNS, rows, "ccl", stacked=True)


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


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.1f}"


def _gigabytes(size: float | None) -> str:
    return "" if not size else f"{size / 1e9:.1f}"
