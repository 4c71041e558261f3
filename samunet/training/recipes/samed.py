"""SAMed's recipe (Zhang & Liu 2023), as its published code has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samunet.preprocessing.grid import about_centre, flipped
from samunet.training.augmentation import AffineWindowTransform
from samunet.training.loss import SMOOTH, UpdateLoss
from samunet.training.recipes.recipe import Recipe
from samunet.training.schedule import POWER, WARM_UP_ITERATIONS, WARM_UP_SHARE, Budget

_DICE_WEIGHT = 0.8
# Exponent of the decay, and where it ends in lengths of the training: 200 epochs are planned and 160 made, of SAMed_h
# 400 and 300.
_DECAY = (POWER, 1.25)
_DECAYS = {"vit_h": (7.0, 4 / 3)}


class Samed(Recipe):
    """SAMed's order of slices, augmentation, loss, schedule and decay; no clipping."""

    clip_norm = None
    everything_decays = True
    passes = True

    @classmethod
    def transforms(cls, *, shape: Sequence[int], ignore: int | None = None, **_: Any) -> SamedTransform:
        """See :class:`SamedTransform`."""
        return SamedTransform(shape, ignore=ignore)

    def build_loss(self) -> UpdateLoss:
        """See :class:`SamedLoss`."""
        return SamedLoss()

    def rate(self, budget: Budget, iteration: int, elapsed: float) -> float:
        """See :func:`samed_rate`."""
        return samed_rate(budget, iteration, elapsed, self.network.encoder)


class SamedTransform(AffineWindowTransform):
    """SAMed's augmentation: half of the items turned by quarters and flipped; of the rest half turned a little.

    Turned by 0 to 3 quarters and then flipped along either axis; or turned by a whole number of degrees from -20 to 19.
    It is part of the one interpolation that makes the network's input (SAMed: the nearest pixel at 224 px).
    """

    def draw(self) -> np.ndarray:
        """See :class:`AffineWindowTransform`."""
        if np.random.random() > 0.5:
            quarters, axis = np.random.randint(0, 4), np.random.randint(0, 2)
            return about_centre(self.shape, quarters * np.pi / 2, 1.0) @ flipped(self.shape, axis)
        if np.random.random() > 0.5:
            return about_centre(self.shape, np.deg2rad(np.random.randint(-20, 20)), 1.0)
        return np.eye(3)


def samed_rate(budget: Budget, iteration: int, elapsed: float, encoder: str = "vit_b") -> float:
    """SAMed's multiplier: warm-up over 250 iterations, then a decay to a zero that lies past the end.

    The exponent is 0.9 and zero lies a quarter past the end, with ``vit_h`` (SAMed_h) 7 and a third. A training of
    fewer iterations ends within the warm-up. Under a budget of time the warm-up takes 5 % of it.
    """
    power, end = _DECAYS.get(encoder, _DECAY)
    if not budget.iterations:
        progress = budget.progress(iteration, elapsed)
        if progress < WARM_UP_SHARE:
            return max(progress / WARM_UP_SHARE, 0.01)
        return (1 - (progress - WARM_UP_SHARE) / end) ** power
    # There the rate is set after an update, for the next one; so the first two updates share theirs.
    before = max(iteration - 1, 0)
    if before < WARM_UP_ITERATIONS:
        return (before + 1) / WARM_UP_ITERATIONS
    return (1 - (before - WARM_UP_ITERATIONS) / (end * budget.iterations)) ** power


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
