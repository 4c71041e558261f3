"""Voxel counts of one case and the overlap scores made from them.

The rule for empty classes, everywhere in samunet (the same as nnU-Net's): a class that is absent from both the
reference and the prediction has no score for this case (NaN, ``null`` in JSON) and is left out of means; a class that
is absent from the reference but predicted scores 0, and so does one that is in the reference but not predicted.
"""

from __future__ import annotations

import math
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


def confusion(prediction: np.ndarray, reference: np.ndarray, label: int) -> Counts:
    """Count the voxels of the single class ``label`` in two label maps of equal shape.

    Raises:
        SamunetError: If the shapes differ.
    """
    _check_shapes(prediction, reference)
    predicted, true = prediction == label, reference == label
    both = int(np.count_nonzero(predicted & true))
    n_pred, n_ref = int(np.count_nonzero(predicted)), int(np.count_nonzero(true))
    return Counts(both, n_pred - both, n_ref - both, prediction.size - n_pred - n_ref + both)


def confusion_counts(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> list[Counts]:
    """Count the voxels of all foreground classes in one pass.

    Args:
        prediction: Label map (z, y, x) of integers in 0 .. ``num_classes`` - 1.
        reference: Label map of the same shape and range.
        num_classes: Number of classes, background included.

    Returns:
        One :class:`Counts` for each of the classes 1 .. ``num_classes`` - 1, in this order.

    Raises:
        SamunetError: If the shapes differ or a value lies outside the range.
    """
    _check_shapes(prediction, reference)
    joint = np.zeros(num_classes * num_classes, dtype=np.int64)
    # Slice by slice, because the 64-bit codes of a whole CT volume would need gigabytes.
    for predicted, true in zip(prediction, reference):
        for values in (predicted, true):
            if values.size and (values.min() < 0 or values.max() >= num_classes):
                raise SamunetError(
                    f"label values must lie in 0 to {num_classes - 1}, got {values.min()} to {values.max()}"
                )
        code = true.astype(np.int64) * num_classes + predicted
        joint += np.bincount(code.ravel(), minlength=joint.size)
    table = joint.reshape(num_classes, num_classes)  # rows: reference, columns: prediction
    total = int(table.sum())
    counts = []
    for label in range(1, num_classes):
        both, n_ref, n_pred = int(table[label, label]), int(table[label].sum()), int(table[:, label].sum())
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


def _check_shapes(prediction: np.ndarray, reference: np.ndarray) -> None:
    if prediction.shape != reference.shape:
        raise SamunetError(f"the prediction has shape {prediction.shape}, the reference {reference.shape}")
