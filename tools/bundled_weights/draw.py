"""Random numbers of one batch, and smooth random fields made from them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from samunet.training.pretraining import recipe

_PERIOD = 1.25  # of the fields, in image sides: beyond one, so that opposite borders do not match


class Draw(recipe.Draw):
    """What synthetic images and objectives on them need besides."""

    def normal(self, *shape: int) -> Tensor:
        """Float32, mean 0 and deviation 1."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Int64 from ``low`` up to and including ``high``."""
        return torch.randint(low, high + 1, shape, generator=self.generator, device=self.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Bool, true with ``probability``."""
        return torch.rand(shape, generator=self.generator, device=self.device) < probability

    def some(self, count: int, share: float) -> np.ndarray:
        """Indices below ``count``, each chosen with probability ``share``."""
        return np.flatnonzero(self.host.random(count) < share)

    def smooth(self, count: int, size: int, detail: Tensor, highest: int = 16, slope: int = 1) -> Tensor:
        """Stationary random fields of several scales at once.

        A sum of sines and cosines whose amplitudes fall with frequency (``(1 + (f / detail)^2)^-slope``), as two matrix
        products per field: cheaper than enlarging noise, and smooth at every scale.

        Args:
            count: Number of fields.
            size: Side in pixels.
            detail: ``(count,)``, frequency in cycles per side from which on amplitudes fall.
            highest: Highest number of cycles.
            slope: 1 for ragged fields, 2 for smooth ones.

        Returns:
            ``(count, size, size)`` float32, mean 0 and deviation 1 over all draws.
        """
        frequency = torch.arange(highest + 1, device=self.device) / _PERIOD
        place = (torch.arange(size, device=self.device) + 0.5) / size
        phase = 2 * math.pi * place[:, None] * frequency
        basis = torch.cat([torch.cos(phase), torch.sin(phase[:, 1:])], dim=1)
        frequencies = torch.cat([frequency, frequency[1:]])
        squared = frequencies[:, None] ** 2 + frequencies**2
        # Images lose their mean elsewhere; as part of a label map the constant term would only favour one region.
        amplitude = (squared > 0) / (1 + squared / detail.view(-1, 1, 1) ** 2) ** slope
        mean_square = torch.where(frequencies > 0, 0.5, 1.0)  # of a basis function
        power = (amplitude**2 * mean_square[:, None] * mean_square).sum(dim=(1, 2), keepdim=True)
        weights = self.normal(count, len(frequencies), len(frequencies)) * amplitude / power.sqrt()
        return basis @ weights @ basis.T
