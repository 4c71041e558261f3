"""Checkpoints of a running training: atomic, not pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from samunet.errors import SamunetError
from samunet.files import as_kind, parse_json
from samunet.models.checkpoint import check_trained
from samunet.tensors import read_tensors, write_tensors
from samunet.training.recipes import Recipe

LATEST = "checkpoint_latest.safetensors"


@dataclass
class Progress:
    """Where a training stands; everything here is in a checkpoint's metadata.

    Attributes:
        iteration: Updates made.
        elapsed: Seconds spent in the training loop, over all its runs.
        best_dice: Of the monitored cases so far; None before the first check.
        log: Points of the curve; see :mod:`samunet.training.log`.
        setup: What must not change on resume: hash of plans, dtype, batch size and so on.
        scaler: State of the gradient scaler; empty where none is used, and in checkpoints of older versions.
        losses: Of the updates since the last point of the curve.
    """

    iteration: int = 0
    elapsed: float = 0.0
    best_dice: float | None = None
    log: list[dict] = field(default_factory=list)
    setup: dict = field(default_factory=dict)
    scaler: dict = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


def save_latest(folder: Path, recipe: Recipe, optimizer: Optimizer, progress: Progress) -> None:
    """Write one file from which the training goes on exactly: trained tensors, the optimizer's moments, progress."""
    trained, further = recipe.model.trained_state(), recipe.state()
    check_trained(trained | further, folder)
    tensors = {f"model.{name}": value for name, value in trained.items()}
    tensors |= {f"recipe.{name}": value for name, value in further.items()}
    for index, (_, state) in enumerate(_optimizer_items(optimizer)):
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    write_tensors(folder / LATEST, tensors, {"progress": json.dumps(vars(progress))})


def load_latest(folder: Path, recipe: Recipe, optimizer: Optimizer, setup: dict) -> Progress:
    """Restore a training; a fresh :class:`Progress` if there is nothing to restore.

    Raises:
        SamunetError: If the checkpoint is damaged, or belongs to another setup.
    """
    from safetensors import safe_open

    path = folder / LATEST
    if not path.is_file():
        return Progress(setup=setup)
    try:
        tensors = read_tensors(path)
        with safe_open(path, "pt") as stream:
            told = (stream.metadata() or {}).get("progress", "")
        progress = as_kind(Progress, parse_json(told.encode(), f"{path}: progress"), f"{path}: progress")
    except SamunetError as error:
        raise SamunetError(error.message, "add --overwrite to train this fold anew") from error
    changed = [key for key in setup if progress.setup.get(key) != setup[key]]
    if changed:
        was = ", ".join(f"{key} {progress.setup.get(key)!r} (now {setup[key]!r})" for key in changed)
        raise SamunetError(
            f"{folder} was started with another setup: {was}",
            "give the same flags to go on, or add --overwrite to train this fold anew",
        )
    recipe.model.load_trained_state(_with_prefix(tensors, "model."))
    recipe.load_state(_with_prefix(tensors, "recipe."))
    for index, (parameter, _) in enumerate(_optimizer_items(optimizer)):
        saved = _with_prefix(tensors, f"optimizer.{index}.")
        if saved:
            # Copies, not views of the file: Windows cannot replace a file that is mapped into memory.
            optimizer.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in saved.items()}
    return progress


def _optimizer_items(optimizer: Optimizer) -> list[tuple[Tensor, dict]]:
    """Parameters in the order in which the optimizer was given them, each with its state."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [(parameter, optimizer.state.get(parameter, {})) for parameter in parameters]


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
