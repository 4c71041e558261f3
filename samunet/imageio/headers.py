"""What headers of volumes have in common: words that are checked numbers, one data file beside, and a sane geometry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN, NO_NEIGHBOUR, Geometry, check_spacing

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


def wrong(file: Path, field: str, text: str, allowed: str) -> SamunetError:
    """The error for a header's field that holds what it may not."""
    shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
    return SamunetError(f"{file}: {field!r} in its header is {shown}; it must be {allowed}", COPY_AGAIN)


def numbers(text: str, file: Path, field: str, count: int | None = None) -> list[float]:
    """The numbers of a field, separated by spaces; ``count`` of them if that is given.

    Raises:
        SamunetError: If a word is no number, or there are more or fewer.
    """
    words = text.split()
    if any(len(word) > _LONGEST_WORD or not _NUMBER.fullmatch(word) for word in words):
        raise wrong(file, field, text, "numbers")
    if count is not None and len(words) != count:
        raise wrong(file, field, text, f"{count} number{'s' * (count != 1)}")
    return [float(word) for word in words]


def integers(text: str, file: Path, field: str, count: int | None = None) -> list[int]:
    """As :func:`numbers`, for whole ones."""
    words = text.split()
    if not words or any(not _INTEGER.fullmatch(word) for word in words):
        raise wrong(file, field, text, "whole numbers")
    if count is not None and len(words) != count:
        raise wrong(file, field, text, f"{count} whole number{'s' * (count != 1)}")
    return [int(word) for word in words]


def sizes_of(text: str, file: Path, field: str, axes: int) -> list[int]:
    """The sizes of all axes, x first.

    Raises:
        SamunetError: If there are not ``axes`` of them, or one is below 1.
    """
    sizes = integers(text, file, field, axes)
    if min(sizes) < 1:
        raise wrong(file, field, text, f"{axes} sizes of 1 or more")
    return sizes


def beside(file: Path, name: str, field: str) -> Path:
    """The data file that a header names: a plain file name, in the header's own folder.

    Raises:
        SamunetError: If it names another folder, several files, the header itself, or a file that is missing.
    """
    check_name(file, name, field)
    found = file.with_name(name)
    if not found.is_file():
        raise SamunetError(
            f"{file} keeps its voxels in another file, {name}, which is not beside it",
            f"copy {name} into {file.parent}, or export the image as one file (.nii.gz, .mha or .nrrd)",
        )
    return found


def check_name(file: Path, name: str, field: str) -> None:
    """Raise a SamunetError unless a header names one data file in its own folder."""
    plain = _SIDE_BY_SIDE.fullmatch(name) and PurePosixPath(name).name == name == PureWindowsPath(name).name
    if not plain or name in (".", "..", file.name) or name.split()[0].upper() == "LIST":
        raise wrong(file, field, name, "the name of one file in the same folder")


def geometry_of(
    file: Path,
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: np.ndarray,
    fields: tuple[str, str],
    *,
    placed: bool,
    nrrd: tuple[str, ...] | None = None,
    nifti: str | None = None,
) -> Geometry:
    """A file's geometry, checked.

    Args:
        file: Named in errors.
        spacing: Per axis, x first, in mm; axes beyond the third do not count.
        origin: In mm, of as many axes.
        direction: Square matrix; its columns are the axes.
        fields: What the header calls spacing and direction.
        placed: See :class:`Geometry`, as for the others.
        nrrd: See :class:`Geometry`.
        nifti: See :class:`Geometry`.

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
    # ITK has seen to that for NIfTI, whose 2D images may stand upright on their plane.
    if nifti is None and np.abs(square.T @ square - np.eye(dimension)).max() > _SQUARE:
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
        placed=placed,
        nifti=nifti,
        nrrd=nrrd,
    )
