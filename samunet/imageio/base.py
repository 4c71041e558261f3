"""The contract of all readers: arrays, geometry, and the checks that no format can skip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samunet.errors import SamunetError

# nnU-Net's factor for the spacing across a 2D image: large enough that z is always the coarsest axis.
NO_NEIGHBOUR = 999.0
COPY_AGAIN = "copy or export the file again, or remove the case"

# Millimetres; nothing that is imaged has finer or coarser voxels, but headers in other units, and damaged ones, do.
_SMALLEST_SIDE, _LARGEST_SIDE = 1e-4, 100.0
# Headers store spacing in float32 and tools round it: smaller differences mean nothing.
SPACING_TOLERANCE = 1e-3
# How far a label stored as a float may be from a whole number, for files with a rounded scale factor.
_LABEL_TOLERANCE = 1e-4
# Origins in millimetres, and direction cosines. A thousandth is far below any voxel and above what headers round.
PLACE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Geometry:
    """Grid of an image, with all that writing another image on exactly the same grid needs.

    Attributes:
        spacing: Millimetres in array order ``(z, y, x)``. A 2D file's z is 999 times its largest pixel side, nnU-Net's
            convention for "there is no neighbouring slice"; a picture's is 1, like its pixels.
        physical: False for pictures and for TIFF volumes without a stated spacing: their spacing is ``(1, 1, 1)`` and
            means nothing.
        origin: ITK's origin in mm, in the array's axes ``(x, y[, z])``.
        direction: ITK's direction cosines, row by row; 4 or 9 numbers.
        dimension: The file's own number of axes, 2 or 3.
        placed: False where the file does not say which way its axes run; ``direction`` then means nothing.
        nifti: Of a NIfTI file, a header with size and place alone, in hexadecimal (:mod:`samunet.imageio.nifti`).
        nrrd: Of a NRRD file, the lines of its header that place the voxels (:mod:`samunet.imageio.nrrd`).
        reorient: Whether the dataset asks for volumes to be turned to one orientation before anything else, however
            oblique they are (nnU-Net's readers named ``...WithReorient``).
        cropped: Of a segmentation that may cover a part of its image's grid alone, as 3D Slicer saves them.
    """

    spacing: tuple[float, float, float]
    physical: bool
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    dimension: int
    placed: bool = True
    nifti: str | None = None
    nrrd: tuple[str, ...] | None = None
    reorient: bool = False
    cropped: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a plain dict; numbers survive JSON bit for bit."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Geometry:
        """Inverse of :meth:`to_json`."""
        return Geometry(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})


PICTURE_GEOMETRY = Geometry(
    spacing=(1.0, 1.0, 1.0), physical=False, origin=(0.0, 0.0), direction=(1.0, 0.0, 0.0, 1.0), dimension=2
)


@dataclass
class Image:
    """An image as read: ``array`` is ``(channels, z, y, x)`` float32 with raw intensities; a 2D image has z = 1."""

    array: np.ndarray
    geometry: Geometry


class Segment(NamedTuple):
    """A segment: its name, the value of its voxels, and the layer that they are in."""

    name: str
    value: int
    layer: int


class Segmentation(NamedTuple):
    """Named segments, and the layers ``(layers, z, y, x)`` that they are drawn in."""

    layers: np.ndarray
    geometry: Geometry
    segments: tuple[Segment, ...]


class Reader(ABC):
    """Reads images and labels of some file endings and writes labels. Upper-case endings are opened as well.

    Nothing else knows a format: the rest of the package asks these attributes, mostly through
    :mod:`samunet.imageio.registry`. Every method raises a SamunetError that names the file where it is missing,
    damaged, truncated or not to be written.

    Attributes:
        name: As ``overwrite_image_reader_writer`` in dataset.json names it.
        kind: ``volume``, ``tiff`` (stacks and pictures) or ``picture``.
        endings: Lower-case endings of labels and masks, with the leading dot.
        read_only: Endings of images alone, lossy or with voxels in another file; and the ending of their masks.
        directed_endings: Those of ``endings`` whose files say which way their axes run.
        segment_endings: Those of files that may hold named segments (:meth:`read_segmentation`).
        companions: By ending, those of other files in the same folder that are read along with the image.
        opens_folders: Whether a folder with DICOM files is an image.
        fits_channels: Whether grey is repeated for three channels, and equal colours are one channel.
        reorients: Whether volumes are turned to one orientation before anything else (``Geometry.reorient``).
    """

    name: str
    kind: str = "volume"
    endings: tuple[str, ...]
    read_only: Mapping[str, str] = {}
    directed_endings: tuple[str, ...] = ()
    segment_endings: tuple[str, ...] = ()
    companions: Mapping[str, tuple[str, ...]] = {}
    opens_folders: bool = False
    fits_channels: bool = False
    reorients: bool = False

    @property
    def image_endings(self) -> tuple[str, ...]:
        """Endings that are opened as images."""
        return (*self.endings, *self.read_only)

    @abstractmethod
    def read_voxels(self, file: Path, wanted: int | None = None, label: bool = False) -> tuple[np.ndarray, Geometry]:
        """One file's voxels ``(channels, z, y, x)`` in its own number type, and its geometry.

        Args:
            file: An image, or a label map.
            wanted: How many channels it should have, if that is known; for what may be fitted to it.
            label: Whether voxels are labels, to be taken as they are stored.
        """

    @abstractmethod
    def write_voxels(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """Write ``(z, y, x)``, or ``(y, x)`` of a 2D file, of an unsigned integer type atomically."""

    @abstractmethod
    def count_channels(self, file: Path) -> int:
        """Number of channels in one file, from its header alone."""

    def read_image(
        self, files: Sequence[Path], *, channels: int | None = None, tolerate_geometry: bool = False
    ) -> Image:
        """Read one case: one file per channel, or files that hold several channels each (such as RGB).

        Args:
            files: At least one.
            channels: How many there must be in all. Pictures are fitted to it where nothing is lost: three equal colour
                components become one channel, a grey picture is repeated for red, green and blue, and an alpha channel
                that is opaque everywhere is dropped. None takes the files as they are.
            tolerate_geometry: Warn where channels differ in origin or direction, and use the first file's geometry.

        Raises:
            SamunetError: Also if voxels are NaN or infinite, there is another number of channels, or these differ in
                shape, spacing, origin or direction.
        """
        wanted = channels // len(files) if channels is not None and channels % len(files) == 0 else None
        parts = [(file, *self.read_voxels(file, wanted)) for file in map(Path, files)]
        return stack_channels(parts, channels, tolerate_geometry)

    def read_label(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """Read a label map: ``(z, y, x)`` int32 and its geometry.

        Raises:
            SamunetError: Also if there are several channels, or values that are not integers.
        """
        voxels, geometry = self.read_voxels(Path(file), 1, label=True)
        return to_label(voxels, file), geometry

    def write_label(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """Write a label map atomically in the smallest unsigned type that holds its values.

        Args:
            array: ``(z, y, x)``, non-negative integers.
            file: Its ending is one of ``endings``.
            geometry: Of the image that the labels belong to; restored bit for bit.
        """
        self.check_mask(file, geometry)
        if array.ndim != 3 or (geometry.dimension == 2 and len(array) != 1):
            raise ValueError(f"a label for a {geometry.dimension}D file cannot have shape {array.shape}")
        if array.min() < 0:
            raise ValueError(f"labels must not be negative, got {array.min()}")
        highest = array.max()
        kind = next(kind for kind in (np.uint8, np.uint16, np.uint32) if highest <= np.iinfo(kind).max)
        values = np.ascontiguousarray(array[0] if geometry.dimension == 2 else array, kind)
        self.write_voxels(values, Path(file), geometry)

    def check_mask(self, file: Path, geometry: Geometry) -> None:  # noqa: B027  nothing to refuse in most formats
        """Raise a SamunetError if ``file``, not yet written, cannot hold a mask of an image."""

    def read_segmentation(self, file: Path) -> Segmentation | None:
        """A file with named segments in layers (:mod:`samunet.imageio.segments`); None if it is a plain label map."""
        return None

    def read_colours(self, file: Path) -> Image:
        """A mask as a picture: colours, or grey; transparent pixels are black, and half transparent ones an error."""
        return self.read_image([file])

    def palette(self, file: Path) -> list[list[int]]:
        """Red, green and blue of every index of a label file's palette; empty without one."""
        return []

    def in_one_file(self, file: Path) -> bytes | None:
        """A header and the voxels in another file as the content of one; None for a file that is whole."""
        return None


def stack_channels(
    parts: Sequence[tuple[Path, np.ndarray, Geometry]], channels: int | None = None, tolerate_geometry: bool = False
) -> Image:
    """Join the files of one case into one image.

    Args:
        parts: Per file its path, voxels ``(channels, z, y, x)`` of any real number type, and geometry.
        channels, tolerate_geometry: See :meth:`Reader.read_image`.

    Raises:
        SamunetError: If the number of channels is wrong, grids differ, or voxels are NaN, infinite or complex.
    """
    from samunet.imageio.same_grid import Grid, on_grid

    first_file, first, geometry = parts[0]
    place = Grid(first_file, first.shape[1:], geometry)
    total = sum(len(voxels) for _, voxels, _ in parts)
    if channels is not None and total != channels:
        raise _wrong_channels([file for file, *_ in parts], total, channels)
    array = np.empty((total, *first.shape[1:]), np.float32)
    start = 0
    for file, voxels, own in parts:
        _check_voxels(voxels, file)
        if own.physical != geometry.physical:
            raise SamunetError(
                f"of {first_file} and {file.name} one states a spacing and the other none", "save them in the same way"
            )
        voxels = on_grid(voxels, Grid(file, voxels.shape[1:], own), place, tolerate_geometry)
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


def fit_channels(pixels: np.ndarray, wanted: int | None, alpha: bool, file: Path) -> np.ndarray:
    """Fit a picture to the number of channels that is wanted, where nothing is lost by it.

    Args:
        pixels: ``(channels, z, y, x)``.
        wanted: None takes the picture as it is, without an opaque alpha channel.
        alpha: Whether the last channel is transparency. It is kept where ``wanted`` counts it.
        file: Named in the error.

    Returns:
        Its channels; another number than ``wanted`` if they cannot be fitted, which the caller must check.

    Raises:
        SamunetError: If a pixel is transparent.
    """
    if alpha and len(pixels) != wanted:
        opaque = 1 if pixels.dtype.kind in "bf" else np.iinfo(pixels.dtype).max
        share = float(np.mean(pixels[-1] != opaque))
        if share:
            plain = "L" if len(pixels) == 2 else "RGB"
            raise SamunetError(
                f"{file} has an alpha channel that is not opaque in {share:.1%} of its pixels; images must be grey or "
                "RGB",
                f"remove the transparency; with Pillow: Image.open(file).convert('{plain}').save(file)",
            )
        pixels = pixels[:-1]
    if wanted == 1 and len(pixels) == 3 and all(np.array_equal(pixels[0], other) for other in pixels[1:]):
        return pixels[:1]
    if wanted == 3 and len(pixels) == 1:
        return np.repeat(pixels, 3, axis=0)
    return pixels


def check_spacing(spacing: Sequence[float], file: Path, field: str = "spacing") -> None:
    """Raise a SamunetError unless all voxel sides are from 0.0001 to 100 mm, or 999, nnU-Net's for a single slice.

    Args:
        spacing: In mm.
        file, field: Named in the error: the field as its header calls it, such as ``pixdim``.
    """
    # Written so that NaN, which compares false with everything, counts as wrong.
    if all(_SMALLEST_SIDE <= side <= _LARGEST_SIDE or side == NO_NEIGHBOUR for side in spacing):
        return
    sides = ", ".join(f"{side:g}" for side in spacing)
    raise SamunetError(
        f"{file}: the voxels' sides in its header ({field}) are {sides} mm; they must be from {_SMALLEST_SIDE:g} to "
        f"{_LARGEST_SIDE:g} mm",
        "correct the header; sides in micrometres or metres must be converted to millimetres",
    )


def to_label(voxels: np.ndarray, file: Path) -> np.ndarray:
    """Turn the voxels ``(channels, z, y, x)`` of a label file into ``(z, y, x)`` int32.

    Raises:
        SamunetError: If there are several channels or no voxels, or a value is not an integer that fits int32.
    """
    _check_voxels(voxels, file)
    if len(voxels) != 1:
        raise SamunetError(
            f"{file} has {len(voxels)} channels, a label file must have one",
            "save it as one map whose voxels hold the label's value 0, 1, 2, ...",
        )
    label = voxels[0]
    if label.dtype.kind == "f":
        whole = np.rint(label)
        # Written so that NaN, which compares false with everything, counts as wrong; infinity gives NaN.
        with np.errstate(invalid="ignore"):
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
    return np.ascontiguousarray(label, np.int32)


def _check_voxels(voxels: np.ndarray, file: Path) -> None:
    if voxels.size == 0:
        raise SamunetError(f"{file} holds no voxels: its shape is {voxels.shape[1:]} (z, y, x)", COPY_AGAIN)
    if voxels.dtype.kind not in "buif":
        raise SamunetError(
            f"{file} has voxels of type {voxels.dtype}; only real numbers can be read",
            "save one file per channel, such as case_0000 with the magnitude and case_0001 with the phase",
        )


def _wrong_channels(files: Sequence[Path], got: int, expected: int) -> SamunetError:
    what = f"{files[0]} has" if len(files) == 1 else f"{files[0]} and {', '.join(file.name for file in files[1:])} have"
    return SamunetError(
        f"{what} {got} channel{'s' * (got != 1)}, but channel_names in dataset.json lists {expected}",
        "give one file per channel (case_0000, case_0001, ...) or one file that holds exactly these channels",
    )
