"""Medical image formats through SimpleITK; the voxels of NIfTI files through :mod:`samunet.imageio.nifti`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path
from samunet.imageio.base import (
    NO_NEIGHBOUR,
    Geometry,
    Image,
    Reader,
    check_spacing,
    smallest_unsigned,
    stack_channels,
    to_label,
    without_z_if_2d,
)
from samunet.imageio.dicom import count_components, read_series
from samunet.imageio.itk import check_complete, itk, itk_format, reason, unreadable
from samunet.imageio.nifti import (
    NIFTI_ENDINGS,
    affine_geometry,
    count_nifti_channels,
    read_nifti,
    states_axes,
    write_nifti,
)
from samunet.imageio.nrrd import read_placement, restore_placement

if TYPE_CHECKING:
    import SimpleITK as sitk


class SimpleITKReader(Reader):
    """NIfTI, NRRD, MetaImage and GIPL, 2D and 3D; axes beyond the third and vector components are channels.

    A folder is read as an image if it holds one DICOM series. GIPL has no direction: ITK reads and writes its axes as
    pointing to the left, back and up, and it is always 3D.
    """

    name = "SimpleITKIO"
    endings = (*NIFTI_ENDINGS, ".nrrd", ".mha", ".gipl")

    def read_image(
        self, files: Sequence[Path], *, channels: int | None = None, tolerate_geometry: bool = False
    ) -> Image:
        """See :meth:`Reader.read_image`."""
        parts = [(Path(file), *self.read_voxels(Path(file))) for file in files]
        return stack_channels(parts, channels, tolerate_geometry)

    def read_label(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """See :meth:`Reader.read_label`."""
        voxels, geometry = self.read_voxels(Path(file))
        return to_label(voxels, file), geometry

    def read_voxels(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """One file's voxels ``(channels, z, y, x)`` in its own number type, and its geometry.

        Raises:
            SamunetError: If the file cannot be read.
        """
        if file.name.lower().endswith(NIFTI_ENDINGS) and not file.is_dir():
            return _read_nifti(file)
        if file.is_dir():
            image = read_series(file)
        else:
            check_complete(file)
            try:
                image = itk().ReadImage(str(file), imageIO=itk_format(file))
            except RuntimeError as error:
                raise unreadable(file, error) from error
        voxels = itk().GetArrayFromImage(image)
        if image.GetNumberOfComponentsPerPixel() > 1:
            voxels = np.moveaxis(voxels, -1, 0)
        dimension = min(image.GetDimension(), 3)
        spatial = voxels.shape[-dimension:]
        channels = int(np.prod(voxels.shape[:-dimension], dtype=int))
        nrrd = read_placement(file, dimension) if file.name.lower().endswith(".nrrd") else None
        return voxels.reshape(channels, *(1,) * (3 - dimension), *spatial), _geometry(image, file, nrrd=nrrd)

    def write_label(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`Reader.write_label`. GIPL holds values up to 65535."""
        file = Path(file)
        array = without_z_if_2d(smallest_unsigned(array), geometry)
        if geometry.nifti is not None and file.name.lower().endswith(NIFTI_ENDINGS):
            write_nifti(array, file, geometry.nifti)
        else:
            _write(array, file, geometry)

    def count_channels(self, file: Path) -> int:
        """See :meth:`Reader.count_channels`."""
        file = Path(file)
        if file.name.lower().endswith(NIFTI_ENDINGS):
            return count_nifti_channels(file)
        if file.is_dir():
            return count_components(file)
        header = _header(file)
        return int(np.prod(header.GetSize()[3:], dtype=int)) * header.GetNumberOfComponents()


def _read_nifti(file: Path) -> tuple[np.ndarray, Geometry]:
    image = read_nifti(file)
    # ITK knows neither NIfTI-2 nor endings in mixed case.
    if image.orientation[0] == 2 or not file.name.endswith((*NIFTI_ENDINGS, ".NII", ".NII.GZ")):
        return image.voxels, affine_geometry(image, file)
    return image.voxels, _geometry(_header(file), file, nifti=image.orientation)


def _header(file: Path) -> sitk.ImageFileReader:
    header = itk().ImageFileReader()
    header.SetFileName(str(file))
    header.SetImageIO(itk_format(file))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(file, error) from error
    return header


def _geometry(
    source: sitk.Image | sitk.ImageFileReader,
    file: Path,
    *,
    nifti: tuple[float, ...] | None = None,
    nrrd: tuple[str, ...] | None = None,
) -> Geometry:
    axes = source.GetDimension()
    dimension = min(axes, 3)
    spacing = source.GetSpacing()[:dimension][::-1]
    check_spacing(spacing, file)
    if dimension == 2:
        spacing = (NO_NEIGHBOUR * max(spacing), *spacing)
    direction = source.GetDirection()
    rows = [direction[axes * row : axes * row + dimension] for row in range(dimension)]
    return Geometry(
        spacing=spacing,
        physical=True,
        origin=source.GetOrigin()[:dimension],
        direction=tuple(cosine for row in rows for cosine in row),
        dimension=dimension,
        placed=_states_axes(file, nifti, nrrd),
        nifti=nifti,
        nrrd=nrrd,
    )


def _states_axes(file: Path, nifti: tuple[float, ...] | None, nrrd: tuple[str, ...] | None) -> bool:
    """Whether the file says which way its axes run; ITK takes what is not said for its own axes."""
    if nifti is not None:
        return states_axes(nifti)
    if file.name.lower().endswith(".nrrd"):
        return any(line.startswith("space:") for line in nrrd or ())
    return not file.name.lower().endswith(".gipl")  # GIPL has no direction


def _write(array: np.ndarray, file: Path, geometry: Geometry) -> None:
    if file.name.lower().endswith(".gipl") and array.dtype == np.uint32:
        raise SamunetError(f"{file} cannot hold the label value {array.max()}; GIPL goes up to 65535")
    image = itk().GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1][: geometry.dimension])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    try:
        with atomic_path(file) as temporary:
            itk().WriteImage(image, str(temporary), useCompression=True, imageIO=itk_format(file))
            if geometry.nrrd is not None and file.name.lower().endswith(".nrrd"):
                restore_placement(temporary, geometry.nrrd)
    except RuntimeError as error:
        raise SamunetError(f"could not write {file}: {reason(error)}", "check the folder and the free space") from error
