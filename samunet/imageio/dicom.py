"""A folder with one DICOM series, read as one image through SimpleITK.

ITK sorts the slices by position and applies the rescale slope and intercept, so CT comes in Hounsfield units. It puts
the slices at their mean distance even where some are missing; that is an error here. A tilted gantry, which moves each
slice within its plane, is a warning: the voxels are as the scanner made them, but the volume's geometry has no tilt.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path
from samunet.imageio.base import COPY_AGAIN
from samunet.imageio.itk import itk, reason

if TYPE_CHECKING:
    import SimpleITK as sitk

log = logging.getLogger(__name__)

_DESCRIPTION, _MODALITY, _POSITION, _ORIENTATION = "0008|103e", "0008|0060", "0020|0032", "0020|0037"
_MAGIC_AT, _MAGIC = 128, b"DICM"
# The modality as it lies in the first bytes of a file: tag, with or without a type, length, capital letters.
_RAW_MODALITY, _HEAD = re.compile(rb"\x08\x00\x60\x00(?:CS..|..\x00\x00)([A-Z]{2,16} ?)", re.DOTALL), 4096
# How far distances between slices may be from their median, as a share of it. Rounded positions are far below, a
# missing slice is at 1.
_UNEVEN = 0.1
# Shift within the plane per step along the normal; 0.02 is about one degree of gantry tilt.
_TILT = 0.02


def is_dicom_folder(path: Path) -> bool:
    """Whether a path is a folder that directly holds a DICOM file, told by its content. Subfolders do not count."""
    path = Path(path)
    return path.is_dir() and any(_is_dicom(file) for file in sorted(path.iterdir()))


def read_series(folder: Path) -> sitk.Image:
    """Read the one DICOM series in a folder.

    Raises:
        SamunetError: If there is no series or more than one (listed with description and number of files), a file is
            damaged, or slices are missing, doubled or unevenly spaced.
    """
    files = _series_files(folder)
    _check_left_out(folder, files)
    _check_positions(folder, files)
    try:
        # A file of several frames is a volume by itself; a series reader would add a fourth axis.
        return itk().ReadImage(files if len(files) > 1 else files[0], imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise SamunetError(f"could not read the DICOM series in {folder}: {reason(error)}", COPY_AGAIN) from error


def write_as_nifti(folder: Path, file: Path) -> None:
    """Write the one DICOM series in a folder as one NIfTI file, in its own number type and with nothing of its header.

    Raises:
        SamunetError: As :func:`read_series`, or if the file cannot be written.
    """
    image = read_series(folder)
    try:
        with atomic_path(file) as temporary:
            itk().WriteImage(image, str(temporary), useCompression=True, imageIO="NiftiImageIO")
    except RuntimeError as error:
        raise SamunetError(f"could not write {file}: {reason(error)}", "check the folder and the free space") from error


def count_components(folder: Path) -> int:
    """Number of channels of the one DICOM series in a folder, from the header of its first file.

    Raises:
        SamunetError: If there is no series or more than one.
    """
    return _header(_series_files(folder)[0]).GetNumberOfComponents()


def _series_files(folder: Path) -> Sequence[str]:
    if not is_dicom_folder(folder):
        raise SamunetError(
            f"{folder} is a folder without DICOM files",
            "give an image file, or the folder that holds the files of one DICOM series (subfolders are not searched)",
        )
    series = itk().ImageSeriesReader
    try:
        found = {uid: series.GetGDCMSeriesFileNames(str(folder), uid) for uid in series.GetGDCMSeriesIDs(str(folder))}
    except RuntimeError as error:
        raise SamunetError(f"could not read {folder}: {reason(error)}", COPY_AGAIN) from error
    if len(found) != 1:
        listed = "".join(f"\n  - {_describe(files)}" for files in found.values())
        raise SamunetError(
            f"{folder} holds {len(found) or 'no'} DICOM series; exactly one can be read{listed}",
            "give each series a folder of its own" if found else COPY_AGAIN,
        )
    return next(iter(found.values()))


def _is_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            stream.seek(_MAGIC_AT)
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _check_left_out(folder: Path, files: Sequence[str]) -> None:
    """GDCM passes over damaged images as over files that hold none: reports, structures, DICOMDIR."""
    header, known = _header(files[0]), {Path(file).name for file in files}
    modality = header.GetMetaData(_MODALITY).strip() if header.HasMetaDataKey(_MODALITY) else None
    for file in sorted(folder.iterdir()):
        if file.name not in known and file.name != "DICOMDIR" and _is_dicom(file):
            own = _raw_modality(file)
            if own is None or own == modality:
                raise SamunetError(f"{file} is a damaged or truncated DICOM image", "export the whole series again")


def _raw_modality(file: Path) -> str | None:
    with file.open("rb") as stream:
        found = _RAW_MODALITY.search(stream.read(_HEAD))
    return None if found is None else found[1].decode("ascii").strip()


def _describe(files: Sequence[str]) -> str:
    header = _header(files[0])
    tags = [header.GetMetaData(tag).strip() for tag in (_DESCRIPTION, _MODALITY) if header.HasMetaDataKey(tag)]
    return f"{', '.join(filter(None, tags)) or 'no description'}: {len(files)} files, such as {Path(files[0]).name}"


def _header(file: str) -> sitk.ImageFileReader:
    header = itk().ImageFileReader()
    header.SetFileName(file)
    header.SetImageIO("GDCMImageIO")
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise SamunetError(f"could not read {file}: {reason(error)}", COPY_AGAIN) from error
    return header


def _check_positions(folder: Path, files: Sequence[str]) -> None:
    headers = [_header(file) for file in files]
    lacking = [Path(file).name for file, header in zip(files, headers) if not _has_position(header)]
    if len(files) < 2:
        return
    if lacking:
        raise SamunetError(
            f"{folder}: {len(lacking)} of {len(files)} DICOM files have no position, such as {lacking[0]}",
            "only a series of parallel slices can be read; convert other files to PNG or NIfTI first",
        )
    positions = np.array([_numbers(header, _POSITION) for header in headers])
    row, column = np.reshape(_numbers(headers[0], _ORIENTATION), (2, 3))
    normal = np.cross(row, column)
    steps = np.diff(positions, axis=0)
    along = steps @ normal
    usual = float(np.median(along))
    wrong = np.flatnonzero(~(np.abs(along - usual) <= _UNEVEN * abs(usual)))
    if usual == 0 or wrong.size:
        first = int(wrong[0]) if wrong.size else 0
        names = " and ".join(Path(file).name for file in files[first : first + 2])
        raise SamunetError(
            f"{folder}: slices are missing, doubled or unevenly spaced: {names} are {abs(along[first]):.4g} mm apart, "
            f"the others {abs(usual):.4g} mm",
            "export the whole series again; if it holds several volumes (phases, echoes), give each its own folder",
        )
    if np.linalg.norm(steps - np.outer(along, normal), axis=1).max() > _TILT * abs(usual):
        log.warning("%s: tilted gantry; the mask will have the right voxels, but no tilt in its geometry", folder)


def _has_position(header: sitk.ImageFileReader) -> bool:
    return all(header.HasMetaDataKey(tag) for tag in (_POSITION, _ORIENTATION))


def _numbers(header: sitk.ImageFileReader, tag: str) -> list[float]:
    return [float(number) for number in header.GetMetaData(tag).split("\\")]
