"""What a pretraining works on: an encoder, the images that it sees, and what is known of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from samunet.encoders import encoder_facts
from samunet.errors import SamunetError
from samunet.files import read_json
from samunet.models.pretrained import pretrained_weights
from samunet.pretraining.network import PretrainingModel
from samunet.pretraining.options import PretrainingOptions
from samunet.pretraining.synthesis import SyntheticBatch, synthetic_batch


class Work(Protocol):
    """What :func:`samunet.pretraining.run.pretrain` is given.

    Attributes:
        encoder: Name of the encoder.
        optimizer: As a plan names it (:func:`samunet.network.optimizer.build_optimizer`).
        setup: What must not change from piece to piece.
        facts: What the weights' card says of the images and of the weights at the start.
    """

    encoder: str
    optimizer: Literal["adamw", "muon"]
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
    """The small encoder on randomised synthetic images.

    Args:
        checkpoint: Weights of an earlier pretraining to start from; None for random ones.

    Raises:
        SamunetError: If the file cannot be read or holds other weights.
    """

    encoder = "small"
    optimizer = "muon"

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.base = pretrained_weights(self.encoder, checkpoint=checkpoint) if checkpoint else None
        self.setup: dict[str, Any] = {"encoder": self.encoder, "optimizer": self.optimizer}
        self.facts: dict[str, Any] = {
            "data": "randomised synthetic images alone, made by samunet_pretrain; no image of a person or a thing"
        }
        if self.base:
            self.setup["base"] = self.base.record["sha256"]
            self.facts["base"] = {key: self.base.record[key] for key in ("file", "bytes", "sha256")}
            card = checkpoint.expanduser().with_suffix(".json")
            if card.is_file():
                self.facts["base"]["card"] = read_json(card)

    def build(self) -> PretrainingModel:
        """See :class:`Work`."""
        model = PretrainingModel(encoder_facts(self.encoder))
        if self.base:
            try:
                model.load_sam_state(self.base.state)
            except RuntimeError as error:
                raise SamunetError(
                    f"{self.base.record['file']} is no file of a pretraining: {str(error).splitlines()[-1].strip()}",
                    "give one that samunet_pretrain wrote, or leave out --checkpoint",
                ) from error
        return model

    def batch(self, options: PretrainingOptions, iteration: int, device: torch.device) -> SyntheticBatch:
        """See :class:`Work`."""
        return synthetic_batch(options.seed, iteration, *options.shape(iteration), device)
