"""A slice with its neighbours, as the network's channels: the same for training and prediction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def slice_with_context(read: Callable[[int, int], np.ndarray], z: int, depth: int, neighbours: bool) -> np.ndarray:
    """Channels of one network input before resampling.

    Args:
        read: ``read(first, last)`` gives slices as ``(channels, slices, y, x)``.
        z: Slice index.
        depth: Number of slices.
        neighbours: Whether the previous and the next slice come along; at either end the slice itself stands in.

    Returns:
        ``(channels, y, x)``; with neighbours ``(3, y, x)``: previous, this, next slice of the only channel.
    """
    if not neighbours:
        return read(z, z + 1)[:, 0]
    first, last = max(z - 1, 0), min(z + 1, depth - 1)
    slices = read(first, last + 1)[0]
    return slices[[0, z - first, last - first]]
