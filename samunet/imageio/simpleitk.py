"""Medical formats through SimpleITK: NIfTI, NRRD, MetaImage; two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path
from samunet.imageio.base import Geometry, Image, Reader, check_finite, smallest_unsigned, stack_channels, whole_numbers


class SimpleITKReader(Reader):
    """One file per channel; origin, direction and spacing are written back as they were read."""

    name = "SimpleITKIO"
    endings = (".nii.gz", ".nii", ".nrrd", ".mha")

    def read_image(self, files: Sequence[Path]) -> Image:
        """See :meth:`samunet.imageio.base.Reader.read_image`."""
        import SimpleITK

        arrays, geometries = [], []
        for file in files:
            array, geometry = _read(file, SimpleITK.sitkFloat32)
            check_finite(array, file)
            arrays.append(array[None])
            geometries.append(geometry)
        return stack_channels(arrays, geometries, files)

    def read_label(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """See :meth:`samunet.imageio.base.Reader.read_label`."""
        import SimpleITK

        array, geometry = _read(file, SimpleITK.sitkUnknown)
        return whole_numbers(array, file), geometry

    def write_label(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`samunet.imageio.base.Reader.write_label`."""
        import SimpleITK

        array = smallest_unsigned(array)
        image = SimpleITK.GetImageFromArray(array[0] if geometry.dimension == 2 else array)
        image.SetSpacing(tuple(reversed(geometry.spacing))[: geometry.dimension])
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
        with atomic_path(file) as temporary:
            SimpleITK.WriteImage(image, str(temporary), True)


def _read(file: Path, pixel_type: int) -> tuple[np.ndarray, Geometry]:
    """Array ``(z, y, x)`` and geometry."""
    import SimpleITK

    if not Path(file).is_file():
        raise SamunetError(f"{file} does not exist")
    try:
        image = SimpleITK.ReadImage(str(file), pixel_type)
    except RuntimeError as error:
        raise SamunetError(f"{file} cannot be read: it is empty, truncated or no image", "restore the file") from error
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() not in (2, 3):
        raise SamunetError(
            f"{file}: {image.GetDimension()} dimensions, {image.GetNumberOfComponentsPerPixel()} values per voxel",
            "use one file with two or three dimensions per channel: case_0000, case_0001, ...",
        )
    array = SimpleITK.GetArrayFromImage(image)
    spacing = tuple(reversed(image.GetSpacing()))
    dimension = image.GetDimension()
    if dimension == 2:
        array, spacing = array[None], (1.0, *spacing)
    return array, Geometry(spacing, True, image.GetOrigin(), image.GetDirection(), dimension)
