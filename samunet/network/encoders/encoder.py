"""What all image encoders have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]
HALF, SINGLE = 2, 4  # bytes of a number


@dataclass
class Features:
    """What an image encoder makes of a batch of images.

    Attributes:
        embedding: ``(batch, embedding, height / patch, width / patch)``, SAM's image embedding.
        taps: What the blocks with global attention before the last one gave, first to last, each ``(batch, height /
            patch, width / patch, width)``.
        details: Features at 1/2, 1/4, ... of the input's resolution, down to twice the tokens', as the convolutional
            stem has them: ``(batch, channels, height / 2, width / 2)``, ...; none where there is no such stem.
    """

    embedding: Tensor
    taps: tuple[Tensor, ...] = ()
    details: tuple[Tensor, ...] = ()


def hold_frozen(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen linear and convolutional layers in the number format they are computed in.

    Autocast converts a frozen float32 weight at every call, and both copies take memory. Norms and positions stay in
    float32, as does whatever trains. The change is for good: merge adapters into float32 weights, not into these.

    Args:
        encoder: Changed in place.
        dtype: What autocast computes in.
    """
    for module in encoder.modules():
        own = list(module.parameters(recurse=False))  # not those of an adapter that hangs on the layer
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not any(parameter.requires_grad for parameter in own):
            for parameter in own:
                parameter.data = parameter.data.to(dtype)


def pairs(side: int, window: int) -> int:
    """Pairs of tokens of one axis that share a window."""
    return side // window * window**2 + (side % window) ** 2
