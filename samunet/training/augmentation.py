"""nnU-Net's augmentations in nnU-Net's order, as batchgenerators' transforms, with a spatial transform of our own."""

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

from samunet.preprocessing.case import OUTSIDE
from samunet.preprocessing.grid import about_centre, sample, sample_label


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
) -> Compose:
    """nnU-Net's 2D training augmentation.

    Args:
        shape: Network input ``(height, width)``.
        mirror_axes: In-plane axes that may be mirrored.
        masked: Channels whose values outside the nonzero mask stay 0.
        per_channel: Whether channels are different modalities, changed independently; neighbouring slices are not.
        rotation: Largest angle in degrees.
        ignore: Label value of pixels without annotation.

    Returns:
        A batchgenerators ``Compose``, to be called with ``data``, ``seg`` and ``window`` of one item.
    """
    half = 0.5 if per_channel else 1.0
    transforms = [
        AffineWindowTransform(shape, np.deg2rad(rotation), ignore=ignore),
        GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_sample=0.1, per_channel=per_channel),
        GaussianBlurTransform(
            (0.5, 1.0), different_sigma_per_channel=per_channel, p_per_sample=0.2, p_per_channel=half
        ),
        BrightnessMultiplicativeTransform((0.75, 1.25), per_channel=per_channel, p_per_sample=0.15),
        ContrastAugmentationTransform((0.75, 1.25), per_channel=per_channel, p_per_sample=0.15),
        SimulateLowResolutionTransform(
            (0.5, 1),
            per_channel=per_channel,
            p_per_channel=half,
            order_downsample=0,
            order_upsample=1,
            p_per_sample=0.25,
        ),
        GammaTransform((0.7, 1.5), invert_image=True, per_channel=per_channel, retain_stats=True, p_per_sample=0.1),
        GammaTransform((0.7, 1.5), invert_image=False, per_channel=per_channel, retain_stats=True, p_per_sample=0.3),
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
