"""Supervised contrastive loss: which pixels belong to the same region."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundled_weights.draw import Draw
from bundled_weights.label_maps import MOST_REGIONS

_TEMPERATURE = 0.1
_PIXELS = 256


class SameRegion(nn.Module):
    """Do two pixels lie in the same region? A supervised contrastive loss on a few pixels of each image.

    Pixels drawn at random are compared with each other (Khosla et al. 2020): each must be more like those of its own
    region than like any other of the image. Against a yes or no for every pair, this puts the weight on the pairs that
    are hard to tell apart, and needs no balance between the few equal pairs and the many unequal ones. What is
    compared is a projection (Chen et al. 2020, SimCLR) of the features that masks are told from, so that encoder,
    decoder and upscaling all learn, and it costs 256 x 256 products per image whatever the image's size.

    Args:
        channels: Of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(channels, channels)

    def forward(self, features: Tensor, regions: Tensor, draw: Draw) -> Tensor:
        """Loss of a batch.

        Args:
            features: ``(batch, channels, h, w)`` from the head.
            regions: ``(batch, H, W)`` int64.
            draw: Which pixels.
        """
        pixels = draw_pixels(regions, _PIXELS, draw, evenness=0.5)
        height, width = regions.shape[1:]
        y, x = pixels // width, pixels % width
        places = torch.stack([(x + 0.5) / width, (y + 0.5) / height], dim=2) * 2 - 1
        sampled = F.grid_sample(features.float(), places[:, None], align_corners=False)[:, :, 0].mT
        return region_contrast(self.projection(sampled), regions.flatten(1).gather(1, pixels), pixels)


def draw_pixels(regions: Tensor, number: int, draw: Draw, evenness: float) -> Tensor:
    """Flat indices ``(batch, number)`` of random pixels of ``(batch, H, W)`` regions.

    Args:
        regions: Numbers below :data:`~bundled_weights.label_maps.MOST_REGIONS`.
        number: Pixels per image, drawn with replacement.
        draw: Randomness.
        evenness: 0 draws every pixel alike, 1 every region alike.
    """
    flat = regions.flatten(1)
    weights = region_sizes(regions).clamp(min=1) ** -evenness
    return torch.multinomial(weights.gather(1, flat), number, replacement=True, generator=draw.generator)


def region_sizes(regions: Tensor) -> Tensor:
    """Pixels of every region: ``(batch, MOST_REGIONS)`` float32."""
    flat = regions.flatten(1)
    sizes = torch.zeros(len(flat), MOST_REGIONS, device=flat.device)
    return sizes.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))


def region_contrast(features: Tensor, labels: Tensor, pixels: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """Supervised contrastive loss within each image (Khosla et al. 2020, the form with the sum outside).

    Args:
        features: ``(batch, n, channels)``; only their direction counts.
        labels: ``(batch, n)``, the region of each.
        pixels: ``(batch, n)``; one pixel drawn twice is no pair.
        temperature: Of the cosine similarities.

    Returns:
        The mean over all pixels that have a partner; 0 if none has.
    """
    same_pixel = pixels[:, :, None] == pixels[:, None]
    with torch.autocast(features.device.type, enabled=False):  # 16 bits, divided by the temperature, are too few
        features = F.normalize(features.float(), dim=2)
        similarity = (features @ features.mT / temperature).masked_fill(same_pixel, -1e9)
    partners = (labels[:, :, None] == labels[:, None]) & ~same_pixel
    number = partners.sum(2)
    log_share = similarity - similarity.logsumexp(2, keepdim=True)
    loss = -(log_share * partners).sum(2) / number.clamp(min=1)
    return loss.sum() / (number > 0).sum().clamp(min=1)
