"""A limited number of windows and augmentations for every slice, so that what was computed of one can be used again.

Case, slice and class are drawn as ever, for every item anew. Window and augmentation are those of one of the slice's
variants, which the seed determines. Where a slice is larger than the network's input, a class on which the window is
centred has variants of its own.
"""

from __future__ import annotations

import hashlib

import numpy as np


def variant_key(seed: int, case: int, plane: int, z: int, value: int | None, variant: int) -> tuple[int, ...]:
    """All that window and augmentation of a variant depend on.

    Args:
        seed: Of the training.
        case: Number of the case.
        plane: Number of the plane along which it is sliced.
        z: Slice.
        value: Class on which the window is centred; None where there is none or every window is the same.
        variant: From 0.
    """
    return seed, case, plane, z, 0 if value is None else value + 1, variant


def place_in_slice(places: np.ndarray, z: int, draw: np.random.Generator) -> list[int]:
    """One of the places ``(n, 3)`` that lie in slice ``z``: ``[y, x]``."""
    inside = places[places[:, 0] == z]
    return [int(position) for position in inside[draw.integers(len(inside)), 1:]]


def image_keys(images: np.ndarray) -> np.ndarray:
    """A hash of the content of each of ``(b, channels, H, W)``: ``(b,)`` hexadecimal."""
    return np.array([hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).hexdigest() for image in images])
