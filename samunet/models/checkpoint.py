"""Files of a fold's trained weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from samunet.adaptations.lora import load_adapters, save_adapters
from samunet.errors import SamunetError
from samunet.network.model import SamunetModel
from samunet.tensors import not_finite, read_tensors, write_tensors


def save_model(folder: Path, model: SamunetModel, kind: str) -> None:
    """Write a fold's model file, ``checkpoint_{kind}.safetensors``, and its LoRA adapter, if any, in peft's format.

    Args:
        folder: The fold's folder.
        model: The trained model.
        kind: ``final`` or ``best``.

    Raises:
        SamunetError: If the training ended in weights that are no numbers; what was written before stays.
    """
    check_trained(model.trained_state(), folder)
    save_adapters(model, folder, kind)
    state = {name: value for name, value in model.trained_state().items() if ".lora_" not in name}
    write_tensors(folder / f"checkpoint_{kind}.safetensors", state)


def load_model(folder: Path, model: SamunetModel, kind: str) -> None:
    """Restore what :func:`save_model` wrote of the same model."""
    state = read_tensors(folder / f"checkpoint_{kind}.safetensors")
    model.load_trained_state(state | load_adapters(model, folder, kind))


def check_trained(state: dict[str, Tensor], folder: Path) -> None:
    """Refuse to write weights that are not numbers."""
    wrong = not_finite(state)
    if wrong:
        raise SamunetError(
            f"the last update made the weights infinite, for example {wrong}; {folder} keeps its files as they were",
            "train this fold anew with a lower rate: `api.train(..., learning_rate=RATE, overwrite=True)`",
        )
