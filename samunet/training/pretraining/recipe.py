"""Recipes of a pretraining."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samunet.network.optimizer import build_optimizer
from samunet.training.pretraining.draw import Draw
from samunet.training.pretraining.options import PretrainingOptions
from samunet.training.recipes import BaseRecipe
from samunet.training.schedule import Budget

_WARM_UP = 200
_WEIGHT_DECAY = 0.05
_OBJECTIVE_KEY = 1  # separates the objectives' randomness from the images'


class PretrainingRecipe(BaseRecipe):
    """Learning by the sum of named losses, at a constant rate after a short warm-up, or with a rate that falls to zero.

    Args:
        model: Everything that learns.
        options: The user's choices.
        optimizer: As a plan names it.
        dtype: What autocast computes in; None for float32.

    Attributes:
        values: The last update's losses by name.
    """

    def __init__(
        self,
        model: nn.Module,
        options: PretrainingOptions,
        optimizer: Literal["adamw", "muon"] = "adamw",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, dtype)
        self.options, self.optimizer_name = options, optimizer
        self.values: dict[str, float] = {}

    def losses(self, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """Losses of a batch by name; what is minimised is their sum."""
        raise NotImplementedError

    @property
    def learning_rate(self) -> float:
        """After the warm-up."""
        return self.options.learning_rate

    def optimizer(self) -> Optimizer:
        """As named."""
        name, rate = self.optimizer_name, self.learning_rate
        return build_optimizer(name, self.learner, rate, _WEIGHT_DECAY, betas=(0.9, 0.95))

    def rate(self, budget: Budget, iteration: int, elapsed: float) -> float:
        """Constant after the warm-up, so that it may go on at any time; in a final decay linear to zero."""
        if self.options.final_decay:
            return 1 - budget.progress(iteration, elapsed)
        return min(1.0, (iteration + 1) / _WARM_UP)

    def gradients(self, batch: Any, size: int | None, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> float:
        """Those of the whole batch at once; see :class:`BaseRecipe`."""
        draw = Draw(self.device, self.options.seed, self.iteration, _OBJECTIVE_KEY)
        with self.autocast():
            losses = self.losses(batch, draw)
        loss = torch.stack(list(losses.values())).sum()
        scale(loss).backward()
        self.values = {name: float(value.detach()) for name, value in losses.items()}
        return float(loss.detach())

    def optimizer_keys(self, optimizer: Optimizer) -> list[str]:
        """The parameters' names."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


class Reconstruction(PretrainingRecipe):
    """What is hidden of an image is reconstructed.

    The model has ``image_encoder`` and ``reconstruction``, a :class:`.reconstruction.MaskedReconstruction`.
    """

    def images(self, batch: Any) -> Tensor:
        """The encoder's input, ``(batch, 3, height, width)``."""
        return self.model.input_layer(batch)

    def losses(self, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """The loss of a batch, as ``mae``."""
        images = self.images(batch)
        seen, mask = self.model.reconstruction.hide(images, draw)
        return {"mae": self.model.reconstruction(self.model.image_encoder(seen), images, mask)}
