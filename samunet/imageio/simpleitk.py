"""nnU-Net's readers of volumes, over the formats that :class:`VolumeFormat` describes, and folders of DICOM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio import dicom
from samunet.imageio.base import Geometry, Reader, Segmentation
from samunet.imageio.gipl import Gipl
from samunet.imageio.meta import Meta
from samunet.imageio.nifti import NibabelNifti, Nifti
from samunet.imageio.nrrd import Nrrd
from samunet.imageio.segments import flat, has_segments, segments_of
from samunet.imageio.volume import VolumeFormat


class SimpleITKReader(Reader):
    """Volumes and 2D images in the formats of ``formats``, and folders with one DICOM series."""

    name = "SimpleITKIO"
    formats: tuple[VolumeFormat, ...] = (Nifti(), Nrrd(), Meta(), Gipl())
    opens_folders = True

    def __init__(self, *, reorients: bool = False) -> None:
        self.reorients = reorients
        if reorients:
            self.name += "WithReorient"
        self.endings = tuple(ending for form in self.formats for ending in form.endings)
        self.directed_endings = tuple(ending for form in self.formats if form.directed for ending in form.endings)
        self.read_only = {ending: mask for form in self.formats for ending, mask in form.read_only.items()}
        self.companions = {ending: beside for form in self.formats for ending, beside in form.companions.items()}
        self.segment_endings = tuple(
            ending for form in self.formats if isinstance(form, Nrrd) for ending in (*form.endings, *form.read_only)
        )

    def read_voxels(self, file: Path, wanted: int | None = None, label: bool = False) -> tuple[np.ndarray, Geometry]:
        """See :meth:`Reader.read_voxels`."""
        if file.is_dir():
            voxels, geometry = dicom.read_series(file)
            return voxels, self._marked(geometry, file)
        segmentation = self.read_segmentation(file) if label else None
        if segmentation is not None:
            voxels, geometry, segments = segmentation
            return flat(voxels, segments, file) if len(voxels) > 1 else voxels, geometry
        voxels, geometry, _ = self._format(file).read(file)
        return voxels, self._marked(geometry, file)

    def write_voxels(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`Reader.write_voxels`."""
        self._format(file).write(array, file, geometry)

    def read_segmentation(self, file: Path) -> Segmentation | None:
        """See :meth:`Reader.read_segmentation`: 3D Slicer's, in NRRD."""
        if not file.name.lower().endswith(self.segment_endings):
            return None
        form = self._format(file)
        if not has_segments(form.layout(file).header.keys):
            return None
        voxels, geometry, layout = form.read(file)
        geometry = replace(self._marked(geometry, file), cropped=True)
        return Segmentation(voxels, geometry, segments_of(layout.header.keys, len(voxels), file))

    def count_channels(self, file: Path) -> int:
        """See :meth:`Reader.count_channels`."""
        file = Path(file)
        return dicom.count_components(file) if file.is_dir() else self._format(file).layout(file).shape[0]

    def in_one_file(self, file: Path) -> bytes | None:
        """See :meth:`Reader.in_one_file`."""
        return self._format(file).in_one_file(file)

    def _format(self, file: Path) -> VolumeFormat:
        name = file.name.lower()
        return next(form for form in self.formats if name.endswith((*form.endings, *form.read_only)))

    def _marked(self, geometry: Geometry, file: Path) -> Geometry:
        if self.reorients and geometry.dimension != 3:
            raise SamunetError(
                f"{file} is 2D: {self.name} can reorient only volumes",
                f"set overwrite_image_reader_writer in dataset.json to {self.name.removesuffix('WithReorient')}",
            )
        return replace(geometry, reorient=self.reorients)


class NibabelReader(SimpleITKReader):
    """NIfTI only. Axes that are not at right angles are taken as they are."""

    name = "NibabelIO"
    formats = (NibabelNifti(),)
    opens_folders = False
