"""What the encoder is asked about synthetic images: which pixels belong together, and what is hidden."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.pretraining.draw import Draw
from samunet.pretraining.label_maps import MOST_REGIONS

_TEMPERATURE = 0.1
_PIXELS = 256
_HIDDEN_SHARE = 0.6


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
        regions: Numbers below :data:`~samunet.pretraining.label_maps.MOST_REGIONS`.
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


class MaskedReconstruction(nn.Module):
    """Masked-image reconstruction by one linear layer (Xie et al. 2022, SimMIM).

    Args:
        embedding: Channels of the encoder's output.
        patch_size: Input pixels per token and side.
    """

    def __init__(self, embedding: int, patch_size: int) -> None:
        super().__init__()
        self.cell = 2 * patch_size
        self.pixels = nn.Conv2d(embedding, 3 * patch_size**2, 1)
        self.patch_size = patch_size

    def hide(self, images: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Hide squares of two tokens a side, 60 % of the image.

        Returns:
            The images with 0 there, and the mask ``(batch, 1, H, W)``, 1 where something is hidden.
        """
        cells = [-(-side // self.cell) for side in images.shape[2:]]
        hidden = max(1, round(_HIDDEN_SHARE * cells[0] * cells[1]))
        order = draw.uniform(0, 1, len(images), cells[0] * cells[1]).argsort(1).argsort(1)
        mask = (order < hidden).float().view(-1, 1, *cells)
        mask = mask.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)
        mask = mask[:, :, : images.shape[2], : images.shape[3]]
        return images * (1 - mask), mask

    def forward(self, embedding: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Mean absolute error of the hidden pixels.

        Args:
            embedding: ``(batch, channels, h, w)``, from the images with parts hidden.
            images: ``(batch, 3, H, W)``, whole.
            mask: ``(batch, 1, H, W)``, as :meth:`hide` gave it.
        """
        restored = F.pixel_shuffle(self.pixels(embedding).float(), self.patch_size)
        return ((restored - images).abs() * mask).sum() / (3 * mask.sum().clamp(min=1))
