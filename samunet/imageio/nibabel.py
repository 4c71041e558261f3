"""NIfTI with nibabel's idea of where the voxels lie."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from samunet.imageio.base import Geometry
from samunet.imageio.nifti import NIFTI_ENDINGS, affine_geometry, read_nifti
from samunet.imageio.simpleitk import SimpleITKReader


class NibabelReader(SimpleITKReader):
    """NIfTI alone. The array is that of SimpleITKIO; axes that are not at right angles are taken as they are."""

    name = "NibabelIO"
    endings = directed_endings = NIFTI_ENDINGS
    read_only: ClassVar = {}
    segment_endings = ()
    companions: ClassVar = {}
    opens_folders = False

    def read_voxels(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """See :meth:`SimpleITKReader.read_voxels`."""
        image = read_nifti(file)
        return image.voxels, affine_geometry(image, file)
