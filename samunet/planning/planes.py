"""The rule that says along which axes volumes are sliced; the others are in :mod:`samunet.planning.rules`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from samunet.planning.rules import Decision
from samunet.recipes import recipe_facts

_CUBIC = 1.5
_THICK = 0.4
_MOST_PLANE_VALUES = 1 << 27  # a quarter of a gigabyte in half precision


def planes(shape: Sequence[float], spacing: Sequence[float], num_outputs: int, physical: bool, recipe: str) -> Decision:
    """Axes along which volumes are sliced: all three where voxels are near cubes (Prasoon et al. 2013; QuickNAT).

    Args:
        shape: Median stored ``(z, y, x)``.
        spacing: Median stored spacing in mm, likewise.
        num_outputs: Classes or regions, whose logits are held for a whole volume.
        physical: Whether images have millimetres.
        recipe: Its name; published ones slice along one axis.

    Returns:
        The stored axes that become slice, row and column, for each plane, and the reason.
    """
    one = [[0, 1, 2]]
    if not physical:
        return one, "without physical spacing there is one way to slice"
    facts = recipe_facts(recipe)
    if not facts.averages:
        return one, f"{facts.source} slices along one axis"
    extent = [side * pixel for side, pixel in zip(shape, spacing)]
    ratio, flat = max(spacing) / min(spacing), min(extent) / max(extent)
    if ratio > _CUBIC:
        return one, f"voxels are {ratio:.1f} times longer than wide (at most {_CUBIC:g} to slice along all axes)"
    if flat < _THICK:
        return one, f"volumes are flat: {flat:.0%} as thick as wide (at least {_THICK:.0%} to slice along all axes)"
    if num_outputs * math.prod(shape) > _MOST_PLANE_VALUES:
        return one, f"{num_outputs} classes of {math.prod(shape):.3g} voxels are too many to hold at once"
    upright = bool(extent[1] >= extent[2])  # of the first plane's slices; the others lie in the input likewise
    others = [
        [axis, *sorted((side for side in range(3) if side != axis), key=lambda side: extent[side], reverse=upright)]
        for axis in (1, 2)
    ]
    return [*one, *others], f"voxels are near cubes (ratio {ratio:.2g}): slices along all three axes teach and vote"
