"""Slicing planes of a stored volume: along the slicing axis, and where voxels are near cubes along the others.

A network that sees the slices of all three learns more from every case, and its predictions along each are averaged
(Prasoon et al. 2013; Guha Roy et al. 2019, QuickNAT).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from samunet.preprocessing.case import CaseRecord

if TYPE_CHECKING:
    from torch import Tensor

Volume = TypeVar("Volume", np.ndarray, "Tensor")


@dataclass(frozen=True)
class SlicingPlane:
    """A slicing plane: the stored axes (0: z, 1: y, 2: x) that become slice, row and column."""

    axes: tuple[int, int, int] = (0, 1, 2)

    def cut(self, volume: Volume) -> Volume:
        """A view ``(..., slices, rows, columns)`` of an array or tensor ``(..., z, y, x)``."""
        leading = volume.ndim - 3
        order = (*range(leading), *(leading + axis for axis in self.axes))
        return volume.transpose(order) if isinstance(volume, np.ndarray) else volume.permute(order)

    def positions(self, places: np.ndarray) -> np.ndarray:
        """Positions ``(n, 3)`` in the volume as positions among the slices."""
        return places[:, self.axes]

    def sides(self, stored: Sequence[float]) -> list[float]:
        """Numbers that belong to the stored axes, such as a shape, in this plane's order."""
        return [stored[axis] for axis in self.axes]

    def spacing(self, record: CaseRecord) -> list[float] | None:
        """Millimetres of a slice's pixels, ``[rows, columns]``; None without physical spacing."""
        if record.stored_spacing is None:
            return None
        return self.sides([record.slice_spacing, *record.stored_spacing])[1:]

    def mirrored(self, axes: Sequence[int]) -> list[int]:
        """Of ``ConfigurationPlan.mirror_axes`` (0: y, 1: x) those that lie in this plane, as 0: rows, 1: columns."""
        return [place for place, axis in enumerate(self.axes[1:]) if axis - 1 in axes]


ALONG_Z = SlicingPlane()


def slab(z: int, depth: int, slices: int) -> list[int]:
    """Indices of so many neighbouring slices around slice ``z``, an odd number; at either end the last one repeats."""
    return [min(max(z + shift, 0), depth - 1) for shift in range(-(slices // 2), slices // 2 + 1)]


def slice_with_context(read: Callable[[int, int], np.ndarray], z: int, depth: int, neighbours: bool) -> np.ndarray:
    """Channels of one network input before resampling.

    Args:
        read: ``read(first, last)`` gives slices as ``(channels, slices, y, x)``.
        z: Slice index.
        depth: Number of slices.
        neighbours: Whether the previous and the next slice come along; at either end the slice itself stands in.

    Returns:
        ``(channels, y, x)``; with neighbours ``(3, y, x)``: previous, this, next slice of the only channel.
    """
    if not neighbours:
        return read(z, z + 1)[:, 0]
    first, last = max(z - 1, 0), min(z + 1, depth - 1)
    slices = read(first, last + 1)[0]
    return slices[[0, z - first, last - first]]
