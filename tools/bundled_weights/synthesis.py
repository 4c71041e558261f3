"""Endless batches of synthetic images with their regions, made in torch on the device that trains on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bundled_weights.appearance import draw_images
from bundled_weights.draw import Draw
from bundled_weights.label_maps import draw_label_maps


@dataclass(frozen=True)
class SyntheticBatch:
    """Images and what is in them.

    Attributes:
        images: ``(batch, 3, size, size)`` float32 as the encoder gets them from the input layer.
        regions: ``(batch, size, size)`` int64, numbered from 0 in every image; of ``slices``, those of the middle one.
        families: Per image, the families of shapes in it.
        kinds: Per image, ``grey``, ``slices`` or ``colour``.
    """

    images: Tensor
    regions: Tensor
    families: list[set[str]]
    kinds: list[str]


@torch.no_grad()
def synthetic_batch(seed: int, number: int, batch_size: int, size: int, device: torch.device) -> SyntheticBatch:
    """Batch ``number`` of the stream that ``seed`` stands for.

    It depends on the arguments alone, so that a resumed training sees what an uninterrupted one would have seen.
    Devices draw different numbers.
    """
    draw = Draw(device, seed, number)
    regions, families = draw_label_maps(draw, batch_size, size)
    images, kinds = draw_images(draw, regions)
    return SyntheticBatch(images, regions, families, kinds)
