"""Training of all weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from samunet.adaptations.adaptation import DECODER_RATE, Adaptation
from samunet.encoders import EncoderFacts

if TYPE_CHECKING:
    from torch import nn


class FullPlan(Adaptation):
    """Everything trains, or with ``components`` ``decoder`` the whole decoder."""

    method: Literal["full"] = "full"
    encoder_trains: ClassVar[bool] = True

    def adapt_encoder(self, encoder: nn.Module) -> nn.Module:
        """The encoder as it is."""
        return encoder

    def learning_rate(self, facts: EncoderFacts, components: str) -> tuple[float, str]:
        """Measured; of the decoder alone SAMed's."""
        if components == "decoder":
            return DECODER_RATE, "the decoder"
        return (3e-4, "SAM in full") if facts.is_sam else (1e-3, "the small encoder")

    def kept_values(self, width: int) -> int:
        """Inputs of attention, of its output projection, and of the MLP's two layers."""
        return (1 + 1 + 4) * width
