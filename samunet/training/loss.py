"""The training loss, as nnU-Net's 2d configuration has it: cross-entropy and soft batch Dice in equal parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.dataset.labels import Labels

_SMOOTH = 1e-5


def soft_dice(probabilities: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Soft Dice of every channel, pooled over the batch (``batch_dice``), so that empty slices do not weigh.

    Args:
        probabilities: ``(batch, channels, height, width)``.
        target: The same shape, 0 or 1.
        annotated: ``(batch, 1, height, width)``, 0 where a pixel does not count; None where all do.

    Returns:
        ``(channels,)``: ``(2 |P T| + s) / (|P| + |T| + s)`` with ``s = 1e-5``.
    """
    if annotated is not None:
        probabilities, target = probabilities * annotated, target * annotated
    axes = (0, 2, 3)
    overlap = (probabilities * target).sum(axes)
    return (2 * overlap + _SMOOTH) / (probabilities.sum(axes) + target.sum(axes) + _SMOOTH)


class SegmentationLoss(nn.Module):
    """Cross-entropy plus ``1 - mean soft Dice`` of the foreground; 0 for a perfect prediction.

    Classes exclude each other (softmax, cross-entropy, Dice without background); regions may overlap (sigmoid, binary
    cross-entropy, Dice of every region). Pixels with the ignore label do not count; both parts are means over the
    others.

    Args:
        labels: The dataset's.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.ignore = labels.ignore
        self.has_regions = labels.has_regions
        # Row by label value, column by output: whether the value belongs to it. Ignored pixels belong to none.
        membership = torch.zeros(len(labels.values) + (self.ignore is not None), labels.num_outputs)
        for output, region in enumerate(labels.regions):
            membership[list(region), output] = 1
        self.register_buffer("membership", membership, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: ``(batch, outputs, height, width)`` float32.
            target: ``(batch, height, width)`` integer label values.
        """
        members = self.membership[target].movedim(-1, 1)
        annotated = None if self.ignore is None else (target != self.ignore).unsqueeze(1).to(logits.dtype)
        if self.has_regions:
            entropy = F.binary_cross_entropy_with_logits(logits, members, reduction="none")
            dice = soft_dice(torch.sigmoid(logits), members, annotated)
        else:
            ignored = -100 if self.ignore is None else self.ignore
            entropy = F.cross_entropy(logits, target, ignore_index=ignored, reduction="none").unsqueeze(1)
            dice = soft_dice(torch.softmax(logits, dim=1)[:, 1:], members[:, 1:], annotated)
        if annotated is None:
            return entropy.mean() + 1 - dice.mean()
        # A batch without any annotated pixel has nothing to learn from, and must not become NaN.
        counted = annotated.sum().clamp_min(1) * entropy.shape[1]
        return (entropy * annotated).sum() / counted + 1 - dice.mean()
