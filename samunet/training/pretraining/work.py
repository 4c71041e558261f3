"""The interface between a pretraining and what it trains on."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import nn

from samunet.training.pretraining.options import PretrainingOptions
from samunet.training.pretraining.recipe import PretrainingRecipe


class Work(Protocol):
    """What :func:`samunet.training.pretraining.run.pretrain` is given.

    Attributes:
        recipe: How it learns.
        encoder: Name of the encoder.
        optimizer: As a plan names it (:func:`samunet.network.optimizer.build_optimizer`).
        setup: What must not change from piece to piece.
        facts: What the weights' card says of the images and of the weights at the start.
    """

    recipe: type[PretrainingRecipe]
    encoder: str
    optimizer: Literal["adamw", "muon"]
    setup: dict[str, Any]
    facts: dict[str, Any]

    def build(self) -> nn.Module:
        """A model as the recipe wants it, whose ``sam_state()`` gives the weights by SAM's names."""

    def batch(self, options: PretrainingOptions, iteration: int, device: torch.device) -> Any:
        """The batch of an iteration, which depends on the arguments alone."""
