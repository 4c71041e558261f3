"""Masked-image reconstruction, the objective of further training."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from samunet.training.pretraining.draw import Draw

_HIDDEN_SHARE = 0.6


class MaskedReconstruction(nn.Module):
    """Masked-image reconstruction by one linear layer (Xie et al. 2022, SimMIM).

    Args:
        embedding: Channels of the encoder's output.
        patch_size: Input pixels per token and side.
    """

    def __init__(self, embedding: int, patch_size: int) -> None:
        super().__init__()
        self.cell = 2 * patch_size
        self.pixels = nn.Conv2d(embedding, 3 * patch_size**2, 1)
        self.patch_size = patch_size

    def hide(self, images: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Hide squares of two tokens a side, 60 % of the image.

        Returns:
            The images with 0 there, and the mask ``(batch, 1, H, W)``, 1 where something is hidden.
        """
        cells = [-(-side // self.cell) for side in images.shape[2:]]
        hidden = max(1, round(_HIDDEN_SHARE * cells[0] * cells[1]))
        order = draw.uniform(0, 1, len(images), cells[0] * cells[1]).argsort(1).argsort(1)
        mask = (order < hidden).float().view(-1, 1, *cells)
        mask = mask.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)
        mask = mask[:, :, : images.shape[2], : images.shape[3]]
        return images * (1 - mask), mask

    def forward(self, embedding: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Mean absolute error of the hidden pixels.

        Args:
            embedding: ``(batch, channels, h, w)``, from the images with parts hidden.
            images: ``(batch, 3, H, W)``, whole.
            mask: ``(batch, 1, H, W)``, as :meth:`hide` gave it.
        """
        restored = F.pixel_shuffle(self.pixels(embedding).float(), self.patch_size)
        return ((restored - images).abs() * mask).sum() / (3 * mask.sum().clamp(min=1))
