"""Why a loss is no number: told from what it was computed from, not guessed."""

from __future__ import annotations

import torch
from torch import Tensor

from samunet.errors import SamunetError
from samunet.network.model import SamunetModel
from samunet.tensors import not_finite


def loss_error(
    loss: float, iteration: int, images: Tensor, model: SamunetModel, dtype: torch.dtype | None, learning_rate: float
) -> SamunetError:
    """The error for a loss that is not finite.

    Args:
        loss: NaN or infinite.
        iteration: At which.
        images: The batch.
        model: As it was when the loss was computed.
        dtype: Number format of the computation; None for float32.
        learning_rate: Peak.
    """
    what = f"the loss became {loss} at iteration {iteration}"
    if not torch.isfinite(images).all():
        return SamunetError(
            f"{what}: the batch has pixels that are no numbers",
            "look for damaged images (`api.plan_and_preprocess(ID, verify=True, clean=True)`)",
        )
    wrong = not_finite(model.trained_state())
    if wrong:
        return SamunetError(
            f"{what}: an update made the weights infinite, for example {wrong}",
            f"use a lower learning rate: `learning_rate={learning_rate / 3:.1e}, overwrite=True`",
        )
    number_format = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    return SamunetError(
        f"{what}, though images and weights are numbers: {number_format} does not hold what lies between them",
        "train again with another seed (`seed=N, overwrite=True`) or on another device (`device`); if that does not "
        "help, report it with the name of the processor or GPU",
    )
