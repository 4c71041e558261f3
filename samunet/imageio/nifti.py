"""NIfTI-1 and NIfTI-2 in a single file (https://nifti.nimh.nih.gov): headers and writing through nibabel.

ITK fills the missing part of a truncated NIfTI file with whatever is in memory and says nothing, and it writes an
oblique orientation back with other last digits. Here a short or damaged file is an error, and the orientation part of a
header is kept as it is. What the orientation means is left to ITK or to nibabel, as the reader's name says.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path
from samunet.imageio.base import COPY_AGAIN, Geometry, check_spacing
from samunet.imageio.itk import NIFTI, itk, reason
from samunet.imageio.volume import Layout, VolumeFormat, geometry_of, wrong

if TYPE_CHECKING:
    from nibabel import Nifti1Header

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


class Nifti(VolumeFormat):
    """NIfTI, compressed if its content is, whatever its name. Axes beyond the third are channels."""

    endings = (".nii.gz", ".nii")
    itk = NIFTI
    gzipped = True

    def parse(self, stream: BinaryIO, file: Path) -> Layout:
        """See :meth:`VolumeFormat.parse`."""
        header = _parse(stream.read(_LONGEST_HEADER), file)
        number, *sizes = header["dim"].tolist()
        if not 2 <= number <= 7 or min(sizes[:number]) < 1:
            message = f"{file} has the dimensions {sizes[: max(number, 1)]}; an image must have two or three axes"
            raise SamunetError(message, COPY_AGAIN)
        # The format's own library, too, starts behind the header where the offset is missing or nonsense.
        start = max(int(np.nan_to_num(header["vox_offset"])), int(header["sizeof_hdr"]))
        if start > _MOST_BEFORE:
            raise wrong(file, "vox_offset", str(start), f"up to {_MOST_BEFORE}")
        return Layout(header, sizes[:number], header.get_data_dtype(), start)

    def geometry(self, layout: Layout, file: Path) -> Geometry:
        """See :meth:`VolumeFormat.geometry`: as ITK understands the header."""
        header, dimension = layout.header, min(len(layout.sizes), 3)
        # ITK takes a missing spacing for 1 mm and says nothing.
        spacing = [abs(float(side)) * _scale(header) for side in header["pixdim"][1 : dimension + 1]]
        check_spacing(spacing[::-1], file, "pixdim")
        if _version(header) == 2:  # which ITK does not know
            return self.by_affine(layout, spacing, file)
        found = itk().ImageFileReader()
        with TemporaryDirectory(prefix="samunet-") as folder:
            copy = Path(folder, "header.nii")
            copy.write_bytes(_bare(layout) + bytes(4))
            found.SetFileName(str(copy))
            found.SetImageIO(self.itk)
            try:
                found.ReadImageInformation()
            except RuntimeError as error:
                raise _misplaced(file, error) from error
        axes = found.GetDimension()
        direction = np.reshape(found.GetDirection(), (axes, axes))
        return self._placed(layout, file, found.GetSpacing(), found.GetOrigin(), direction)

    def by_affine(self, layout: Layout, spacing: list[float], file: Path) -> Geometry:
        """Geometry as nibabel understands the header: spacing of ``pixdim``, origin and direction of the best affine.

        Unlike ITK this accepts axes that are not at right angles. An axis without direction is a SamunetError.
        """
        dimension = len(spacing)
        affine = layout.header.get_best_affine()
        columns = _TO_ITK @ affine[:3, :3]
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(columns, axis=0)
        sound = np.all(np.isfinite(affine)) and np.all(np.isfinite(lengths)) and lengths.min() > 0
        # Axes may be oblique to each other, but not all in one plane.
        if not sound or abs(np.linalg.det(columns / lengths)) < _FLAT:
            raise SamunetError(
                f"{file} has an axis without a direction of its own in its header", "correct the file's qform or sform"
            )
        origin = _TO_ITK @ affine[:3, 3] * _scale(layout.header)
        return self._placed(layout, file, spacing, origin[:dimension], columns / lengths)

    def _placed(self, layout: Layout, file: Path, spacing, origin, direction) -> Geometry:
        placed = bool(layout.header["qform_code"] or layout.header["sform_code"])
        fields, kept = ("pixdim", "qform or sform"), _bare(layout).hex()
        # ITK has seen to right angles, and 2D images may stand upright on their plane.
        return geometry_of(file, spacing, origin, direction, fields, right_angled=False, placed=placed, nifti=kept)

    def read(self, file: Path) -> tuple[np.ndarray, Geometry, Layout]:
        """See :meth:`VolumeFormat.read`; float32 if the header scales the values."""
        voxels, geometry, layout = super().read(file)
        slope, intercept = float(layout.header["scl_slope"]), float(layout.header["scl_inter"])
        # By the format's definition a slope of zero means that nothing is scaled.
        if slope != 0 and math.isfinite(slope) and math.isfinite(intercept) and (slope, intercept) != (1.0, 0.0):
            voxels = voxels.astype(np.float32)
            # A result beyond float32's range becomes infinite, which is reported with the file's name.
            with np.errstate(over="ignore", invalid="ignore"):
                voxels *= slope
                voxels += intercept
        return voxels, geometry, layout

    def write(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`VolumeFormat.write`: in the version of the image's header, and where that says."""
        if geometry.nifti is None:
            super().write(array, file, geometry)
            return
        from nibabel import Nifti1Image, Nifti2Image

        source = _parse(bytes.fromhex(geometry.nifti), file)
        image = (Nifti2Image if _version(source) == 2 else Nifti1Image)(array.T, None, dtype=array.dtype)
        # Set in the finished image: its constructor would "repair" unusual values of a given header.
        for name in _PLACING:
            image.header[name] = source[name]
        content = image.to_bytes()
        with atomic_path(file) as temporary:
            temporary.write_bytes(gzip.compress(content, 6, mtime=0) if file.name.lower().endswith(".gz") else content)


class NibabelNifti(Nifti):
    """NIfTI with nibabel's idea of where the voxels lie: axes that are not at right angles are taken as they are."""

    def geometry(self, layout: Layout, file: Path) -> Geometry:
        """See :meth:`VolumeFormat.geometry`."""
        sides = layout.header["pixdim"][1 : min(len(layout.sizes), 3) + 1]
        spacing = [abs(float(side)) * _scale(layout.header) for side in sides]
        check_spacing(spacing[::-1], file, "pixdim")
        return self.by_affine(layout, spacing, file)


def _misplaced(file: Path, error: RuntimeError) -> SamunetError:
    if "orthonormal" in str(error):
        return SamunetError(
            f"{file} has axes that are not at right angles to each other (its sform is sheared)",
            "with nibabel: image.set_sform(image.get_qform()), then save; or resample it onto a right-angled grid; or"
            ' "overwrite_image_reader_writer": "NibabelIO" in dataset.json, which takes such axes as they are',
        )
    return SamunetError(f"could not read {file}: {reason(error)}", COPY_AGAIN)


def _parse(content: bytes, file: Path) -> Nifti1Header:
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


def _bare(layout: Layout) -> bytes:
    """A header, uncompressed and without any text, that says the same of size and place."""
    header, sizes = layout.header, layout.sizes
    bare = type(header)()
    for name in ("intent_code", "datatype", "bitpix", *_PLACING):
        bare[name] = header[name]
    bare["dim"] = [len(sizes), *sizes, *[1] * (7 - len(sizes))]
    bare["pixdim"][4:] = 1
    bare["vox_offset"], bare["magic"] = bare["sizeof_hdr"] + 4, f"n+{_version(header)}".encode()
    return bare.binaryblock


def _version(header: Nifti1Header) -> int:
    return 2 if header["sizeof_hdr"] == _LONGEST_HEADER else 1


def _scale(header: Nifti1Header) -> float:
    return _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
