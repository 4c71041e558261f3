"""Base of volume formats: a parsed header gives the layout and place of the voxels; reading is the same for all."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN, NO_NEIGHBOUR, Geometry, check_spacing
from samunet.imageio.border import check_size, opened, reading, take, take_text, unpacked
from samunet.imageio.itk import itk, written

# Of a text header, in bytes; a segmentation of hundreds of structures has some ten thousand.
LONGEST_HEADER = 1 << 20
LONGEST_FIELD = 10_000
MOST_AXES = 5  # as ITK
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,4})?|[-+]?(nan|inf)", re.IGNORECASE)
_INTEGER = re.compile(r"[-+]?\d{1,18}")
_LONGEST_WORD = 64
_SHOWN = 60
_SIDE_BY_SIDE = re.compile(r"[^\s%/\\\x00-\x1f]([^%/\\\x00-\x1f]{0,250}[^\s%/\\\x00-\x1f])?")
# How far axes may be from right angles (cosine) and their vectors from length 1: headers round to three digits.
_SQUARE = 2e-3


class Layout(NamedTuple):
    """Storage of the voxels, as a header announces it.

    Attributes:
        header: As the format's own functions want it.
        sizes: Of all axes as they are stored, the one that runs fastest first.
        dtype: Of a stored value.
        end: Bytes of the header; the voxels follow.
        data: Name of a file in the same folder that has the voxels instead; None without one.
        skip: Bytes to pass over before the voxels; -1 where they are the last of their file.
        packing: ``raw``, ``gzip``, ``bzip2``, ``zlib`` or ``text``.
        components: The axis of a voxel's components, if there is one. Axes beyond the third in space are channels too.
    """

    header: Any
    sizes: Sequence[int]
    dtype: np.dtype
    end: int
    data: str | None = None
    skip: int = 0
    packing: str = "raw"
    components: int | None = None

    @property
    def axes(self) -> list[int]:
        """Those that are not components of a voxel."""
        return [axis for axis in range(len(self.sizes)) if axis != self.components]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(channels, z, y, x)``."""
        x, y, z = [*(self.sizes[axis] for axis in self.axes), 1][:3]
        return math.prod(self.sizes) // (x * y * z), z, y, x


class VolumeFormat(ABC):
    """A format of volumes; ``SimpleITKReader.formats`` lists them. All methods raise SamunetErrors that name the file.

    Attributes:
        endings: Lower-case endings that are read and written.
        itk: ITK's name of it, which writes it.
        read_only: See :class:`samunet.imageio.base.Reader`, as for ``companions``.
        directed: Whether files say which way their axes run.
        gzipped: Whether a whole file may be gzip.
    """

    endings: tuple[str, ...]
    itk: str
    read_only: Mapping[str, str] = {}
    companions: Mapping[str, tuple[str, ...]] = {}
    directed: bool = True
    gzipped: bool = False

    @abstractmethod
    def parse(self, stream: BinaryIO, file: Path) -> Layout:
        """The header at the beginning of ``stream``, checked."""

    @abstractmethod
    def geometry(self, layout: Layout, file: Path) -> Geometry:
        """The place of the voxels, checked."""

    def join(self, head: bytes, layout: Layout, voxels: bytes) -> bytes:
        """A header and the content of its data file as one file."""
        raise NotImplementedError

    def layout(self, file: Path) -> Layout:
        """The header of a file."""
        with opened(file, gzipped=self.gzipped) as stream:
            return self.parse(stream, file)

    def read(self, file: Path) -> tuple[np.ndarray, Geometry, Layout]:
        """Voxels ``(channels, z, y, x)`` in the file's number type, geometry, and layout."""
        layout = self.layout(file)
        check_size(layout.sizes, file)
        with reading(file):
            geometry = self.geometry(layout, file)
        data, start = (file, layout.end) if layout.data is None else (_beside(file, layout.data), 0)
        number = math.prod(layout.sizes)
        size = number * layout.dtype.itemsize
        with opened(data, gzipped=self.gzipped) as stream:
            stream.seek(start + layout.skip if layout.skip >= 0 else max(start, data.stat().st_size - size))
            if layout.packing == "text":
                array = take_text(stream, number, layout.dtype, data)
            else:
                array = take(unpacked(stream, layout.packing), size, data).view(layout.dtype)
        array = array.reshape(layout.sizes[::-1])
        if layout.components is not None:
            array = np.moveaxis(array, array.ndim - 1 - layout.components, 0)
        return array.reshape(layout.shape), geometry, layout

    def in_one_file(self, file: Path) -> bytes | None:
        """See :meth:`samunet.imageio.base.Reader.in_one_file`."""
        layout = self.layout(file)
        if layout.data is None:
            return None
        with reading(file):
            return self.join(file.read_bytes()[: layout.end], layout, _beside(file, layout.data).read_bytes())

    def write(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """Write ``(z, y, x)`` or ``(y, x)`` of an unsigned integer type atomically."""
        image = itk().GetImageFromArray(array)
        image.SetSpacing(geometry.spacing[::-1][: geometry.dimension])
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
        with written(image, file, self.itk) as temporary:
            self.restore(temporary, geometry)

    def restore(self, file: Path, geometry: Geometry) -> None:  # noqa: B027  most formats round nothing
        """Give a file that ITK has just written the last digits of its place back."""


def wrong(file: Path, field: str, text: str, allowed: str) -> SamunetError:
    """The error for a header's field that holds what it may not."""
    shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
    return SamunetError(f"{file}: {field!r} in its header is {shown}; it must be {allowed}", COPY_AGAIN)


def numbers(text: str, file: Path, field: str, count: int | None = None, *, whole: bool = False) -> list:
    """The numbers of a field, separated by spaces; a SamunetError unless there are ``count`` of them, if given."""
    words, form, what = text.split(), _INTEGER if whole else _NUMBER, "whole number" if whole else "number"
    if any(len(word) > _LONGEST_WORD or not form.fullmatch(word) for word in words) or (whole and not words):
        raise wrong(file, field, text, f"{what}s")
    if count is not None and len(words) != count:
        raise wrong(file, field, text, f"{count} {what}{'s' * (count != 1)}")
    return [int(word) if whole else float(word) for word in words]


def integer(text: str, file: Path, field: str) -> int:
    """The one whole number of a field; a SamunetError if it holds anything else."""
    return numbers(text, file, field, 1, whole=True)[0]


def sizes_of(text: str, file: Path, field: str, axes: int) -> list[int]:
    """The sizes of all axes, x first; a SamunetError unless there are ``axes`` of them, all at least 1."""
    sizes = numbers(text, file, field, axes, whole=True)
    if min(sizes) < 1:
        raise wrong(file, field, text, f"{axes} sizes of 1 or more")
    return sizes


def check_name(file: Path, name: str, field: str) -> None:
    """Raise a SamunetError unless a header names one data file in its own folder."""
    plain = _SIDE_BY_SIDE.fullmatch(name) and PurePosixPath(name).name == name == PureWindowsPath(name).name
    if not plain or name in (".", "..", file.name) or name.split()[0].upper() == "LIST":
        raise wrong(file, field, name, "the name of one file in the same folder")


def _beside(file: Path, name: str) -> Path:
    found = file.with_name(name)
    if not found.is_file():
        raise SamunetError(
            f"{file} keeps its voxels in another file, {name}, which is not beside it",
            f"copy {name} into {file.parent}, or export the image as one file (.nii.gz, .mha or .nrrd)",
        )
    return found


def geometry_of(
    file: Path,
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: np.ndarray,
    fields: tuple[str, str],
    *,
    right_angled: bool = True,
    **more: Any,
) -> Geometry:
    """A file's geometry, checked.

    Args:
        file: Named in errors.
        spacing: Per axis, x first, in mm; axes beyond the third do not count.
        origin: In mm, of as many axes.
        direction: Square matrix; its columns are the axes.
        fields: What the header calls spacing and direction.
        right_angled: Whether axes must be at right angles to each other.
        more: Of :class:`Geometry`.

    Raises:
        SamunetError: If spacing is not sane, a number is not finite, or axes are not at right angles.
    """
    dimension = min(len(spacing), 3)
    sides = tuple(float(side) for side in spacing[:dimension])[::-1]
    check_spacing(sides, file, fields[0])
    place = tuple(float(number) for number in origin[:dimension])
    square = np.asarray(direction, float)[:dimension, :dimension]
    if not (np.isfinite(place).all() and np.isfinite(square).all()):
        raise SamunetError(f"{file} has an origin or a direction that is not a number in its header", COPY_AGAIN)
    if right_angled and np.abs(square.T @ square - np.eye(dimension)).max() > _SQUARE:
        raise SamunetError(
            f"{file} has axes that are not at right angles to each other, or not of length 1 ({fields[1]})",
            "resample it onto a right-angled grid, for example with 3D Slicer (Resample Image), and save it again",
        )
    return Geometry(
        spacing=sides if dimension == 3 else (NO_NEIGHBOUR * max(sides), *sides),
        physical=True,
        origin=place,
        direction=tuple(square.ravel().tolist()),
        dimension=dimension,
        **more,
    )
