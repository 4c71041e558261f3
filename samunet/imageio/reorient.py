"""Volumes turned to RAS for the network, and masks turned back: x to the right, y forwards, z upwards.

The axes of the file are permuted and flipped, never interpolated: each file axis becomes the anatomical axis that it is
closest to. The file's own geometry travels along and is what a mask is written with, so it comes back bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import Geometry
from samunet.imageio.nibabel import NibabelReader
from samunet.imageio.simpleitk import SimpleITKReader

# ITK's axes point to the left and backwards.
_TO_RAS = np.diag([-1.0, -1.0, 1.0])


class ReorientingReader(SimpleITKReader):
    """Reads through the next class in line, and presents what it read in RAS axis order. 3D only."""

    def read_voxels(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """See :meth:`SimpleITKReader.read_voxels`."""
        voxels, stored = super().read_voxels(file)
        if stored.dimension != 3:
            raise SamunetError(
                f"{file} is 2D: {self.name} can reorient only volumes",
                f"set overwrite_image_reader_writer in dataset.json to {self.name.removesuffix('WithReorient')}",
            )
        return _to_ras(voxels, stored)

    def write_label(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`Reader.write_label`."""
        if geometry.stored is not None:
            array, geometry = _from_ras(array, geometry.stored), geometry.stored
        super().write_label(array, file, geometry)


class SimpleITKReorientingReader(ReorientingReader):
    """The formats of SimpleITKIO."""

    name = "SimpleITKIOWithReorient"


class NibabelReorientingReader(ReorientingReader, NibabelReader):
    """The formats of NibabelIO."""

    name = "NibabelIOWithReorient"


def _to_ras(voxels: np.ndarray, stored: Geometry) -> tuple[np.ndarray, Geometry]:
    """``voxels`` as ``(channels, z, y, x)`` of the RAS axes, and the geometry of that array."""
    from nibabel.orientations import apply_orientation

    axes = closest_axes(stored)
    sizes = voxels.shape[:0:-1]
    columns, spacing = np.reshape(stored.direction, (3, 3)).T, stored.spacing[::-1]
    origin, direction, sides = np.array(stored.origin), np.empty((3, 3)), [0.0, 0.0, 0.0]
    for own, (target, sign) in enumerate(axes):
        if sign < 0:
            origin += columns[own] * spacing[own] * (sizes[own] - 1)
        direction[:, int(target)] = columns[own] * sign
        sides[int(target)] = spacing[own]
    geometry = replace(
        stored,
        spacing=tuple(sides[::-1]),
        origin=tuple(origin.tolist()),
        direction=tuple(direction.ravel().tolist()),
        nifti=None,
        nrrd=None,
        stored=stored,
    )
    # Transposed, because nibabel's axes start with x; an axis behind them, the channels, stays.
    return apply_orientation(voxels.T, axes).T, geometry


def _from_ras(array: np.ndarray, stored: Geometry) -> np.ndarray:
    from nibabel.orientations import apply_orientation, ornt_transform

    ras = [[0, 1], [1, 1], [2, 1]]
    return apply_orientation(array.T, ornt_transform(ras, closest_axes(stored))).T


def closest_axes(stored: Geometry) -> np.ndarray:
    """Of a volume, per array axis (x first) the RAS axis that it becomes, and 1 or -1: whether it is flipped."""
    from nibabel.orientations import io_orientation

    affine = np.eye(4)
    affine[:3, :3] = _TO_RAS @ np.reshape(stored.direction, (3, 3))
    return io_orientation(affine)
