"""nnU-Net's augmentations in nnU-Net's order, as batchgenerators' transforms, with a spatial transform of our own.

And a stronger set for few cases: a network that sees the same few images thousands of times may learn them by heart
(``documentation/results/few_labels.md``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from batchgenerators.transforms.abstract_transforms import AbstractTransform, Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
from batchgenerators.transforms.spatial_transforms import MirrorTransform
from torch.nn import functional

from samunet.preprocessing.case import OUTSIDE
from samunet.preprocessing.grid import about_centre, sample, sample_label, shift


class AffineWindowTransform(AbstractTransform):
    """Cuts the network's input out of a stored slice: zoom, rotation and scaling in one interpolation.

    Takes the place of batchgenerators' ``SpatialTransform``, which computes coordinates for elastic deformation with
    map_coordinates and is many times slower (``benchmarks/augmentation.py``).

    Expects ``data`` ``(1, channels, h, w)``, ``seg`` ``(1, labels, h, w)`` and ``window``, the ``3 x 3`` map from the
    network's input to the stored slice.

    Args:
        shape: Network input ``(height, width)``.
        rotation: Largest angle in radians, drawn evenly to both sides.
        scale: Smallest and largest size of the content relative to the image's own.
        p_rotation, p_scale: Probabilities; 0 for neither.
        ignore: Label value of pixels without annotation.
    """

    def __init__(
        self,
        shape: Sequence[int],
        rotation: float = np.pi,
        scale: tuple[float, float] = (0.7, 1.4),
        p_rotation: float = 0.2,
        p_scale: float = 0.2,
        ignore: int | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.rotation = rotation
        self.scale = scale
        self.p_rotation = p_rotation
        self.p_scale = p_scale
        self.ignore = ignore

    def draw(self) -> np.ndarray:
        """Random rotation and scaling about the window's centre, as a ``3 x 3`` map from output to window positions."""
        angle = np.random.uniform(-self.rotation, self.rotation) if np.random.uniform() < self.p_rotation else 0.0
        scale = np.random.uniform(*self.scale) if np.random.uniform() < self.p_scale else 1.0
        if angle == 0.0 and scale == 1.0:
            return np.eye(3)
        return about_centre(self.shape, angle, scale)

    def __call__(self, **data_dict):
        matrix = data_dict["window"] @ self.draw()
        images = torch.from_numpy(np.ascontiguousarray(data_dict["data"], dtype=np.float32))
        data_dict["data"] = sample(images, matrix, self.shape).numpy()
        labels = [
            sample_label(label, matrix, self.shape, outside=OUTSIDE, ignore=self.ignore)
            for label in data_dict["seg"][0]
        ]
        data_dict["seg"] = np.stack(labels)[None]
        return data_dict


class StrongWindowTransform(AffineWindowTransform):
    """Turns, scales, stretches, shears and shifts four of five items; the others as :class:`AffineWindowTransform`.

    The arguments are those of :class:`AffineWindowTransform`.
    """

    def draw(self) -> np.ndarray:
        """See :class:`AffineWindowTransform`."""
        if np.random.uniform() >= 0.8:
            return super().draw()
        angle = np.random.uniform(-self.rotation, self.rotation)
        turned = about_centre(self.shape, angle, np.exp(np.random.uniform(np.log(0.65), np.log(1.5))))
        stretch, shear = np.exp(np.random.uniform(-0.2, 0.2)), np.random.uniform(-0.15, 0.15)
        centre = [(side - 1) / 2 for side in self.shape]
        there = shift(*(place + side * np.random.uniform(-0.1, 0.1) for place, side in zip(centre, self.shape)))
        sheared = np.array([[stretch, shear, 0], [0, 1 / stretch, 0], [0, 0, 1]])
        return turned @ there @ sheared @ shift(*(-place for place in centre))


class BiasFieldTransform(AbstractTransform):
    """Makes images brighter here and darker there, as coils and lights do.

    Values above the image's least are multiplied by a smooth field, from ``exp(-strength)`` to ``exp(strength)`` at
    4 x 4 points and bicubic between them.

    Args:
        strength: Largest logarithm of the field.
        p_per_sample: Probability for an item.
        per_channel: Whether each channel has a field of its own.
    """

    def __init__(self, strength: float = 0.5, p_per_sample: float = 0.5, *, per_channel: bool = True) -> None:
        self.strength, self.p_per_sample, self.per_channel = strength, p_per_sample, per_channel

    def __call__(self, **data_dict):
        data = data_dict["data"]
        if np.random.uniform() < self.p_per_sample:
            fields = data.shape[1] if self.per_channel else 1
            points = torch.from_numpy(np.random.uniform(-self.strength, self.strength, (1, fields, 4, 4)))
            field = functional.interpolate(points, data.shape[2:], mode="bicubic", align_corners=True)
            least = data.min(axis=(2, 3), keepdims=True)
            data_dict["data"] = ((data - least) * np.exp(field.numpy()) + least).astype(data.dtype)
        return data_dict


class MaskOutsideTransform(AbstractTransform):
    """Puts values outside the nonzero mask back to 0 after intensity changes (nnU-Net's last step).

    The mask is told from ``seg``, which has one label for all channels, or one for each so many of them.

    Args:
        channels: Channels to mask.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = list(channels)

    def __call__(self, **data_dict):
        outside = data_dict["seg"] == OUTSIDE
        channels = data_dict["data"].shape[1]
        for channel in self.channels:
            data_dict["data"][:, channel][outside[:, channel * outside.shape[1] // channels]] = 0
        return data_dict


def training_transforms(
    shape: Sequence[int],
    mirror_axes: Sequence[int],
    masked: Sequence[int],
    per_channel: bool,
    rotation: float = 180.0,
    ignore: int | None = None,
    strong: bool = False,
) -> Compose:
    """nnU-Net's 2D training augmentation, or a stronger one.

    Args:
        shape: Network input ``(height, width)``.
        mirror_axes: In-plane axes that may be mirrored.
        masked: Channels whose values outside the nonzero mask stay 0.
        per_channel: Whether channels are different modalities, changed independently; neighbouring slices are not.
        rotation: Largest angle in degrees.
        ignore: Label value of pixels without annotation.
        strong: Whether shapes, places and intensities change more, and more often.

    Returns:
        A batchgenerators ``Compose``, to be called with ``data``, ``seg`` and ``window`` of one item.
    """
    half = 0.5 if per_channel else 1.0
    angle = np.deg2rad(rotation)
    if strong:
        window: AffineWindowTransform = StrongWindowTransform(shape, angle, p_rotation=0.7, p_scale=0.7, ignore=ignore)
        noise, p_noise, blur, p_blur = 0.15, 0.25, 1.5, 0.3
        bright, p_bright, zoom = (0.5, 1.5), 0.4, 0.4
        gamma, p_inverted, p_gamma = (0.5, 2.0), 0.25, 0.5
    else:
        window = AffineWindowTransform(shape, angle, ignore=ignore)
        noise, p_noise, blur, p_blur = 0.1, 0.1, 1.0, 0.2
        bright, p_bright, zoom = (0.75, 1.25), 0.15, 0.5
        gamma, p_inverted, p_gamma = (0.7, 1.5), 0.1, 0.3
    transforms = [
        window,
        *([BiasFieldTransform(per_channel=per_channel)] if strong else []),
        GaussianNoiseTransform(noise_variance=(0, noise), p_per_sample=p_noise, per_channel=per_channel),
        GaussianBlurTransform(
            (0.5, blur), different_sigma_per_channel=per_channel, p_per_sample=p_blur, p_per_channel=half
        ),
        BrightnessMultiplicativeTransform(bright, per_channel=per_channel, p_per_sample=p_bright),
        ContrastAugmentationTransform(bright, per_channel=per_channel, p_per_sample=p_bright),
        SimulateLowResolutionTransform(
            (zoom, 1),
            per_channel=per_channel,
            p_per_channel=half,
            order_downsample=0,
            order_upsample=1,
            p_per_sample=0.25,
        ),
        GammaTransform(gamma, invert_image=True, per_channel=per_channel, retain_stats=True, p_per_sample=p_inverted),
        GammaTransform(gamma, invert_image=False, per_channel=per_channel, retain_stats=True, p_per_sample=p_gamma),
    ]
    if mirror_axes:
        transforms.append(MirrorTransform(tuple(mirror_axes)))
    if masked:
        transforms.append(MaskOutsideTransform(masked))
    return Compose(transforms)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Make everything drawn inside depend on ``key`` alone: batchgenerators draws from the global generators."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
