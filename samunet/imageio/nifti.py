"""NIfTI-1 in a single file (https://nifti.nimh.nih.gov/nifti-1): headers and writing through nibabel.

ITK fills the missing part of a truncated NIfTI file with whatever is in memory and says nothing, and it writes an
oblique orientation back with other last digits. Here a short or damaged file is an error, and the orientation part of a
header is kept as it is. What the orientation means is still left to ITK (:mod:`samunet.imageio.simpleitk`).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path

if TYPE_CHECKING:
    from nibabel import Nifti1Header

_HEADER_SIZE = 348
_VOXEL_TYPES = {"float32", "float64"} | {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
# Behind pixdim[0:4]; the order is that of the numbers in stored geometries.
_SCALARS = ("xyzt_units", "qform_code", "sform_code", *(f"quatern_{axis}" for axis in "bcd"))
_SCALARS += tuple(f"qoffset_{axis}" for axis in "xyz")
_ROWS = ("srow_x", "srow_y", "srow_z")
_COPY_AGAIN = "copy or export the file again, or remove the case"


def read_nifti(file: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the voxels of a ``.nii`` or ``.nii.gz`` file.

    Returns:
        Voxels ``(channels, z, y, x)`` in the file's number type (float32 if the header scales them), read-only unless
        scaled, and the 25 numbers that :func:`write_nifti` needs to restore the orientation.

    Raises:
        SamunetError: If the file is missing, damaged or truncated, or is not a NIfTI-1 image of real numbers.
    """
    content = _read_bytes(file)
    header = _parse_header(content, file)
    number, *sizes = header["dim"].tolist()
    if not 2 <= number <= 7 or min(sizes[:number]) < 1:
        message = f"{file} has the dimensions {sizes[: max(number, 1)]}; an image must have two or three axes"
        raise SamunetError(message, _COPY_AGAIN)
    # The format stores x fastest; axes beyond the third are channels.
    sizes = [*sizes[:number], 1]
    shape, dtype = (math.prod(sizes[3:]), *sizes[2::-1]), header.get_data_dtype()
    # The format's own library, too, starts behind the header where the offset is missing or nonsense.
    start = max(int(np.nan_to_num(header["vox_offset"])), _HEADER_SIZE)
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) < expected:
        message = f"{file} is truncated: {len(content)} bytes of data where its header announces {expected}"
        raise SamunetError(message, _COPY_AGAIN)
    # A view: nibabel's own array would be a second copy of the image, and float64 if scaled.
    voxels = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    # By the format's definition a slope of zero means that nothing is scaled.
    if slope != 0 and math.isfinite(slope) and math.isfinite(intercept) and (slope, intercept) != (1.0, 0.0):
        voxels = voxels.astype(np.float32)
        voxels *= slope
        voxels += intercept
    orientation = [header["pixdim"][:4], *(header[name] for name in _SCALARS + _ROWS)]
    return voxels, tuple(float(number) for part in orientation for number in np.ravel(part))


def write_nifti(array: np.ndarray, file: Path, orientation: tuple[float, ...]) -> None:
    """Write an array atomically with an orientation that was read from another file.

    Args:
        array: ``(z, y, x)`` or ``(y, x)`` of an unsigned integer type.
        file: ``.nii`` or ``.nii.gz``.
        orientation: As :func:`read_nifti` returns it.
    """
    from nibabel import Nifti1Image

    image = Nifti1Image(array.T, None, dtype=array.dtype)
    # Set in the finished image: its constructor would "repair" unusual values of a given header.
    image.header["pixdim"][:4] = orientation[:4]
    for name, value in zip(_SCALARS + _ROWS, [*orientation[4:13], *np.reshape(orientation[13:], (3, 4))], strict=True):
        image.header[name] = value
    content = image.to_bytes()
    with atomic_path(file) as temporary:
        temporary.write_bytes(gzip.compress(content, 6, mtime=0) if file.name.endswith(".gz") else content)


def _read_bytes(file: Path) -> bytes:
    """The whole file: nibabel stops at the last voxel, before the checksum that tells a damaged file."""
    try:
        content = file.read_bytes()
        # Told by the content, not by the name: files called .nii.gz that were never compressed are common.
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SamunetError(f"{file} is damaged or truncated: {error}", _COPY_AGAIN) from error
    except OSError as error:
        raise SamunetError(f"could not read {file}: {error.strerror or error}") from error


def _parse_header(content: bytes, file: Path) -> Nifti1Header:
    from nibabel import Nifti1Header

    if not content:
        raise SamunetError(f"{file} is empty", _COPY_AGAIN)
    # Unchecked: nibabel's check changes unusual orientations.
    header = Nifti1Header(content[:_HEADER_SIZE], check=False) if len(content) >= _HEADER_SIZE else None
    if header is None or header["sizeof_hdr"] != _HEADER_SIZE or header["magic"] != b"n+1":
        raise SamunetError(
            f"{file} is not a NIfTI-1 image (a single file with header and voxels)",
            "save it again as NIfTI-1: nibabel.save(nibabel.Nifti1Image.from_image(nibabel.load(file)), file)",
        )
    if header.get_value_label("datatype") not in _VOXEL_TYPES:
        raise SamunetError(
            f"{file} has the NIfTI voxel type {header['datatype']}; only real numbers, one per voxel, can be read",
            "save one file per channel: case_0000, case_0001, ...",
        )
    return header
