"""Training of all weights."""

from __future__ import annotations

from torch import nn

from samunet.encoders import EncoderFacts
from samunet.network.adaptations.adaptation import DECODER_RATE, Adaptation


class Full(Adaptation):
    """Everything trains, or with ``components`` ``decoder`` the whole decoder."""

    name = "full"
    encoder_trains = True

    def adapt_encoder(self, encoder: nn.Module, settings: None) -> nn.Module:
        """The encoder as it is."""
        return encoder

    def learning_rate(self, facts: EncoderFacts, components: str) -> tuple[float, str]:
        """Measured; of the decoder alone SAMed's."""
        if components == "decoder":
            return DECODER_RATE, "the decoder"
        return (3e-4, "SAM in full") if facts.is_sam else (1e-3, "the small encoder")

    def kept_values(self, width: int, settings: None) -> int:
        """Inputs of attention, of its output projection, and of the MLP's two layers."""
        return (1 + 1 + 4) * width
