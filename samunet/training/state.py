"""Checkpoints of what learns: atomic, not pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch.optim import Optimizer

from samunet.errors import SamunetError
from samunet.files import as_kind, parse_json
from samunet.models.checkpoint import check_trained
from samunet.tensors import read_tensors, write_tensors
from samunet.training.recipes import BaseRecipe, Recipe
from samunet.training.recipes.recipe import without_prefix

LATEST = "checkpoint_latest.safetensors"


@dataclass
class LoopProgress:
    """Where a training stands; everything here is in a checkpoint's metadata.

    Attributes:
        iteration: Updates made.
        elapsed: Seconds spent in the training loop, over all its runs.
        log: Points of the curve; see :mod:`samunet.training.log`.
        setup: What must not change on resume: hash of plans, dtype, batch size and so on.
    """

    iteration: int = 0
    elapsed: float = 0.0
    log: list[dict] = field(default_factory=list)
    setup: dict = field(default_factory=dict)


@dataclass
class Progress(LoopProgress):
    """Where the training of a fold stands.

    Attributes:
        best_dice: Of the monitored cases so far; None before the first check.
        best_iteration: After how many updates that was.
        scaler: State of the gradient scaler; empty where none is used, and in checkpoints of older versions.
        losses: Of the updates since the last point of the curve.
    """

    best_dice: float | None = None
    best_iteration: int = 0
    scaler: dict = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


Kind = TypeVar("Kind", bound=LoopProgress)


def save_state(path: Path, recipe: BaseRecipe, optimizer: Optimizer, progress: LoopProgress) -> None:
    """Write one file from which the training goes on exactly: tensors, the optimizer's moments, progress."""
    tensors = recipe.tensors()
    for name, parameter in zip(recipe.optimizer_keys(optimizer), _parameters(optimizer)):
        state = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{name}.{key}": torch.as_tensor(value) for key, value in state.items()}
    write_tensors(path, tensors, {"progress": json.dumps(vars(progress))})


def load_state(
    path: Path, recipe: BaseRecipe, optimizer: Optimizer, kind: type[Kind], setup: dict, *, again: str, remedy: str
) -> Kind:
    """Restore what :func:`save_state` wrote.

    Args:
        path: The file.
        recipe, optimizer: Are given its tensors.
        kind: Of the progress.
        setup: What must be as it was when the file was begun.
        again: What to do where something is not.
        remedy: What to do about a damaged file.

    Raises:
        SamunetError: If the file is damaged, or was begun with another setup.
    """
    from safetensors import safe_open

    try:
        tensors = read_tensors(path)
        with safe_open(path, "pt") as stream:
            told = (stream.metadata() or {}).get("progress", "")
        progress = as_kind(kind, parse_json(told.encode(), f"{path}: progress"), f"{path}: progress")
    except SamunetError as error:
        raise SamunetError(error.message, remedy) from error
    changed = [
        f"{key} {progress.setup.get(key)!r} (now {value!r})"
        for key, value in setup.items()
        if progress.setup.get(key) != value
    ]
    if changed:
        raise SamunetError(f"{path} was begun with {'; '.join(changed)}", again)
    try:
        recipe.load_tensors(tensors)
        for name, parameter in zip(recipe.optimizer_keys(optimizer), _parameters(optimizer)):
            saved = without_prefix(f"optimizer.{name}.", tensors)
            if saved:
                # Copies, not views of the file: Windows cannot replace a file that is mapped into memory.
                state = {key: value.to(parameter.device, copy=True) for key, value in saved.items()}
                optimizer.state[parameter] = state
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SamunetError(f"{path} is no checkpoint of this training: {first}", remedy) from error
    return progress


def save_latest(folder: Path, recipe: Recipe, optimizer: Optimizer, progress: Progress) -> None:
    """Write a fold's checkpoint, unless its weights are no numbers."""
    check_trained(recipe.model.trained_state() | recipe.state(), folder)
    save_state(folder / LATEST, recipe, optimizer, progress)


def load_latest(folder: Path, recipe: Recipe, optimizer: Optimizer, setup: dict) -> Progress:
    """Restore a fold's training; a fresh :class:`Progress` if there is nothing to restore.

    Raises:
        SamunetError: If the checkpoint is damaged, or belongs to another setup.
    """
    path = folder / LATEST
    if not path.is_file():
        return Progress(setup=setup)
    return load_state(
        path, recipe, optimizer, Progress, setup,
        again="give the same arguments to go on, or add `overwrite=True` to train this fold anew",
        remedy="add `overwrite=True` to train this fold anew",
    )  # fmt: skip


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    """In the order in which the optimizer was given them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
