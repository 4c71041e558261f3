"""The training loss: cross-entropy plus soft batch Dice without background, in equal parts (nnU-Net 2d)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SMOOTH = 1e-5


def soft_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """Soft Dice of every foreground class, pooled over the batch (``batch_dice``), so that empty slices do not weigh.

    Args:
        probabilities: ``(batch, classes, height, width)``.
        target: ``(batch, height, width)`` integer.

    Returns:
        ``(classes - 1,)``: ``(2 |P T| + s) / (|P| + |T| + s)`` with ``s = 1e-5``.
    """
    classes = probabilities.shape[1]
    one_hot = F.one_hot(target, classes).movedim(-1, 1)[:, 1:].to(probabilities.dtype)
    foreground = probabilities[:, 1:]
    axes = (0, 2, 3)
    overlap = (foreground * one_hot).sum(axes)
    return (2 * overlap + _SMOOTH) / (foreground.sum(axes) + one_hot.sum(axes) + _SMOOTH)


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus ``1 - mean soft Dice``; 0 for a perfect prediction.

    Args:
        logits: ``(batch, classes, height, width)`` float32.
        target: ``(batch, height, width)`` integer class values.
    """
    return F.cross_entropy(logits, target) + 1 - soft_dice(torch.softmax(logits, dim=1), target).mean()
