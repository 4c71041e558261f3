"""In-plane reduction of slices with anti-aliasing. Nothing is ever enlarged on disk and slices are never mixed."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def reduce_image(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize every slice to a smaller in-plane shape, linearly, with a filter as wide as the reduction.

    Args:
        array: ``(channels, z, y, x)`` float32.
        shape: New ``(y, x)``; at most the present one along each axis.

    Returns:
        ``(channels, z, *shape)`` float32; ``array`` itself if nothing changes.
    """
    if array.shape[2:] == tuple(shape):
        return array
    reduced = np.empty((*array.shape[:2], *shape), dtype=np.float32)
    for z in range(array.shape[1]):  # one slice at a time: no second copy of the volume in float
        reduced[:, z] = _antialiased(array[None, :, z], shape)[0]
    return reduced


def reduce_label(label: np.ndarray, shape: tuple[int, int], ignore: int | None = None) -> np.ndarray:
    """Resize every slice of a label map: each class's share of a new pixel is computed, the largest share wins.

    Args:
        label: ``(z, y, x)`` integer.
        shape: New ``(y, x)``; at most the present one along each axis.
        ignore: Value of voxels without annotation. It takes no part in the vote: a new pixel has it where the nearest
            voxel has. Otherwise thin annotation would drown in it.
    """
    if label.shape[1:] == tuple(shape):
        return label
    reduced = np.empty((label.shape[0], *shape), dtype=label.dtype)
    centres = [((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(shape, label.shape[1:])]
    for z, plane in enumerate(label):
        values = [value for value in np.unique(plane) if value != ignore]
        best = np.full(shape, -1.0, dtype=np.float32)
        for value in values:
            share = _antialiased((plane == value)[None, None].astype(np.float32), shape)[0, 0]
            wins = share > best
            reduced[z][wins] = value
            best[wins] = share[wins]
        if ignore is not None:
            reduced[z][plane[np.ix_(*centres)] == ignore] = ignore
    return reduced


def _antialiased(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return F.interpolate(tensor, size=tuple(shape), mode="bilinear", align_corners=False, antialias=True).numpy()
