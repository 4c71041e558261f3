"""How sure a prediction is: entropy, and how far views and folds disagree, by voxel and by class.

Entropy is that of the probabilities after averaging (softmax over classes; with regions that of the least certain
region), as a share of the largest possible. Disagreement of folds is the part of it that comes from the folds
contradicting each other: the entropy of their mean probabilities less the mean of their entropies (the Jensen-Shannon
divergence; B. Lakshminarayanan et al., NeurIPS 2017, arXiv:1612.01474).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samunet.dataset.labels import Labels
from samunet.inference.logits import Watch, decode_channels, probabilities, window_weights
from samunet.preprocessing.case import CaseRecord, restore_mask
from samunet.preprocessing.grid import SliceGrid, sample


@dataclass(frozen=True)
class ClassDoubt:
    """What speaks against one class in one case, each from 0 (nothing) to 1; NaN where it cannot be said.

    Attributes:
        entropy: Binary entropy in bits, summed over pixels and divided by itself plus the pixels predicted; mean over
            folds. NaN where no fold predicts the class.
        tta_disagreement: 1 less the Dice of what a fold says of mirrored or shifted inputs with the mean over them;
            mean over folds. NaN where inputs are neither mirrored nor shifted, or where no fold predicts the class.
        fold_disagreement: 1 less the Dice of what single folds say with the mean over folds. NaN with a single fold, or
            where the mean does not predict the class.
    """

    entropy: float
    tta_disagreement: float
    fold_disagreement: float


class CaseUncertainty(Watch):
    """Looks on while one case is predicted, and keeps sums by class and two maps of small integers.

    Sums are taken on the network's grid, where every pixel counts once however many windows see it, and padding does
    not count; with several planes on the stored grid. Memory: two bytes a voxel for the maps; everything else is of the
    size of one batch of windows, or with several planes of some of the volume's logits.

    Args:
        labels: The dataset's.
        shape: ``(z, y, x)`` of the maps.
        num_folds: How many models.
    """

    def __init__(self, labels: Labels, shape: tuple[int, int, int], num_folds: int) -> None:
        self.labels = labels
        self.outputs = labels.num_outputs
        self.num_folds = num_folds
        self.entropy = np.zeros(shape, np.uint8)
        self.disagreement = np.zeros(shape, np.uint8) if num_folds > 1 else None
        self._entropies = np.zeros((num_folds, self.outputs))
        self._sizes = np.zeros((num_folds, self.outputs))
        self._views = _Overlap(num_folds, self.outputs)
        self._folds = _Overlap(1, self.outputs)

    def start(self, grid: SliceGrid, starts: Sequence[tuple[float, float]], device: torch.device) -> None:
        """See :class:`Watch`."""
        ones = torch.ones((1, 1, *grid.stored_shape), device=device)
        weights = window_weights(grid, starts, device)
        self._shares = {
            start: sample(ones, grid.window(start), grid.input_shape)[0] * weight
            for start, weight in zip(starts, weights, strict=True)
        }

    def open(self, starts: Sequence[tuple[float, float]]) -> None:
        """See :class:`Watch`."""
        self._open(torch.stack([self._shares[start] for start in starts]))

    def open_volume(self, shape: tuple[int, int, int], device: torch.device) -> None:
        """See :class:`Watch`."""
        depth, *plane = shape
        self._open(torch.ones((1, 1, 1, 1), device=device).expand(depth, 1, *plane))

    def _open(self, share: Tensor) -> None:
        self._share = share
        self._decisions: list[Tensor] = []  # of every fold: what the mean over its views says
        self._mean_probability: Tensor | None = None
        self._mean_entropy: Tensor | None = None

    def fold(self, index: int, members: list[Tensor], mean: Tensor) -> None:
        """See :class:`Watch`."""
        probability = probabilities(mean, self.labels, axis=1)
        decision = decode_channels(mean, self.labels)
        self._entropies[index] += _numbers((_binary_entropy(probability) * self._share).sum((0, 2, 3)))
        self._sizes[index] += _numbers(_sizes(decision, self._share, self.outputs))
        if len(members) > 1:
            for member in members:
                self._views.add(index, member, decision, self._share)
        if self.num_folds > 1:
            self._decisions.append(decision)
            entropy = self._entropy(probability)
            share = 1 / self.num_folds
            if self._mean_probability is None:
                self._mean_probability, self._mean_entropy = probability * share, entropy * share
            else:
                self._mean_probability.add_(probability, alpha=share)
                self._mean_entropy.add_(entropy, alpha=share)

    def close(self, mean: Tensor) -> Tensor:
        """See :class:`Watch`."""
        if self.num_folds == 1:
            return mean
        decision = decode_channels(mean, self.labels)
        for fold in self._decisions:
            self._folds.add(0, fold, decision, self._share)
        difference = self._entropy(self._mean_probability) - self._mean_entropy
        return torch.cat([mean, difference.amax(1, keepdim=True).clamp_min(0)], dim=1)

    def draw(self, z: int, row: int, values: Tensor) -> Tensor:
        """See :class:`Watch`."""
        logits = values[: self.outputs]
        rows = slice(row, row + values.shape[1])
        entropy = self._entropy(probabilities(logits, self.labels)[None])[0].amax(0)
        self.entropy[z, rows] = _percent(entropy)
        if self.disagreement is not None:
            self.disagreement[z, rows] = _percent(values[self.outputs])
        return logits

    def restore(self, record: CaseRecord) -> None:
        """Bring the maps to the original image's axes and shape; what was cropped away is certain."""
        self.entropy = restore_mask(self.entropy, record)
        if self.disagreement is not None:
            self.disagreement = restore_mask(self.disagreement, record)

    def classes(self) -> dict[str, ClassDoubt]:
        """The doubt about every class or region but the background, by its name."""
        predicted = self._sizes.sum(0) > 0
        doubts = {}
        for channel, (name, region) in enumerate(zip(self.labels.names, self.labels.regions)):
            if region == (0,):
                continue
            entropy = self._entropies[:, channel]
            total = entropy + self._sizes[:, channel]
            doubts[name] = ClassDoubt(
                entropy=float(np.mean(entropy / np.maximum(total, 1e-9))) if predicted[channel] else math.nan,
                tta_disagreement=self._views.disagreement(channel),
                fold_disagreement=self._folds.disagreement(channel),
            )
        return doubts

    def _entropy(self, probability: Tensor) -> Tensor:
        """Entropy as a share of the largest possible: ``(batch, 1, h, w)``; with regions one channel for each."""
        if self.labels.has_regions:
            return _binary_entropy(probability)
        return _entr(probability).sum(1, keepdim=True) / math.log(self.outputs)


class _Overlap:
    """Overlaps of members with a reference, summed over windows; rows are folds, columns outputs."""

    def __init__(self, rows: int, outputs: int) -> None:
        self.both = np.zeros((rows, outputs))
        self.sizes = np.zeros((rows, outputs))

    def add(self, row: int, member: Tensor, reference: Tensor, share: Tensor) -> None:
        outputs = self.both.shape[1]
        self.sizes[row] += _numbers(_sizes(member, share, outputs)) + _numbers(_sizes(reference, share, outputs))
        if member.dtype == torch.bool:
            self.both[row] += _numbers(_sizes(member & reference, share, outputs))
        else:
            self.both[row] += _numbers(_sizes(member, share * (member == reference), outputs))

    def disagreement(self, channel: int) -> float:
        """1 less Dice, mean over the rows that have anything of the channel."""
        both, sizes = self.both[:, channel], self.sizes[:, channel]
        return float(np.mean(1 - 2 * both[sizes > 0] / sizes[sizes > 0])) if sizes.any() else math.nan


def _sizes(decision: Tensor, share: Tensor, outputs: int) -> Tensor:
    """Weighted pixels of every output, from what :func:`decode_channels` gives."""
    if decision.dtype == torch.bool:
        return (decision * share).sum((0, 2, 3))
    return torch.bincount(decision.flatten(), share.flatten(), minlength=outputs)


def _binary_entropy(probability: Tensor) -> Tensor:
    """In bits: from 0 to 1."""
    return (_entr(probability) + _entr(1 - probability)) / math.log(2)


def _entr(probability: Tensor) -> Tensor:
    """``-p ln p``, 0 where p is 0; a mean over folds may be a rounding error beyond 0 or 1."""
    probability = probability.clamp_min(0)
    return -torch.xlogy(probability, probability)


def _numbers(values: Tensor) -> np.ndarray:
    return values.cpu().double().numpy()


def _percent(values: Tensor) -> np.ndarray:
    return (values * 100).round().clamp(0, 100).to(torch.uint8).cpu().numpy()
