"""Test-time augmentation: mirrored or shifted views of a network's input.

A network that was trained on mirrored images is shown mirrored ones; another one shifted ones, which its tokens,
patches of several pixels, divide in other places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFTED_VIEWS = 5  # of :func:`shifted`
_GAUSSIAN_SIGMA = 1 / 8  # of the window's side, as nnU-Net weighs its tiles


@dataclass(frozen=True)
class TTAView:
    """One way to show windows ``(batch, channels, h, w)`` to a network.

    Attributes:
        flip: Axes to mirror, 2 or 3 or both.
        offset: Pixels by which the window is moved down and to the right; what it finds there is zero.
        share: In the mean over all views: a number, or one for every pixel ``(h, w)``, zero where the view sees none.
    """

    flip: tuple[int, ...] = ()
    offset: tuple[int, int] = (0, 0)
    share: float | Tensor = 1.0

    def apply(self, windows: Tensor) -> Tensor:
        """The windows as this view has them."""
        moved = _moved(windows, *self.offset)
        return moved.flip(self.flip) if self.flip else moved

    def merge_mask(self, decision: Tensor, otherwise: Tensor) -> Tensor:
        """What the view decided ``(batch, channels, h, w)``, and ``otherwise`` where it sees nothing."""
        return torch.where(self.share > 0, decision, otherwise) if isinstance(self.share, Tensor) else decision

    def invert(self, logits: Tensor) -> Tensor:
        """Logits of what was shown, on the windows as they are; zero where the view does not see them."""
        down, right = self.offset
        return _moved(logits.flip(self.flip) if self.flip else logits, -down, -right)


def mirrored(axes: Sequence[int]) -> list[TTAView]:
    """Views mirrored along every combination of in-plane axes (0: y, 1: x); the first is not mirrored."""
    flips = list(chain.from_iterable(combinations([2 + axis for axis in axes], n) for n in range(len(axes) + 1)))
    return [TTAView(flip=flip, share=1 / len(flips)) for flip in flips]


def shifted(pixels: int, shape: tuple[int, int], device: torch.device) -> list[TTAView]:
    """Five views: as it is, and shifted along both diagonals; pixels count more in the middle of a window.

    Args:
        pixels: How far, along each axis.
        shape: Of the windows.
    """
    offsets = [(0, 0), *((down, right) for down in (-pixels, pixels) for right in (-pixels, pixels))]
    weights = [_moved(gaussian(shape, device), -down, -right) for down, right in offsets]
    total = torch.stack(weights).sum(0)
    return [TTAView(offset=offset, share=weight / total) for offset, weight in zip(offsets, weights)]


def gaussian(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Weights of a window's pixels: a Gaussian around its centre, never zero."""
    axes = []
    for side in shape:
        distance = (torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2) / (side * _GAUSSIAN_SIGMA)
        axes.append(torch.exp(-0.5 * distance**2))
    return torch.outer(*axes).clamp_min(1e-4)


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """Of the same size, its first pixel where ``(down, right)`` was; zeros beyond."""
    if not (down or right):
        return images
    height, width = images.shape[-2:]
    seen = images[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    return F.pad(seen, (max(-right, 0), max(right, 0), max(-down, 0), max(down, 0)))
