"""Whether the images of a dataset lie the same way round: how far they agree in what mirroring would change."""

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
    """By array axis, how far images agree in what changes its sign when they are mirrored along it.

    The mean over all pairs of images of the product of their antisymmetric parts, so that chance adds nothing:
    about 0 for images that lie any way round, for symmetric ones, and for those without anything in common.

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
        odd = (images - np.flip(images, axis)) / 2
        pairs = float((odd.sum(0) ** 2).sum() - (odd**2).sum())
        agreements.append(pairs / ((len(images) - 1) * energy))
    return agreements
