"""Which way a volume's axes run in the patient, and turning volumes to lie as the training images do.

Axes are permuted and flipped, never interpolated. An orientation is written as nibabel writes it, one letter for each
of the file's axes x, y, z, which says where the axis leads: ``LPS`` is to the left, backwards and upwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from samunet.imageio.base import Geometry
from samunet.imageio.reorient import closest_axes

UNKNOWN = ""
_CLEAR = 0.8  # cosine: an axis up to 37 degrees from the patient's axis cannot be taken for another


def orientation_of(geometry: Geometry) -> str:
    """The orientation of a volume; :data:`UNKNOWN` of pictures, 2D files, oblique volumes, and where none is stated."""
    if not (geometry.physical and geometry.placed) or geometry.dimension != 3:
        return UNKNOWN
    from nibabel.orientations import ornt2axcodes

    if np.abs(np.reshape(geometry.direction, (3, 3))).max(axis=0).min() < _CLEAR:
        return UNKNOWN
    return "".join(ornt2axcodes(closest_axes(geometry)))


def common_orientation(orientations: Iterable[str]) -> str:
    """That of most volumes; :data:`UNKNOWN` if some are unknown and no orientation is that of more than half."""
    found = Counter(orientations)
    known = {orientation: number for orientation, number in found.items() if orientation != UNKNOWN}
    most = min(known, key=lambda orientation: (-known[orientation], orientation), default=UNKNOWN)
    return most if not found[UNKNOWN] or 2 * found[most] > found.total() else UNKNOWN


def turned(array: np.ndarray, own: str, wanted: str) -> np.ndarray:
    """A view of ``([channels,] z, y, x)`` with another orientation; the array itself where one of them is unknown."""
    if UNKNOWN in (own, wanted) or own == wanted:
        return array
    from nibabel.orientations import apply_orientation

    # Transposed, because nibabel's axes start with x; an axis behind them, the channels, stays.
    return apply_orientation(array.T, _transform(own, wanted)).T


def turned_sides(sides: Iterable[float], own: str, wanted: str) -> list[float]:
    """Numbers that belong to the axes ``z, y, x``, such as spacing, after :func:`turned`."""
    sides = list(sides)
    if UNKNOWN in (own, wanted):
        return sides
    after = [0] * 3
    for side, (axis, _) in zip(sides[::-1], _transform(own, wanted)):
        after[int(axis)] = side
    return after[::-1]


def flipped_axes(own: str, wanted: str) -> list[bool]:
    """By axis ``z, y, x`` after :func:`turned`: whether it runs the other way than the axis that it comes from."""
    after = [False] * 3
    for axis, sign in _transform(own, wanted):
        after[int(axis)] = bool(sign < 0)
    return after[::-1]


def _transform(own: str, wanted: str) -> np.ndarray:
    from nibabel.orientations import axcodes2ornt, ornt_transform

    return ornt_transform(axcodes2ornt(own), axcodes2ornt(wanted))
