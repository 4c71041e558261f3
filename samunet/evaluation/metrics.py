"""Voxel counts of one case and the overlap scores made from them.

The rule for empty classes, everywhere in samunet (the same as nnU-Net's): a class that is absent from both the
reference and the prediction has no score for this case (NaN, ``null`` in JSON) and is left out of means; a class that
is absent from the reference but predicted scores 0, and so does one that is in the reference but not predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from samunet.errors import SamunetError


class Counts(NamedTuple):
    """Voxels of one class in one case: true and false positives, false and true negatives."""

    TP: int
    FP: int
    FN: int
    TN: int

    @property
    def n_pred(self) -> int:
        """Voxels predicted as this class."""
        return self.TP + self.FP

    @property
    def n_ref(self) -> int:
        """Voxels of this class in the reference."""
        return self.TP + self.FN


def confusion_counts(
    prediction: np.ndarray, reference: np.ndarray, regions: Sequence[Sequence[int]], ignore: int | None = None
) -> list[Counts]:
    """Count the voxels of all classes or regions in one pass.

    Args:
        prediction: Label map ``(z, y, x)`` of integers.
        reference: Label map of the same shape.
        regions: The values of each class or region to count; all above 0. Voxels with other values are in none.
        ignore: Voxels with this value in the reference do not count at all.

    Returns:
        One :class:`Counts` for each of ``regions``.

    Raises:
        SamunetError: If the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise SamunetError(f"the prediction has shape {prediction.shape}, the reference {reference.shape}")
    values = sorted({value for region in regions for value in region})
    # Values to 1, 2, ... and everything else to 0, so that the table stays small whatever the values are.
    highest = values[-1] + 1
    codes = np.zeros(highest + 1, dtype=np.int64)
    codes[values] = np.arange(1, len(values) + 1)
    size = len(values) + 1
    joint = np.zeros(size * size, dtype=np.int64)
    # Slice by slice, because the 64-bit codes of a whole CT volume would need gigabytes.
    for predicted, true in zip(prediction, reference):
        pairs = codes[np.clip(true, 0, highest)] * size + codes[np.clip(predicted, 0, highest)]
        joint += np.bincount((pairs if ignore is None else pairs[true != ignore]).ravel(), minlength=joint.size)
    table = joint.reshape(size, size)  # rows: reference, columns: prediction
    total = int(table.sum())
    counts = []
    for region in regions:
        members = codes[list(region)]
        both = int(table[np.ix_(members, members)].sum())
        n_ref, n_pred = int(table[members].sum()), int(table[:, members].sum())
        counts.append(Counts(both, n_pred - both, n_ref - both, total - n_pred - n_ref + both))
    return counts


def dice(counts: Counts) -> float:
    """Dice coefficient 2 TP / (2 TP + FP + FN); NaN where the class is in neither map."""
    denominator = 2 * counts.TP + counts.FP + counts.FN
    return 2 * counts.TP / denominator if denominator else math.nan


def iou(counts: Counts) -> float:
    """Intersection over union TP / (TP + FP + FN); NaN where the class is in neither map."""
    denominator = counts.TP + counts.FP + counts.FN
    return counts.TP / denominator if denominator else math.nan
