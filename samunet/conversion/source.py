"""A case as it lies in somebody's folders: how its image and mask are read, and how the image gets into a dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from samunet.conversion.masks import RawMask, read_mask
from samunet.errors import SamunetError
from samunet.files import atomic_path, write_json
from samunet.imageio.base import Geometry, Image
from samunet.imageio.dicom import write_as_nifti
from samunet.imageio.registry import READERS, ending_of, image_reader_for, kind_of, mask_ending


class Source(ABC):
    """One case that is to be converted.

    Attributes:
        name: Of the case.
        group: Its patient; None if not known.
    """

    name: str
    group: str | None

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Everything that is read, the image first."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """``volume`` (formats with geometry), ``tiff`` or ``picture``."""

    @property
    @abstractmethod
    def mask_name(self) -> str | None:
        """What to call the mask in messages, its file's ending included; None if there is none."""

    @abstractmethod
    def read_image(self) -> Image:
        """The image with all its channels, as the file has them.

        Raises:
            SamunetError: If it cannot be read.
        """

    @abstractmethod
    def read_mask(self, *, as_colours: bool, threshold: float | None) -> RawMask:
        """The mask as it is coded in the file; see :func:`samunet.conversion.masks.read_mask`."""

    @abstractmethod
    def write_image(self, folder: Path, geometry: Geometry) -> None:
        """Write the image to ``folder`` (imagesTr or imagesTs) as ``NAME_0000.ending`` and so on."""


@dataclass(frozen=True)
class FileSource(Source):
    """A case whose image and mask are files that samunet's readers open.

    Attributes:
        name: Of the case.
        images: One file per channel, or one that holds all; a folder is a DICOM series.
        mask: None for test images without reference.
        group: Its patient.
    """

    name: str
    images: tuple[Path, ...]
    mask: Path | None
    group: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """See :class:`Source`."""
        return (*self.images, self.mask) if self.mask is not None else self.images

    @property
    def kind(self) -> str:
        """See :class:`Source`."""
        return kind_of(self.images[0])

    @property
    def mask_name(self) -> str | None:
        """See :class:`Source`."""
        return None if self.mask is None else self.mask.name

    def read_image(self) -> Image:
        """See :class:`Source`."""
        kinds = {kind_of(file) for file in self.files}
        if "volume" in kinds and len(kinds) > 1:
            raise SamunetError(
                f"{', '.join(file.name for file in self.files)} are files with geometry and pictures without",
                "save image and mask in one format, such as .nii.gz for volumes or .png for pictures",
            )
        return image_reader_for(self.images[0], READERS[0]).read_image(self.images)

    def read_mask(self, *, as_colours: bool, threshold: float | None) -> RawMask:
        """See :class:`Source`."""
        return read_mask(self.mask, as_colours=as_colours, threshold=threshold)

    def write_image(self, folder: Path, geometry: Geometry) -> None:
        """Copies the files byte for byte; a TIFF's spacing goes into the JSON file beside it, DICOM becomes NIfTI.

        A header and the voxels beside it become one file.
        """
        for channel, file in enumerate(self.images):
            if file.is_dir():
                write_as_nifti(file, folder / f"{self.name}_{channel:04d}.nii.gz")
                continue
            ending = mask_ending(file) if kind_of(file) == "volume" else ending_of(file)
            target = folder / f"{self.name}_{channel:04d}{ending}"
            try:
                content = image_reader_for(file, READERS[0]).in_one_file(file) or file.read_bytes()
            except OSError as error:
                raise SamunetError(f"could not read {file}: {error.strerror}", "check that you may read it") from error
            # Content alone: a copy with the permissions of a read-only file could not be replaced later.
            with atomic_path(target) as temporary:
                temporary.write_bytes(content)
            if geometry.physical and kind_of(target) == "tiff":
                write_json(target.with_suffix(".json"), {"spacing": list(geometry.spacing)})
