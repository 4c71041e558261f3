"""One case through all steps: transpose, crop, normalise, reduce; and the way back for a predicted mask."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from samunet.dataset.labels import Labels
from samunet.dataset.layout import Case
from samunet.errors import SamunetError
from samunet.imageio.base import Geometry, Image, Reader
from samunet.plans import ConfigurationPlan, Plans
from samunet.preprocessing.crop import Box, bounding_box, content_mask, crop, uncrop
from samunet.preprocessing.normalize import normalize
from samunet.preprocessing.resample import reduce_image, reduce_label

OUTSIDE = -1  # label of voxels outside the nonzero mask, where normalisation uses one


@dataclass(frozen=True)
class CaseRecord:
    """What is needed to bring a mask on the cropped grid back to the original image.

    Attributes:
        geometry: Of the original image.
        transpose: Order in which the original axes are stored.
        transposed_shape: Shape after transposing, before cropping.
        box: Crop within it, half open.
        stored_spacing: In-plane ``[y, x]`` millimetres of the stored slices; None without physical spacing.
    """

    geometry: Geometry
    transpose: list[int]
    transposed_shape: list[int]
    box: Box
    stored_spacing: list[float] | None

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """Shape after cropping, before any reduction: the grid on which masks are decided."""
        return tuple(stop - start for start, stop in self.box)

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


def read_case(case: Case, reader: Reader, labels: Labels) -> tuple[Image, np.ndarray | None]:
    """Read a case's image, and its label if it has one, and check that they belong together.

    Raises:
        SamunetError: If a file cannot be read, shapes or spacings differ, or the label has unknown values.
    """
    image = reader.read_image(case.images)
    if case.label is None:
        return image, None
    label, geometry = reader.read_label(case.label)
    shape = image.array.shape[1:]
    if label.shape != shape:
        raise SamunetError(
            f"{case.label.name} has shape {label.shape}, its image {shape} (z, y, x)",
            "image and label must lie on the same grid: resample one of them, or remove the case",
        )
    if not np.allclose(geometry.spacing, image.geometry.spacing, rtol=1e-3):
        raise SamunetError(
            f"{case.label.name} has spacing {geometry.spacing} mm, its image {image.geometry.spacing} mm (z, y, x)",
            "image and label must lie on the same grid: correct the header of one of them, or remove the case",
        )
    labels.check(np.unique(label).tolist(), case.label)
    return image, label


def prepare_case(
    image: Image, label: np.ndarray | None, plans: Plans, configuration: ConfigurationPlan
) -> PreparedCase:
    """Run all steps on one image, and on its label if there is one.

    The order is nnU-Net's: normalisation comes before resampling, so that a resampled mask border does not enter the
    statistics.

    Args:
        image: As read; its array is not changed.
        label: ``(z, y, x)`` integer in the same geometry.

    Raises:
        SamunetError: If the number of channels is not the plans'.
    """
    if len(image.array) != len(configuration.normalization):
        raise SamunetError(
            f"the image has {len(image.array)} channels, the plans expect {len(configuration.normalization)}"
        )
    axes = plans.transpose_forward
    array = image.array.transpose(0, *(axis + 1 for axis in axes))
    spacing = [image.geometry.spacing[axis] for axis in axes]
    mask = content_mask(array)
    box = bounding_box(mask)
    cropped = np.array(crop(array, box), dtype=np.float32, order="C")
    masked = any(configuration.use_mask_for_norm)
    inside = _filled(crop(mask, box)) if masked else None
    normalize(
        cropped,
        configuration.normalization,
        configuration.use_mask_for_norm,
        inside,
        plans.foreground_intensity_properties_per_channel,
    )
    shape, stored_spacing = stored_shape(cropped.shape[2:], spacing[1:], configuration.spacing)
    record = CaseRecord(image.geometry, list(axes), list(array.shape[1:]), box, stored_spacing)
    stored_label = None
    if label is not None:
        stored_label = np.array(crop(label.transpose(axes), box), dtype=np.int16, order="C")
        if masked:
            stored_label[~inside & (stored_label == 0)] = OUTSIDE
        stored_label = reduce_label(stored_label, shape)
    return PreparedCase(reduce_image(cropped, shape), stored_label, record)


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
    """Undo crop and transposition of a mask on the cropped grid.

    Args:
        mask: ``(z, y, x)``, or ``(channels, z, y, x)`` for probabilities, of ``record.cropped_shape``.

    Returns:
        The same kind of array in the original image's axes and shape.
    """
    full = uncrop(mask, record.box, tuple(record.transposed_shape))
    leading = mask.ndim - 3
    backward = [leading + int(axis) for axis in np.argsort(record.transpose)]
    return full.transpose(*range(leading), *backward)


def _filled(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_fill_holes

    return binary_fill_holes(mask)
