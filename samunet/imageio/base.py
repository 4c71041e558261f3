"""The contract of every reader: arrays ``(channels, z, y, x)``, spacing in this order, geometry given back exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError


@dataclass(frozen=True)
class Geometry:
    """Where an image lies in space.

    Attributes:
        spacing: Millimetres per voxel in array order ``(z, y, x)``.
        physical: False for photographs, whose spacing is ``(1, 1, 1)`` and means nothing.
        origin, direction: As the file has them, in the file's own axis order.
        dimension: Number of axes of the file: 2 or 3.
    """

    spacing: tuple[float, float, float]
    physical: bool
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    dimension: int

    def to_json(self) -> dict:
        """As plain data."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict) -> Geometry:
        """Inverse of :meth:`to_json`."""
        return Geometry(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})


@dataclass
class Image:
    """``array`` ``(channels, z, y, x)`` float32 with its geometry."""

    array: np.ndarray
    geometry: Geometry


class Reader(ABC):
    """Reads and writes files of some endings.

    Attributes:
        name: What dataset.json may ask for under ``overwrite_image_reader_writer``.
        endings: File endings it handles.
    """

    name: str
    endings: tuple[str, ...]

    @abstractmethod
    def read_image(self, files: Sequence[Path]) -> Image:
        """Read one image from one file per channel, or from one file that has several.

        Raises:
            SamunetError: If a file is unreadable or empty, has NaN or infinite values, or channels do not fit together.
        """

    @abstractmethod
    def read_label(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """Read a label map ``(z, y, x)`` int32.

        Raises:
            SamunetError: If the file is unreadable, or its values are not whole numbers of one channel.
        """

    @abstractmethod
    def write_label(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """Write a label map ``(z, y, x)`` in the geometry of the image it belongs to, atomically."""


def check_finite(array: np.ndarray, file: Path) -> None:
    """Raise a SamunetError if the array has NaN or infinite values."""
    # A sum is not finite if any value is not: one pass without a mask as large as the image.
    if not np.isfinite(array.sum(dtype=np.float64)):
        raise SamunetError(f"{file} has voxels that are NaN or infinite", "replace them, for example with 0")


def whole_numbers(array: np.ndarray, file: Path) -> np.ndarray:
    """A label array as int32.

    Raises:
        SamunetError: If some value is not a whole number.
    """
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        if not np.array_equal(rounded, array):
            raise SamunetError(f"{file} has label values that are not whole numbers", "labels must be 0, 1, 2, ...")
        array = rounded
    return array.astype(np.int32)


def smallest_unsigned(array: np.ndarray) -> np.ndarray:
    """The array as uint8 if its values fit, else as uint16."""
    return array.astype(np.uint8 if array.max(initial=0) <= 255 else np.uint16, copy=False)


def stack_channels(arrays: list[np.ndarray], geometries: list[Geometry], files: Sequence[Path]) -> Image:
    """Join channels read from several files.

    Args:
        arrays: Each ``(channels, z, y, x)``.

    Raises:
        SamunetError: If shapes or spacings differ.
    """
    for array, geometry, file in zip(arrays, geometries, files):
        same = np.allclose(geometry.spacing, geometries[0].spacing, rtol=1e-3)
        if array.shape[1:] != arrays[0].shape[1:] or not same:
            raise SamunetError(
                f"{file.name} has shape {array.shape[1:]} and spacing {geometry.spacing}, {files[0].name} "
                f"{arrays[0].shape[1:]} and {geometries[0].spacing}",
                "all channels of a case must lie on the same grid: resample one of them",
            )
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return Image(joined.astype(np.float32, copy=False), geometries[0])
