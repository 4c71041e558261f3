"""NIfTI-1 in a single file, by the format's own definition (https://nifti.nimh.nih.gov/nifti-1).

ITK fills the missing part of a truncated NIfTI file with whatever is in memory and says nothing, and it writes an
oblique orientation back with other last digits. Here a short or damaged file is an error, and the orientation part of a
header is kept as it is. What the orientation means is still left to ITK (:mod:`samunet.imageio.simpleitk`).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path

_HEADER_FIELDS = {
    "sizeof_hdr": ("i4", 0),
    "dim": (("i2", 8), 40),
    "datatype": ("i2", 70),
    "bitpix": ("i2", 72),
    "pixdim": (("f4", 8), 76),
    "vox_offset": ("f4", 108),
    "scl_slope": ("f4", 112),
    "scl_inter": ("f4", 116),
    "xyzt_units": ("u1", 123),
    "qform_code": ("i2", 252),
    "sform_code": ("i2", 254),
    "quatern": (("f4", 3), 256),
    "qoffset": (("f4", 3), 268),
    "srow": (("f4", 12), 280),
    "magic": ("S4", 344),
}
_HEADER_SIZE = 348
_HEADER = np.dtype(
    {
        "names": list(_HEADER_FIELDS),
        "formats": [kind for kind, _ in _HEADER_FIELDS.values()],
        "offsets": [offset for _, offset in _HEADER_FIELDS.values()],
        "itemsize": _HEADER_SIZE,
    }
).newbyteorder("<")
_VOXEL_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_CODES = {kind: code for code, kind in _VOXEL_TYPES.items()}
# The four bytes after the header say that no extension follows; voxels start behind them.
_VOXELS_START = _HEADER_SIZE + 4


def read_nifti(file: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the voxels of a ``.nii`` or ``.nii.gz`` file.

    Returns:
        Voxels ``(channels, z, y, x)`` in the file's number type (float32 if the header scales them), read-only, and the
        25 numbers that :func:`write_nifti` needs to restore the orientation.

    Raises:
        SamunetError: If the file is missing, damaged or truncated, or is not a NIfTI-1 image of real numbers.
    """
    content = _read_bytes(file)
    header = _parse_header(content, file)
    kind = _VOXEL_TYPES.get(int(header["datatype"]))
    if kind is None:
        raise SamunetError(
            f"{file} has the NIfTI voxel type {header['datatype']}; only real numbers, one per voxel, can be read",
            "save one file per channel: case_0000, case_0001, ...",
        )
    shape = _shape(header, file)
    # The format's own library, too, starts behind the header where the offset is missing or nonsense.
    start = max(int(np.nan_to_num(header["vox_offset"])), _HEADER_SIZE)
    dtype = np.dtype(kind).newbyteorder(header.dtype["dim"].base.byteorder)
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) < expected:
        raise SamunetError(
            f"{file} is truncated: {len(content)} bytes of data where its header announces {expected}",
            "copy or export the file again, or remove the case",
        )
    voxels = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    # By the format's definition a slope of zero means that nothing is scaled.
    if slope != 0 and math.isfinite(slope) and math.isfinite(intercept) and (slope, intercept) != (1.0, 0.0):
        voxels = voxels.astype(np.float32)
        voxels *= slope
        voxels += intercept
    return voxels, _orientation(header)


def write_nifti(array: np.ndarray, file: Path, orientation: tuple[float, ...]) -> None:
    """Write an array atomically with an orientation that was read from another file.

    Args:
        array: ``(z, y, x)`` or ``(y, x)`` of an unsigned integer type.
        file: ``.nii`` or ``.nii.gz``.
        orientation: As :func:`read_nifti` returns it.
    """
    header = np.zeros((), _HEADER)
    header["sizeof_hdr"] = _HEADER_SIZE
    header["dim"] = [array.ndim, *array.shape[::-1], *[1] * (7 - array.ndim)]
    header["datatype"] = _CODES[array.dtype.str[1:]]
    header["bitpix"] = array.dtype.itemsize * 8
    header["vox_offset"] = _VOXELS_START
    header["scl_slope"] = 1
    header["magic"] = b"n+1"
    header["pixdim"][:4] = orientation[:4]
    header["xyzt_units"], header["qform_code"], header["sform_code"] = (int(code) for code in orientation[4:7])
    header["quatern"] = orientation[7:10]
    header["qoffset"] = orientation[10:13]
    header["srow"] = orientation[13:]
    voxels = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    content = header.tobytes().ljust(_VOXELS_START, b"\0") + voxels
    with atomic_path(file) as temporary:
        temporary.write_bytes(gzip.compress(content, 6, mtime=0) if file.name.endswith(".gz") else content)


def _read_bytes(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        # Told by the content, not by the name: files called .nii.gz that were never compressed are common.
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SamunetError(
            f"{file} is damaged or truncated: {error}", "copy or export the file again, or remove the case"
        ) from error
    except OSError as error:
        raise SamunetError(f"could not read {file}: {error.strerror or error}") from error


def _parse_header(content: bytes, file: Path) -> np.ndarray:
    if not content:
        raise SamunetError(f"{file} is empty", "copy or export the file again, or remove the case")
    if len(content) >= _HEADER_SIZE:
        for dtype in (_HEADER, _HEADER.newbyteorder(">")):
            header = np.frombuffer(content, dtype, 1)[0]
            if header["sizeof_hdr"] == _HEADER_SIZE and header["magic"] == b"n+1":
                return header
    raise SamunetError(
        f"{file} is not a NIfTI-1 image (a single file with header and voxels)",
        "save it again as NIfTI-1, for example: nibabel.save(nibabel.Nifti1Image.from_image(nibabel.load(file)), file)",
    )


def _shape(header: np.ndarray, file: Path) -> tuple[int, int, int, int]:
    """``(channels, z, y, x)``: the format stores x fastest; axes beyond the third are channels."""
    number, *sizes = (int(size) for size in header["dim"])
    if not 2 <= number <= 7 or min(sizes[:number]) < 1:
        raise SamunetError(
            f"{file} has the dimensions {sizes[: max(number, 1)]}; an image must have two or three axes",
            "copy or export the file again, or remove the case",
        )
    x, y, z, *channels = sizes[:number] + [1] * (3 - min(number, 3))
    return math.prod(channels), z, y, x


def _orientation(header: np.ndarray) -> tuple[float, ...]:
    codes = (header["xyzt_units"], header["qform_code"], header["sform_code"])
    numbers = (*header["pixdim"][:4], *codes, *header["quatern"], *header["qoffset"], *header["srow"])
    return tuple(float(number) for number in numbers)
