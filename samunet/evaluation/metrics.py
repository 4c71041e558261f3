"""Scores of one class in one case: voxel counts, Dice and IoU, HD95 and surface Dice.

The rule for empty classes, everywhere in samunet (the same as nnU-Net's): a class that is absent from both the
reference and the prediction has no score for this case (NaN, ``null`` in JSON) and is left out of means; a class that
is absent from the reference but predicted scores 0, and so does one that is in the reference but not predicted. HD95
is then the longest distance that two voxels of the image can have, so that missing a structure is never better than
finding it badly.

Surfaces are defined as MONAI does: the surface of a mask are its voxels that have a face on the outside (of 2D masks: a
side), and distances run between voxel centres. HD95 is the larger of the two directed 95th percentiles. Surface Dice at
a tolerance (S. Nikolov et al., arXiv:1809.04430) is the share of both surfaces' voxels that lie within it of the other
surface.
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


class SurfaceScores(NamedTuple):
    """Of one class in one case: HD95 in the unit of the spacing, and surface Dice from 0 to 1."""

    hd95: float
    surface_dice: float


def surface_scores(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> SurfaceScores:
    """Compare the surfaces of two masks.

    Args:
        prediction, reference: ``(z, y, x)`` booleans. With a single slice everything is meant in its plane.
        spacing: ``(z, y, x)``, of any unit; so are ``tolerance`` and HD95.
        tolerance: The distance up to which two surfaces agree.

    """
    if len(prediction) == 1:
        prediction, reference, spacing = prediction[0], reference[0], spacing[1:]
    if not (prediction.any() and reference.any()):
        if prediction.any() or reference.any():
            return SurfaceScores(math.hypot(*((n - 1) * side for n, side in zip(prediction.shape, spacing))), 0.0)
        return SurfaceScores(math.nan, math.nan)
    there, back = surface_distances(prediction, reference, spacing)
    hd95 = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    # A hair more, so that a surface that lies exactly at the tolerance is within it whatever rounding does.
    near = tolerance * (1 + 1e-6)
    agreeing = np.count_nonzero(there <= near) + np.count_nonzero(back <= near)
    return SurfaceScores(hd95, agreeing / (len(there) + len(back)))


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """From every surface voxel of one mask to the nearest of the other, and the other way; neither may be empty.

    Memory depends on the surfaces and on the box around each mask, not on the image.
    """
    from scipy.spatial import cKDTree

    first, second = (_surface(mask) * np.asarray(spacing, float) for mask in (prediction, reference))
    return cKDTree(second).query(first)[0], cKDTree(first).query(second)[0]


def _surface(mask: np.ndarray) -> np.ndarray:
    """Positions ``(voxels, axes)`` of the voxels that have a face on the outside; beyond the image is outside."""
    from scipy.ndimage import binary_erosion

    low, inside = [], mask
    for axis in range(mask.ndim):  # crop to the mask, one axis after the other
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(inside.any(axis=others))
        low.append(filled[0])
        inside = inside.take(range(filled[0], filled[-1] + 1), axis=axis)
    return np.argwhere(inside & ~binary_erosion(inside)) + np.array(low)
