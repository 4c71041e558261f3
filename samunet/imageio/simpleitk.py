"""Medical image formats through SimpleITK; the voxels of NIfTI files through :mod:`samunet.imageio.nifti`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path
from samunet.imageio.base import (
    Geometry,
    Image,
    Reader,
    smallest_unsigned,
    stack_channels,
    to_label,
    without_z_if_2d,
)
from samunet.imageio.nifti import read_nifti, write_nifti

if TYPE_CHECKING:
    import SimpleITK as sitk

_NIFTI_ENDINGS = (".nii.gz", ".nii")
# nnU-Net's factor for the spacing across a 2D image: large enough that z is always the coarsest axis.
_NO_NEIGHBOUR = 999.0


class SimpleITKReader(Reader):
    """NIfTI, NRRD and MetaImage, 2D and 3D; axes beyond the third and vector components are channels."""

    name = "SimpleITKIO"
    endings = (*_NIFTI_ENDINGS, ".nrrd", ".mha")

    def read_image(self, files: Sequence[Path]) -> Image:
        """See :meth:`Reader.read_image`."""
        return stack_channels([(Path(file), *_read(Path(file))) for file in files])

    def read_label(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """See :meth:`Reader.read_label`."""
        voxels, geometry = _read(Path(file))
        return to_label(voxels, file), geometry

    def write_label(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`Reader.write_label`."""
        file = Path(file)
        array = without_z_if_2d(smallest_unsigned(array), geometry)
        if geometry.nifti is not None and file.name.endswith(_NIFTI_ENDINGS):
            write_nifti(array, file, geometry.nifti)
        else:
            _write(array, file, geometry)

    def count_channels(self, file: Path) -> int:
        """See :meth:`Reader.count_channels`."""
        header = _header(Path(file))
        return int(np.prod(header.GetSize()[3:], dtype=int)) * header.GetNumberOfComponents()


def _read(file: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels ``(channels, z, y, x)`` in the file's number type, and geometry."""
    if file.name.endswith(_NIFTI_ENDINGS):
        voxels, orientation = read_nifti(file)
        return voxels, _geometry(_header(file), file, orientation)
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise _unreadable(file, error) from error
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    spatial = voxels.shape[-min(image.GetDimension(), 3) :]
    return voxels.reshape(-1, *(1,) * (3 - len(spatial)), *spatial), _geometry(image, file, None)


def _header(file: Path) -> sitk.ImageFileReader:
    import SimpleITK as sitk

    header = sitk.ImageFileReader()
    header.SetFileName(str(file))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(file, error) from error
    return header


def _geometry(source: sitk.Image | sitk.ImageFileReader, file: Path, nifti: tuple[float, ...] | None) -> Geometry:
    axes = source.GetDimension()
    dimension = min(axes, 3)
    spacing = source.GetSpacing()[:dimension][::-1]
    if not np.all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise SamunetError(f"{file} has spacing {spacing} mm; it must be positive", "correct the file's header")
    if dimension == 2:
        spacing = (_NO_NEIGHBOUR * max(spacing), *spacing)
    direction = source.GetDirection()
    rows = [direction[axes * row : axes * row + dimension] for row in range(dimension)]
    return Geometry(
        spacing=spacing,
        physical=True,
        origin=source.GetOrigin()[:dimension],
        direction=tuple(cosine for row in rows for cosine in row),
        dimension=dimension,
        nifti=nifti,
    )


def _write(array: np.ndarray, file: Path, geometry: Geometry) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1][: geometry.dimension])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    try:
        with atomic_path(file) as temporary:
            sitk.WriteImage(image, str(temporary), useCompression=True)
    except RuntimeError as error:
        raise SamunetError(
            f"could not write {file}: {_reason(error)}", "check the folder and the free space"
        ) from error


def _unreadable(file: Path, error: RuntimeError) -> SamunetError:
    if not file.is_file():
        return SamunetError(f"{file} does not exist")
    if "orthonormal" in str(error):
        return SamunetError(
            f"{file} has axes that are not at right angles to each other (its sform is sheared)",
            "with nibabel: image.set_sform(image.get_qform()), then save; or resample it onto a right-angled grid",
        )
    return SamunetError(f"could not read {file}: {_reason(error)}", "copy or export the file again, or remove the case")


def _reason(error: RuntimeError) -> str:
    """ITK's last line: the lines before it name places in its source."""
    return str(error).strip().splitlines()[-1].strip()
