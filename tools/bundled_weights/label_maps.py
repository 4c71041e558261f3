"""Random label maps: what lies where in a synthetic image.

A *base* divides the whole image (smooth noise, cells, layers); *objects* are painted over it (nested organs, polygons,
tubes, trees, small spots); a *body* may leave air around everything. Hoffmann et al. (2021, SynthMorph) and Dey et al.
(2024, anatomix) train on maps of noise and of shapes; tubes, trees and spots stand for vessels, ducts and lesions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bundled_weights.draw import Draw

AIR = 0
_SPOTS = 40
_TREE_GENERATIONS = 4
_SEGMENT_POINTS = 40


def draw_label_maps(draw: Draw, count: int, size: int) -> tuple[Tensor, list[set[str]]]:
    """Draw label maps.

    Args:
        draw: Randomness.
        count: Number of maps.
        size: Side in pixels.

    Returns:
        ``(count, size, size)`` int64 with regions numbered from 0 without gaps, and the families in each map.
    """
    labels = torch.ones(count, size, size, dtype=torch.long, device=draw.device)
    families: list[set[str]] = [set() for _ in range(count)]
    bases = draw.host.integers(0, len(BASES) + 1, count)
    for number, (name, base) in enumerate(BASES.items()):
        _paint(labels, families, name, (bases == number).nonzero()[0], lambda n, base=base: base(draw, n, size), 0)
    offset = MOST_BASE_REGIONS
    plain = bases == len(BASES)
    for name, (objects, share, most) in OBJECTS.items():
        chosen = draw.host.random(count) < share
        if name == "organs":
            chosen |= plain
        _paint(
            labels, families, name, chosen.nonzero()[0], lambda n, objects=objects: objects(draw, n, size), offset
        )  # fmt: skip
        offset += most
    bodies = draw.some(count, 0.35)
    if len(bodies):
        index = torch.as_tensor(bodies, device=draw.device)
        labels[index] = torch.where(_body(draw, len(bodies), size), labels[index], AIR)
        for image in bodies:
            families[image].add("body")
    return _renumber(labels, offset + 1), families


def _paint(
    labels: Tensor, families: list[set[str]], name: str, chosen, paint: Callable[[int], Tensor], offset: int
) -> None:
    """Paint what is above 0 over the chosen maps, with its own numbers."""
    if not len(chosen):
        return
    index = torch.as_tensor(chosen, device=labels.device)
    painted = paint(len(chosen))
    labels[index] = torch.where(painted > 0, painted + offset, labels[index])
    for image in chosen:
        families[image].add(name)


def _renumber(labels: Tensor, most: int) -> Tensor:
    """Numbers from 0 without gaps, in every map; those without air begin with their lowest region."""
    flat = labels.flatten(1)
    present = torch.zeros(len(flat), most, dtype=torch.long, device=labels.device)
    present.scatter_(1, flat, 1)
    return (present.cumsum(1) - 1).gather(1, flat).view_as(labels)


# Bases: regions from 1 on, at every pixel.


def noise_regions(draw: Draw, count: int, size: int) -> Tensor:
    """Where each of several smooth fields is highest: 2 to 7 winding regions, each of one or more pieces."""
    most = 7
    detail = draw.uniform(1.0, 6.0, count).repeat_interleave(most)
    slope = 1 + int(draw.host.integers(2))
    fields = draw.smooth(count * most, size, detail, slope=slope).view(count, most, size, size)
    unused = torch.arange(most, device=draw.device) >= draw.integers(2, most, count, 1)
    lead = (0.4 * draw.normal(count, most)).masked_fill(unused, -math.inf)
    return _highest(fields.add_(lead[:, :, None, None])) + 1


def cells(draw: Draw, count: int, size: int) -> Tensor:
    """Bent cells around 3 to 16 points (a power diagram of warped places)."""
    most = 16
    y, x = _places(draw, count, size, 0.15)
    stretch = draw.uniform(0.5, 2.0, count, 1, 1)
    points = draw.uniform(-1, 1, count, most, 2)
    weights = (points**2).sum(2) / 2 + draw.uniform(0, 0.05, count, most)
    unused = torch.arange(most, device=draw.device) >= draw.integers(3, most, count, 1)
    weights = weights.masked_fill(unused, math.inf)
    places = torch.stack([y * stretch, x], dim=1).flatten(2)
    scores = (points @ places).sub_(weights[:, :, None])
    return _highest(scores.view(count, most, size, size)) + 1


def layers(draw: Draw, count: int, size: int) -> Tensor:
    """2 to 9 layers of any thickness, flat or around a centre (skin, retina, bowel wall)."""
    most = 8
    y, x = _places(draw, count, size, 0.2)
    angle = draw.uniform(0, 2 * math.pi, count, 1, 1)
    centre = draw.uniform(-0.6, 0.6, 2, count, 1, 1)
    flat = y * angle.cos() + x * angle.sin()
    field = torch.where(draw.chance(0.5, count, 1, 1), flat, torch.hypot(y - centre[0], x - centre[1]) - 0.7)
    field = field + 0.15 * draw.smooth(count, size, draw.uniform(1, 3, count))
    borders = draw.uniform(-0.9, 0.9, count, most)
    borders[:, 0] *= 0.3  # one border lies in the image
    unused = torch.arange(most, device=draw.device) >= draw.integers(1, most, count, 1)
    borders = borders.masked_fill(unused, math.inf)
    region = torch.ones(count, size, size, dtype=torch.long, device=draw.device)
    for border in borders.unbind(1):
        region += field > border[:, None, None]
    return region


# Objects: 0 where there is none, else the number of the object or of its part.


def organs(draw: Draw, count: int, size: int) -> Tensor:
    """1 to 6 bent ellipses, many of them with one or two more inside (wall, cavity, core)."""
    most = 6
    y, x = _places(draw, count, size, 0.12)
    number = draw.integers(1, most, count)
    painted = torch.zeros(count, size, size, dtype=torch.long, device=draw.device)
    for organ in range(most):
        reach = 0.5 if organ == 0 else 0.95
        radius = _distance(draw, y, x, reach, 0.06, 0.55)
        inner = draw.uniform(0.15, 0.95, 2, count, 1, 1)
        inner = torch.where(draw.chance(0.5, 2, count, 1, 1), inner, 0.0)
        part = 3 * organ + 1 + (radius < inner[0]).long() + (radius < inner[1])
        painted = torch.where((radius < 1) & (organ < number)[:, None, None], part, painted)
    return painted


def polygons(draw: Draw, count: int, size: int) -> Tensor:
    """1 to 5 convex polygons of 3 to 7 edges, some of them thin."""
    most, edges = 5, 7
    y, x = _places(draw, count, size, 0.02)
    ones = torch.ones_like(y)
    places = torch.stack([y, x, ones], dim=1).flatten(2)
    angle = (torch.arange(edges, device=draw.device) + draw.uniform(0.1, 0.9, count, most, edges)) * 2 * math.pi / edges
    distance = draw.uniform(0.04, 0.45, count, most, 1) * draw.uniform(0.4, 1.0, count, most, edges)
    open_edges = torch.arange(edges, device=draw.device) >= draw.integers(5, edges, count, most, 1)
    distance = distance + open_edges * 0.3
    centre = draw.uniform(-0.9, 0.9, count, most, 1, 2)
    normal = torch.stack([angle.cos(), angle.sin()], dim=3)
    plane = torch.cat([normal, -((normal * centre).sum(3) + distance)[..., None]], dim=3)
    inside = ((plane.flatten(1, 2) @ places).view(count, most, edges, -1) < 0).all(2).view(count, most, size, size)
    used = torch.arange(most, device=draw.device) < draw.integers(1, most, count, 1)
    number = torch.arange(1, most + 1, device=draw.device)[:, None, None]
    return (inside * used[:, :, None, None] * number).amax(1)


def trees(draw: Draw, count: int, size: int) -> Tensor:
    """A tree of vessels, 1 to 6 px wide at its root, branching three times."""
    unit = size / 224
    start = draw.uniform(0.1, 0.9, count, 1, 2) * size
    angle = draw.uniform(0, 2 * math.pi, count, 1)
    radius = draw.uniform(0.6, 3.0, count, 1) * unit
    length = draw.uniform(0.15, 0.35, count, 1) * size
    bend = draw.uniform(0, 0.12, count, 1)
    places, radii = [], []
    for generation in range(_TREE_GENERATIONS):
        path, angle = _walk(draw, start, angle, length, bend)
        places.append(path.flatten(1, 2))
        radii.append(radius[:, :, None].expand(path.shape[:3]).flatten(1))
        if generation < _TREE_GENERATIONS - 1:
            start = path[:, :, -1].repeat_interleave(2, 1)
            fork = torch.tensor([-1.0, 1.0], device=draw.device).repeat(angle.shape[1])
            angle = angle.repeat_interleave(2, 1) + fork * draw.uniform(0.2, 1.0, count, 2 * angle.shape[1])
            radius = radius.repeat_interleave(2, 1) * draw.uniform(0.6, 0.95, count, 2 * radius.shape[1])
            length = length.repeat_interleave(2, 1) * draw.uniform(0.6, 1.0, count, 2 * length.shape[1])
    places, radii = torch.cat(places, 1), torch.cat(radii, 1)
    return _stamp(places, radii, torch.ones_like(radii, dtype=torch.long), size, math.ceil(3 * unit))


def tubes(draw: Draw, count: int, size: int) -> Tensor:
    """1 to 3 winding tubes, up to 18 px wide, some of them with a wall."""
    most, unit = 3, size / 224
    start = draw.uniform(0.1, 0.9, count, most, 2) * size
    angle = draw.uniform(0, 2 * math.pi, count, most)
    length = draw.uniform(0.3, 0.9, count, most) * size
    pieces = []
    for _ in range(3):
        path, angle = _walk(draw, start, angle, length / 3, draw.uniform(0, 0.15, count, most))
        pieces.append(path)
        start = path[:, :, -1]
    path = torch.cat(pieces, 2)
    used = torch.arange(most, device=draw.device) < draw.integers(1, most, count, 1)
    radius = draw.uniform(1.5, 9.0, count, most) * used * unit
    lumen = radius * draw.uniform(0.4, 0.8, count, most) * draw.chance(0.5, count, most)
    number = torch.arange(1, most + 1, device=draw.device).expand(count, -1)
    outer, inner = (
        _stamp(
            path.flatten(1, 2),
            r[:, :, None].expand(path.shape[:3]).flatten(1),
            number[:, :, None].expand(path.shape[:3]).flatten(1),
            size,
            math.ceil(9 * unit),
        )
        for r in (radius, lumen)
    )
    return torch.where(inner > 0, inner + most, outer)


def spots(draw: Draw, count: int, size: int) -> Tensor:
    """1 to 40 spots of 2 to 12 px, of up to three kinds, anywhere or in a cluster (lesions, cells, calcifications)."""
    unit = size / 224
    spread = torch.where(draw.chance(0.5, count, 1, 1), 0.5, draw.uniform(0.08, 0.3, count, 1, 1))
    centre = draw.uniform(0.3, 0.7, count, 1, 2)
    places = (centre + spread * draw.uniform(-1, 1, count, _SPOTS, 2)) * size
    used = torch.arange(_SPOTS, device=draw.device) < draw.integers(1, _SPOTS, count, 1)
    typical = draw.uniform(1.0, 4.0, count, 1)
    radius = (typical * draw.uniform(0.6, 1.5, count, _SPOTS)).clamp(1, 6) * used * unit
    kinds = draw.integers(1, 3, count, 1)
    kind = torch.remainder(draw.integers(0, 5, count, _SPOTS), kinds) + 1
    return _stamp(places, radius, kind, size, math.ceil(6 * unit))


MOST_BASE_REGIONS = 16
BASES: dict[str, Callable[[Draw, int, int], Tensor]] = {"noise": noise_regions, "cells": cells, "layers": layers}
# In the order of painting: how to draw it, share of the images, highest number it paints.
OBJECTS: dict[str, tuple[Callable[[Draw, int, int], Tensor], float, int]] = {
    "organs": (organs, 0.45, 18),
    "polygons": (polygons, 0.2, 5),
    "tubes": (tubes, 0.2, 6),
    "trees": (trees, 0.2, 1),
    "spots": (spots, 0.25, 3),
}
MOST_REGIONS = 1 + MOST_BASE_REGIONS + sum(most for _, _, most in OBJECTS.values())


def _highest(fields: Tensor) -> Tensor:
    """``argmax`` over axis 1, which torch computes many times slower on CPU."""
    best, index = fields[:, 0].clone(), torch.zeros_like(fields[:, 0], dtype=torch.long)
    for number in range(1, fields.shape[1]):
        field = fields[:, number]
        index.masked_fill_(field > best, number)
        torch.maximum(best, field, out=best)
    return index


def _body(draw: Draw, count: int, size: int) -> Tensor:
    """True inside one large bent ellipse."""
    y, x = _places(draw, count, size, 0.06)
    return _distance(draw, y, x, 0.15, 0.65, 1.0) < 1


def _places(draw: Draw, count: int, size: int, warp: float) -> tuple[Tensor, Tensor]:
    """Coordinates from -1 to 1 of every pixel, bent by up to about ``warp``; both ``(count, size, size)``."""
    line = (torch.arange(size, device=draw.device) + 0.5) / size * 2 - 1
    detail = draw.uniform(1, 4, count).repeat(2)
    bend = draw.smooth(2 * count, size, detail, 10, slope=2).view(2, count, size, size) * draw.uniform(
        0, warp, count, 1, 1
    )
    return bend[0] + line[:, None], bend[1] + line


def _distance(draw: Draw, y: Tensor, x: Tensor, reach: float, smallest: float, largest: float) -> Tensor:
    """Distance from the centre of a random ellipse, 1 at its border."""
    count = len(y)
    angle = draw.uniform(0, math.pi, count, 1, 1)
    centre = draw.uniform(-reach, reach, 2, count, 1, 1)
    logs = draw.uniform(math.log(smallest), math.log(largest), 2, count, 1, 1)
    # Two axes far apart make a needle: the second stays within three times of the first.
    axes = logs[0].exp(), logs[1].clamp(logs[0] - 1.1, logs[0] + 1.1).clamp(max=math.log(largest)).exp()
    dy, dx = y - centre[0], x - centre[1]
    cosine, sine = angle.cos(), angle.sin()
    return torch.hypot(dy * (cosine / axes[0]) + dx * (sine / axes[0]), dx * (cosine / axes[1]) - dy * (sine / axes[1]))


def _walk(draw: Draw, start: Tensor, angle: Tensor, length: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
    """Paths ``(count, paths, points, 2)`` in pixels that wind from ``start``, and their last directions."""
    turns = draw.normal(*angle.shape, _SEGMENT_POINTS) * bend[..., None]
    angles = angle[..., None] + turns.cumsum(2)
    steps = torch.stack([angles.cos(), angles.sin()], dim=3) * (length / _SEGMENT_POINTS)[..., None, None]
    return start[:, :, None] + steps.cumsum(2), angles[..., -1]


def _stamp(places: Tensor, radii: Tensor, numbers: Tensor, size: int, largest: int) -> Tensor:
    """Paint discs; where they overlap, the highest number stays (so the order of writing does not matter).

    Args:
        places: ``(count, points, 2)`` in pixels; points outside the image are left out.
        radii: ``(count, points)`` in pixels; nothing is painted where it is 0.
        numbers: ``(count, points)``.
        size: Side of the image.
        largest: Bound of the radii.
    """
    count = len(places)
    line = torch.arange(-largest, largest + 1, device=places.device)
    dy, dx = (offset.flatten() for offset in torch.meshgrid(line, line, indexing="ij"))
    near = dy**2 + dx**2 <= largest**2
    dy, dx = dy[near], dx[near]
    centre = places.floor().long()
    y, x = centre[..., 0, None] + dy, centre[..., 1, None] + dx
    painted = (dy**2 + dx**2 <= radii[..., None] ** 2) & (radii[..., None] > 0)
    painted &= (y >= 0) & (y < size) & (x >= 0) & (x < size)
    index = torch.where(painted, y * size + x, 0).flatten(1)
    values = (painted * numbers[..., None]).flatten(1)
    canvas = torch.zeros(count, size * size, dtype=torch.long, device=places.device)
    return canvas.scatter_reduce_(1, index, values, "amax").view(count, size, size)
