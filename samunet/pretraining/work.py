"""What a pretraining works on: an encoder, the images that it sees, and what is known of both."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from samunet.encoders import encoder_facts
from samunet.pretraining.network import PretrainingModel
from samunet.pretraining.options import PretrainingOptions
from samunet.pretraining.synthesis import SyntheticBatch, synthetic_batch


class Work(Protocol):
    """What :func:`samunet.pretraining.run.pretrain` is given.

    Attributes:
        encoder: Name of the encoder.
        setup: What must not change from piece to piece.
        facts: What the weights' card says of the images and of the weights at the start.
    """

    encoder: str
    setup: dict[str, Any]
    facts: dict[str, Any]

    def build(self) -> nn.Module:
        """A model whose forward pass takes a batch, the objective, the iteration and a
        :class:`~samunet.pretraining.draw.Draw`, and returns losses by name; its ``sam_state()`` gives the weights by
        SAM's names.
        """

    def batch(self, options: PretrainingOptions, iteration: int, device: torch.device) -> Any:
        """The batch of an iteration, which depends on the arguments alone."""


class SyntheticImages:
    """The small encoder from random weights, on randomised synthetic images."""

    encoder = "small"

    def __init__(self) -> None:
        self.setup = {"encoder": self.encoder}
        self.facts = {
            "data": "randomised synthetic images alone, made by samunet_pretrain; no image of a person or a thing"
        }

    def build(self) -> PretrainingModel:
        """See :class:`Work`."""
        return PretrainingModel(encoder_facts(self.encoder))

    def batch(self, options: PretrainingOptions, iteration: int, device: torch.device) -> SyntheticBatch:
        """See :class:`Work`."""
        return synthetic_batch(options.seed, iteration, *options.shape(iteration), device)
