"""The recipe of Gu et al. (2024, "How to build the best medical image segmentation algorithm using foundation models").

What its published code does on 8-bit images is done on values from 0 to 1 here, and its crop and rotation are part of
the one interpolation that makes the network's input (there: the nearest pixel, twice).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from batchgenerators.transforms.abstract_transforms import AbstractTransform, Compose
from torch import Tensor

from samunet.preprocessing.grid import about_centre, scaling, shift
from samunet.training.augmentation import AffineWindowTransform
from samunet.training.loss import SMOOTH, UpdateLoss
from samunet.training.recipes.recipe import Recipe
from samunet.training.recipes.samed import reduce_target
from samunet.training.schedule import POWER, WARM_UP_SHARE, Budget

_WARM_UP = 200  # updates
_LEVELS = 255
_GREY = (0.2989, 0.587, 0.114)  # of red, green and blue


class FinetuneSam(Recipe):
    """Slices with a target, each once in a pass; loss image by image; ends when checks no longer get better."""

    clip_norm = None
    everything_decays = True
    passes = True
    needs_target = True
    patience = 20

    @classmethod
    def transforms(cls, *, shape: Sequence[int], ignore: int | None = None, **_: Any) -> Callable[..., dict]:
        """Histogram equalisation, colours, then crop and rotation; see the classes."""
        return Compose([EqualizeTransform(), ColourTransform(), CropAndTurnTransform(shape, ignore=ignore)])

    def build_loss(self) -> UpdateLoss:
        """See :class:`ImageLoss`."""
        return ImageLoss()

    def rate(self, budget: Budget, iteration: int, elapsed: float) -> float:
        """Warm-up over 200 updates, then power-0.9 decay; under a budget of time the warm-up takes 5 % of it."""
        if not budget.iterations:
            progress = budget.progress(iteration, elapsed)
            return progress / WARM_UP_SHARE if progress < WARM_UP_SHARE else (1 - progress + WARM_UP_SHARE) ** POWER
        if iteration < _WARM_UP:
            return (iteration + 1) / _WARM_UP
        return (1 - (iteration - _WARM_UP) / budget.iterations) ** POWER


class ImageLoss(UpdateLoss):
    """Cross-entropy + Dice of every image and class, background included, on the decoder's quarter-resolution logits.

    The Dice is of a sigmoid of every logit, though classes exclude each other, and has squared denominators.
    """

    def sums(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy and pixels, Dice losses and their number: ``(4,)``.

        Args:
            logits: ``(batch, classes, h, w)`` float32.
            target: ``(batch, height, width)`` integer class values, at the input's resolution.
        """
        reduced = reduce_target(target, logits.shape[2:])
        one_hot = F.one_hot(reduced, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        found, axes = torch.sigmoid(logits), (2, 3)
        overlap, size = (found * one_hot).sum(axes), found.square().sum(axes) + one_hot.sum(axes)
        dice = 1 - (2 * overlap + SMOOTH) / (size + SMOOTH)
        counts = logits.new_tensor([reduced.numel(), dice.numel()])
        entropy = F.cross_entropy(logits, reduced, reduction="sum")
        return torch.stack([entropy, counts[0], dice.sum(), counts[1]])

    def value(self, sums: Tensor) -> Tensor:
        """The loss, a scalar, from the sums of the whole update."""
        return sums[0] / sums[1] + sums[2] / sums[3]


class EqualizeTransform(AbstractTransform):
    """Histogram equalisation of every channel in 256 levels, with a probability of 0.1; values are on 0-1."""

    def __init__(self, probability: float = 0.1) -> None:
        self.probability = probability

    def __call__(self, **data_dict: Any) -> dict[str, Any]:
        """Changes ``data`` ``(1, channels, h, w)``."""
        if np.random.random() < self.probability:
            data_dict["data"] = np.stack([[equalized(channel) for channel in data_dict["data"][0]]])
        return data_dict


def equalized(values: np.ndarray) -> np.ndarray:
    """A channel on 0-1 whose levels are spread by their frequency, as Pillow's ``ImageOps.equalize`` does it."""
    levels = np.clip(np.rint(values * _LEVELS), 0, _LEVELS).astype(np.intp)
    counts = np.bincount(levels.ravel(), minlength=_LEVELS + 1)
    used = counts[counts > 0]
    step = (counts.sum() - used[-1]) // _LEVELS
    if not step:
        return values
    table = (step // 2 + np.concatenate([[0], np.cumsum(counts)[:-1]])) // step
    return (np.clip(table, 0, _LEVELS)[levels] / _LEVELS).astype(values.dtype)


class ColourTransform(AbstractTransform):
    """Brightness, contrast, saturation and hue by up to 0.3, in random order; values are on 0-1.

    Images without three channels have no saturation and hue.
    """

    def __init__(self, strength: float = 0.3) -> None:
        self.strength = strength

    def __call__(self, **data_dict: Any) -> dict[str, Any]:
        """Changes ``data`` ``(1, channels, h, w)``."""
        image = data_dict["data"][0]
        factors = np.random.uniform(1 - self.strength, 1 + self.strength, 3)
        turn = np.random.uniform(-self.strength, self.strength)
        for change in np.random.permutation(4):
            if change == 0:
                image = image * factors[0]
            elif change == 1:
                image = factors[1] * image + (1 - factors[1]) * grey(image).mean()
            elif len(image) == 3 and change == 2:
                image = factors[2] * image + (1 - factors[2]) * grey(image)
            elif len(image) == 3:
                image = hue_turned(image, turn)
            image = np.clip(image, 0, 1)
        data_dict["data"] = image[None].astype(np.float32)
        return data_dict


def grey(image: np.ndarray) -> np.ndarray:
    """``(1, h, w)`` from ``(channels, h, w)``: of three channels their luminance, else their mean."""
    weights = _GREY if len(image) == 3 else [1 / len(image)] * len(image)
    return np.tensordot(np.asarray(weights, image.dtype), image, 1)[None]


def hue_turned(image: np.ndarray, turn: float) -> np.ndarray:
    """An image ``(3, h, w)`` on 0-1 whose hue is moved by ``turn`` of a whole circle."""
    low, high = image.min(0), image.max(0)
    spread = high - low
    red, green, blue = image
    safe = np.where(spread == 0, 1, spread)
    sixth = np.where(
        high == red, (green - blue) / safe, np.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    place = (sixth / 6 + turn) % 1 * 6
    # Distance from each primary on the circle of six, as a share of the spread that is taken away.
    shares = [np.clip(np.minimum((n + place) % 6, 4 - (n + place) % 6), 0, 1) for n in (5, 3, 1)]
    return np.stack([high - spread * share for share in shares])


class CropAndTurnTransform(AffineWindowTransform):
    """A random part of half to one and a half of the area, 3:4 to 4:3, enlarged; then a rotation of up to 45 degrees.

    Parts that do not fit, as all beyond the whole area, are drawn again up to ten times; then it is the whole.
    """

    def draw(self) -> np.ndarray:
        """See :class:`samunet.training.augmentation.AffineWindowTransform`."""
        turned = about_centre(self.shape, np.deg2rad(np.random.uniform(-45, 45)), 1.0)
        return self.cropped() @ turned

    def cropped(self) -> np.ndarray:
        """Map from the enlarged part to the whole."""
        height, width = self.shape
        for _ in range(10):
            area = height * width * np.random.uniform(0.5, 1.5)
            ratio = math.exp(np.random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                start = np.random.randint(0, height - h + 1), np.random.randint(0, width - w + 1)
                return shift(*start) @ scaling((height / h, width / w))
        return np.eye(3)
