"""Medical image formats: read here in Python, header by header; written, and DICOM read, through SimpleITK."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import (
    COPY_AGAIN,
    Geometry,
    Image,
    Reader,
    Segmentation,
    smallest_unsigned,
    stack_channels,
    to_label,
    without_z_if_2d,
)
from samunet.imageio.dicom import count_components, read_series
from samunet.imageio.gipl import count_gipl_channels, read_gipl
from samunet.imageio.headers import geometry_of
from samunet.imageio.itk import itk, itk_format, reason, written
from samunet.imageio.meta import META_ENDINGS, count_meta_channels, join_meta, read_meta
from samunet.imageio.nifti import (
    NIFTI_ENDINGS,
    affine_geometry,
    count_nifti_channels,
    parse_header,
    read_nifti,
    states_axes,
    write_nifti,
)
from samunet.imageio.nrrd import NRRD_ENDINGS, count_nrrd_channels, join_nrrd, nrrd_keys, read_nrrd, restore_placement
from samunet.imageio.segments import flat, has_segments, segments_of

if TYPE_CHECKING:
    import SimpleITK as sitk


class SimpleITKReader(Reader):
    """NIfTI, NRRD, MetaImage and GIPL, 2D and 3D; axes beyond the third and vector components are channels.

    A folder is read as an image if it holds one DICOM series. GIPL has no direction: ITK reads and writes its axes as
    pointing to the left, back and up, and it is always 3D.
    """

    name = "SimpleITKIO"
    endings = (*NIFTI_ENDINGS, ".nrrd", ".mha", ".gipl", ".gipl.gz")
    read_only: ClassVar = {".mhd": ".mha", ".nhdr": ".nrrd"}
    directed_endings = (*NIFTI_ENDINGS, ".nrrd", ".mha")
    segment_endings = NRRD_ENDINGS
    companions: ClassVar = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz")}
    opens_folders = True

    def __init__(self, *, reorients: bool = False) -> None:
        self.reorients = reorients
        if reorients:
            self.name += "WithReorient"

    def read_image(
        self, files: Sequence[Path], *, channels: int | None = None, tolerate_geometry: bool = False
    ) -> Image:
        """See :meth:`Reader.read_image`."""
        parts = [(Path(file), *self._read(Path(file))) for file in files]
        return stack_channels(parts, channels, tolerate_geometry)

    def read_label(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """See :meth:`Reader.read_label`."""
        file = Path(file)
        segmentation = self.read_segmentation(file)
        if segmentation is not None:
            voxels, geometry, segments = segmentation
            return to_label(flat(voxels, segments, file) if len(voxels) > 1 else voxels, file), geometry
        voxels, geometry = self._read(file)
        return to_label(voxels, file), geometry

    def read_segmentation(self, file: Path) -> Segmentation | None:
        """See :meth:`Reader.read_segmentation`: 3D Slicer's, in NRRD."""
        if not file.name.lower().endswith(self.segment_endings) or not has_segments(nrrd_keys(file)):
            return None
        voxels, geometry, keys = read_nrrd(file)
        geometry = replace(self._marked(geometry, file), cropped=True)
        return Segmentation(voxels, geometry, segments_of(keys, len(voxels), file))

    def _read(self, file: Path) -> tuple[np.ndarray, Geometry]:
        voxels, geometry = self.read_voxels(file)
        return voxels, self._marked(geometry, file)

    def _marked(self, geometry: Geometry, file: Path) -> Geometry:
        if self.reorients and geometry.dimension != 3:
            raise SamunetError(
                f"{file} is 2D: {self.name} can reorient only volumes",
                f"set overwrite_image_reader_writer in dataset.json to {self.name.removesuffix('WithReorient')}",
            )
        return replace(geometry, reorient=self.reorients)

    def read_voxels(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """One file's voxels ``(channels, z, y, x)`` in its own number type, and its geometry.

        Raises:
            SamunetError: If the file cannot be read.
        """
        if file.is_dir():
            return _read_series(file)
        name = file.name.lower()
        if name.endswith(NIFTI_ENDINGS):
            return _read_nifti(file)
        if name.endswith(NRRD_ENDINGS):
            return read_nrrd(file)[:2]
        return read_meta(file) if name.endswith(META_ENDINGS) else read_gipl(file)

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
        name = file.name.lower()
        if file.is_dir():
            return count_components(file)
        if name.endswith(NIFTI_ENDINGS):
            return count_nifti_channels(file)
        count = count_nrrd_channels if name.endswith(NRRD_ENDINGS) else count_gipl_channels
        return count_meta_channels(file) if name.endswith(META_ENDINGS) else count(file)

    def in_one_file(self, file: Path) -> bytes | None:
        """See :meth:`Reader.in_one_file`."""
        name = file.name.lower()
        if name.endswith(META_ENDINGS):
            return join_meta(file)
        return join_nrrd(file) if name.endswith(NRRD_ENDINGS) else None


def _read_series(folder: Path) -> tuple[np.ndarray, Geometry]:
    image = read_series(folder)
    voxels = itk().GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    dimension = min(image.GetDimension(), 3)
    spatial = voxels.shape[-dimension:]
    channels = int(np.prod(voxels.shape[:-dimension], dtype=int))
    return voxels.reshape(channels, *(1,) * (3 - dimension), *spatial), _geometry(image, folder)


def _read_nifti(file: Path) -> tuple[np.ndarray, Geometry]:
    image = read_nifti(file)
    if image.version == 2:  # which ITK does not know
        return image.voxels, affine_geometry(image, file)
    header = itk().ImageFileReader()
    with TemporaryDirectory(prefix="samunet-") as folder:
        copy = Path(folder, "header.nii")
        copy.write_bytes(image.header + bytes(4))
        header.SetFileName(str(copy))
        header.SetImageIO(itk_format(copy))
        try:
            header.ReadImageInformation()
        except RuntimeError as error:
            raise _misplaced(file, error) from error
    return image.voxels, _geometry(header, file, nifti=image.header.hex())


def _misplaced(file: Path, error: RuntimeError) -> SamunetError:
    if "orthonormal" in str(error):
        return SamunetError(
            f"{file} has axes that are not at right angles to each other (its sform is sheared)",
            "with nibabel: image.set_sform(image.get_qform()), then save; or resample it onto a right-angled grid; or"
            ' "overwrite_image_reader_writer": "NibabelIO" in dataset.json, which takes such axes as they are',
        )
    return SamunetError(f"could not read {file}: {reason(error)}", COPY_AGAIN)


def _geometry(source: sitk.Image | sitk.ImageFileReader, file: Path, nifti: str | None = None) -> Geometry:
    axes = source.GetDimension()
    direction = np.reshape(source.GetDirection(), (axes, axes))
    fields = ("pixdim", "qform or sform") if nifti is not None else ("PixelSpacing and positions", "orientation")
    placed = nifti is None or states_axes(parse_header(nifti))
    return geometry_of(file, source.GetSpacing(), source.GetOrigin(), direction, fields, placed=placed, nifti=nifti)


def _write(array: np.ndarray, file: Path, geometry: Geometry) -> None:
    if file.name.lower().endswith((".gipl", ".gipl.gz")) and array.dtype == np.uint32:
        raise SamunetError(f"{file} cannot hold the label value {array.max()}; GIPL goes up to 65535")
    image = itk().GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1][: geometry.dimension])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with written(image, file) as temporary:
        if geometry.nrrd is not None and file.name.lower().endswith(".nrrd"):
            restore_placement(temporary, geometry.nrrd)
