"""Distances between the surfaces of two masks of one class: HD95 and surface Dice, in millimetres.

The definitions are MONAI's: the surface of a mask are its voxels that have a face on the outside (of 2D masks: a
side), and distances run between voxel centres. HD95 is the larger of the two directed 95th percentiles. Surface Dice at
a tolerance (S. Nikolov et al., arXiv:1809.04430) is the share of both surfaces' voxels that lie within it of the other
surface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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

    Returns:
        Where one mask is empty and the other not, HD95 is the longest distance that two voxels of the image can have,
        and surface Dice 0, so that missing a structure is never better than finding it badly. Where both are empty,
        both are NaN.
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
