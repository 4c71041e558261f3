"""NIfTI-1 and NIfTI-2 in a single file (https://nifti.nimh.nih.gov): headers and writing through nibabel.

ITK fills the missing part of a truncated NIfTI file with whatever is in memory and says nothing, and it writes an
oblique orientation back with other last digits. Here a short or damaged file is an error, and the orientation part of a
header is kept as it is. What the orientation means is left to ITK (:mod:`samunet.imageio.simpleitk`) or to nibabel
(:func:`affine_geometry`), as the reader's name says.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path
from samunet.imageio.base import COPY_AGAIN, NO_NEIGHBOUR, Geometry, check_spacing
from samunet.imageio.border import check_size, reading
from samunet.imageio.headers import wrong
from samunet.imageio.unpacking import take, unpacked

if TYPE_CHECKING:
    from nibabel import Nifti1Header

NIFTI_ENDINGS = (".nii.gz", ".nii")

# Bytes of a NIfTI-2 header; that of NIfTI-1 is shorter.
_LONGEST_HEADER = 540
_VOXEL_TYPES = {"float32", "float64"} | {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_FLAT = 1e-3  # volume between three axes of length 1
_MOST_BEFORE = 64 << 20  # bytes before the voxels: extensions of the header
# Fields of a header that say where the voxels lie.
_PLACING = ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d")
_PLACING += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")
# The format's codes for metres and micrometres; everything else counts as millimetres.
_MILLIMETRES = {1: 1000.0, 3: 0.001}
# NIfTI's x and y point to the right and forwards, ITK's to the left and backwards.
_TO_ITK = np.diag([-1.0, -1.0, 1.0])


class Nifti(NamedTuple):
    """A file as read.

    Attributes:
        voxels: ``(channels, z, y, x)`` in the file's number type (float32 if the header scales them).
        dimension: The file's own number of axes without those of channels, 2 or 3.
        version: 1 or 2.
        header: A header with nothing but sizes and place, which :func:`write_nifti` restores.
    """

    voxels: np.ndarray
    dimension: int
    version: int
    header: bytes


def read_nifti(file: Path) -> Nifti:
    """Read a ``.nii`` or ``.nii.gz`` file; its content tells whether it is compressed, not its name.

    Raises:
        SamunetError: If the file is missing, damaged or truncated, or is not a NIfTI image of real numbers.
    """
    with unpacked(file) as stream:
        header = _parse_header(stream.read(_LONGEST_HEADER), file)
        sizes = _sizes(header, file)
        number = len(sizes)
        # ITK takes a missing spacing for 1 mm and says nothing.
        sides = [abs(float(side)) for side in header["pixdim"][min(number, 3) : 0 : -1]]
        check_spacing([side * _scale(header) for side in sides], file, "pixdim")
        check_size(sizes, file)
        # The format stores x fastest; axes beyond the third are channels.
        shape, dtype = (math.prod(sizes[3:]), *[*sizes, 1][2::-1]), header.get_data_dtype()
        # The format's own library, too, starts behind the header where the offset is missing or nonsense.
        start = max(int(np.nan_to_num(header["vox_offset"])), int(header["sizeof_hdr"]))
        if start > _MOST_BEFORE:
            raise wrong(file, "vox_offset", str(start), f"up to {_MOST_BEFORE}")
        stream.seek(start)
        voxels = take(stream, math.prod(shape) * dtype.itemsize, file).view(dtype).reshape(shape)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    # By the format's definition a slope of zero means that nothing is scaled.
    if slope != 0 and math.isfinite(slope) and math.isfinite(intercept) and (slope, intercept) != (1.0, 0.0):
        voxels = voxels.astype(np.float32)
        # A result beyond float32's range becomes infinite, which is reported with the file's name.
        with np.errstate(over="ignore", invalid="ignore"):
            voxels *= slope
            voxels += intercept
    return Nifti(voxels, min(number, 3), _version(header), _bare(header, sizes))


def count_nifti_channels(file: Path) -> int:
    """Number of channels in a NIfTI file, from its header alone.

    Raises:
        SamunetError: If the header cannot be read.
    """
    with unpacked(file) as stream:
        content = stream.read(_LONGEST_HEADER)
    return math.prod(_sizes(_parse_header(content, file), file)[3:])


def affine_geometry(image: Nifti, file: Path) -> Geometry:
    """What nibabel makes of the header: spacing of ``pixdim``, origin and direction of the best affine.

    Unlike ITK this accepts axes that are not at right angles.

    Raises:
        SamunetError: If the spacing is not positive, or an axis has no direction.
    """
    dimension = image.dimension
    header = _parse_header(image.header, file)
    scale = _scale(header)
    spacing = tuple(abs(float(side)) * scale for side in header["pixdim"][dimension:0:-1])
    check_spacing(spacing, file, "pixdim")
    with reading(file):  # a quaternion longer than 1, for one
        affine = header.get_best_affine()
    columns = _TO_ITK @ affine[:3, :3]
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(columns, axis=0)
    sound = np.all(np.isfinite(affine)) and np.all(np.isfinite(lengths)) and lengths.min() > 0
    # Axes may be oblique to each other, but not all in one plane.
    if not sound or abs(np.linalg.det(columns / lengths)) < _FLAT:
        raise SamunetError(
            f"{file} has an axis without a direction of its own in its header", "correct the file's qform or sform"
        )
    if dimension == 2:
        spacing = (NO_NEIGHBOUR * max(spacing), *spacing)
    return Geometry(
        spacing=spacing,
        physical=True,
        origin=tuple((_TO_ITK @ affine[:3, 3] * scale)[:dimension].tolist()),
        direction=tuple((columns / lengths)[:dimension, :dimension].ravel().tolist()),
        dimension=dimension,
        placed=states_axes(header),
        nifti=image.header.hex(),
    )


def states_axes(header: Nifti1Header) -> bool:
    """Whether a header says which way its axes run: ``qform_code`` or ``sform_code`` is not 0."""
    return bool(header["qform_code"] or header["sform_code"])


def write_nifti(array: np.ndarray, file: Path, header: str) -> None:
    """Write an array atomically where the voxels of another file lie.

    Args:
        array: ``(z, y, x)`` or ``(y, x)`` of an unsigned integer type.
        file: ``.nii`` or ``.nii.gz``.
        header: ``Geometry.nifti``; its version of the format is written.
    """
    from nibabel import Nifti1Image, Nifti2Image

    source = _parse_header(bytes.fromhex(header), file)
    image = (Nifti2Image if _version(source) == 2 else Nifti1Image)(array.T, None, dtype=array.dtype)
    # Set in the finished image: its constructor would "repair" unusual values of a given header.
    for name in _PLACING:
        image.header[name] = source[name]
    content = image.to_bytes()
    with atomic_path(file) as temporary:
        temporary.write_bytes(gzip.compress(content, 6, mtime=0) if file.name.lower().endswith(".gz") else content)


def parse_header(geometry_header: str) -> Nifti1Header:
    """The header in ``Geometry.nifti``."""
    return _parse_header(bytes.fromhex(geometry_header), Path())


def _scale(header: Nifti1Header) -> float:
    return _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)


def _bare(header: Nifti1Header, sizes: list[int]) -> bytes:
    """A header, uncompressed and without any text, that says the same of size and place."""
    bare = type(header)()
    for name in ("intent_code", "datatype", "bitpix", *_PLACING):
        bare[name] = header[name]
    bare["dim"] = [len(sizes), *sizes, *[1] * (7 - len(sizes))]
    bare["pixdim"][4:] = 1
    bare["vox_offset"], bare["magic"] = bare["sizeof_hdr"] + 4, f"n+{_version(header)}".encode()
    return bare.binaryblock


def _parse_header(content: bytes, file: Path) -> Nifti1Header:
    from nibabel import Nifti1Header, Nifti2Header

    # Unchecked: nibabel's check changes unusual orientations.
    for kind, magic in ((Nifti1Header, b"n+1"), (Nifti2Header, b"n+2")):
        size = kind.template_dtype.itemsize
        header = kind(content[:size], check=False) if len(content) >= size else None
        if header is not None and header["sizeof_hdr"] == size and bytes(header["magic"]).startswith(magic):
            break
    else:
        raise SamunetError(
            f"{file} is not a NIfTI image (a single file with header and voxels)",
            "save it again as NIfTI: nibabel.save(nibabel.Nifti1Image.from_image(nibabel.load(file)), file)",
        )
    if header.get_value_label("datatype") not in _VOXEL_TYPES:
        raise SamunetError(
            f"{file} has the NIfTI voxel type {header['datatype']}; only real numbers, one per voxel, can be read",
            "save one file per channel: case_0000, case_0001, ...",
        )
    return header


def _version(header: Nifti1Header) -> int:
    return 2 if header["sizeof_hdr"] == _LONGEST_HEADER else 1


def _sizes(header: Nifti1Header, file: Path) -> list[int]:
    """Voxels along each axis, x first."""
    number, *sizes = header["dim"].tolist()
    if not 2 <= number <= 7 or min(sizes[:number]) < 1:
        message = f"{file} has the dimensions {sizes[: max(number, 1)]}; an image must have two or three axes"
        raise SamunetError(message, COPY_AGAIN)
    return sizes[:number]
