"""What every adaptation says of itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from samunet.encoders import EncoderFacts

DECODER_RATE = 5e-3  # SAMed's


class Adaptation:
    """A way to fit a pretrained network to a dataset.

    What is new with every dataset, such as the class tokens and all that stands after the mask decoder's transformer,
    always trains. Modules that are added begin as zero.

    Attributes:
        name: As the plans have it; the field of the plans with that name holds its settings.
        settings: Their class, with a field ``blocks``; None where there is nothing to set.
        title, marker: Of the modules that it adds: their name in words, and what their tensors' names contain.
        encoder_trains: Whether the encoder's own weights train.
    """

    name: str
    title = marker = ""
    settings: type | None = None
    encoder_trains = False

    def adapt_encoder(self, encoder: nn.Module, settings: Any) -> nn.Module:
        """Freeze and adapt an encoder, in place or wrapped; see :mod:`samunet.network.encoders` for where."""
        raise NotImplementedError

    def adapt_decoder(self, decoder: nn.Module, settings: Any) -> None:
        """Freeze and adapt the transformer of SAM's mask decoder, in place, if the settings ask for it."""

    def freezes_decoder(self, components: str) -> bool:
        """Whether the mask decoder's transformer is frozen."""
        return False

    def learning_rate(self, facts: EncoderFacts, components: str) -> tuple[float, str]:
        """Peak rate at a batch of 24 images, and what it is for."""
        raise NotImplementedError

    def kept_values(self, width: int, settings: Any) -> int:
        """16-bit values per token that an adapted block of so many channels keeps beyond those it keeps with LoRA."""
        return 0

    def added_parameters(self, width: int, settings: Any) -> int:
        """Trained parameters added to a block, where they are too many to be neglected."""
        return 0
