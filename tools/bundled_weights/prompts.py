"""SAM's own objective: a click or a box gives the mask (Kirillov et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bundled_weights.contrast import region_sizes
from bundled_weights.draw import Draw
from samunet.network.encoders import Features
from samunet.network.heads import SamHead

_STRIDE = 4  # input pixels per pixel of the targets, as of SAM's masks
_SMALLEST = 4  # pixels of a target's region on the masks' grid
_LARGEST = 0.7  # of the image: a region beyond this is background
_JITTER, _MOST_JITTER = 0.1, 20  # of a box, as SAM: deviation in sides, and at most so many pixels
_STEPS_BETWEEN_CHECKS = 16


def prompt_loss(head: SamHead, features: Features, images: Tensor, regions: Tensor, draw: Draw) -> Tensor:
    """Loss of one click and one box on every image, each on a connected piece of a random region.

    A click may mean several things, so only the best of its three masks is taught; a box has one mask. The predicted
    quality of every mask is taught to be its intersection over union. In half the batches a second click lies outside.

    Args:
        head: SAM's prompt encoder and mask decoder, with four mask tokens.
        features: From the encoder.
        images: ``(batch, 3, H, W)``, what it saw.
        regions: ``(batch, H, W)`` int64.
        draw: Randomness.
    """
    coarse = regions[:, _STRIDE // 2 :: _STRIDE, _STRIDE // 2 :: _STRIDE]
    total = images.new_zeros(())
    for kind in ("click", "box"):
        target, place = draw_target(coarse, draw)
        with torch.autocast(images.device.type, enabled=False):  # places need more than 16 bits
            if kind == "click":
                points, labels = _clicks(target, place, draw)
                prompt = head.prompt_encoder((points, labels), None, None)[0]
            else:
                prompt = head.prompt_encoder(None, _boxes(target, draw), None)[0]
        tokens, upscaled = head.decode(features, images, prompt)
        masks = F.interpolate(head.masks(tokens, upscaled).float(), size=target.shape[1:], mode="bilinear")
        quality = head.mask_decoder.iou_prediction_head(tokens[:, 0]).float()
        losses = mask_losses(masks, target)
        chosen = losses[:, 1:].amin(1) if kind == "click" else losses[:, 0]
        total = total + chosen.mean() + 0.2 * F.mse_loss(quality, overlap(masks, target))
    return total


def draw_target(regions: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """A connected piece of a random region, neither tiny nor most of the image.

    Args:
        regions: ``(batch, h, w)`` int64.
        draw: Randomness.

    Returns:
        The piece, ``(batch, h, w)`` bool, and the flat index ``(batch,)`` of the pixel it was chosen by.
    """
    sizes = region_sizes(regions)
    wanted = (sizes >= _SMALLEST) & (sizes <= _LARGEST * regions[0].numel())
    # Where no region will do, any will: an image must give some target.
    weights = torch.where(wanted, 1.0, 1e-9) / sizes.clamp(min=1)
    flat = regions.flatten(1)
    place = torch.multinomial(weights.gather(1, flat), 1, generator=draw.generator)
    inside = (flat == flat.gather(1, place)).view_as(regions)
    start = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, place, True).view_as(regions)
    return connected(start, inside), place[:, 0]


def connected(start: Tensor, inside: Tensor) -> Tensor:
    """Pixels of ``inside`` that are connected (8 neighbours) to those of ``start``; all ``(batch, h, w)`` bool."""
    limit = inside.float()[:, None]
    grown = start.float()[:, None] * limit
    while True:
        before = grown
        for _ in range(_STEPS_BETWEEN_CHECKS):
            grown = F.max_pool2d(grown, 3, stride=1, padding=1) * limit
        if torch.equal(before, grown):
            return grown[:, 0] > 0


def mask_losses(masks: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice loss of every mask.

    Args:
        masks: Logits ``(batch, masks, h, w)``.
        target: ``(batch, h, w)`` bool.

    Returns:
        ``(batch, masks)``.
    """
    wanted = target[:, None].float().expand_as(masks)
    entropy = F.binary_cross_entropy_with_logits(masks, wanted, reduction="none").mean(dim=(2, 3))
    probability = masks.sigmoid()
    common = (probability * wanted).sum(dim=(2, 3))
    return entropy + 1 - (2 * common + 1) / (probability.sum(dim=(2, 3)) + wanted.sum(dim=(2, 3)) + 1)


@torch.no_grad()
def overlap(masks: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of every mask's logits ``(batch, masks, h, w)`` with the target: ``(batch, masks)``."""
    found, wanted = masks > 0, target[:, None]
    return (found & wanted).sum(dim=(2, 3)) / (found | wanted).sum(dim=(2, 3)).clamp(min=1)


def _clicks(target: Tensor, place: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Places ``(batch, n, 2)`` as x and y in input pixels, and labels ``(batch, n)``: 1 inside, 0 outside."""
    places, labels = [place], [1]
    if draw.host.random() < 0.5:
        outside = (~target.flatten(1)).float() + 1e-9
        places.append(torch.multinomial(outside, 1, generator=draw.generator)[:, 0])
        labels.append(0)
    index = torch.stack(places, dim=1)
    width = target.shape[2]
    points = torch.stack([index % width, index // width], dim=2).float() * _STRIDE + _STRIDE / 2
    return points, torch.tensor(labels, device=target.device).expand(len(target), -1)


def _boxes(target: Tensor, draw: Draw) -> Tensor:
    """``(batch, 4)``: left, top, right and bottom in input pixels, inexact as those that people draw."""
    sides = []
    for axis in (2, 1):  # over rows for x, over columns for y
        line = target.any(3 - axis).float()
        first = line.argmax(1)
        last = line.shape[1] - line.flip(1).argmax(1)
        sides.append((first * _STRIDE, last * _STRIDE))
    (left, right), (top, bottom) = sides
    box = torch.stack([left, top, right, bottom], dim=1).float()
    size = torch.stack([right - left, bottom - top] * 2, dim=1)
    shift = (draw.normal(len(target), 4) * _JITTER * size).clamp(-_MOST_JITTER, _MOST_JITTER)
    limit = torch.tensor([target.shape[2], target.shape[1]] * 2, device=target.device) * _STRIDE
    return torch.minimum((box + shift).clamp(min=0), limit)
