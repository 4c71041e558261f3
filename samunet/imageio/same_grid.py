"""Comparison of two grids, and voxels brought from one to the other by swapping and flipping axes.

Used wherever a label meets its image, a prediction its reference, or one channel another. Nothing is interpolated:
files on different grids are refused, with the difference.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import PLACE_TOLERANCE, SPACING_TOLERANCE, Geometry

log = logging.getLogger(__name__)

# After a flip the first voxel was the last: rounded spacings add up on the way. A share of the smallest pixel side.
_FLIPPED_TOLERANCE = 0.02

# Of a voxel: how far a cropped grid may lie beside its image's.
_OFF_GRID = 0.01

_MOST_VOXELS = 1 << 31  # of a grid that holds two: parts of one image do not lie farther apart

# By axis z, y, x of a grid: the axis of another one that it is, and whether that runs backwards.
Turn = tuple[tuple[int, ...], tuple[bool, ...]]


@dataclass(frozen=True)
class Grid:
    """Shape ``(z, y, x)`` and geometry of a file, which errors name."""

    file: Path
    shape: tuple[int, ...]
    geometry: Geometry


@dataclass(frozen=True)
class Difference:
    """Difference of two grids: ``kind`` is ``shape``, ``spacing``, ``origin`` or ``direction``."""

    kind: str
    text: str
    fix: str

    @property
    def tolerable(self) -> bool:
        """Whether the user may accept it: the voxels may still be the same."""
        return self.kind in ("origin", "direction")


def on_grid(voxels: np.ndarray, own: Grid, first: Grid, tolerate_geometry: bool = False) -> np.ndarray:
    """Voxels of a file on the grid of another: themselves, a view with axes swapped and flipped, or a part put there.

    Pictures and TIFF files have no place, and need the same shape only.

    Args:
        voxels: ``([channels,] z, y, x)``.
        own: Their grid.
        first: The grid that holds: of the first channel, of a label's image, or of a prediction's reference.
        tolerate_geometry: Take the voxels as they lie, with a warning, where only origin or direction differ.

    Raises:
        SamunetError: If the grids differ; the hint says how to repair that, or to tolerate it.
    """
    fit = fitted(voxels, own, first)
    if fit is not None:
        return fit
    found = difference(own, first)
    if not (tolerate_geometry and found.tolerable):
        raise SamunetError(found.text, found.fix)
    log.warning("%s: %s is used, as `tolerate_geometry=True` asks", found.text, _name(first, own))
    return voxels


def fitted(voxels: np.ndarray, own: Grid, first: Grid) -> np.ndarray | None:
    """As :func:`on_grid`; None if the grids differ."""
    turn = turn_between(own, first)
    if turn is not None:
        axes, flips = turn
        lead = voxels.ndim - 3
        swapped = voxels.transpose(*range(lead), *(lead + axis for axis in axes))
        return swapped[(..., *(slice(None, None, -1 if flip else 1) for flip in flips))]
    if difference(own, first) is None:
        return voxels
    return _uncropped(voxels, own.geometry, first) if own.geometry.cropped else None


def difference(own: Grid, first: Grid) -> Difference | None:
    """Difference of a grid from ``first``; None if it is the same, or the same but for swapped and flipped axes."""
    name = _name(first, own)
    resample = "they must lie on the same grid: resample one of them, or remove the case"
    if turn_between(own, first) is not None:
        return None
    if own.shape != first.shape:
        if not own.geometry.physical and own.shape == (first.shape[0], *first.shape[:0:-1]):
            resample = (
                "one of them is turned on its side: photographs that are stored turned (EXIF) are read as they are "
                "shown, so draw the mask on what a viewer shows, or turn the mask by a quarter"
            )
        return Difference(
            "shape", f"{own.file} has shape {own.shape} (z, y, x), but {name} has {first.shape}", resample
        )
    geometry, expected = own.geometry, first.geometry
    if not (geometry.physical and expected.physical):
        return None
    if not np.allclose(geometry.spacing, expected.spacing, rtol=SPACING_TOLERANCE, atol=0):
        text = f"{own.file} has spacing {_rounded(geometry.spacing)} mm (z, y, x), but {name} has "
        fix = "they must lie on the same grid: correct the header of one of them, or resample it, or remove the case"
        return Difference("spacing", f"{text}{_rounded(expected.spacing)} mm", fix)
    for what, unit, got, wanted in (
        ("origin", " mm", geometry.origin, expected.origin),
        ("direction", "", geometry.direction, expected.direction),
    ):
        if len(got) != len(wanted) or not np.allclose(got, wanted, rtol=0, atol=PLACE_TOLERANCE):
            text = f"{own.file} has the {what} {_rounded(got)}{unit}, but {name} has {_rounded(wanted)}{unit}"
            fix = (
                "they do not lie on each other, not even with axes flipped or swapped. If their voxels do show the "
                "same places, copy the header (SimpleITK: image.CopyInformation(first)), or add "
                "`tolerate_geometry=True`, which takes the voxels as they lie in the file and the place of "
                f"{first.file.name}; if not, resample {own.file.name}"
            )
            return Difference(what, text, fix)
    return None


def turn_between(own: Grid, first: Grid) -> Turn | None:
    """By axis ``z, y, x`` of ``first``: the axis of ``own`` that it is, and whether that runs backwards.

    None where no turn by whole axes makes both grids one, or a file does not say how it lies.
    """
    one, other = own.geometry, first.geometry
    placed = one.physical and other.physical and one.placed and other.placed
    if not placed or one.dimension != other.dimension:
        return None
    dimension = one.dimension
    steps, wanted = (
        np.reshape(geometry.direction, (dimension, dimension)) * geometry.spacing[::-1][:dimension]
        for geometry in (one, other)
    )
    if abs(np.linalg.det(np.reshape(other.direction, (dimension, dimension)))) < PLACE_TOLERANCE:
        return None  # a 2D image that stands upright on its file's plane
    between = np.linalg.solve(wanted, steps)  # a step along an axis of own in steps along the axes of first
    signs = np.rint(between)
    if np.abs(between - signs).max() > PLACE_TOLERANCE or not np.array_equal(np.abs(signs).sum(0), np.ones(dimension)):
        return None
    if not np.array_equal(np.abs(signs).sum(1), np.ones(dimension)):
        return None
    source = np.abs(signs).argmax(axis=1)  # by axis x, y, z of first
    backwards = signs[np.arange(dimension), source] < 0
    sizes = np.array(own.shape[::-1][:dimension])
    start = np.array(one.origin) + steps[:, source[backwards]] @ (sizes[source[backwards]] - 1)
    tolerance = _FLIPPED_TOLERANCE * min(one.spacing) if backwards.any() else PLACE_TOLERANCE
    if np.abs(start - other.origin).max() > tolerance:
        return None
    axes = (*range(3 - dimension), *(2 - int(axis) for axis in source[::-1]))
    flips = (*(False for _ in range(3 - dimension)), *(bool(flip) for flip in backwards[::-1]))
    return (axes, flips) if tuple(own.shape[axis] for axis in axes) == tuple(first.shape) else None


def _uncropped(label: np.ndarray, own: Geometry, first: Grid) -> np.ndarray | None:
    """A cropped label ``(z, y, x)`` where it lies in its image's grid; None if it is of another grid.

    What is 0 may lie outside the image; what is drawn may not.
    """
    start, shape = _start(own, first.geometry), first.shape
    if start is None:
        return None
    low, high = np.maximum(start, 0), np.minimum(start + label.shape, shape)
    if np.any(low >= high):
        return None if label.any() else np.zeros(shape, label.dtype)
    inside = label[tuple(slice(*ends) for ends in zip(low - start, high - start))]
    if np.count_nonzero(label) != np.count_nonzero(inside):
        return None
    placed = np.zeros(shape, label.dtype)
    placed[tuple(slice(*ends) for ends in zip(low, high))] = inside
    return placed


def union(one: Grid, other: Grid) -> Grid | None:
    """The smallest grid that holds two cropped ones of the same image; None if they are of different grids."""
    start = _start(other.geometry, one.geometry)
    if start is None:
        return None
    low, high = np.minimum(start, 0), np.maximum(start + other.shape, one.shape)
    if math.prod((high - low).tolist()) > _MOST_VOXELS:
        return None
    steps = (low * one.geometry.spacing)[::-1]
    origin = np.array(one.geometry.origin) + np.reshape(one.geometry.direction, (3, 3)) @ steps
    return Grid(one.file, tuple((high - low).tolist()), replace(one.geometry, origin=tuple(origin.tolist())))


def _start(own: Geometry, first: Geometry) -> np.ndarray | None:
    """Index ``(z, y, x)`` of a grid's first voxel in another grid; None if their voxels do not coincide."""
    if not (own.dimension == first.dimension == 3 and own.physical and first.physical):
        return None
    same_spacing = np.allclose(own.spacing, first.spacing, rtol=SPACING_TOLERANCE, atol=0)
    if not (same_spacing and np.allclose(own.direction, first.direction, rtol=0, atol=PLACE_TOLERANCE)):
        return None
    offset = np.subtract(own.origin, first.origin) @ np.reshape(first.direction, (3, 3))
    steps = (offset / first.spacing[::-1])[::-1]
    start = np.rint(steps).astype(int)
    return None if np.abs(steps - start).max() > _OFF_GRID else start


def _name(first: Grid, own: Grid) -> str:
    """The other file's name; its path where the name alone does not tell it from the first."""
    return first.file.name if first.file.name != own.file.name else str(first.file)


def _rounded(values) -> str:
    return "(" + ", ".join(f"{value:.7g}" for value in values) + ")"
