"""Image encoders, one module per architecture: what it computes, and what that costs.

A module has ``TITLE``, ``build`` (the network of some facts), ``fits`` (whether a checkpoint is of it), ``weights``,
``block_widths``, ``kept_bytes`` and ``operations`` (for the memory model); :mod:`samunet.network.encoders.vit`
describes each. Its network takes images ``(batch, 3, height, width)`` and has

- ``features(image)``, which gives :class:`Features`;
- ``tap_widths`` and ``gives_details``: what is in them;
- blocks with ``attn`` (whose projections are ``qkv`` and ``proj``) and ``mlp``, and ``mlp_layers``, the names of the
  latter's linear layers: where adaptations are put. ``attn.qkv_groups`` says into how many runs of (q, k, v) the
  projection's channels are divided, if not into one;
- ``patch_embed``, the layers that see the pixels.
"""

from __future__ import annotations

from types import ModuleType

from torch import nn

from samunet.encoders import EncoderFacts
from samunet.network.encoders import tiny_vit, vit
from samunet.network.encoders.encoder import Features, hold_frozen

__all__ = [
    "ARCHITECTURES", "Features", "architecture", "build_encoder", "hold_frozen",
]  # fmt: skip

ARCHITECTURES: dict[str, ModuleType] = {"vit": vit, "tiny_vit": tiny_vit}


def architecture(facts: EncoderFacts) -> ModuleType:
    """The module of an encoder's architecture."""
    return ARCHITECTURES[facts.architecture]


def build_encoder(facts: EncoderFacts, *, checkpoint_blocks: bool = False) -> nn.Module:
    """Build an encoder with random weights.

    Args:
        facts: The encoder.
        checkpoint_blocks: Whether a block keeps only its input for the backward pass, where the architecture can.
    """
    return architecture(facts).build(facts, checkpoint_blocks=checkpoint_blocks)
