"""SAMed's recipe (Zhang & Liu 2023), as its published code has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samunet.training.loss import SMOOTH, UpdateLoss
from samunet.training.recipes.recipe import Recipe
from samunet.training.schedule import POWER, WARM_UP_ITERATIONS, WARM_UP_SHARE, Budget

_DICE_WEIGHT = 0.8
_END = 1.25  # SAMed plans 200 epochs and stops after 160


class Samed(Recipe):
    """SAMed's loss, schedule and decay; no clipping."""

    clip_norm = None
    everything_decays = True

    def build_loss(self) -> UpdateLoss:
        """See :class:`SamedLoss`."""
        return SamedLoss()

    def rate(self, budget: Budget, iteration: int, elapsed: float) -> float:
        """See :func:`samed_rate`."""
        return samed_rate(budget, iteration, elapsed)


def samed_rate(budget: Budget, iteration: int, elapsed: float) -> float:
    """SAMed's multiplier: warm-up over 250 iterations, power-0.9 decay to a zero that lies a quarter past the end.

    A training of fewer iterations ends within the warm-up. Under a budget of time the warm-up takes 5 % of it.
    """
    if not budget.iterations:
        progress = budget.progress(iteration, elapsed)
        if progress < WARM_UP_SHARE:
            return max(progress / WARM_UP_SHARE, 0.01)
        return (1 - (progress - WARM_UP_SHARE) / _END) ** POWER
    # There the rate is set after an update, for the next one; so the first two updates share theirs.
    before = max(iteration - 1, 0)
    if before < WARM_UP_ITERATIONS:
        return (before + 1) / WARM_UP_ITERATIONS
    return (1 - (before - WARM_UP_ITERATIONS) / (_END * budget.iterations)) ** POWER


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
