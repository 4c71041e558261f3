"""Preprocessing of one case: reorient, transpose, crop, normalise, reduce; and the way back for a predicted mask."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from samunet.dataset.cases import Case
from samunet.dataset.description import Description
from samunet.errors import SamunetError
from samunet.imageio.base import Geometry, Image
from samunet.imageio.registry import image_reader_for
from samunet.imageio.same_grid import Grid, on_grid
from samunet.plans import ConfigurationPlan, Plans
from samunet.preprocessing.chunks import chunks, unique_values
from samunet.preprocessing.crop import Box, bounding_box, content_mask, crop, uncrop
from samunet.preprocessing.normalize import normalize
from samunet.preprocessing.orientation import UNKNOWN, orientation_of, reorient, reorient_axes, wanted_orientation
from samunet.preprocessing.resample import reduce_image, reduce_label

OUTSIDE = -1  # label of voxels outside the nonzero mask, where normalisation uses one


@dataclass(frozen=True)
class CaseRecord:
    """The way back from the cropped grid to the original image."""

    geometry: Geometry  # of the original image
    transpose: list[int]  # order in which the original axes are stored
    transposed_shape: list[int]  # before cropping
    box: Box  # crop within it
    stored_spacing: list[float] | None  # in-plane [y, x] millimetres of the stored slices; None without spacing
    orientation: str = UNKNOWN  # to which the volume was turned first; UNKNOWN if it was left as it lies

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """Shape after cropping, before any reduction: the grid on which masks are decided."""
        return tuple(stop - start for start, stop in self.box)

    @property
    def slice_spacing(self) -> float:
        """Millimetres from one stored slice to the next."""
        spacing = reorient_axes(self.geometry.spacing, orientation_of(self.geometry), self.orientation)
        return spacing[self.transpose[0]]

    def to_json(self) -> dict:
        """As plain data."""
        return {**asdict(self), "geometry": self.geometry.to_json()}

    @staticmethod
    def from_json(data: dict) -> CaseRecord:
        """Inverse of :meth:`to_json`."""
        return CaseRecord(**{**data, "geometry": Geometry.from_json(data["geometry"])})


@dataclass
class PreparedCase:
    """A preprocessed case: image ``(channels, z, y, x)`` float32, label ``(z, y, x)`` or None, and its record."""

    image: np.ndarray
    label: np.ndarray | None
    record: CaseRecord


def read_case(
    case: Case, description: Description, *, tolerate_geometry: bool = False
) -> tuple[Image, np.ndarray | None]:
    """Read a case's image, and its label if it has one, and check that they belong together.

    Args:
        tolerate_geometry: Only warn where channels, or image and label, differ in origin or direction.

    Returns:
        Image, and label ``(z, y, x)`` int16, turned to lie as the image does where its axes run otherwise.

    Raises:
        SamunetError: If a file cannot be read, the number of channels is wrong, grids differ, or the label has unknown
            values.
    """
    preferred = description.reader
    image = image_reader_for(case.images[0], preferred).read_image(
        case.images, channels=len(description.channel_names), tolerate_geometry=tolerate_geometry
    )
    if case.label is None:
        return image, None
    label, geometry = preferred.read_label(case.label)
    own = Grid(case.label, label.shape, geometry)
    label = on_grid(label, own, Grid(case.images[0], image.array.shape[1:], image.geometry), tolerate_geometry)
    description.labels.check(unique_values(label), case.label)
    return image, label.astype(np.int16, order="C")


def prepare_case(
    image: Image,
    label: np.ndarray | None,
    plans: Plans,
    configuration: ConfigurationPlan,
    ignore: int | None = None,
) -> PreparedCase:
    """Run all steps on one image, and on its label if there is one.

    The order is nnU-Net's: normalisation comes before resampling, so that a resampled mask border does not enter the
    statistics. With the image and label that come in, at most four arrays of the case's size are held: two copies of
    the image as float32 and two of the label as int16. Normalisation inside a mask needs up to one copy more for that.

    Args:
        image: As read; its array is not changed.
        label: ``(z, y, x)`` integer in the same geometry.
        ignore: Label value of voxels without annotation.

    Raises:
        SamunetError: If the number of channels is not the plans'.
    """
    if len(image.array) != len(configuration.normalization):
        raise SamunetError(
            f"the image has {len(image.array)} channels, the plans expect {len(configuration.normalization)}"
        )
    own, wanted = orientation_of(image.geometry), wanted_orientation(image.geometry, plans.orientation)
    array = reorient(image.array, own, wanted)
    label = None if label is None else reorient(label, own, wanted)
    axes = plans.transpose_forward
    sides = reorient_axes(image.geometry.spacing, own, wanted)
    spacing = [sides[axis] for axis in axes]
    mask = reorient(content_mask(image.array), own, wanted)
    box = bounding_box(mask) if configuration.crop else [[0, side] for side in mask.shape]
    masked = any(configuration.use_mask_for_norm)
    inside = None
    if masked:
        from scipy.ndimage import binary_fill_holes

        inside = np.ascontiguousarray(binary_fill_holes(crop(mask, box)).transpose(axes))
    del mask
    cropped = np.array(crop(array, box).transpose(0, *(axis + 1 for axis in axes)), dtype=np.float32, order="C")
    normalize(
        cropped,
        configuration.normalization,
        configuration.use_mask_for_norm,
        inside,
        plans.foreground_intensity_properties_per_channel,
        configuration.windows,
    )
    shape, stored_spacing = stored_shape(cropped.shape[2:], spacing[1:], configuration.spacing)
    transposed_shape, transposed_box = ([sides[axis] for axis in axes] for sides in (array.shape[1:], box))
    orientation = wanted if own else UNKNOWN
    record = CaseRecord(image.geometry, list(axes), transposed_shape, transposed_box, stored_spacing, orientation)
    reduced = reduce_image(cropped, shape)
    del cropped  # its memory is needed for the label
    stored_label = None
    if label is not None:
        stored_label = np.array(crop(label, box).transpose(axes), dtype=np.int16, order="C")
        if masked:
            for values, where in chunks(stored_label, inside):
                values[~where & (values == 0)] = OUTSIDE
        stored_label = reduce_label(stored_label, shape, ignore)
    return PreparedCase(reduced, stored_label, record)


def stored_shape(
    shape: tuple[int, int], spacing: list[float], coarsest: list[float] | None
) -> tuple[tuple[int, int], list[float] | None]:
    """In-plane shape and spacing in which a case is stored: finer cases are reduced, none is enlarged.

    Args:
        shape: Cropped ``(y, x)``.
        spacing: The case's own in-plane spacing in mm.
        coarsest: ``ConfigurationPlan.spacing``; None without physical spacing, where nothing is reduced.
    """
    if coarsest is None:
        return tuple(shape), None
    # A header's spacing often differs from the median in its sixth digit: that is no reason to resample.
    new = tuple(
        side if own * 1.01 >= wanted else max(1, round(side * own / wanted))
        for side, own, wanted in zip(shape, spacing, coarsest)
    )
    return new, [own * old_side / new_side for own, old_side, new_side in zip(spacing, shape, new)]


def restore_mask(mask: np.ndarray, record: CaseRecord) -> np.ndarray:
    """Undo crop, transposition and turn of a mask on the cropped grid.

    Args:
        mask: ``(z, y, x)``, or ``(channels, z, y, x)`` for probabilities, of ``record.cropped_shape``.

    Returns:
        The same kind of array in the original image's axes and shape.
    """
    full = uncrop(mask, record.box, tuple(record.transposed_shape))
    leading = mask.ndim - 3
    backward = [leading + int(axis) for axis in np.argsort(record.transpose)]
    return reorient(full.transpose(*range(leading), *backward), record.orientation, orientation_of(record.geometry))
