"""A limited number of windows and augmentations for every slice, so that what was computed of one can be used again.

Case, slice and class are drawn as ever, for every item anew. Window and augmentation are those of one of the slice's
variants, which the seed determines. Where a slice is larger than the network's input, a class on which the window is
centred has variants of its own.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from samunet.preprocessing.grid import SliceGrid

if TYPE_CHECKING:
    from samunet.training.loader import SliceLoader

_MOST = 8
_LEAST_USES = 4  # of a variant on average: one that is used once saves nothing


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


def images_per_variant(loader: SliceLoader) -> int:
    """How many different images there are for each variant: slices, and with free windows their classes as well."""
    count, network = 0, loader.network
    for case in (case.along(plane) for case in loader.cases.values() for plane in loader.planes):
        depth, *shape = case.shape
        always = loader.places(case, False)  # with an ignore label every window is centred on a class
        slices = [set(places[:, 0].tolist()) for places in (always or loader.places(case, True)).values()]
        anywhere = set() if always else set(range(depth))
        grid = SliceGrid.of(tuple(shape), case.spacing, network.spacing, network.input_shape)
        count += sum(map(len, [anywhere, *slices])) if grid.is_free() else len(anywhere.union(*slices))
    return count


def choose_variants(images: int, fitting: int, draws: int | None) -> int:
    """Variants of every slice: as many as fit, at most 8, and so few that each is used four times on average.

    Args:
        images: From :func:`images_per_variant`.
        fitting: Images for whose features there is room.
        draws: Images drawn in the whole training; None if that is not known.
    """
    wanted = [_MOST, fitting // images]
    if draws is not None:
        wanted.append(draws // (_LEAST_USES * images))
    return max(1, min(wanted))


def image_keys(images: np.ndarray) -> np.ndarray:
    """A hash of the content of each of ``(b, channels, H, W)``: ``(b,)`` hexadecimal."""
    return np.array([hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).hexdigest() for image in images])
