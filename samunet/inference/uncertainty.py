"""Uncertainty of a prediction: entropy and disagreement of views and folds, by voxel and by class.

Entropy is that of the probabilities after averaging (softmax over classes; with regions that of the least certain
region), as a share of the largest possible. Disagreement of folds is the part of it that comes from the folds
contradicting each other: the entropy of their mean probabilities less the mean of their entropies (the Jensen-Shannon
divergence; B. Lakshminarayanan et al., NeurIPS 2017, arXiv:1612.01474).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samunet.dataset.labels import Labels
from samunet.inference.logits import Band, decode_channels, probabilities
from samunet.preprocessing.case import CaseRecord, restore_mask


@dataclass(frozen=True)
class ClassUncertainty:
    """Uncertainty of one class in one case, each from 0 to 1; NaN where it cannot be computed.

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


class CaseUncertainty:
    """Sums of uncertainty by class and two maps of percents: an observer (:class:`samunet.inference.logits.Observer`)
    of one case.

    Sums are taken on the network's grid, where every pixel counts once however many windows see it, and padding does
    not count; with several planes on the stored grid. Memory: two bytes a voxel for the maps; everything else is of the
    size of one batch of windows, or with several planes of some of the volume's logits.

    Args:
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
        self._decisions: list[Tensor] = []  # of the batch: what the mean over every fold's views is
        self._mean_probability: Tensor | None = None
        self._mean_entropy: Tensor | None = None

    def on_fold(self, index: int, views: list[Tensor], mean: Tensor, share: Tensor) -> None:
        """See :class:`samunet.inference.logits.Observer`."""
        probability = probabilities(mean, self.labels, axis=1)
        decision = decode_channels(mean, self.labels)
        self._entropies[index] += _numbers((_binary_entropy(probability) * share).sum((0, 2, 3)))
        self._sizes[index] += _numbers(_sizes(decision, share, self.outputs))
        if len(views) > 1:
            for view in views:
                self._views.add(index, view, decision, share)
        if self.num_folds > 1:
            self._decisions.append(decision)
            entropy, part = self._entropy(probability), 1 / self.num_folds
            if self._mean_probability is None:
                self._mean_probability, self._mean_entropy = probability * part, entropy * part
            else:
                self._mean_probability.add_(probability, alpha=part)
                self._mean_entropy.add_(entropy, alpha=part)

    def on_batch(self, mean: Tensor, share: Tensor) -> Tensor | None:
        """See :class:`samunet.inference.logits.Observer`; the disagreement of folds at every pixel."""
        if self.num_folds == 1:
            return None
        decision = decode_channels(mean, self.labels)
        for fold in self._decisions:
            self._folds.add(0, fold, decision, share)
        difference = self._entropy(self._mean_probability) - self._mean_entropy
        self._decisions, self._mean_probability, self._mean_entropy = [], None, None
        return difference.amax(1, keepdim=True).clamp_min(0)

    def on_band(self, band: Band) -> None:
        """See :class:`samunet.inference.logits.Observer`."""
        entropy = self._entropy(probabilities(band.logits, self.labels)[None])[0].amax(0)
        self.entropy[band.z, band.rows] = _percent(entropy)
        if self.disagreement is not None:
            self.disagreement[band.z, band.rows] = _percent(band.extra)

    def restore(self, record: CaseRecord) -> None:
        """Bring the maps to the original image's axes and shape; what was cropped away is certain."""
        self.entropy = restore_mask(self.entropy, record)
        if self.disagreement is not None:
            self.disagreement = restore_mask(self.disagreement, record)

    def classes(self) -> dict[str, ClassUncertainty]:
        """The doubt about every class or region but the background, by its name."""
        predicted = self._sizes.sum(0) > 0
        doubts = {}
        for channel, (name, region) in enumerate(zip(self.labels.names, self.labels.regions)):
            if region == (0,):
                continue
            entropy = self._entropies[:, channel]
            total = entropy + self._sizes[:, channel]
            doubts[name] = ClassUncertainty(
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
