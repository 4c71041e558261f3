"""A folder with one DICOM series, read as one image.

Slices are sorted by position, and each one's rescale slope and intercept are applied, so CT comes in Hounsfield units.
Frames of one file are slices like those of several files. What makes no volume is an error: slices that are missing,
doubled or unevenly spaced, or that differ in size, orientation, spacing or kind of pixel. A tilted gantry, which moves
each slice within its plane, is a warning: the voxels are as the scanner made them, but the volume's geometry has no
tilt.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import Geometry
from samunet.imageio.dicom_file import Frame, Header, PixelReader, is_dicom, raw_modality, read_dataset, read_header
from samunet.imageio.itk import itk, written
from samunet.imageio.volume import geometry_of

log = logging.getLogger(__name__)

# How far distances between slices may be from their median, as a share of it. Rounded positions are far below, a
# missing slice is at 1.
_UNEVEN = 0.1
# Shift within the plane per step along the normal; 0.02 is about one degree of gantry tilt.
_TILT = 0.02
# How far cosines and, relatively, pixel sides of a series may differ: as much as they are rounded.
_ROUNDED = 1e-3
_LISTED = 5
_OWN_FOLDER = "give each series a folder of its own"
_SEVERAL_VOLUMES = (
    "export the whole series again; if it holds several volumes (phases, echoes), give each its own folder"
)


def is_dicom_folder(path: Path) -> bool:
    """Whether a path is a folder with a DICOM file (by its content) directly in it."""
    path = Path(path)
    return path.is_dir() and (any(_files(path)) or is_dicom(path / "DICOMDIR"))


def patient_id(folder: Path) -> str:
    """The patient's ID in the first file of a DICOM series; empty if there is none."""
    file = next(_files(folder), None)
    try:
        tags = {} if file is None else read_dataset(file, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(tags.get("PatientID") or "").strip()
    except (SamunetError, ValueError):
        return ""


def read_series(folder: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels ``(channels, z, y, x)`` of the one DICOM series in a folder, and their geometry.

    Raises:
        SamunetError: If there is no series or more than one (listed with description and number of files), a file or a
            value in it is damaged, or slices are missing, doubled, unevenly spaced, or do not belong to one volume.
    """
    headers = _series(folder)
    _check_alike(headers)
    frames = [frame for header in headers for frame in header.frames]
    order, distance = _order(folder, frames)
    first = frames[order[0]]
    with PixelReader() as reader:
        voxels = _voxels(headers, np.argsort(order), reader)
    direction = np.eye(3)
    if first.orientation is not None:
        row, column = np.reshape(first.orientation, (2, 3))
        direction = np.stack([row, column, np.cross(row, column)], axis=1)
    spacing, origin = (first.spacing[1], first.spacing[0], distance), first.position or (0.0, 0.0, 0.0)
    geometry = geometry_of(folder, spacing, origin, direction, ("PixelSpacing and positions", "orientation"))
    return voxels[None] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0), geometry


def write_as_nifti(folder: Path, file: Path) -> None:
    """Write the one DICOM series in a folder as one NIfTI file, in its own number type, with none of its header."""
    voxels, geometry = read_series(folder)
    several = len(voxels) > 1
    image = itk().GetImageFromArray(np.moveaxis(voxels, 0, -1) if several else voxels[0], isVector=several)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with written(image, file):
        pass


def count_components(folder: Path) -> int:
    """Number of channels of the one DICOM series in a folder, from the headers alone."""
    return _series(folder)[0].components


def _files(folder: Path) -> Iterator[Path]:
    """The DICOM files that lie directly in a folder, sorted, without their list."""
    for file in sorted(folder.iterdir()):
        if file.name != "DICOMDIR" and not file.name.startswith(".") and file.is_file() and is_dicom(file):
            yield file


def _series(folder: Path) -> list[Header]:
    """The headers of the one series in a folder, by file name."""
    files = list(_files(folder))
    if not files:
        raise SamunetError(
            f"{folder} is a folder without DICOM files",
            "give an image file, or the folder that holds the files of one DICOM series (subfolders are not searched)",
        )
    found = {file: read_header(file) for file in files}
    headers = [header for header in found.values() if header is not None]
    _check_left_out([file for file, header in found.items() if header is None], {one.modality for one in headers})
    series: dict[str, list[Header]] = {}
    for header in headers:
        series.setdefault(header.uids[1], []).append(header)
    if len(series) > 1 and not _one_slice_each(headers, len(series)):
        lines = []
        for own in series.values():
            words = ", ".join(filter(None, [own[0].description, own[0].modality])) or "no description"
            lines.append(f"\n  - {words}: {len(own)} file{'s' * (len(own) > 1)}, such as {own[0].file.name}")
        rest = f"\n  - and {len(lines) - _LISTED} more" * (len(lines) > _LISTED)
        raise SamunetError(
            f"{folder} holds {len(lines)} DICOM series; exactly one can be read{''.join(lines[:_LISTED])}{rest}",
            _OWN_FOLDER,
        )
    return headers


def _check_left_out(files: Sequence[Path], modalities: set[str]) -> None:
    """Files without pixels are reports and structures; one of the kind of the images must be a damaged image."""
    for file in files:
        own = raw_modality(file)
        if own is None or own in modalities or not modalities:
            raise SamunetError(f"{file} is a damaged or truncated DICOM image", "export the whole series again")


def _one_slice_each(headers: Sequence[Header], series: int) -> bool:
    """Whether each slice of a volume was made a series of its own, as some scanners do: the rest agrees."""
    frames = [frame for header in headers for frame in header.frames]
    return (
        series == len(headers) == len(frames)
        and len({(*header.uids[::2], header.modality, header.description) for header in headers}) == 1
        and all(frame.position is not None and frame.orientation is not None for frame in frames)
        and _difference(headers) is None
        and len({frame.position for frame in frames}) == len(frames)
    )


def _difference(headers: Sequence[Header]) -> tuple[Path, str, str, str] | None:
    """The first file that differs from the first one of a series: what, its value, and that of the first."""

    def properties(header: Header, frame: Frame) -> list[tuple[str, tuple | None, float, float]]:
        return [
            ("Rows and Columns (0028,0010; 0028,0011)", header.size, 0, 0),
            ("PhotometricInterpretation (0028,0004)", (header.photometric,), 0, 0),
            ("SamplesPerPixel (0028,0002)", (header.components,), 0, 0),
            ("ImageOrientationPatient (0020,0037)", frame.orientation, 0, _ROUNDED),
            ("PixelSpacing (0028,0030)", frame.spacing, _ROUNDED, 0),
        ]

    def shown(values: Sequence[float | str] | None) -> str:
        texts = (value if isinstance(value, str) else f"{value:.6g}" for value in values or ())
        return "not stated" if values is None else "\\".join(texts)

    first = properties(headers[0], headers[0].frames[0])
    for header in headers:
        for frame in header.frames:
            for (what, own, relative, absolute), (_, expected, *_) in zip(properties(header, frame), first):
                rounded = (relative or absolute) and None not in (own, expected)
                if own != expected and not (rounded and np.allclose(own, expected, rtol=relative, atol=absolute)):
                    return header.file, what, shown(own), shown(expected)
    return None


def _check_alike(headers: Sequence[Header]) -> None:
    found = _difference(headers)
    if found is not None:
        file, what, own, expected = found
        other = "its first frame" if file == headers[0].file else headers[0].file.name
        raise SamunetError(
            f"{file}: {what} is {own}, but that of {other} is {expected}: they are not slices of one volume",
            "only a series of parallel slices of one size can be read; give localizers and other volumes a folder of "
            "their own",
        )


def _order(folder: Path, frames: Sequence[Frame]) -> tuple[np.ndarray, float]:
    """Frames from the first to the last along the normal of their plane, and their distance in mm."""
    stored = np.arange(len(frames))
    missing = [frame.file.name for frame in frames if frame.position is None or frame.orientation is None]
    if len(frames) == 1:
        return stored, frames[0].distance or 1.0
    if len(missing) == len(frames) and len(set(missing)) == 1:
        # Frames of one file in time, as ultrasound has them, or in space where the file does not say so.
        if frames[0].distance is None:
            log.warning("%s: %d frames without positions, taken as slices 1 mm apart", folder, len(frames))
        return stored, frames[0].distance or 1.0
    if missing:
        what = "DICOM files" if len({frame.file for frame in frames}) > 1 else "frames"
        raise SamunetError(
            f"{folder}: {len(missing)} of {len(frames)} {what} have no position, such as {missing[0]}",
            "only a series of parallel slices can be read; convert other files to PNG or NIfTI first",
        )
    normal = np.cross(*np.reshape(frames[0].orientation, (2, 3)))
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal, kind="stable")
    steps = np.diff(positions[order], axis=0)
    along = steps @ normal
    usual = float(np.median(along))
    wrong = np.flatnonzero(~(np.abs(along - usual) <= _UNEVEN * usual))
    if usual <= 0 or wrong.size:
        at = int(along.argmin()) if usual <= 0 else int(wrong[0])
        others = f", the others {usual:.4g} mm" if usual > 0 else ""
        raise SamunetError(
            f"{folder}: slices are missing, doubled or unevenly spaced: {_pair(frames, order, at)} are "
            f"{along[at]:.4g} mm apart{others}",
            _SEVERAL_VOLUMES,
        )
    sideways = steps - np.outer(along, normal)
    usual_shift = np.median(sideways, axis=0)
    stray = np.linalg.norm(sideways - usual_shift, axis=1)
    if stray.max() > _UNEVEN * usual + _TILT * np.linalg.norm(usual_shift):
        at = int(stray.argmax())
        raise SamunetError(
            f"{folder}: slices are displaced within their plane: {_pair(frames, order, at)} by "
            f"{np.linalg.norm(sideways[at]):.4g} mm",
            "only slices that lie straight above each other can be read; resample the series, and export it again",
        )
    if np.linalg.norm(usual_shift) > _TILT * usual:
        log.warning("%s: tilted gantry; the mask will have the right voxels, but no tilt in its geometry", folder)
    return order, float(along.mean())


def _pair(frames: Sequence[Frame], order: np.ndarray, at: int) -> str:
    """The names of two neighbours."""
    names = []
    for index in order[at : at + 2]:
        frame = frames[index]
        own = [place for place, other in enumerate(frames) if other.file == frame.file]
        names.append(frame.file.name + (f" frame {own.index(index) + 1}" if len(own) > 1 else ""))
    return " and ".join(names)


def _voxels(headers: Sequence[Header], places: np.ndarray, reader: PixelReader) -> np.ndarray:
    """Intensities ``(z, y, x)``, or ``(z, y, x, 3)``, in the smallest type that holds them: float32 unless whole."""
    frames = [frame for header in headers for frame in header.frames]
    whole = all(frame.slope.is_integer() and frame.intercept.is_integer() for frame in frames)
    shape = (len(frames), *headers[0].size, *(3,) * (headers[0].components > 1))
    volume, at = None, 0
    for header in headers:
        stored = zip(reader.read(header), header.frames, strict=True)
        for values, frame in stored:
            if volume is None:
                whole = whole and values.dtype.kind in "biu"
                # Whole numbers of PET times large slopes may pass 16 and even 32 bits.
                highest = 256.0**values.itemsize * max(abs(one.slope) for one in frames)
                small = highest + max(abs(one.intercept) for one in frames) < 2**31
                volume = np.empty(shape, (np.int32 if small else np.int64) if whole else np.float32)
            kind, exact = (int, np.int64) if whole else (float, np.float64)
            volume[places[at]] = values.astype(exact) * kind(frame.slope) + kind(frame.intercept)
            at += 1
    if not whole:
        return volume
    low, high = int(volume.min()), int(volume.max())
    types = (np.uint8, np.int16, np.uint16, np.int32, np.uint32)  # NIfTI has them all
    fits = (kind for kind in types if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return volume.astype(next(fits, np.float64))
