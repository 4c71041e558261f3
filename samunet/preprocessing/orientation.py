"""Orientation of a volume's axes in the patient, and turning volumes to that of the training images.

Axes are permuted and flipped, never interpolated. An orientation is written as nibabel writes it, one letter for each
of the file's axes x, y, z, which says where the axis leads: ``LPS`` is to the left, backwards and upwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from samunet.imageio.base import Geometry

UNKNOWN = ""
REORIENTED = "RAS"  # what nnU-Net's readers named ...WithReorient turn all volumes to
_CLEAR = 0.8  # cosine: an axis up to 37 degrees from the patient's axis cannot be taken for another
# ITK's axes point to the left and backwards.
_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def orientation_of(geometry: Geometry) -> str:
    """The orientation of a volume; :data:`UNKNOWN` of pictures, 2D files, oblique volumes, and where none is stated.

    With a reader that reorients, a volume always has one: that of the closest axes.
    """
    if not geometry.physical or geometry.dimension != 3:
        return UNKNOWN
    from nibabel.orientations import aff2axcodes

    direction = np.reshape(geometry.direction, (3, 3))
    clear = geometry.placed and np.abs(direction).max(axis=0).min() >= _CLEAR
    if not (clear or geometry.reorient):
        return UNKNOWN
    affine = np.eye(4)
    affine[:3, :3] = _TO_RAS @ direction
    return "".join(aff2axcodes(affine))


def wanted_orientation(geometry: Geometry, planned: str) -> str:
    """The orientation to which a volume is turned, given that of the plans."""
    return REORIENTED if geometry.reorient and planned == UNKNOWN else planned


def common_orientation(orientations: Iterable[str]) -> str:
    """That of most volumes; :data:`UNKNOWN` if some are unknown and no orientation is that of more than half."""
    found = Counter(orientations)
    known = {orientation: number for orientation, number in found.items() if orientation != UNKNOWN}
    most = min(known, key=lambda orientation: (-known[orientation], orientation), default=UNKNOWN)
    return most if not found[UNKNOWN] or 2 * found[most] > found.total() else UNKNOWN


def reorient(array: np.ndarray, own: str, wanted: str) -> np.ndarray:
    """A view of ``([channels,] z, y, x)`` with another orientation; the array itself where one of them is unknown."""
    if UNKNOWN in (own, wanted) or own == wanted:
        return array
    from nibabel.orientations import apply_orientation

    # Transposed, because nibabel's axes start with x; an axis behind them, the channels, stays.
    return apply_orientation(array.T, _transform(own, wanted)).T


def reorient_axes(sides: Iterable[float], own: str, wanted: str) -> list[float]:
    """Numbers that belong to the axes ``z, y, x``, such as spacing, after :func:`reorient`."""
    sides = list(sides)
    if UNKNOWN in (own, wanted):
        return sides
    after = [0] * 3
    for side, (axis, _) in zip(sides[::-1], _transform(own, wanted)):
        after[int(axis)] = side
    return after[::-1]


def flipped_axes(own: str, wanted: str) -> list[bool]:
    """By axis ``z, y, x`` after :func:`reorient`: whether it runs the other way than the axis that it comes from."""
    after = [False] * 3
    for axis, sign in _transform(own, wanted):
        after[int(axis)] = bool(sign < 0)
    return after[::-1]


def _transform(own: str, wanted: str) -> np.ndarray:
    from nibabel.orientations import axcodes2ornt, ornt_transform

    return ornt_transform(axcodes2ornt(own), axcodes2ornt(wanted))
