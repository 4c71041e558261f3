"""How a label map looks in an image: random tissues, and what scanners and cameras do to them.

As in SynthSeg (Billot et al. 2023), intensities are drawn anew for every image and have no meaning, so that what is
learned does not depend on a modality.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bundled_weights.draw import Draw
from bundled_weights.label_maps import MOST_REGIONS

KINDS = ("grey", "slices", "colour")
_SHARES = (0.5, 0.25, 0.25)
_LIMIT = 5.0


def draw_images(draw: Draw, labels: Tensor) -> tuple[Tensor, list[str]]:
    """Draw an image of every label map.

    Grey images have one channel three times; slices have the previous, this and the next slice; colour images three
    colours. Scans are standardised, pictures (all colour images and some grey ones) lie on 0-1 and are normalised with
    the bundled encoder's statistics: what :class:`samunet.network.model.InputLayer` gives to the encoder.

    Args:
        draw: Randomness.
        labels: ``(count, size, size)`` int64.

    Returns:
        ``(count, 3, size, size)`` float32 within -5 and 5, and the kind of each.
    """
    count, size, _ = labels.shape
    kinds = draw.host.choice(len(KINDS), count, p=_SHARES)
    owner, channel = _planes(kinds)
    owners = torch.as_tensor(owner, device=draw.device)
    maps = _neighbours(draw, labels, kinds, owner, channel)
    planes = _tissue(draw, maps, owners, kinds, channel)
    planes *= _bias(draw, count, size)[owners]
    planes = _acquire(draw, planes, owners, count)
    planes = _tone(draw, planes, owners, count)
    first = np.searchsorted(owner, np.arange(count))
    channels = first[:, None] + np.where(kinds[:, None] > 0, np.arange(3), 0)
    images = planes[torch.as_tensor(channels, device=draw.device)]
    return _normalise(draw, images, kinds == KINDS.index("colour")), [KINDS[kind] for kind in kinds]


def _planes(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every plane to be drawn: its image, and its channel there. A grey image has one plane, others three."""
    owner = np.repeat(np.arange(len(kinds)), np.where(kinds > 0, 3, 1))
    channel = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return owner, channel


def _neighbours(draw: Draw, labels: Tensor, kinds: np.ndarray, owner: np.ndarray, channel: np.ndarray) -> Tensor:
    """The label map of every plane; in neighbouring slices everything has moved a little, oppositely on both sides."""
    maps = labels[torch.as_tensor(owner, device=draw.device)]
    size = labels.shape[-1]
    images = np.flatnonzero(kinds == KINDS.index("slices"))
    if len(images):
        kind = kinds[owner]
        reach = draw.uniform(0, 0.03 * size, len(images), 1, 1)
        flow = draw.smooth(2 * len(images), size, draw.uniform(1, 3, 2 * len(images)), 8) * reach.repeat(2, 1, 1)
        flow = flow.view(2, len(images), size, size)
        line = torch.arange(size, device=draw.device)
        source = labels[torch.as_tensor(images, device=draw.device)].flatten(1)
        for side, sign in ((0, -1.0), (2, 1.0)):
            y = (line[:, None] + sign * flow[0]).round().long().clamp(0, size - 1)
            x = (line + sign * flow[1]).round().long().clamp(0, size - 1)
            planes = np.flatnonzero((kind == KINDS.index("slices")) & (channel == side))
            moved = source.gather(1, (y * size + x).flatten(1)).view(-1, size, size)
            maps[torch.as_tensor(planes, device=draw.device)] = moved
    return maps


def _tissue(draw: Draw, maps: Tensor, owners: Tensor, kinds: np.ndarray, channel: np.ndarray) -> Tensor:
    """Each region with its own mean and textures; ``(planes, size, size)``, mostly within 0 and 1."""
    count, size = len(kinds), maps.shape[-1]
    even = draw.uniform(0, 1, count, MOST_REGIONS)
    # A mixture of few intensities: regions far apart look alike, as tissues do.
    modes = draw.uniform(0, 1, count, 4).gather(1, draw.integers(0, 3, count, MOST_REGIONS))
    few = (modes + 0.08 * draw.normal(count, MOST_REGIONS)).clamp(0, 1)
    grey = torch.where(draw.chance(0.5, count, 1), even, few)
    saturation = draw.uniform(0.1, 0.6, count, 1, 1)
    colours = grey[..., None] + saturation * draw.uniform(-1, 1, count, MOST_REGIONS, 3)
    colours = torch.where(
        torch.as_tensor(kinds == KINDS.index("colour"), device=draw.device)[:, None, None],
        colours.clamp(0, 1),
        grey[..., None],
    )
    channels = torch.as_tensor(channel, device=draw.device)
    means = colours[owners, :, channels]
    strength = draw.uniform(0, 0.25, count, 2, MOST_REGIONS) * draw.chance(0.4, count, 2, MOST_REGIONS)
    strength[:, 1] *= draw.chance(0.3, count, 1)  # few tissues have stripes
    flat = maps.flatten(1)
    planes = means.gather(1, flat)
    for kind, texture in enumerate(_textures(draw, count, size)):
        planes.addcmul_(strength[owners, kind].gather(1, flat), texture[owners].flatten(1))
    return planes.view_as(maps)


def _textures(draw: Draw, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Per image an isotropic texture of several scales, and one of bent stripes; both about 1 in deviation."""
    grain = draw.smooth(count, size, draw.uniform(8, 40, count), 48)
    angle = draw.uniform(0, math.pi, count, 1, 1)
    line = torch.arange(size, device=draw.device) / size
    turns = draw.uniform(8, 40, count, 1, 1)
    phase = (line[:, None] * angle.cos() + line * angle.sin()) * turns
    stripes = torch.sin(2 * math.pi * (phase + 0.05 * turns * draw.smooth(count, size, draw.uniform(1, 4, count), 8)))
    return grain, 1.4 * stripes


def _bias(draw: Draw, count: int, size: int) -> Tensor:
    """Uneven sensitivity or light: ``(count, size, size)`` positive factors around 1."""
    strength = draw.uniform(0, 0.4, count, 1, 1) * draw.chance(0.6, count, 1, 1)
    return (strength * draw.smooth(count, size, draw.uniform(0.5, 1.5, count), 4)).exp()


def _acquire(draw: Draw, planes: Tensor, owners: Tensor, count: int) -> Tensor:
    """Noise that is blurred with the image, blur and loss of resolution, noise and speckle of the pixels."""
    size = planes.shape[-1]
    white = draw.normal(*planes.shape)
    grain = draw.uniform(0, 0.4, count, 1, 1) * draw.chance(0.3, count, 1, 1)
    planes.addcmul_(grain[owners], white.flip(-1))
    rows, columns = _resolution(draw, count, size).unbind(1)
    planes = rows[owners] @ planes @ columns[owners].mT
    added = 2 * draw.uniform(0, 0.25, count, 1, 1) ** 2 * draw.chance(0.7, count, 1, 1)
    speckle = draw.uniform(0, 0.5, count, 1, 1) * draw.chance(0.2, count, 1, 1)
    return planes.addcmul_((speckle[owners] * planes).add_(added[owners]), white)


def _resolution(draw: Draw, count: int, size: int) -> Tensor:
    """What the acquisition does along rows and columns, as matrices ``(count, 2, size, size)``.

    Every pixel is a mean over its neighbourhood (blur and partial volume); some images are sampled more coarsely, with
    a step of their own on each axis, and interpolated back linearly.
    """
    place = torch.arange(size, device=draw.device, dtype=torch.float32)
    both = draw.chance(0.7, count, 1, 1)
    width = draw.uniform(0.2, 1.5, count, 2, 1) * size / 224
    width = torch.where(both, width[:, :1], width)
    apart = torch.arange(1 - size, size, device=draw.device)
    kernel = torch.exp(-0.5 * (apart / width) ** 2)
    blur = kernel.unfold(-1, size, 1).flip(-2)  # row i of the matrix is the kernel around pixel i
    blur /= blur.sum(-1, keepdim=True)
    coarse = draw.some(count, 0.3)
    if len(coarse):
        index = torch.as_tensor(coarse, device=draw.device)
        step = draw.uniform(1.3, 5.0, len(coarse), 2, 1) * size / 224
        step = torch.where(both[index], step[:, :1], step)
        knots = (torch.arange(math.ceil(size / (1.3 * size / 224)) + 2, device=draw.device) - 0.5) * step
        down = torch.exp(-0.5 * ((knots[..., None] - place) / (0.4 * step[..., None])) ** 2)
        down = down / down.sum(-1, keepdim=True).clamp(min=1e-12)
        up = (1 - (place[:, None] - knots[:, :, None]).abs() / step[..., None]).clamp(min=0)
        up = up * (knots < size + step)[:, :, None]
        matrix = up @ down
        blur[index] = matrix / matrix.sum(-1, keepdim=True).clamp(min=1e-6)
    return blur


def _tone(draw: Draw, planes: Tensor, owners: Tensor, count: int) -> Tensor:
    """A monotone curve over the intensities, and inverted contrast."""
    bend = draw.uniform(-0.8, 0.8, count, 1, 1) * draw.chance(0.4, count, 1, 1)
    sign = torch.where(draw.chance(0.3, count, 1, 1), -1.0, 1.0)
    within = planes.clamp(0, 1)
    planes.addcmul_(bend[owners], within.addcmul_(within, within, value=-1))
    return planes.mul_(sign[owners])


def _normalise(draw: Draw, images: Tensor, colour: np.ndarray) -> Tensor:
    """Scans to mean 0 and deviation 1; pictures to 0-1 and then with the encoder's mean 0.5 and deviation 0.25."""
    count = len(images)
    images -= images.mean(dim=(1, 2, 3), keepdim=True)
    norm = torch.linalg.vector_norm(images.flatten(1), dim=1).view(-1, 1, 1, 1)
    images /= (norm / images[0].numel() ** 0.5).clamp(min=1e-3)
    # A picture's exposure: which of the standardised intensities are black and white.
    black, white = draw.uniform(-3, -1.2, count, 1, 1, 1), draw.uniform(1.2, 3, count, 1, 1, 1)
    scale, limit = torch.ones_like(black), torch.full_like(black, _LIMIT)
    picture = (torch.as_tensor(colour, device=draw.device) | draw.chance(0.2, count)).view(-1, 1, 1, 1)
    scale = torch.where(picture, 4 / (white - black), scale)
    shift = torch.where(picture, -black * scale - 2, 0.0)
    limit = torch.where(picture, 2.0, limit)
    images.mul_(scale).add_(shift)
    return torch.maximum(torch.minimum(images, limit, out=images), -limit, out=images)
