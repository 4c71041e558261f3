"""The image encoder of any facts."""

from __future__ import annotations

from torch import nn

from samunet.encoders import EncoderFacts
from samunet.network.image_encoder import ImageEncoder
from samunet.network.tiny_vit import TinyViT


def build_encoder(facts: EncoderFacts, *, checkpoint_blocks: bool = False) -> nn.Module:
    """Build an encoder: a hierarchical one where the facts have stages, else a plain vision transformer.

    Args:
        facts: The encoder.
        checkpoint_blocks: See :class:`samunet.network.image_encoder.ImageEncoder`; a plan never asks it of a
            hierarchical encoder, which ignores it.

    Returns:
        A module from ``(batch, 3, height, width)`` to ``(batch, embedding, height / patch, width / patch)``.
    """
    return TinyViT(facts) if facts.stages else ImageEncoder(facts, checkpoint_blocks=checkpoint_blocks)
