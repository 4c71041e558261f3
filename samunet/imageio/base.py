"""The contract of all readers: arrays, geometry, and the checks that no format can skip."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samunet.errors import SamunetError

log = logging.getLogger(__name__)

# Headers store spacing in float32 and tools round it: smaller differences mean nothing.
_SPACING_TOLERANCE = 1e-3
# How far a label stored as a float may be from a whole number, for files with a rounded scale factor.
_LABEL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Geometry:
    """Where an image's voxels lie, and what is needed to write another image on exactly the same grid.

    Attributes:
        spacing: Millimetres in array order ``(z, y, x)``. A 2D file's z is 999 times its largest pixel side, nnU-Net's
            convention for "there is no neighbouring slice".
        physical: False for photographs, whose spacing is ``(1, 1, 1)`` and means nothing.
        origin: ITK's origin in mm, in the file's axis order ``(x, y[, z])``.
        direction: ITK's direction cosines, row by row; 4 or 9 numbers.
        dimension: The file's own number of axes, 2 or 3.
        nifti: Orientation part of a NIfTI header (see :mod:`samunet.imageio.nifti`); None for other formats.
    """

    spacing: tuple[float, float, float]
    physical: bool
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    dimension: int
    nifti: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a plain dict; numbers survive JSON bit for bit."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Geometry:
        """Inverse of :meth:`to_json`."""
        nifti = data.get("nifti")
        return Geometry(
            spacing=_floats(data["spacing"]),
            physical=bool(data["physical"]),
            origin=_floats(data["origin"]),
            direction=_floats(data["direction"]),
            dimension=int(data["dimension"]),
            nifti=None if nifti is None else _floats(nifti),
        )


@dataclass
class Image:
    """An image as read: ``array`` is ``(channels, z, y, x)`` float32 with raw intensities; a 2D image has z = 1."""

    array: np.ndarray
    geometry: Geometry


class Reader(ABC):
    """Reads images and labels of some file endings and writes labels.

    Attributes:
        name: As ``overwrite_image_reader_writer`` in dataset.json names it.
        endings: File endings, with the leading dot.
    """

    name: str
    endings: tuple[str, ...]

    @abstractmethod
    def read_image(self, files: Sequence[Path]) -> Image:
        """Read one case: one file per channel, or files that hold several channels each (such as RGB).

        Raises:
            SamunetError: Naming the file: unreadable or truncated, NaN or infinite voxels, or channels that differ in
                shape or spacing.
        """

    @abstractmethod
    def read_label(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """Read a label map: ``(z, y, x)`` int32 and its geometry.

        Raises:
            SamunetError: Naming the file: unreadable or truncated, several channels, or values that are not integers.
        """

    @abstractmethod
    def write_label(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """Write a label map atomically in the smallest unsigned type that holds its values.

        Args:
            array: ``(z, y, x)``, non-negative integers.
            file: Its ending is one of ``endings``.
            geometry: Of the image that the labels belong to; restored bit for bit.

        Raises:
            SamunetError: If the file cannot be written.
        """

    @abstractmethod
    def count_channels(self, file: Path) -> int:
        """Number of channels in one file, from its header alone.

        Raises:
            SamunetError: If the file cannot be read.
        """


def stack_channels(parts: Sequence[tuple[Path, np.ndarray, Geometry]]) -> Image:
    """Join the files of one case into one image.

    Args:
        parts: Per file its path, voxels ``(channels, z, y, x)`` of any number type, and geometry.

    Raises:
        SamunetError: If shapes or spacings differ, or voxels are NaN or infinite.
    """
    first_file, first, geometry = parts[0]
    array = np.empty((sum(len(voxels) for _, voxels, _ in parts), *first.shape[1:]), np.float32)
    start = 0
    for file, voxels, own in parts:
        _check_same_grid(file, voxels.shape[1:], own, first_file, first.shape[1:], geometry)
        block = array[start : start + len(voxels)]
        # A float64 beyond float32's range becomes infinite, which the check below reports with the file's name.
        with np.errstate(over="ignore"):
            block[...] = voxels
        # Minimum and maximum carry NaN and infinities along without a temporary array of the image's size.
        if not (np.isfinite(block.min()) and np.isfinite(block.max())):
            raise SamunetError(
                f"{file} contains NaN or infinite voxels",
                "replace them, for example with numpy.nan_to_num, and save the file again",
            )
        start += len(voxels)
    return Image(array, geometry)


def to_label(voxels: np.ndarray, file: Path) -> np.ndarray:
    """Turn the voxels ``(channels, z, y, x)`` of a label file into ``(z, y, x)`` int32.

    Raises:
        SamunetError: If there are several channels, or a value is not an integer that fits int32.
    """
    if len(voxels) != 1:
        raise SamunetError(
            f"{file} has {len(voxels)} channels, a label file must have one",
            "save it as one map whose voxels hold the label's value 0, 1, 2, ...",
        )
    label = voxels[0]
    if label.dtype.kind == "f":
        whole = np.rint(label)
        # Written so that NaN, which compares false with everything, counts as wrong.
        wrong = label[~(np.abs(label - whole) <= _LABEL_TOLERANCE)]
        if wrong.size:
            raise SamunetError(
                f"{file} has label values that are not whole numbers, such as {wrong[0]:.6g}",
                "labels must be 0, 1, 2, ...: if the file was resampled, use nearest-neighbour interpolation",
            )
        label = whole
    lowest, highest = label.min(), label.max()
    limits = np.iinfo(np.int32)
    if lowest < limits.min or highest > limits.max:
        raise SamunetError(f"{file} has label values from {lowest} to {highest}; they must be 0, 1, 2, ...")
    return label.astype(np.int32)


def smallest_unsigned(array: np.ndarray) -> np.ndarray:
    """``array`` (non-negative integers) as uint8, uint16 or uint32, the first that holds all its values."""
    if array.min() < 0:
        raise ValueError(f"labels must not be negative, got {array.min()}")
    highest = array.max()
    kind = next(kind for kind in (np.uint8, np.uint16, np.uint32) if highest <= np.iinfo(kind).max)
    return np.ascontiguousarray(array, dtype=kind)


def without_z_if_2d(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A label ``(z, y, x)`` with the number of axes of the file that it is written to."""
    if array.ndim != 3 or (geometry.dimension == 2 and len(array) != 1):
        raise ValueError(f"a label for a {geometry.dimension}D file cannot have shape {array.shape}")
    return array[0] if geometry.dimension == 2 else array


def _check_same_grid(
    file: Path,
    shape: tuple[int, ...],
    geometry: Geometry,
    first_file: Path,
    first_shape: tuple[int, ...],
    first_geometry: Geometry,
) -> None:
    hint = "all channels of a case must lie on the same grid: resample the file, or remove the case"
    if shape != first_shape:
        raise SamunetError(f"{file} has shape {shape} (z, y, x), but {first_file.name} has {first_shape}", hint)
    spacing, first_spacing = geometry.spacing, first_geometry.spacing
    if not np.allclose(spacing, first_spacing, rtol=_SPACING_TOLERANCE, atol=0):
        raise SamunetError(
            f"{file} has spacing {spacing} mm (z, y, x), but {first_file.name} has {first_spacing}", hint
        )
    same_place = np.allclose(geometry.origin, first_geometry.origin, atol=_SPACING_TOLERANCE)
    if not same_place or not np.allclose(geometry.direction, first_geometry.direction, atol=_SPACING_TOLERANCE):
        log.warning("%s and %s differ in origin or direction; the first file's are used", first_file, file.name)


def _floats(values: Sequence[float | None]) -> tuple[float, ...]:
    # JSON has no NaN; a header field that nobody reads may hold one, and comes back from the file as null.
    return tuple(float("nan") if value is None else float(value) for value in values)
