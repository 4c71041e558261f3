"""The small encoder on synthetic images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from bundled_weights.network import PretrainingModel, Synthetic
from bundled_weights.synthesis import SyntheticBatch, synthetic_batch
from samunet.encoders import encoder_facts
from samunet.errors import SamunetError, UsageError
from samunet.files import read_json
from samunet.models.pretrained import pretrained_weights
from samunet.training.pretraining.options import PretrainingOptions

Objective = Literal["dense", "prompt", "mae", "mix"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)


@dataclass(frozen=True)
class SyntheticOptions(PretrainingOptions):
    """Options of a pretraining on synthetic images.

    Attributes:
        objective: ``dense`` (do two pixels lie in the same region?), ``prompt`` (a click or box gives the mask),
            ``mae`` (reconstruct what is hidden), or ``mix``: the first, in every fourth batch with the second,
            and every fourth batch the third instead.
    """

    objective: Objective = "dense"
    image_sizes: tuple[int, ...] = (112, 224)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UsageError(f"there is no objective {self.objective!r}", f"choose one of: {', '.join(OBJECTIVES)}")
        super().__post_init__()


class SyntheticImages:
    """The small encoder on randomised synthetic images.

    Args:
        checkpoint: Weights of an earlier pretraining to start from; None for random ones.

    Raises:
        SamunetError: If the file cannot be read or holds other weights.
    """

    recipe = Synthetic
    encoder = "small"
    optimizer = "muon"

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.base = pretrained_weights(self.encoder, checkpoint=checkpoint) if checkpoint else None
        self.setup: dict[str, Any] = {"encoder": self.encoder, "optimizer": self.optimizer}
        self.facts: dict[str, Any] = {"data": "randomised synthetic images alone; no image of a person or a thing"}
        if self.base:
            self.setup["base"] = self.base.record["sha256"]
            self.facts["base"] = {key: self.base.record[key] for key in ("file", "bytes", "sha256")}
            card = checkpoint.expanduser().with_suffix(".json")
            if card.is_file():
                self.facts["base"]["card"] = read_json(card)

    def build(self) -> PretrainingModel:
        """See :class:`samunet.training.pretraining.run.Work`."""
        model = PretrainingModel(encoder_facts(self.encoder))
        if self.base:
            try:
                model.load_sam_state(self.base.state)
            except RuntimeError as error:
                raise SamunetError(
                    f"{self.base.record['file']} is no file of a pretraining: {str(error).splitlines()[-1].strip()}",
                    "give one that a pretraining wrote, or leave out --checkpoint",
                ) from error
        return model

    def batch(self, options: PretrainingOptions, iteration: int, device: torch.device) -> SyntheticBatch:
        """See :class:`samunet.training.pretraining.run.Work`."""
        return synthetic_batch(options.seed, iteration, *options.shape(iteration), device)
