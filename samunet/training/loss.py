"""The training loss, as nnU-Net's 2d configuration has it: cross-entropy and soft batch Dice in equal parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.dataset.labels import Labels

SMOOTH = 1e-5


class UpdateLoss(nn.Module):
    """A loss of a whole update that can be computed in parts.

    It is a function of sums over pixels, and sums of parts add up. So its gradient is exact however many parts memory
    (or several devices) cut the update into: the sums of all parts first, without gradients; then, part by part, the
    gradient of each sum's own contribution.
    """

    def sums(self, logits: Tensor, target: Tensor) -> Tensor:
        """All that the loss needs to know of these images, ``(n,)``; those of two parts are added."""
        raise NotImplementedError

    def value(self, sums: Tensor) -> Tensor:
        """The loss, a scalar, from the sums of the whole update."""
        raise NotImplementedError

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of an update in one part."""
        return self.value(self.sums(logits, target))


def dice_sums(probabilities: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Overlap, predicted and true pixels of every channel, pooled over the images, so that empty slices do not weigh.

    Args:
        probabilities: ``(batch, channels, height, width)``.
        target: The same shape, 0 or 1.
        annotated: ``(batch, 1, height, width)``, 0 where a pixel does not count; None where all do.

    Returns:
        ``(3, channels)``: ``|P T|``, ``|P|`` and ``|T|``.
    """
    if annotated is not None:
        probabilities, target = probabilities * annotated, target * annotated
    axes = (0, 2, 3)
    return torch.stack([(probabilities * target).sum(axes), probabilities.sum(axes), target.sum(axes)])


def soft_dice(sums: Tensor) -> Tensor:
    """``(2 |P T| + s) / (|P| + |T| + s)`` with ``s = 1e-5``, ``(channels,)``, from :func:`dice_sums`."""
    overlap, predicted, true = sums
    return (2 * overlap + SMOOTH) / (predicted + true + SMOOTH)


class SegmentationLoss(UpdateLoss):
    """Cross-entropy plus ``1 - mean soft Dice`` of the foreground; 0 for a perfect prediction.

    Classes exclude each other (softmax, cross-entropy, Dice without background); regions may overlap (sigmoid, binary
    cross-entropy, Dice of every region). Pixels with the ignore label do not count; both terms are means over the
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

    def sums(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy and the number of its terms, then those of :func:`dice_sums`, in one row.

        Args:
            logits: ``(batch, outputs, height, width)`` float32.
            target: ``(batch, height, width)`` integer label values.
        """
        members = self.membership[target].movedim(-1, 1)
        annotated = None if self.ignore is None else (target != self.ignore).unsqueeze(1).to(logits.dtype)
        if self.has_regions:
            entropy = F.binary_cross_entropy_with_logits(logits, members, reduction="none")
            dice = dice_sums(torch.sigmoid(logits), members, annotated)
        else:
            ignored = -100 if self.ignore is None else self.ignore
            entropy = F.cross_entropy(logits, target, ignore_index=ignored, reduction="none").unsqueeze(1)
            dice = dice_sums(torch.softmax(logits, dim=1)[:, 1:], members[:, 1:], annotated)
        counted = torch.ones_like(entropy) if annotated is None else annotated.expand_as(entropy)
        return torch.cat([torch.stack([(entropy * counted).sum(), counted.sum()]), dice.flatten()])

    def value(self, sums: Tensor) -> Tensor:
        """The loss, a scalar, from the sums of the whole update."""
        # An update without any annotated pixel has nothing to learn from, and must not become NaN.
        entropy = sums[0] / sums[1].clamp_min(1)
        return entropy + 1 - soft_dice(sums[2:].reshape(3, -1)).mean()
