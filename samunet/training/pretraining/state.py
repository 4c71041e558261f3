"""Checkpoints of a pretraining."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samunet.errors import SamunetError
from samunet.files import as_kind, parse_json
from samunet.tensors import read_tensors, write_tensors


@dataclass
class PretrainingProgress:
    """Where a pretraining stands; in the metadata of its checkpoint.

    Attributes:
        iteration: Updates made over all pieces.
        images: Images seen.
        elapsed: Seconds in the training loop over all pieces.
        decay: Of a final decay that was interrupted: updates and seconds of it.
        log: One entry per 100 updates.
        pieces: What every piece was: objective, seed, batch size, image sizes, rate, images, versions, command.
        setup: What must not change.
    """

    iteration: int = 0
    images: int = 0
    elapsed: float = 0.0
    decay: dict = field(default_factory=lambda: {"iterations": 0, "seconds": 0.0})
    log: list[dict] = field(default_factory=list)
    pieces: list[dict] = field(default_factory=list)
    setup: dict = field(default_factory=dict)


def save_state(path: Path, model: nn.Module, optimizer: Optimizer, progress: PretrainingProgress) -> None:
    """Write one file from which the pretraining goes on exactly."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer.{names[id(parameter)]}.{key}"] = torch.as_tensor(value)
    write_tensors(path, tensors, {"progress": json.dumps(vars(progress))})


def load_state(path: Path, model: nn.Module, optimizer: Optimizer, setup: dict) -> PretrainingProgress:
    """Restore what :func:`save_state` wrote.

    Raises:
        SamunetError: If the file is damaged, or was begun with another setup.
    """
    from safetensors import safe_open

    remedy = "restore the file, or begin anew in another folder: --out FOLDER"
    try:
        tensors = read_tensors(path)
        with safe_open(path, "pt") as stream:
            told = (stream.metadata() or {}).get("progress", "")
        progress = as_kind(PretrainingProgress, parse_json(told.encode(), f"{path}: progress"), f"{path}: progress")
        if progress.setup != setup:
            former = progress.setup
            unlike = [
                f"{key} {former.get(key, 'none')}, not {setup.get(key, 'none')}"
                for key in sorted(former | setup)
                if former.get(key) != setup.get(key)
            ]
            raise SamunetError(
                f"{path} was begun with {'; '.join(unlike)}",
                "give the same --checkpoint, -d, -c and -encoder as at its beginning, or use another --out FOLDER",
            )
        model.load_state_dict(_with_prefix(tensors, "model."))
        for name, parameter in model.named_parameters():
            saved = _with_prefix(tensors, f"optimizer.{name}.")
            if saved:
                # Copies, not views of the file: Windows cannot replace a file that is mapped into memory.
                optimizer.state[parameter] = {
                    key: value.to(parameter.device, copy=True) for key, value in saved.items()
                }
    except SamunetError as error:
        raise SamunetError(error.message, error.hint if "--out" in (error.hint or "") else remedy) from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SamunetError(f"{path} is no checkpoint of a pretraining: {first}", remedy) from error
    return progress


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
