"""Whether the images of a dataset lie the same way round: how much their mean differs from its mirror image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SIDE = 8


def thumbnail(image: np.ndarray) -> np.ndarray:
    """An image in a few blocks, each channel with mean 0 and deviation 1 (0 where it is constant).

    Args:
        image: ``(channels, z, y, x)``, each side at least 1.

    Returns:
        ``(channels, 8, 8, 8)`` float32: means of equal parts of the sides, which overlap where a side has fewer pixels.
    """
    blocks = image
    for axis in (1, 2, 3):
        edges = np.linspace(0, blocks.shape[axis], _SIDE + 1)
        parts = [
            blocks.take(range(int(low), int(np.ceil(high))), axis).mean(axis, dtype=np.float32)
            for low, high in zip(edges, edges[1:])
        ]
        blocks = np.stack(parts, axis)
    centred = blocks - blocks.mean((1, 2, 3), keepdims=True)
    deviation = centred.std((1, 2, 3), keepdims=True)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)


def asymmetry(thumbnails: Sequence[np.ndarray]) -> list[float]:
    """By array axis, how much the mean of images differs from its mirror image along it.

    Images that lie any way round have a symmetric mean; so have images of things that are symmetric themselves.

    Args:
        thumbnails: One for each image, from :func:`thumbnail`.

    Returns:
        ``[z, y, x]``: the antisymmetric part's share of the sum of squares, from 0 (symmetric) to 1.
    """
    mean = np.mean(thumbnails, axis=0, dtype=np.float64)
    energy = float((mean**2).sum())
    if energy == 0:
        return [0.0, 0.0, 0.0]
    return [float((((mean - np.flip(mean, axis)) / 2) ** 2).sum() / energy) for axis in (1, 2, 3)]
