"""Cropping away a constant border: black around a skull-stripped brain, or any other constant around the content."""

from __future__ import annotations

from itertools import product

import numpy as np

from samunet.preprocessing.chunks import chunks

Box = list[list[int]]


def content_mask(array: np.ndarray) -> np.ndarray:
    """Where some channel differs from its constant border value (nnU-Net crops to nonzero; widened to any constant).

    The border value of a channel is the value that all corners of the volume share; a channel whose corners differ has
    content everywhere.

    Args:
        array: ``(channels, z, y, x)``.

    Returns:
        Boolean ``(z, y, x)``; all true if nothing or everything would be content.
    """
    mask = np.zeros(array.shape[1:], dtype=bool)
    for channel in array:
        corners = {float(channel[corner]) for corner in product((0, -1), repeat=3)}
        if len(corners) > 1:
            return np.ones(array.shape[1:], dtype=bool)
        border = corners.pop()
        for inside, values in chunks(mask, channel):
            inside |= values != border
    return mask if mask.any() else np.ones_like(mask)


def bounding_box(mask: np.ndarray) -> Box:
    """Half-open ``[[start, stop], ...]`` around the true voxels of a mask that has some."""
    filled = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return [[int(places[0]), int(places[-1]) + 1] for places in filled]


def crop(array: np.ndarray, box: Box) -> np.ndarray:
    """The part of ``array`` inside ``box``, over its last three axes, as a view."""
    return array[(..., *(slice(*side) for side in box))]


def uncrop(array: np.ndarray, box: Box, shape: tuple[int, int, int]) -> np.ndarray:
    """Undo :func:`crop`: ``array`` inside ``box``, zero outside, over the last three axes.

    Where the box is everything, this is ``array`` itself.
    """
    if array.shape[-3:] == tuple(shape):
        return array
    full = np.zeros((*array.shape[:-3], *shape), dtype=array.dtype)
    crop(full, box)[...] = array
    return full
