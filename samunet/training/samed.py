"""SAMed's loss (Zhang & Liu 2023), as its published code has it; part of ``-recipe samed``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samunet.training.loss import SMOOTH, UpdateLoss

_DICE_WEIGHT = 0.8


class SamedLoss(UpdateLoss):
    """0.2 cross-entropy + 0.8 Dice, on the decoder's own quarter-resolution logits.

    The Dice is pooled over the batch, has squared denominators, and is averaged over all classes, background included.
    """

    def sums(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy and pixels, then overlap, squared probabilities and true pixels of every class, in one row.

        Args:
            logits: ``(batch, classes, h, w)`` float32.
            target: ``(batch, height, width)`` integer class values, at the input's resolution.
        """
        reduced = reduce_target(target, logits.shape[2:])
        probabilities = torch.softmax(logits, dim=1)
        one_hot = F.one_hot(reduced, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        entropy, axes = F.cross_entropy(logits, reduced, reduction="sum"), (0, 2, 3)
        # The target is 0 or 1, so its square is itself.
        dice = [(probabilities * one_hot).sum(axes), probabilities.square().sum(axes), one_hot.sum(axes)]
        return torch.cat([torch.stack([entropy, one_hot.sum()]), *dice])

    def value(self, sums: Tensor) -> Tensor:
        """The loss, a scalar, from the sums of the whole update."""
        overlap, predicted, true = sums[2:].reshape(3, -1)
        dice = (2 * overlap + SMOOTH) / (predicted + true + SMOOTH)
        return (1 - _DICE_WEIGHT) * sums[0] / sums[1] + _DICE_WEIGHT * (1 - dice.mean())


def reduce_target(target: Tensor, shape: tuple[int, int]) -> Tensor:
    """Nearest neighbours on a coarser grid whose outer pixel centres are those of the finer one (scipy's order-0 zoom).

    Args:
        target: ``(batch, height, width)`` integer.
        shape: ``(h, w)`` of the result.
    """
    for axis, size in zip((1, 2), shape):
        steps = max(1, size - 1)
        index = (2 * torch.arange(size, device=target.device) * (target.shape[axis] - 1) + steps) // (2 * steps)
        target = target.index_select(axis, index)
    return target
