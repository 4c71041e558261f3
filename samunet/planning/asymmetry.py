"""Whether the images of a dataset lie the same way round: how far they agree in what mirroring would change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_SIDE = 8
_MOST = 0.85  # of the images: where a third lies the other way round, the mean alone would still be above zero


def thumbnail(image: np.ndarray) -> np.ndarray:
    """An image in a few blocks, each channel with mean 0 and deviation 1 (0 where it is constant).

    Args:
        image: ``(channels, z, y, x)``, each side at least 1.

    Returns:
        ``(channels, 8, 8, 8)`` float32: means of equal parts of the sides, which overlap where a side has fewer pixels.
    """
    blocks = image
    # The longest side first: a short one, such as a picture's single slice, becomes longer.
    for axis in sorted((1, 2, 3), key=lambda axis: -image.shape[axis]):
        edges, slabs = np.linspace(0, image.shape[axis], _SIDE + 1), np.moveaxis(blocks, axis, 0)
        parts = [slabs[int(low) : math.ceil(high)].mean(0, dtype=np.float32) for low, high in zip(edges, edges[1:])]
        blocks = np.stack(parts, axis)
    centred = blocks - blocks.mean((1, 2, 3), keepdims=True)
    deviation = centred.std((1, 2, 3), keepdims=True)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)


def asymmetry(thumbnails: Sequence[np.ndarray]) -> list[float]:
    """By array axis, how far images agree in what changes its sign when they are mirrored along it.

    The mean over all pairs of images of the product of their antisymmetric parts, so that chance adds nothing:
    about 0 for images that lie any way round, for symmetric ones, and for those without anything in common. Exactly 0
    where fewer than 85 % of the images agree with the sum of the others: then some lie the other way round.

    Args:
        thumbnails: One for each image, from :func:`thumbnail`.

    Returns:
        ``[z, y, x]``: as a share of the images' sum of squares, at most 1; 0 where there is one image only.
    """
    images = np.stack(thumbnails).astype(np.float64)
    energy = float((images**2).sum())
    if energy == 0 or len(images) < 2:
        return [0.0, 0.0, 0.0]
    agreements = []
    for axis in (2, 3, 4):
        odd = ((images - np.flip(images, axis)) / 2).reshape(len(images), -1)
        with_others = (odd * (odd.sum(0) - odd)).sum(1)
        most = np.mean(with_others > 0) >= _MOST
        agreements.append(float(with_others.sum()) / ((len(images) - 1) * energy) if most else 0.0)
    return agreements
